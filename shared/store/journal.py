"""What becomes of mail, written down: the events of a day, and traffic by the hour. For people; no mail depends on it.

A batch that comes twice, after a crash or a lost acknowledgement, is recorded once: its number is written in the same
transaction as its events and counters. Addresses are kept as the privacy setting says, and nowhere whole but under
`full`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
from psycopg.rows import scalar_row

from shared.mail.event import Batch, Event
from shared.mail.privacy import Privacy
from shared.runtime.errors import StoreUnavailable
from shared.store.counters import Kept, beginning_of_hour, believed_ms, believed_size, count, name, prune
from shared.store.days import Days
from shared.store.pool import Connection, Pool

_AHEAD = timedelta(days=1)  # a clock that is wrong by more is not believed
_SETTLED = "1 minute"  # batches may be recorded in another order than they were emitted, but not by much
_WORDS = 4_000  # characters of a reply, or of the targets of a rule
_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)

_COLUMNS = (
    "at, kind, message_id, recipient, domain, room, attempt, rule, version, target, mta, code, enhanced, reply, ms, "
    "size, until, accepted_at, sender, header_id, report, actor"
)
_COPY = f"COPY events ({_COLUMNS}) FROM STDIN"
_NEW = """
    INSERT INTO event_batches (source, number, events, emitted)
    SELECT * FROM unnest(%s::text[], %s::bigint[], %s::integer[], %s::bigint[])
    ON CONFLICT DO NOTHING RETURNING source, number
"""
# The first batch that is kept of a source says how much it had emitted before; what has no later batch is not missed.
_LOST = """
    WITH settled AS (
        SELECT source, max(number) AS number FROM event_batches
        WHERE recorded_at < now() - %s::interval GROUP BY source
    ), sources AS (
        SELECT max(emitted) - sum(events) - CASE min(b.number) WHEN 1 THEN 0 ELSE min(emitted - events) END AS lost
        FROM event_batches AS b JOIN settled ON b.source = settled.source AND b.number <= settled.number
        GROUP BY b.source
    )
    SELECT coalesce(sum(greatest(lost, 0)), 0)::bigint FROM sources
"""
# A day after the newest, not before now: what was handed out when the journals stopped comes again when they start.
# By number, so that what is kept of a source has no gaps that were none.
_OLD_BATCHES = """
    DELETE FROM event_batches AS b USING (
        SELECT source, max(number) AS number FROM event_batches
        WHERE recorded_at < (SELECT max(recorded_at) FROM event_batches) - interval '1 day' GROUP BY source
    ) AS old WHERE b.source = old.source AND b.number <= old.number
"""
# What PostgreSQL says of values that it cannot hold, whoever tries again.
_CONTENT = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)

_Key = tuple[str, int]  # source and number of a batch


class UnrecordableError(ValueError):
    """PostgreSQL refuses what the batches say, and would refuse it again."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What became of some batches.

    Attributes:
        events: Written down.
        doubles: Batches that were known already.
        late: Events that are older than what is kept, left out.
    """

    events: int
    doubles: int
    late: int


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What was too old: days of events, counters of traffic, and numbers of batches."""

    days: int
    traffic: int
    batches: int


