"""Sessions of the panel, and the login tries that failed.

A session is a cookie of 256 bits, of which the hash is kept. It ends with the token that opened it, after 12 hours in
which nobody used it, and after 7 days in any case.
"""

import secrets
from ipaddress import IPv6Address, ip_address

import msgspec

from shared.store.pool import Pool
from shared.store.tokens import BOOTSTRAP, Access, digest

MOST_TRIES = 10  # that may fail in a minute, for one address
_IDLE = "12 hours"
_LONGEST = "7 days"
_SEEN = 60  # seconds between two writes of when a session was used
_NETWORK = 64  # bits of an IPv6 address that one customer has; the rest of it is theirs to choose
_LONGEST_ADDRESS = 64  # characters

_LIVE = f"s.created_at > now() - interval '{_LONGEST}' AND s.seen_at > now() - interval '{_IDLE}'"
_FIND = f"""
    SELECT t.id, t.name, t.role, s.seen_at < now() - make_interval(secs => %s) FROM sessions s
    LEFT JOIN tokens t ON t.id = s.token_id AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now())
    WHERE s.hash = %s AND {_LIVE} AND (t.id IS NOT NULL OR s.bootstrap = %s)
"""  # noqa: S608 - constants


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A session that was opened.

    Attributes:
        cookie: What its owner shows from now on; kept nowhere.
        access: Who that is.
    """

    cookie: str
    access: Access


class Sessions:
    """The tables `sessions` and `login_failures`."""

    def __init__(self, pool: Pool, *, bootstrap: bytes | None) -> None:
        """Use a pool.

        Args:
            pool: The store.
            bootstrap: The hash of ADMIN_TOKEN; sessions that were opened with another one are over.
        """
        self._pool = pool
        self._bootstrap = bootstrap

    async def open(self, access: Access) -> Opened:
        """Open a session for whoever showed a token."""
        cookie = secrets.token_urlsafe(32)
        bootstrap = self._bootstrap if access.id is None else None
        async with self._pool.statement() as connection:
            await connection.execute(
                "INSERT INTO sessions (hash, token_id, bootstrap) VALUES (%s, %s, %s)",
                (digest(cookie), access.id, bootstrap),
            )
        return Opened(cookie=cookie, access=access)

    async def find(self, cookie: str) -> Access | None:
        """Return whose session it is; None when there is none, or it is over."""
        hashed = digest(cookie)
        async with self._pool.statement() as connection:
            row = await (await connection.execute(_FIND, (_SEEN, hashed, self._bootstrap))).fetchone()
            if row is None:
                return None
            if row[3]:
                await connection.execute("UPDATE sessions SET seen_at = now() WHERE hash = %s", (hashed,))
        if row[0] is None:
            return Access(id=None, name=BOOTSTRAP, role="admin")
        return Access(id=row[0], name=row[1], role=row[2])

    async def close(self, cookie: str) -> None:
        """End a session."""
        async with self._pool.statement() as connection:
            await connection.execute("DELETE FROM sessions WHERE hash = %s", (digest(cookie),))

    async def failed(self, address: str) -> int:
        """Return how many tries from an address failed within the last minute."""
        async with self._pool.statement() as connection:
            cursor = await connection.execute(
                "SELECT count(*) FROM login_failures WHERE address = %s AND at > now() - interval '1 minute'",
                (network(address),),
            )
            return int((await cursor.fetchall())[0][0])

    async def fail(self, address: str) -> None:
        """Remember a try that failed."""
        async with self._pool.statement() as connection:
            await connection.execute("INSERT INTO login_failures (address) VALUES (%s)", (network(address),))

    async def prune(self) -> int:
        """Remove what is over; return how many rows."""
        removed = 0
        async with self._pool.transaction() as connection:
            for statement in (
                f"DELETE FROM sessions s WHERE NOT ({_LIVE})",  # noqa: S608 - constants
                "DELETE FROM login_failures WHERE at < now() - interval '1 minute'",
            ):
                removed += (await connection.execute(statement)).rowcount
        return removed


def network(address: str) -> str:
    """Return whom failed tries are counted against."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:_LONGEST_ADDRESS].replace("\x00", "")
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    kept = int(found) >> (128 - _NETWORK) << (128 - _NETWORK)
    return f"{IPv6Address(kept)}/{_NETWORK}"
