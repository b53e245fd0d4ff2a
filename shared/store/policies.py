"""MTA-STS policies that were fetched: in force until they end, whichever process fetched them and whatever restarts."""

from datetime import datetime

import structlog

from shared.mail.mta_sts import Held
from shared.store.pool import Pool

log = structlog.get_logger()

# Of two processes that fetched at the same time, the later one has the newer policy.
_PUT = """
    INSERT INTO mta_sts_policies (domain, id, policy, fetched_at, expires_at) VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (domain) DO UPDATE
    SET id = excluded.id, policy = excluded.policy, fetched_at = excluded.fetched_at, expires_at = excluded.expires_at
    WHERE mta_sts_policies.fetched_at <= excluded.fetched_at
"""


class StoredPolicies:
    """The table `mta_sts_policies`."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def get(self, domain: str) -> Held | None:
        """Return the policy of a domain, in force or not; None when there is none that can be read.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        async with self._pool.statement() as connection:
            cursor = await connection.execute(
                "SELECT id, policy, fetched_at FROM mta_sts_policies WHERE domain = %s", (domain,)
            )
            row = await cursor.fetchone()
        try:
            return None if row is None else Held.of(*row)
        except ValueError as error:  # of a release that reads more than this one
            log.warning("stored MTA-STS policy cannot be read", domain=domain, error=str(error))
            return None

    async def put(self, domain: str, held: Held) -> None:
        """Store the policy of a domain, unless there is one that was fetched later.

        Raises:
            StoreUnavailable: It may or may not have been committed.
        """
        values = (domain, held.id, held.text, held.fetched_at, held.expires_at)
        async with self._pool.statement() as connection:
            await connection.execute(_PUT, values)

    async def prune(self, ended_before: datetime) -> int:
        """Delete policies that are no longer in force since then; return how many.

        Raises:
            StoreUnavailable: It may or may not have been committed.
        """
        async with self._pool.statement() as connection:
            deleted = await connection.execute("DELETE FROM mta_sts_policies WHERE expires_at < %s", (ended_before,))
            return deleted.rowcount