class Journal:
    """The tables `events`, `event_batches` and `traffic`, for whoever writes them."""

    def __init__(self, pool: Pool, privacy: Privacy, *, retention: timedelta = timedelta(days=14)) -> None:
        """Use a pool.

        Args:
            pool: Connections.
            privacy: How addresses are kept.
            retention: How long events are; older ones are not taken in either.
        """
        self._pool = pool
        self._privacy = privacy
        self._retention = retention
        self._days = Days(pool)

    async def prepare(self, now: datetime) -> None:
        """Make today and tomorrow, so that nobody waits for it at midnight; also tells whether the store is there.

        Raises:
            StoreUnavailable: It is away.
        """
        self._days.forget()
        await self._days.make(now.date() + timedelta(days=each) for each in (0, 1))

    async def record(self, batches: Sequence[Batch], *, now: datetime) -> Recorded:
        """Write batches down, all of them or none; when this returns it is committed.

        Raises:
            UnrecordableError: One of them cannot be held; try each by itself.
            StoreUnavailable: They may or may not have been committed; recording them again does no harm.
        """
        told = {(each.source, each.number): each for each in batches}
        kept = {key: self._kept(told[key].events, now) for key in sorted(told)}
        try:
            new = await self._record(told, kept)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, _CONTENT):
                raise UnrecordableError(f"PostgreSQL cannot hold it: {error.__cause__}") from error
            raise
        written = sum(len(kept[key]) for key in new)
        late = sum(len(told[key].events) for key in new) - written
        return Recorded(events=written, doubles=len(batches) - len(new), late=late)

    async def prune(self, *, now: datetime, traffic_before: datetime) -> Pruned:
        """Delete what is older than it is kept.

        Raises:
            StoreUnavailable: Some of it may be there still.
        """
        days = await self._days.drop(self._oldest(now).date())
        async with self._pool.transaction() as connection:
            batches = await connection.execute(_OLD_BATCHES)
        return Pruned(days=days, traffic=await prune(self._pool, traffic_before), batches=batches.rowcount)

    async def lost(self) -> int:
        """Return how many events of the last day were emitted and never recorded, as far as later batches tell.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        async with self._pool.transaction() as connection, connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(_LOST, (_SETTLED,))
            return int(await cursor.fetchone() or 0)

    def _oldest(self, now: datetime) -> datetime:
        """Return the beginning of the oldest day that is kept."""
        return beginning_of_hour((now - self._retention).astimezone(UTC)).replace(hour=0)

    def _kept(self, events: Iterable[Event], now: datetime) -> list[Kept]:
        """Return the events that are not too old, each with its time, which is now for those of a wrong clock."""
        oldest, newest = self._oldest(now), now + _AHEAD
        return [(now if each.at > newest else each.at.astimezone(UTC), each) for each in events if each.at >= oldest]

    async def _record(self, told: Mapping[_Key, Batch], kept: Mapping[_Key, list[Kept]]) -> set[_Key]:
        """Write what is new, and return which batches are."""
        days = {at.date() for events in kept.values() for at, _ in events}
        await self._days.make(days)
        try:
            return await self._written(told, kept)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, psycopg.errors.CheckViolation):
                raise
        # Somebody dropped a day that we knew.
        self._days.forget()
        await self._days.make(days)
        return await self._written(told, kept)

    async def _written(self, told: Mapping[_Key, Batch], kept: Mapping[_Key, list[Kept]]) -> set[_Key]:
        numbers = [(*key, len(told[key].events), told[key].emitted) for key in kept]
        async with self._pool.transaction() as connection:
            cursor = await connection.execute(_NEW, [list(each) for each in zip(*numbers, strict=True)])
            new: set[_Key] = {(source, number) for source, number in await cursor.fetchall()}
            events = [each for key in kept if key in new for each in kept[key]]
            await _copy(connection, events, self._privacy)
            # Last, since journals wait for each other here; sorted, so that they do not do so in a circle.
            await count(connection, events)
        return new


async def _copy(connection: Connection, events: Sequence[Kept], privacy: Privacy) -> None:
    async with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        for at, event in events:
            await copy.write_row(_row(event, at, privacy))


def _row(event: Event, at: datetime, privacy: Privacy) -> tuple[object, ...]:
    """Return the columns of an event."""
    return (
        at,
        event.kind,
        name(event.id),
        name(privacy.address(event.recipient)),
        name(event.domain),
        name(event.room),
        event.attempt,
        name(event.rule),
        event.version,
        _text(event.target),
        name(event.mta),
        event.code,
        name(event.enhanced),
        _text(privacy.text(_held(event.reply), event.recipient, event.sender or "")),
        believed_ms(event),
        believed_size(event),
        _time(event.until),
        _time(event.accepted_at),
        None if event.sender is None else name(privacy.address(event.sender)),
        None if event.header_id is None else name(event.header_id.strip()),
        name(event.report),
        name(event.actor),
    )


def _text(text: str) -> str:
    return _held(text[:_WORDS])


def _held(text: str) -> str:
    return text.replace("\x00", "")


def _time(time: datetime | None) -> datetime | None:
    """Return a time that can be written and read again; what is far out is no time."""
    if time is None:
        return None
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return aware if _EARLIEST < aware < _LATEST else None
