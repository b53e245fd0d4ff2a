"""Large bodies: stored once while references to them travel, and freed when the last delivery has ended.

Who still needs a body is written down by recipient (`body_uses`), before the deliveries are published. Whoever changes
a body or its uses locks the body's row first: two workers that end the last two recipients wait for each other, so one
of them sees that none is left, and nobody waits in a circle.

Only a body whose users were all named when it was stored is freed. One that a front door stored by itself may be named
by a message that no router has seen yet (design 4.1), so it stays until it is pruned.
"""

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Final, Literal

import msgspec
from psycopg.rows import class_row, scalar_row

from shared.mail.dsn import MAX_RETURNED
from shared.runtime.errors import StoreUnavailable
from shared.store.pool import PATIENCE, Connection, Pool

START: Final = 65_536  # bytes in which a header ends; what the hops on the way added stands on top
REPORTED: Final = MAX_RETURNED + 1  # bytes from which a report can be made: one more than it gives back as a whole
_MOVING = 90.0  # seconds for a whole body, which may have 64 MiB
_ENDING = 10.0  # seconds: the mail is delivered, and its job waits for nothing else
_READERS = 2  # bodies read at once: the pool's other connections are for what takes milliseconds


class _Freed(enum.Enum):
    FREED = enum.auto()


FREED: Final = _Freed.FREED  # in place of a body: all its deliveries have ended
Freed = Literal[_Freed.FREED]


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to know of a stored body without reading it.

    Attributes:
        size: Its bytes; 0 once it is freed.
        start: The first `START` of them, when they were asked for.
        freed: All its deliveries have ended.
        ended: Those of the recipients in question whose deliveries have ended.
    """

    size: int
    start: bytes
    freed: bool
    ended: list[str]


class Bodies:
    """The tables `bodies` and `body_uses`."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool
        self._readers = asyncio.Semaphore(_READERS)

    async def put(
        self,
        id: str,  # noqa: A002 - the column's name
        body: bytes,
        *,
        message_id: str = "",
        recipients: Sequence[str] = (),
    ) -> Head:
        """Store a body that these recipients of a message need; the same id keeps what it has, also nothing.

        They must be all who will ever need it: it is freed with the last of them. Without recipients it stays until it
        is pruned.

        Raises:
            StoreUnavailable: It may or may not have been committed.
        """
        async with self._pool.transaction(patience=_MOVING) as connection:
            # Asked first: who tries again need not send 64 MiB again.
            head = await _use(connection, id, message_id, recipients)
            if head is None:
                stored = await connection.execute(
                    "INSERT INTO bodies (id, body, named) VALUES (%s, %b, %s) ON CONFLICT DO NOTHING",
                    (id, body, bool(recipients)),
                )
                head = await _use(connection, id, message_id, recipients, first=stored.rowcount == 1)
        assert head is not None, "it is too new to be pruned"
        return head

    async def use(self, id: str, message_id: str, recipients: Sequence[str]) -> Head | None:  # noqa: A002
        """Note that these recipients of a message need a body; None when there is none of this id.

        A recipient that has ended stays ended, and a body that was freed gets no new ones. One that gets somebody who
        was not named when it was stored is no longer freed: there may be more.

        Raises:
            StoreUnavailable: It may or may not have been committed.
        """
        async with self._pool.transaction() as connection:
            return await _use(connection, id, message_id, recipients)

    async def head(self, id: str, message_id: str, recipients: Sequence[str]) -> Head | None:  # noqa: A002
        """Return what there is to know of a body, and which of these recipients have ended; None without a body.

        Not its beginning: of a body that cannot be read the store can still say the rest.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        async with self._pool.statement() as connection:
            return await _head(connection, id, message_id, recipients, start=0)

    async def reported(self, id: str) -> bytes:  # noqa: A002
        """Return as much of a body as a report on it takes; nothing when it is not there.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        async with (
            self._reader(),
            self._pool.statement() as connection,
            connection.cursor(row_factory=scalar_row) as cursor,
        ):
            await cursor.execute(
                "SELECT substring(body FROM 1 FOR %s) FROM bodies WHERE id = %s", (REPORTED, id), binary=True
            )
            return await cursor.fetchone() or b""

    async def get(self, id: str) -> bytes | Freed | None:  # noqa: A002
        """Return a body, `FREED` when all its deliveries have ended, or None when there is none of this id.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        async with (
            self._reader(),
            self._pool.transaction(patience=_MOVING) as connection,
            connection.cursor(row_factory=scalar_row) as cursor,
        ):
            await cursor.execute("SELECT body FROM bodies WHERE id = %s", (id,), binary=True)
            if cursor.rowcount == 0:
                return None
            body = await cursor.fetchone()
        return FREED if body is None else bytes(body)

    async def end(self, id: str, message_id: str, recipients: Sequence[str]) -> bool:  # noqa: A002
        """Note that the deliveries to these recipients have ended; return whether that freed the body.

        It does when they were the last, and all were named when it was stored. Ending somebody twice, or somebody who
        is not named, changes nothing: bodies of the release before have no uses, and their deliveries may be on their
        way.

        Raises:
            StoreUnavailable: It may or may not have been committed.
        """
        async with self._pool.transaction(patience=_ENDING) as connection:
            # A statement each: what the others ended before we had the lock is seen only by one that begins after it.
            await connection.execute("SELECT id FROM bodies WHERE id = %s FOR UPDATE", (id,))
            ended = await connection.execute(
                "UPDATE body_uses SET ended_at = now() "
                "WHERE body_id = %s AND message_id = %s AND recipient = ANY(%s) AND ended_at IS NULL",
                (id, message_id, list(recipients)),
            )
            if ended.rowcount == 0:
                return False
            freed = await connection.execute(
                "UPDATE bodies SET body = NULL, freed_at = now() WHERE id = %(id)s AND body IS NOT NULL AND named "
                "AND NOT EXISTS (SELECT FROM body_uses WHERE body_id = %(id)s AND ended_at IS NULL)",
                {"id": id},
            )
            return freed.rowcount > 0

    async def prune(
        self, older_than: datetime, *, freed_before: datetime | None = None, stuck_before: datetime | None = None
    ) -> int:
        """Delete bodies stored before then and no longer waited for, and what is left of freed ones; return how many.

        A body is kept while any mail waits that is as old: after a lowered `max_age`, or a week in which the fleet
        stood still, that mail is to be tried once more and bounced, not to be found without its body.

        Args:
            older_than: Whatever was stored before then goes.
            freed_before: Rows whose bodies were freed before then go, too.
            stuck_before: Mail that was accepted before then and waits all the same keeps its own body, and no other.

        Raises:
            StoreUnavailable: It may or may not have been committed.
        """
        async with self._pool.transaction() as connection:
            # Rows that are locked are being used, or pruned by another scheduler.
            deleted = await connection.execute(
                """
                WITH waiting AS (
                    SELECT min(accepted_at) - interval '1 day' AS since FROM deferred
                    WHERE accepted_at >= coalesce(%(stuck_before)s::timestamptz, '-infinity')
                )
                DELETE FROM bodies WHERE id = ANY(ARRAY(
                    SELECT id FROM bodies AS b
                    WHERE (
                        created_at < least(%(older_than)s, (SELECT since FROM waiting))
                        OR freed_at < least(%(freed_before)s, (SELECT since FROM waiting))
                    ) AND NOT EXISTS (
                        SELECT FROM body_uses AS u JOIN deferred AS d USING (message_id)
                        WHERE u.body_id = b.id AND u.ended_at IS NULL
                    )
                    FOR UPDATE SKIP LOCKED
                ))
                """,
                {
                    "older_than": older_than,
                    "freed_before": freed_before or older_than,
                    "stuck_before": stuck_before,
                },
            )
            await connection.execute(
                """
                DELETE FROM body_uses WHERE ctid = ANY(ARRAY(
                    SELECT ctid FROM body_uses AS u
                    WHERE NOT EXISTS (SELECT FROM bodies WHERE id = u.body_id) FOR UPDATE SKIP LOCKED
                ))
                """
            )
            return deleted.rowcount

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator[None]:
        """Wait for the turn to read a body.

        Raises:
            StoreUnavailable: The others read so slowly that the store is as good as away.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                await self._readers.acquire()
        except TimeoutError as error:
            raise StoreUnavailable(f"no turn to read a stored body within {PATIENCE:.0f} s") from error
        try:
            yield
        finally:
            self._readers.release()


