"""The rules: `dns_overrides`, their versions and their history.

The database itself versions and records every change of a row (alembic/versions/0001_first.py), so this module only
writes rows, and reads the rules as they were released.
"""

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime

import msgspec
from psycopg.rows import scalar_row

from shared.mail.rule import Rule, check_cycle, key_of
from shared.mail.rulebook import Rulebook
from shared.store.pool import Connection, Pool

LOADING = 300.0  # seconds for reading every rule

_decode = msgspec.json.Decoder(Rule).decode


def _read(row: str) -> Rule:
    """Return the rule of a row. One that cannot be read keeps its key, and has a target that sends no mail anywhere.

    Else a row that somebody wrote with psql, say with a date beyond the calendar, would stop every router.
    """
    try:
        return _decode(row)
    except msgspec.ValidationError as error:
        return Rule(lookup_key=msgspec.json.decode(row)["lookup_key"], target_host=f"unreadable rule: {error}")


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """`version` counts changes; `released` is the one that routers are to apply."""

    version: int
    released: int


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A saved rule with its dates."""

    rule: Rule
    created_at: datetime
    updated_at: datetime


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """What a write did.

    Attributes:
        version: The version of the write; the latest one when nothing differed.
        changed: False when the table already was as asked.
        released: Whether routers are to apply it now.
    """

    version: int
    changed: bool
    released: bool


class Overrides:
    """The table `dns_overrides` and what belongs to it."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def versions(self) -> Versions:
        """Return the latest and the released version."""
        async with self._pool.transaction() as connection:
            return await _versions(connection)

    async def rulebook(self) -> Rulebook:
        """Return the released rules. Changes made since, but not released, are taken back in what is returned."""
        async with self._pool.transaction(patience=LOADING) as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            versions = await _versions(connection)
            async with connection.cursor(row_factory=scalar_row) as cursor:
                await cursor.execute("SELECT to_jsonb(d)::text FROM dns_overrides d WHERE enabled")
                rules = [_read(row) async for row in cursor]
            book = Rulebook(rules, versions.released)
            if versions.version > versions.released:
                unreleased = await connection.execute(
                    "SELECT DISTINCT ON (lookup_key) lookup_key, before::text FROM dns_override_changes "
                    "WHERE version > %s ORDER BY lookup_key, version",
                    (versions.released,),
                )
                book = book.changed(
                    {key: None if before is None else _read(before) for key, before in await unreleased.fetchall()},
                    versions.released,
                )
            return book

    async def changed_since(self, book: Rulebook) -> Rulebook:
        """Return the released rules, from older ones and the changes in between."""
        async with self._pool.transaction() as connection:
            # One statement sees one state, so the version and the changes up to it belong together.
            changes = await connection.execute(
                "SELECT r.released, c.lookup_key, c.after::text FROM rulebook r LEFT JOIN dns_override_changes c "
                "ON c.version > %s AND c.version <= r.released ORDER BY c.version",
                (book.version,),
            )
            rows = await changes.fetchall()
        released = rows[0][0]
        if released == book.version:
            return book
        if released < book.version:
            # The database went back: a restore, or a failover that lost commits. What was read of it counts no more.
            return await self.rulebook()
        return book.changed(
            {key: None if after is None else _read(after) for _, key, after in rows if key is not None}, released
        )

    async def set(self, rule: Rule, *, actor: str, release: bool) -> Saved:
        """Save a rule, new or in place of the one with its key.

        Raises:
            RuleError: It closes a circle with saved rules; nothing is written.
            StoreUnavailable: It may or may not have been committed.
        """
        async with self._writing(actor) as connection:
            check_cycle(rule, await _reachable(connection, rule))
            row = {name: getattr(rule, name) for name in rule.__struct_fields__ if name != "version"}
            updated = await connection.execute(
                f"UPDATE dns_overrides SET ({', '.join(row)}) = ROW({', '.join(f'%({name})s' for name in row)}) "  # noqa: S608 - our own column names
                "WHERE lookup_key = %(lookup_key)s",
                row,
            )
            if updated.rowcount == 0:
                await connection.execute(
                    f"INSERT INTO dns_overrides ({', '.join(row)}) VALUES ({', '.join(f'%({name})s' for name in row)})",  # noqa: S608
                    row,
                )
            return await _saved(connection, release=release)

    async def remove(self, key: str, *, actor: str, release: bool) -> Saved | None:
        """Remove the rule with this normalised key; None when there is none."""
        async with self._writing(actor) as connection:
            removed = await connection.execute("DELETE FROM dns_overrides WHERE lookup_key = %s", (key,))
            return None if removed.rowcount == 0 else await _saved(connection, release=release)

    async def release(self) -> int:
        """Release every change made so far; return the version that is now released."""
        async with self._pool.transaction() as connection:
            cursor = await connection.execute("UPDATE rulebook SET released = version RETURNING released")
            return int((await cursor.fetchall())[0][0])

    async def get(self, key: str) -> Stored | None:
        """Return the saved rule with this normalised key, or None."""
        found = await self._stored("WHERE lookup_key = %s", (key,))
        return found[0] if found else None

    async def matching(self, search: str | None = None) -> list[Stored]:
        """Return the saved rules by key; with `search`, those with that text in key, target or comment."""
        return await self._stored(
            "WHERE %s::text IS NULL OR strpos(lower(concat_ws(' ', lookup_key, target_host, comment)), lower(%s)) > 0",
            (search, search),
        )

    async def _stored(self, where: str, values: tuple[str | None, ...]) -> list[Stored]:
        async with self._pool.transaction() as connection:
            cursor = await connection.execute(
                f"SELECT to_jsonb(d)::text, created_at, updated_at FROM dns_overrides d {where} ORDER BY lookup_key",  # noqa: S608 - literals of this class
                values,
            )
            return [
                Stored(rule=_read(rule), created_at=created, updated_at=updated)
                for rule, created, updated in await cursor.fetchall()
            ]

    @contextlib.asynccontextmanager
    async def _writing(self, actor: str) -> AsyncIterator[Connection]:
        async with self._pool.transaction() as connection:
            # One writer at a time: what was checked still holds when it is written.
            await connection.execute("SELECT FROM rulebook FOR UPDATE")
            await connection.execute("SELECT set_config('pushpush.actor', %s, true)", (actor,))
            yield connection


async def _versions(connection: Connection) -> Versions:
    cursor = await connection.execute("SELECT version, released FROM rulebook")
    version, released = (await cursor.fetchall())[0]
    return Versions(version=version, released=released)


async def _saved(connection: Connection, *, release: bool) -> Saved:
    cursor = await connection.execute("SELECT current_setting('pushpush.version', true)")
    taken = (await cursor.fetchall())[0][0]
    if release:
        await connection.execute("UPDATE rulebook SET released = version")
    versions = await _versions(connection)
    return Saved(version=versions.version, changed=bool(taken), released=release)


async def _reachable(connection: Connection, rule: Rule) -> list[Rule]:
    """Return the saved rules that the rule's targets lead to, over any number of steps."""
    found: dict[str, Rule] = {}
    frontier = {key_of(target) for target in rule.targets()}
    while frontier:
        cursor = await connection.execute(
            "SELECT to_jsonb(d)::text FROM dns_overrides d WHERE lookup_key = ANY(%s)", (list(frontier),)
        )
        rules = [_read(row[0]) for row in await cursor.fetchall()]
        found |= {each.lookup_key: each for each in rules}
        frontier = {key_of(target) for each in rules for target in each.targets()} - found.keys() - {rule.lookup_key}
    return list(found.values())
