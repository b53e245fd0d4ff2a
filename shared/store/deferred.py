"""Mail that waits for its next attempt."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from psycopg.rows import class_row, scalar_row

from shared.mail import codec
from shared.mail.envelope import Delivery
from shared.mail.rule import ANY
from shared.store.pool import Pool
from shared.store.selection import EVERYTHING, Selection, where

Cursor = tuple[datetime, int]  # the place of a delivery in the order in which they are due


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """One waiting delivery, without its body.

    Attributes:
        id: Of this delivery; another attempt that fails makes a new one.
        message_id: The queue id of the message.
        mail_from: The reverse-path.
        rcpt_to: The recipients, all of one domain.
        domain: Theirs, normalised.
        target: Where the last attempt went; "" for the domain's own MX hosts.
        accepted_at: When the fleet took the message.
        deferred_at: When the last attempt had failed, or was put off.
        next_attempt_at: When it is due.
        attempts: How often it was tried.
        reply: What was answered last.
        size: Bytes of the body; 0 when it is stored apart.
        put_off: The transport that had no room for it, so that the last attempt is not over; None when it is.
    """

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
    put_off: Literal["https", "smtp"] | None = None

    @property
    def cursor(self) -> Cursor:
        """Where the page after this delivery begins."""
        return self.next_attempt_at, self.id


class DomainTotal(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for one domain, last tried at one target. `put_off`: those for which a transport had no room."""

    domain: str
    target: str
    deliveries: int
    bytes: int
    oldest: datetime
    next_attempt_at: datetime
    put_off: int = 0


_SUFFIXES = 1_000  # wildcard keys told apart when waiting mail is flushed
_DUE_AT_ONCE = 10_000  # rows made due in one transaction: a million would take longer than its patience
_MANY = 10_000  # deliveries that match; so many are soon met in any order
COLUMNS = ", ".join(Waiting.__struct_fields__)


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
            "put_off": delivery.put_off,
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

    async def totals(self, *, limit: int | None = None) -> list[DomainTotal]:
        """Return what waits, by domain and target, the most first."""
        async with (
            self._pool.transaction() as connection,
            connection.cursor(row_factory=class_row(DomainTotal)) as cursor,
        ):
            await cursor.execute(
                """
                SELECT domain, target, count(*) AS deliveries, sum(size)::bigint AS bytes,
                       min(accepted_at) AS oldest, min(next_attempt_at) AS next_attempt_at, count(put_off) AS put_off
                FROM deferred GROUP BY domain, target ORDER BY count(*) DESC, domain, target LIMIT %s
                """,
                (limit,),
            )
            return await cursor.fetchall()

    async def matching(
        self, selection: Selection = EVERYTHING, *, limit: int = 100, after: Cursor | None = None
    ) -> list[Waiting]:
        """Return waiting deliveries, those due first.

        Args:
            selection: Which.
            limit: The most of them.
            after: The `cursor` of the last one of the page before; None for the first page.
        """
        condition, values = where(selection)
        # To look for few among very many in the order in which they are due takes seconds: they are found first, and
        # then put in order. `OFFSET 0` keeps PostgreSQL from doing it the other way round.
        few = not selection.everything and await self.count(selection, at_most=_MANY) < _MANY
        rows = f"(SELECT {COLUMNS} FROM deferred WHERE {condition} OFFSET 0) AS few" if few else "deferred"  # noqa: S608
        if after is not None:
            condition += " AND (next_attempt_at, id) > (%(after_time)s, %(after_id)s)"
            values |= {"after_time": after[0], "after_id": after[1]}
        async with self._pool.transaction() as connection, connection.cursor(row_factory=class_row(Waiting)) as cursor:
            await cursor.execute(
                f"SELECT {COLUMNS} FROM {rows} WHERE {condition} ORDER BY next_attempt_at, id LIMIT %(limit)s",  # noqa: S608 - constants
                {**values, "limit": limit},
            )
            return await cursor.fetchall()

    async def count(self, selection: Selection = EVERYTHING, *, at_most: int | None = None) -> int:
        """Return how many waiting deliveries match; those beyond `at_most` are not counted."""
        condition, values = where(selection)
        async with self._pool.statement() as connection, connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(
                f"SELECT count(*) FROM (SELECT FROM deferred WHERE {condition} LIMIT %(at_most)s) AS found",  # noqa: S608 - constants
                {**values, "at_most": at_most},
            )
            return await cursor.fetchone() or 0

    async def due(self, selection: Selection = EVERYTHING, *, now: datetime) -> int:
        """Return how many of the waiting deliveries that match are due already."""
        condition, values = where(selection)
        async with self._pool.statement() as connection, connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(
                f"SELECT count(*) FROM deferred WHERE {condition} AND next_attempt_at <= %(now)s",  # noqa: S608 - constants
                {**values, "now": now},
            )
            return await cursor.fetchone() or 0

    async def newest(self) -> int:
        """Return the highest id of what waits, for `Selection.up_to`; 0 when nothing does."""
        async with self._pool.statement() as connection, connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute("SELECT max(id) FROM deferred")
            return await cursor.fetchone() or 0

    async def message(self, id: int) -> tuple[Delivery, bytes] | None:  # noqa: A002 - the column's name
        """Return one waiting delivery whole, or None when it waits no longer."""
        async with self._pool.transaction() as connection, connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute("SELECT delivery FROM deferred WHERE id = %s", (id,), binary=True)
            wire = await cursor.fetchone()
        return None if wire is None else codec.decode(bytes(wire))

    async def retry(self, selection: Selection = EVERYTHING, *, now: datetime) -> int:
        """Make waiting deliveries due at once; return how many were not.

        Only what waits already: one that is tried meanwhile and fails again has had its turn, however long this takes.
        """
        condition, values = where(selection.as_of(now, await self.newest()))
        return await self._make_due(condition, values, now)

    async def flush(self, keys: Sequence[str], now: datetime) -> int:
        """Make waiting deliveries due to whose domains rules with these keys may apply; return how many."""
        exact = [key for key in keys if not key.startswith("*")]
        below = [key[1:] for key in keys if key.startswith("*.")]
        return await self._make_due(
            """(
                %(all)s OR domain = ANY(%(exact)s)
                OR EXISTS (SELECT FROM unnest(%(below)s::text[]) AS s WHERE right(domain, length(s)) = s)
            )""",
            # Each row is compared with each suffix: very many are not worth telling apart.
            {"all": ANY in keys or len(below) > _SUFFIXES, "exact": exact, "below": below[:_SUFFIXES]},
            now,
        )

    async def _make_due(self, condition: str, values: dict[str, Any], now: datetime) -> int:
        """Make due what is not; rows made due no longer match, so each turn goes on where the one before ended."""
        due = 0
        while True:
            async with self._pool.transaction() as connection:
                # Rows that a scheduler has in hand are due already, and locked until the broker has confirmed them;
                # those that an operator ends are on their way out.
                cursor = await connection.execute(
                    f"""
                    UPDATE deferred SET next_attempt_at = %(now)s WHERE id = ANY(ARRAY(
                        SELECT id FROM deferred WHERE next_attempt_at > %(now)s AND {condition}
                        LIMIT {_DUE_AT_ONCE} FOR UPDATE SKIP LOCKED
                    ))
                    """,  # noqa: S608 - constants
                    {**values, "now": now},
                )
            due += cursor.rowcount
            if cursor.rowcount < _DUE_AT_ONCE:
                return due
