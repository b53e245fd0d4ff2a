"""Waiting mail as operators see it and end it: its ages by domain, and a hold on what they take out for good."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final, Literal

import msgspec
from psycopg import sql
from psycopg.rows import class_row

from shared.store.bodies import REPORTED
from shared.store.deferred import COLUMNS, Waiting
from shared.store.pool import Connection, Pool
from shared.store.selection import EVERYTHING, Selection, where

# Minutes, as qshape has them: younger than the first, between two of them, older than the last.
AGES: Final = (5, 10, 20, 40, 80, 160, 320, 640, 1280)
_HEADER = 1_048_576  # bytes; a delivery's header on the wire is far below


class DomainAges(msgspec.Struct, frozen=True, kw_only=True):
    """How long the mail for one domain has been here.

    Attributes:
        domain: The recipients' domain.
        deliveries: How many wait.
        oldest: When the oldest of them was accepted.
        counts: How many are how old: below the first of `AGES`, between two of them, above the last.
    """

    domain: str
    deliveries: int
    oldest: datetime
    counts: list[int]


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What waits alike: for one domain, at one target, or after one answer, which is its name."""

    name: str
    deliveries: int
    bytes: int
    oldest: datetime
    next_attempt_at: datetime


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What waits, in numbers; the times are the database's.

    Attributes:
        counts: Deliveries younger than the first border, between two of them, older than the last.
        oldest: How long ago the oldest of them was accepted.
        overdue: How long ago the first of them that is due should have been handed out.
    """

    counts: list[int]
    oldest: timedelta
    overdue: timedelta


_ENDS: Final = """
    SELECT extract(epoch FROM greatest(now() - coalesce(min(accepted_at), now()), interval '0'))::float8,
           extract(epoch FROM greatest(now() - coalesce(min(next_attempt_at), now()), interval '0'))::float8
    FROM deferred
"""

By = Literal["domain", "target", "answer"]
_NAMES: Final[dict[str, str]] = {
    "domain": "domain",
    "target": "target",
    # Hosts name the recipient in words that are the same for each.
    "answer": r"left(regexp_replace(reply, '<?[^[:space:]<>]+@[^[:space:]<>]+>?', '<address>', 'g'), 200)",
}


class Held(Waiting, frozen=True, kw_only=True):
    """A waiting delivery that is held: nobody else tries it, changes it or ends it meanwhile.

    Attributes:
        wire: Its wire form, with no more of the body than a report may give back.
    """

    wire: bytes


class Hold:
    """Deliveries that are held until the end of a transaction."""

    def __init__(self, connection: Connection, held: list[Held]) -> None:
        """Use the connection on which they are locked."""
        self.connection = connection
        self.held = held

    async def delete(self, ids: list[int]) -> None:
        """Take some of them out of the table; they are out when the transaction is committed."""
        await self.connection.execute("DELETE FROM deferred WHERE id = ANY(%s)", (ids,))


class WaitingMail:
    """The table `deferred`, as operators see it."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def ages(self, now: datetime, *, selection: Selection = EVERYTHING, limit: int = 20) -> list[DomainAges]:
        """Return the ages of what waits by domain, the domain with the most first."""
        condition, values = where(selection)
        borders = sorted(now - timedelta(minutes=age) for age in AGES)
        async with (
            self._pool.transaction() as connection,
            connection.cursor(row_factory=class_row(DomainAges)) as cursor,
        ):
            # Counted once by domain and bucket, then put together: a tenth of the work of ten counts of every row.
            await cursor.execute(
                f"""
                WITH aged AS (
                    SELECT domain, width_bucket(accepted_at, %(borders)s) AS bucket, count(*) AS deliveries,
                           min(accepted_at) AS oldest
                    FROM deferred WHERE {condition} GROUP BY 1, 2
                ), most AS (
                    SELECT domain, sum(deliveries)::bigint AS deliveries, min(oldest) AS oldest
                    FROM aged GROUP BY domain ORDER BY 2 DESC, domain LIMIT %(limit)s
                )
                SELECT domain, m.deliveries, m.oldest, ARRAY(
                    SELECT coalesce(a.deliveries, 0) FROM generate_series({len(AGES)}, 0, -1) AS bucket
                    LEFT JOIN aged AS a ON a.domain = m.domain AND a.bucket = bucket.bucket ORDER BY bucket.bucket DESC
                ) AS counts
                FROM most AS m ORDER BY m.deliveries DESC, domain
                """,  # noqa: S608 - constants
                {**values, "borders": borders, "limit": limit},
            )
            return await cursor.fetchall()

    async def standing(self, ages: Sequence[timedelta]) -> Standing:
        """Return how much waits by age, over the whole table: it is read from an index, without a row.

        Args:
            ages: The borders between the ages that are counted, the youngest first.

        Raises:
            StoreUnavailable: It cannot be known.
        """
        async with self._pool.transaction() as connection, connection.cursor() as cursor:
            older = [
                sql.SQL(", count(*) FILTER (WHERE accepted_at <= now() - {}::interval)").format(each) for each in ages
            ]
            counting = sql.SQL("SELECT count(*){} FROM deferred").format(sql.Composed(older))
            await cursor.execute(counting)
            counted = [*(await cursor.fetchone() or ()), 0]
            await cursor.execute(_ENDS)
            oldest, overdue = await cursor.fetchone() or (0.0, 0.0)
        return Standing(
            counts=[more - less for more, less in pairwise(counted)],
            oldest=timedelta(seconds=oldest),
            overdue=timedelta(seconds=overdue),
        )

    async def stats(self, *, by: By, selection: Selection = EVERYTHING, limit: int = 20) -> list[Share]:
        """Return what waits alike, the most first."""
        condition, values = where(selection)
        async with self._pool.transaction() as connection, connection.cursor(row_factory=class_row(Share)) as cursor:
            await cursor.execute(
                f"""
                SELECT {_NAMES[by]} AS name, count(*) AS deliveries, sum(size)::bigint AS bytes,
                       min(accepted_at) AS oldest, min(next_attempt_at) AS next_attempt_at
                FROM deferred WHERE {condition} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %(limit)s
                """,  # noqa: S608 - constants
                {**values, "limit": limit},
            )
            return await cursor.fetchall()

    @contextlib.asynccontextmanager
    async def hold(self, selection: Selection, *, limit: int, above: int = 0) -> AsyncIterator[Hold]:
        """Hold deliveries with ids above one, the lowest first; what others have in hand is passed over.

        What is deleted is gone when the block ends; what is not, waits on. There is no limit on the time: a report
        waits for its confirm as long as the broker needs.

        Raises:
            StoreUnavailable: What was deleted may or may not be gone.
        """
        condition, values = where(selection)
        async with self._pool.transaction(patience=None) as connection:
            async with connection.cursor(row_factory=class_row(Held)) as cursor:
                await cursor.execute(
                    f"""
                    SELECT {COLUMNS}, substring(delivery FROM 1 FOR {REPORTED + _HEADER}) AS wire
                    FROM deferred WHERE {condition} AND id > %(above)s
                    ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
                    """,  # noqa: S608 - constants
                    {**values, "above": above, "limit": limit},
                    binary=True,
                )
                held = await cursor.fetchall()
            yield Hold(connection, held)
