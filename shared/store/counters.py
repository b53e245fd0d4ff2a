"""The counters of traffic, as the journal writes them: by the hour for each domain and for all, and by the minute."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from shared.mail.event import Event
from shared.store.pool import Connection, Pool

_KINDS: Final = ("delivered", "deferred", "postponed", "fallback", "failed", "bounced", "dropped", "removed")
_PLACE: Final[Mapping[str, int]] = {kind: place for place, kind in enumerate(_KINDS)}
_SUMS = (*_KINDS, "bytes", "ms")
_NAMED = 255  # characters of what is searched for: an entry of an index has its limit
# More is not believed: absurd ones must not fill up a counter, which would then take nothing more of its hour.
_MOST_BYTES = 2**40
_MOST_MS = 24 * 60 * 60 * 1_000
_MINUTES = "2 days"  # that their counters are kept
_PIECE = 20_000  # rows deleted in one transaction: a second or two, also on a slow disk
_BEGINNING = datetime(1, 1, 2, tzinfo=UTC)

_ADD = f"DO UPDATE SET {', '.join(f'{each} = t.{each} + excluded.{each}' for each in _SUMS)}"
_VALUES = ", %s::bigint[]" * len(_SUMS)
_COUNT = f"""
    INSERT INTO traffic AS t (hour, domain, transport, {", ".join(_SUMS)})
    SELECT * FROM unnest(%s::timestamptz[], %s::text[], %s::text[]{_VALUES})
    ON CONFLICT (hour, domain, transport) {_ADD}
"""  # noqa: S608 - our own column names
_COUNT_HOURS = f"""
    INSERT INTO traffic_hours AS t (hour, transport, {", ".join(_SUMS)})
    SELECT * FROM unnest(%s::timestamptz[], %s::text[]{_VALUES})
    ON CONFLICT (hour, transport) {_ADD}
"""  # noqa: S608 - our own column names
_COUNT_MINUTES = """
    INSERT INTO event_minutes AS m (minute, kind, events)
    SELECT * FROM unnest(%s::timestamptz[], %s::text[], %s::bigint[])
    ON CONFLICT (minute, kind) DO UPDATE SET events = m.events + excluded.events
"""
# From where the last piece ended: what is deleted stays in the index for a while, and would be read for each piece.
_PRUNE = """
    WITH gone AS (
        DELETE FROM traffic WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM traffic WHERE hour >= %(done)s AND hour < %(before)s
            ORDER BY hour LIMIT %(piece)s FOR UPDATE SKIP LOCKED
        )) RETURNING hour
    ) SELECT count(*), max(hour) FROM gone
"""

Kept = tuple[datetime, Event]  # an event, and the time that is believed of it


async def count(connection: Connection, events: Sequence[Kept]) -> None:
    """Count events, in the transaction that writes them down.

    Journals wait for each other here, so it is the last thing in it; sorted, so that they do not do so in a circle.
    """
    sums: dict[tuple[Any, ...], list[int]] = {}
    for at, event in events:
        if event.kind in _PLACE:
            row = sums.setdefault((beginning_of_hour(at), name(event.domain), name(event.room)), [0] * len(_SUMS))
            row[_PLACE[event.kind]] += 1
            row[-1] += believed_ms(event)
            if event.kind == "delivered":
                row[-2] += believed_size(event)
    hours: dict[tuple[Any, ...], list[int]] = {}
    for (hour, _, room), row in sums.items():
        hours[hour, room] = list(map(sum, zip(row, hours.get((hour, room), [0] * len(_SUMS)), strict=True)))
    minutes: Counter[tuple[Any, ...]] = Counter(
        (at.replace(second=0, microsecond=0), event.kind) for at, event in events
    )
    await _add(connection, _COUNT, sums)
    await _add(connection, _COUNT_HOURS, hours)
    await _add(connection, _COUNT_MINUTES, {key: [number] for key, number in minutes.items()})


async def _add(connection: Connection, statement: str, sums: Mapping[tuple[Any, ...], Sequence[int]]) -> None:
    if sums:
        rows = [(*key, *sums[key]) for key in sorted(sums)]
        await connection.execute(statement, [list(each) for each in zip(*rows, strict=True)])


async def prune(pool: Pool, before: datetime) -> int:
    """Delete the counters of the hours before a time, and of old minutes; return how many of `traffic` they were.

    In pieces: however many there are, it ends, and what is done stays done.

    Raises:
        StoreUnavailable: Some may be there still.
    """
    async with pool.transaction() as connection:
        await connection.execute("DELETE FROM event_minutes WHERE minute < now() - %s::interval", (_MINUTES,))
        await connection.execute("DELETE FROM traffic_hours WHERE hour < %s", (before,))
    deleted, done, full = 0, _BEGINNING, True
    while full:
        async with pool.transaction() as connection:
            cursor = await connection.execute(_PRUNE, {"done": done, "before": before, "piece": _PIECE})
            number, newest = await cursor.fetchone() or (0, None)
        deleted += number
        full, done = number == _PIECE, newest
    return deleted


def beginning_of_hour(time: datetime) -> datetime:
    """Return the time at which its hour began."""
    return time.replace(minute=0, second=0, microsecond=0)


def believed_ms(event: Event) -> int:
    """Return how long an attempt took, no longer than it can have."""
    return min(max(event.ms, 0), _MOST_MS)


def believed_size(event: Event) -> int:
    """Return the size of a message, no larger than it can be."""
    return min(max(event.size, 0), _MOST_BYTES)


def name(text: str) -> str:
    """Return text as it is kept where it is searched for or counted by."""
    return text[:_NAMED].replace("\x00", "")
