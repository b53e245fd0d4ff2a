"""Mail that waits for its next attempt."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from psycopg.rows import class_row, scalar_row

from shared.mail import codec
from shared.mail.envelope import Delivery
from shared.mail.rule import ANY
from shared.store.pool import Pool


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """One waiting delivery, without its body."""

    id: int
    message_id: str
    mail_from: str
    rcpt_to: list[str]
    domain: str
    target: str
    accepted_at: datetime
    deferred_at: datetime
    next_attempt_at: datetime
    attempts: int
    reply: str
    size: int


class DomainTotal(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for one domain."""

    domain: str
    target: str
    deliveries: int
    bytes: int
    oldest: datetime
    next_attempt_at: datetime


_SUFFIXES = 1_000  # wildcard keys told apart when waiting mail is flushed
_COLUMNS = ", ".join(Waiting.__struct_fields__)
_SELECTED = """
    (%(domain)s::text IS NULL OR domain = %(domain)s)
    AND (%(target)s::text IS NULL OR target = %(target)s)
    AND (%(message_id)s::text IS NULL OR message_id = %(message_id)s)
"""


class Deferred:
    """The table `deferred`."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def defer(self, delivery: Delivery, body: bytes, at: datetime) -> None:
        """Keep a delivery until then; when this returns it is committed.

        Raises:
            StoreUnavailable: It may or may not have been committed.
        """
        envelope = delivery.envelope
        row = {
            "message_id": envelope.id,
            "mail_from": envelope.mail_from,
            "rcpt_to": list(envelope.rcpt_to),
            "domain": delivery.domain,
            "target": ",".join(delivery.route.targets),
            "accepted_at": envelope.accepted_at,
            "next_attempt_at": at,
            "attempts": delivery.attempts,
            "reply": "" if delivery.reply is None else str(delivery.reply).replace("\x00", ""),
            "size": len(body),
            "delivery": codec.encode(delivery, body),
        }
        names = ", ".join(row)
        places = ", ".join(f"%({name})s" for name in row)
        async with self._pool.transaction() as connection:
            await connection.execute(f"INSERT INTO deferred ({names}) VALUES ({places})", row, binary=True)  # noqa: S608 - our own column names

    async def wake(self, *, now: datetime, limit: int, publish: Callable[[Sequence[bytes]], Awaitable[None]]) -> int:
        """Hand out what is due and take it out of the table; return how many.

        The rows are deleted, published and only then committed: a crash before the commit publishes them again. Rows
        that another scheduler has in hand are passed over, so any number of schedulers may run.

        Args:
            now: The time.
            limit: The most rows at once.
            publish: Publishes the wire forms; must return only when all are confirmed.

        Raises:
            StoreUnavailable: The rows may be published again.
        """
        # No limit on the time: a publish waits for its confirm as long as the broker needs.
        async with (
            self._pool.transaction(patience=None) as connection,
            connection.cursor(row_factory=scalar_row) as cursor,
        ):
            await cursor.execute(
                """
                DELETE FROM deferred WHERE id = ANY(ARRAY(
                    SELECT id FROM deferred WHERE next_attempt_at <= %s
                    ORDER BY next_attempt_at, id LIMIT %s FOR UPDATE SKIP LOCKED
                )) RETURNING delivery
                """,
                (now, limit),
                binary=True,
            )
            due = [bytes(wire) for wire in await cursor.fetchall()]
            if due:
                await publish(due)
            return len(due)

    async def totals(self) -> list[DomainTotal]:
        """Return what waits, by domain and target, the most first."""
        async with (
            self._pool.transaction() as connection,
            connection.cursor(row_factory=class_row(DomainTotal)) as cursor,
        ):
            await cursor.execute(
                """
                SELECT domain, target, count(*) AS deliveries, sum(size)::bigint AS bytes,
                       min(accepted_at) AS oldest, min(next_attempt_at) AS next_attempt_at
                FROM deferred GROUP BY domain, target ORDER BY count(*) DESC, domain
                """
            )
            return await cursor.fetchall()

    async def matching(
        self, *, domain: str | None = None, target: str | None = None, message_id: str | None = None, limit: int = 100
    ) -> list[Waiting]:
        """Return waiting deliveries, those due first. Filters that are None do not filter."""
        selection = _selection(domain, target, message_id)
        async with self._pool.transaction() as connection, connection.cursor(row_factory=class_row(Waiting)) as cursor:
            await cursor.execute(
                f"SELECT {_COLUMNS} FROM deferred WHERE {_SELECTED} ORDER BY next_attempt_at, id LIMIT %(limit)s",  # noqa: S608 - constants
                {**selection, "limit": limit},
            )
            return await cursor.fetchall()

    async def message(self, id: int) -> tuple[Delivery, bytes] | None:  # noqa: A002 - the column's name
        """Return one waiting delivery whole, or None when it waits no longer."""
        async with self._pool.transaction() as connection, connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute("SELECT delivery FROM deferred WHERE id = %s", (id,), binary=True)
            wire = await cursor.fetchone()
        return None if wire is None else codec.decode(bytes(wire))

    async def retry(
        self, *, now: datetime, domain: str | None = None, target: str | None = None, message_id: str | None = None
    ) -> int:
        """Make waiting deliveries due at once; return how many."""
        async with self._pool.transaction() as connection:
            cursor = await connection.execute(
                f"UPDATE deferred SET next_attempt_at = %(now)s WHERE {_SELECTED} AND next_attempt_at > %(now)s",  # noqa: S608
                {**_selection(domain, target, message_id), "now": now},
            )
            return cursor.rowcount

    async def flush(self, keys: Sequence[str], now: datetime) -> int:
        """Make waiting deliveries due to whose domains rules with these keys may apply; return how many."""
        exact = [key for key in keys if not key.startswith("*")]
        below = [key[1:] for key in keys if key.startswith("*.")]
        async with self._pool.transaction() as connection:
            # Rows that a scheduler has in hand are due already, and locked until the broker has confirmed them.
            cursor = await connection.execute(
                """
                UPDATE deferred SET next_attempt_at = %(now)s WHERE id = ANY(ARRAY(
                    SELECT id FROM deferred WHERE next_attempt_at > %(now)s AND (
                        %(all)s OR domain = ANY(%(exact)s)
                        OR EXISTS (SELECT FROM unnest(%(below)s::text[]) AS s WHERE right(domain, length(s)) = s)
                    ) FOR UPDATE SKIP LOCKED
                ))
                """,
                # Each row is compared with each suffix: very many are not worth telling apart.
                {"now": now, "all": ANY in keys or len(below) > _SUFFIXES, "exact": exact, "below": below[:_SUFFIXES]},
            )
            return cursor.rowcount


def _selection(domain: str | None, target: str | None, message_id: str | None) -> dict[str, Any]:
    return {"domain": domain, "target": target, "message_id": message_id}
