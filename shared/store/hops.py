"""What the fleet remembers of next hops for a while: where there is no mxdeliv, and which do not answer.

Times are the database's: the clocks of two workers may differ by more than the time that something is remembered.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec
from psycopg.rows import class_row, tuple_row

from shared.store.pool import Pool

State = Literal["without mxdeliv", "suspended"]

_SLACK = 10.0  # seconds: a change may be committed after one with a later time, and is read again rather than missed
_MOST = 10_000  # rows read at once; what is not read is found out anew, at the price of one attempt each
_KEPT = 86_400.0  # seconds that a row stays after its time, for people who ask what was


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """One thing remembered.

    Attributes:
        hop: A URL, or a host and its port, or a domain whose MX hosts are meant.
        state: What is true of it until then.
        until: When it ends, UTC.
        reason: What a peer said, or how it failed.
        seconds: Until it ends, by the database's clock; not above 0 when it has ended.
    """

    hop: str
    state: State
    until: datetime
    reason: str
    seconds: float


class NextHops:
    """The table `next_hops`."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def remember(self, hop: str, state: State, seconds: float, reason: str) -> None:
        """Remember it for so many seconds from now; with 0 it is over.

        Raises:
            StoreUnavailable: It may or may not be remembered.
        """
        async with self._pool.statement() as connection:
            await connection.execute(
                """
                INSERT INTO next_hops AS known (hop, state, until, reason)
                VALUES (%s, %s, clock_timestamp() + make_interval(secs => %s), %s)
                ON CONFLICT (hop, state) DO UPDATE
                SET until = excluded.until, reason = excluded.reason, changed_at = clock_timestamp()
                """,
                (hop, state, seconds, reason.replace("\x00", "?")),
            )

    async def changed_since(self, mark: datetime | None) -> tuple[list[Remembered], datetime]:
        """Return what changed since a mark (None: all that is still true), and the mark for the next time.

        Raises:
            StoreUnavailable: It cannot be known.
        """
        async with self._pool.transaction() as connection:
            async with connection.cursor(row_factory=tuple_row) as cursor:
                await cursor.execute("SELECT clock_timestamp()")
                (now,) = await cursor.fetchone() or (None,)
            assert isinstance(now, datetime)
            async with connection.cursor(row_factory=class_row(Remembered)) as rows:
                await rows.execute(
                    f"""
                    SELECT {_COLUMNS} FROM next_hops
                    WHERE changed_at > %(mark)s::timestamptz - make_interval(secs => {_SLACK})
                          OR (%(mark)s::timestamptz IS NULL AND until > clock_timestamp())
                    ORDER BY changed_at DESC LIMIT {_MOST}
                    """,  # noqa: S608 - constants
                    {"mark": mark},
                )
                return await rows.fetchall(), now

    async def about(self, hops: Sequence[str]) -> list[Remembered]:
        """Return what is true of some next hops now.

        Raises:
            StoreUnavailable: It cannot be known.
        """
        async with self._pool.transaction() as connection, connection.cursor(row_factory=class_row(Remembered)) as rows:
            await rows.execute(
                f"SELECT {_COLUMNS} FROM next_hops WHERE hop = ANY(%s) AND until > clock_timestamp() ORDER BY hop, state",  # noqa: S608, E501 - constants
                (list(hops),),
            )
            return await rows.fetchall()

    async def current(self, state: State | None = None, *, limit: int = 1_000) -> list[Remembered]:
        """Return what is true now, what ends last first; of one state, or of both.

        Raises:
            StoreUnavailable: It cannot be known.
        """
        async with self._pool.statement() as connection, connection.cursor(row_factory=class_row(Remembered)) as rows:
            await rows.execute(
                f"""
                SELECT {_COLUMNS} FROM next_hops
                WHERE until > clock_timestamp() AND state = coalesce(%s::text, state)
                ORDER BY until DESC, hop, state LIMIT %s
                """,  # noqa: S608 - constants
                (state, limit),
            )
            return await rows.fetchall()

    async def prune(self) -> int:
        """Delete what has not been true for a day; return how many.

        Raises:
            StoreUnavailable: Nothing was deleted, or it is not known.
        """
        async with self._pool.statement() as connection:
            deleted = await connection.execute(
                "DELETE FROM next_hops WHERE until < clock_timestamp() - make_interval(secs => %s)", (_KEPT,)
            )
            return deleted.rowcount


_COLUMNS = "hop, state, until, reason, extract(epoch FROM until - clock_timestamp())::float8 AS seconds"