async def _use(
    connection: Connection,
    id: str,  # noqa: A002
    message_id: str,
    recipients: Sequence[str],
    *,
    first: bool = False,
) -> Head | None:
    """Note the recipients; they are all there will be when they are the `first`."""
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute("SELECT body IS NULL FROM bodies WHERE id = %s FOR UPDATE", (id,))
        freed = await cursor.fetchone()
    if freed is False:
        added = await connection.execute(
            "INSERT INTO body_uses (body_id, message_id, recipient) SELECT %s, %s, unnest(%s::text[]) "
            "ON CONFLICT DO NOTHING",
            (id, message_id, list(recipients)),
        )
        if added.rowcount and not first:
            await connection.execute("UPDATE bodies SET named = false WHERE id = %s AND named", (id,))
    return await _head(connection, id, message_id, recipients, start=START)


async def _head(
    connection: Connection,
    id: str,  # noqa: A002
    message_id: str,
    recipients: Sequence[str],
    *,
    start: int,
) -> Head | None:
    async with connection.cursor(row_factory=class_row(Head)) as cursor:
        # Neither size nor beginning makes PostgreSQL read the rest: the column is stored out of line and uncompressed.
        await cursor.execute(
            """
            SELECT coalesce(octet_length(body), 0) AS size,
                CASE WHEN %(start)s = 0 OR body IS NULL THEN '' ELSE substring(body FROM 1 FOR %(start)s) END AS start,
                body IS NULL AS freed, ARRAY(
                    SELECT recipient FROM body_uses
                    WHERE body_id = %(id)s AND message_id = %(message_id)s AND recipient = ANY(%(recipients)s)
                    AND ended_at IS NOT NULL
                ) AS ended
            FROM bodies WHERE id = %(id)s
            """,
            {"id": id, "message_id": message_id, "recipients": list(recipients), "start": start},
            binary=True,
        )
        return await cursor.fetchone()
