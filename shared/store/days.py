"""The days of the table `events`: one partition each, by UTC, so that what is too old goes as a whole.

A day is made by CREATE and ATTACH, which lets others read and write `events` meanwhile; PARTITION OF would wait for all
of them, and have the rest wait behind it.
"""

import re
from collections.abc import Iterable
from datetime import date, timedelta

import psycopg

from shared.runtime.errors import StoreUnavailable
from shared.store.pool import Connection, Pool

_NAME = re.compile(r"events_(\d{8})")
_LOCK = 0x6A6F7572  # of the makers: two journals that make the same day wait for each other
_PATIENCE = "500ms"  # for the readers of a day that is to go; whoever records waits behind us meanwhile


class Days:
    """The partitions, and which of them are known to be there."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool
        self._known: set[date] = set()

    async def make(self, days: Iterable[date]) -> None:
        """Make the days that are missing.

        Raises:
            StoreUnavailable: Some may be missing still.
        """
        missing = sorted(set(days) - self._known)
        if not missing:
            return
        async with self._pool.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            there = await _attached(connection)
            for day in missing:
                if day not in there:
                    await _attach(connection, day)
        self._known = there | set(missing)

    def forget(self) -> None:
        """Look anew which days are there: somebody else may have dropped one."""
        self._known.clear()

    async def drop(self, before: date) -> int:
        """Drop the days before that one and return how many; one that is being read is left for the next time.

        Raises:
            StoreUnavailable: Some may be there still.
        """
        async with self._pool.transaction() as connection:
            old = sorted(day for day in await _attached(connection) if day < before)
        self._known -= set(old)
        return sum([await self._drop(day) for day in old])

    async def _drop(self, day: date) -> bool:
        try:
            async with self._pool.transaction() as connection:
                await connection.execute(f"SET LOCAL lock_timeout = '{_PATIENCE}'")
                await connection.execute(f"DROP TABLE IF EXISTS {_name(day)}")
        except StoreUnavailable as error:
            if isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                return False
            raise
        return True


def _name(day: date) -> str:
    return f"events_{day:%Y%m%d}"


async def _attached(connection: Connection) -> set[date]:
    cursor = await connection.execute(
        "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
        "WHERE inhparent = 'events'::regclass AND NOT inhdetachpending"
    )
    names = (_NAME.fullmatch(row[0]) for row in await cursor.fetchall())
    return {date.fromisoformat(found[1]) for found in names if found}


async def _attach(connection: Connection, day: date) -> None:
    # IF NOT EXISTS: one that somebody has detached by hand must not keep the events of that day out for ever.
    await connection.execute(f"CREATE TABLE IF NOT EXISTS {_name(day)} (LIKE events INCLUDING ALL)")
    await connection.execute(
        f"ALTER TABLE events ATTACH PARTITION {_name(day)} "
        f"FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
    )
