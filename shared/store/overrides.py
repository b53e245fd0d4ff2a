"""The rules as people see and change them: `dns_overrides`, their versions and their history.

The database itself versions and records every change of a row (alembic/versions/0001_first.py). Every change made here
is one transaction, and so one version, however many rules it touches: all or nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal, TypeVar

import msgspec
from psycopg.rows import TupleRow

from shared.mail.route import TargetError
from shared.mail.rule import Rule, check_cycles, key_of
from shared.store.pool import Connection, Pool
from shared.store.rulebooks import read_rule, states_at

_T = TypeVar("_T")
_PIECE = 2_000  # rules written with one statement
_MANY = 5_000  # rules that take long enough to be looked through in a thread
_LONG = 600.0  # seconds for writing very many rules
_COLUMNS = {
    "lookup_key": "text",
    "target_host": "text",
    "comment": "text",
    "transport": "text",
    "tls": "text",
    "expires_at": "timestamptz",
    "enabled": "boolean",
    "share": "smallint",
}
_UPSERT = (
    f"INSERT INTO dns_overrides ({', '.join(_COLUMNS)}) "  # noqa: S608 - our own column names
    f"SELECT * FROM unnest({', '.join(f'%s::{kind}[]' for kind in _COLUMNS.values())}) "
    f"ON CONFLICT (lookup_key) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)}"
)

State = Literal["on", "off", "temporary"]  # enabled, not enabled, with an end
_FOUND = """
    (%(search)s::text IS NULL
     OR strpos(lower(lookup_key || ' ' || target_host || ' ' || comment), lower(%(search)s::text)) > 0)
    AND CASE %(state)s::text WHEN 'on' THEN enabled WHEN 'off' THEN NOT enabled
                             WHEN 'temporary' THEN expires_at IS NOT NULL ELSE true END
"""

_CHANGED = "version, at, actor, action, lookup_key, before::text, after::text FROM dns_override_changes"
_HISTORY_OF_KEY = f"""
    SELECT {_CHANGED} WHERE lookup_key = %(key)s AND (%(version)s::bigint IS NULL OR version < %(version)s)
    ORDER BY version DESC LIMIT %(limit)s
"""
# From version to version along the primary key: a page must not sort the hundred thousand changes of one import.
_HISTORY = f"""
    WITH RECURSIVE versions AS (
        (SELECT version AS number, 1 AS place FROM dns_override_changes
         WHERE version <= coalesce(%(version)s::bigint, {2**63 - 1}) ORDER BY version DESC LIMIT 1)
        UNION ALL
        SELECT (SELECT version FROM dns_override_changes WHERE version < number ORDER BY version DESC LIMIT 1),
               place + 1
        FROM versions WHERE number IS NOT NULL AND place <= %(limit)s
    )
    SELECT found.* FROM versions CROSS JOIN LATERAL (
        SELECT {_CHANGED} WHERE version = number
            AND (number IS DISTINCT FROM %(version)s::bigint OR lookup_key > %(last)s::text)
        ORDER BY lookup_key LIMIT %(limit)s
    ) AS found ORDER BY version DESC, lookup_key LIMIT %(limit)s
"""  # noqa: S608 - constants

Edits = Mapping[str, Rule | None]  # by normalised key, the rule that is to be; None removes it
Progress = Callable[[int, int], None]  # told how many of how many rules are written


class ConflictError(ValueError):
    """Somebody else changed what was to be changed; the message says who, when and what."""


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """`version` counts changes; `released` is the one that routers are to apply."""

    version: int
    released: int


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A saved rule with its dates."""

    rule: Rule
    created_at: datetime
    updated_at: datetime


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One rule before and after a change; None where there is none."""

    lookup_key: str
    before: Rule | None
    after: Rule | None


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One change of the history."""

    version: int
    at: datetime
    actor: str
    action: str
    change: Change


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """What a release did: routers go from version `since` to `version`."""

    since: int
    version: int


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """What a write did.

    Attributes:
        version: The version of the write; the latest one when nothing differed.
        changes: What differs; empty when the table already was as asked.
        released: What was released with it; None when it is only saved, or was only tried.
    """

    version: int
    changes: tuple[Change, ...]
    released: Released | None = None

    @property
    def changed(self) -> bool:
        """Say whether anything differs."""
        return bool(self.changes)


class Overrides:
    """The table `dns_overrides` and what belongs to it."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def versions(self) -> Versions:
        """Return the latest and the released version."""
        async with self._pool.transaction() as connection:
            return await _versions(connection)

    async def set(
        self, rule: Rule, *, actor: str, release: bool, if_version: int | None = None, only_changed: bool = False
    ) -> Saved:
        """Save a rule, new or in place of the one with its key; raises as `apply` does."""
        return await self.apply(
            {rule.lookup_key: rule}, actor=actor, release=release, if_version=if_version, only_changed=only_changed
        )

    async def remove(self, key: str, *, actor: str, release: bool, if_version: int | None = None) -> Saved | None:
        """Remove the rule with this normalised key; None when there is none."""
        saved = await self.apply({key: None}, actor=actor, release=release, if_version=if_version, only_changed=True)
        return saved if saved.changed else None

    async def apply(
        self,
        edits: Edits,
        *,
        actor: str,
        release: bool,
        action: str = "",
        if_version: int | None = None,
        whole: bool = False,
        only_changed: bool = False,
        dry: bool = False,
        progress: Progress | None = None,
    ) -> Saved:
        """Change several rules as one version.

        Args:
            edits: By key, what is to be.
            actor: Who makes the change.
            release: Whether routers are to apply it now.
            action: What the history calls it; "" for set, change or remove.
            if_version: Refuse when what would be touched was changed after this version.
            whole: The edits are the whole table: rules that they do not name are removed.
            only_changed: Release nothing when nothing differs, for what others have staged is theirs to release.
            dry: Return what would differ, and change nothing.
            progress: Told how many rules are written.

        Raises:
            RuleError: A rule closes a circle; nothing is written.
            ConflictError: Somebody else changed it after `if_version`; nothing is written.
            StoreUnavailable: It may or may not have been committed.
        """
        async with self._writing(actor, action) as connection:
            current = await _rows(connection, None if whole else edits)
            if if_version is not None:
                await _refuse_if_changed(connection, None if whole else edits, if_version)
            wanted = {**dict.fromkeys(current), **edits} if whole else edits
            changes = await _differences(current, wanted)
            await _check(connection, changes)
            if not dry:
                await _write(connection, changes, progress)
            return await _saved(
                connection, changes, release=release and not dry and (bool(changes) or not only_changed)
            )

    async def enable(
        self,
        key: str,
        *,
        enabled: bool,
        actor: str,
        release: bool,
        if_version: int | None = None,
        only_changed: bool = False,
    ) -> Saved | None:
        """Take a rule out of use, or into use again; None when there is none with this key. Raises as `apply` does."""
        async with self._writing(actor, "enable" if enabled else "disable") as connection:
            current = await _rows(connection, (key,))
            if not current:
                return None
            if if_version is not None:
                await _refuse_if_changed(connection, (key,), if_version)
            changes = await _differences(current, {key: msgspec.structs.replace(current[key], enabled=enabled)})
            await _check(connection, changes)
            await _write(connection, changes, None)
            return await _saved(connection, changes, release=release and (bool(changes) or not only_changed))

    async def rollback(
        self,
        version: int,
        *,
        actor: str,
        release: bool,
        now: datetime,
        if_version: int | None = None,
        dry: bool = False,
    ) -> Saved:
        """Make the table what it was at a version, as one new version. Rules that have ended since stay away.

        Raises:
            ConflictError: There is no such version, or somebody changed a rule after `if_version`.
            StoreUnavailable: It may or may not have been committed.
        """
        async with self._writing(actor, f"rollback to {version}") as connection:
            latest = (await _versions(connection)).version
            if not 0 <= version <= latest:
                raise ConflictError(f"there is no version {version}: the latest is {latest}")
            if if_version is not None:
                await _refuse_if_changed(connection, None, if_version)
            wanted = await states_at(connection, version)
            ended = [key for key, rule in wanted.items() if rule and rule.expires_at and rule.expires_at <= now]
            current = await _rows(connection, wanted)
            changes = await _differences(current, wanted | dict.fromkeys(ended))
            if not dry:
                await _write(connection, changes, None)
            return await _saved(connection, changes, release=release and not dry)

    async def expire(self, now: datetime) -> Saved | None:
        """End the rules whose time is over, as a change of their own that is released; None when there are none.

        Any number of schedulers may call it.
        """
        ended = "SELECT lookup_key FROM dns_overrides WHERE expires_at <= %s"
        async with self._pool.transaction() as connection:
            if not await (await connection.execute(f"{ended} LIMIT 1", (now,))).fetchall():
                return None
        async with self._writing("scheduler", "expire") as connection:
            # Read again under the lock: its time may have been put off, or another scheduler was first.
            keys = [row[0] for row in await (await connection.execute(ended, (now,))).fetchall()]
            if not keys:
                return None
            changes = await _differences(await _rows(connection, keys), dict.fromkeys(keys))
            await _write(connection, changes, None)
            return await _saved(connection, changes, release=True)

    async def release(self) -> Released:
        """Release every change made so far."""
        async with self._pool.transaction() as connection:
            # Else a release that waited for another one would say that it began where that one began.
            await connection.execute("SELECT FROM rulebook FOR UPDATE")
            return await _release(connection)

    async def changed_keys(self, released: Released) -> list[str]:
        """Return the keys of the rules that a release changed."""
        async with self._pool.transaction() as connection:
            cursor = await connection.execute(
                "SELECT DISTINCT lookup_key FROM dns_override_changes WHERE version > %s AND version <= %s",
                (released.since, released.version),
            )
            return [row[0] for row in await cursor.fetchall()]

    async def get(self, key: str) -> Stored | None:
        """Return the saved rule with this normalised key, or None."""
        found = await self._stored("WHERE lookup_key = %(key)s", {"key": key, "limit": 1})
        return found[0] if found else None

    async def matching(self, search: str | None = None) -> list[Stored]:
        """Return the saved rules by key; with `search`, those with that text in key, target or comment."""
        return await self.page(search, limit=None)

    async def page(
        self,
        search: str | None = None,
        *,
        after: str | None = None,
        limit: int | None = 100,
        state: State | None = None,
    ) -> list[Stored]:
        """Return saved rules by key, from the one after `after` on.

        Args:
            search: Only those with that text in key, target or comment.
            after: The last key of the page before; None for the first page.
            limit: The most rules; None for all.
            state: Only those in this state.
        """
        return await self._stored(
            f"WHERE {_FOUND} AND (%(after)s::text IS NULL OR lookup_key > %(after)s)",
            {"search": search, "state": state, "after": after, "limit": limit},
        )

    async def count(self, search: str | None = None, *, state: State | None = None) -> int:
        """Return how many saved rules there are, of those that `page` shows."""
        async with self._pool.statement() as connection:
            cursor = await connection.execute(
                f"SELECT count(*) FROM dns_overrides WHERE {_FOUND}",  # noqa: S608 - constants
                {"search": search, "state": state},
            )
            return int((await cursor.fetchall())[0][0])

    async def history(
        self, key: str | None = None, *, limit: int = 100, before: tuple[int, str] | None = None
    ) -> list[Recorded]:
        """Return the changes of one key or of all, the latest first.

        Args:
            key: Only those of the rule with this key.
            limit: The most changes.
            before: Only those after this version and key, the last ones of the page before.
        """
        version, last = before or (None, "")
        values = {"key": key, "version": version, "last": last, "limit": limit}
        async with self._pool.transaction() as connection:
            cursor = await connection.execute(_HISTORY if key is None else _HISTORY_OF_KEY, values)
            return [_recorded(row) for row in await cursor.fetchall()]

    async def _stored(self, where: str, values: Mapping[str, str | int | None]) -> list[Stored]:
        async with self._pool.statement() as connection:
            cursor = await connection.execute(
                "SELECT to_jsonb(d)::text, created_at, updated_at "  # noqa: S608 - literals of this class
                f"FROM dns_overrides d {where} ORDER BY lookup_key LIMIT %(limit)s",
                values,
            )
            stored: list[Stored] = []
            # Piece by piece: a hundred thousand rules must not keep a panel from answering others for a second.
            while rows := await cursor.fetchmany(_PIECE):
                stored += [
                    Stored(rule=read_rule(rule), created_at=created, updated_at=updated)
                    for rule, created, updated in rows
                ]
                await asyncio.sleep(0)
            return stored

    @contextlib.asynccontextmanager
    async def _writing(self, actor: str, action: str = "") -> AsyncIterator[Connection]:
        async with self._pool.transaction(patience=_LONG) as connection:
            # A writer that was suspended, say with Ctrl-Z, must not keep all others waiting.
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
            # One writer at a time: what was checked still holds when it is written.
            await connection.execute(
                "SELECT set_config('pushpush.actor', %s, true), set_config('pushpush.action', %s, true) "
                "FROM rulebook FOR UPDATE",
                (actor, action),
            )
            yield connection


def _recorded(row: TupleRow) -> Recorded:
    version, at, actor, action, key, before, after = row
    change = Change(
        lookup_key=key,
        before=None if before is None else read_rule(before),
        after=None if after is None else read_rule(after),
    )
    return Recorded(version=version, at=at, actor=actor, action=action, change=change)


async def _differences(current: Mapping[str, Rule], wanted: Edits) -> tuple[Change, ...]:
    """Return what must be changed; the version of a rule is no part of what it says."""
    return await _aside(
        len(wanted),
        lambda: tuple(
            Change(lookup_key=key, before=current.get(key), after=rule)
            for key, rule in wanted.items()
            if _unversioned(rule) != _unversioned(current.get(key))
        ),
    )


async def _aside(rules: int, work: Callable[[], _T]) -> _T:
    """Return what the work returns; with very many rules, while the loop goes on to serve others."""
    return await asyncio.to_thread(work) if rules > _MANY else work()


def _unversioned(rule: Rule | None) -> Rule | None:
    return None if rule is None else msgspec.structs.replace(rule, version=0)


async def _rows(connection: Connection, keys: Iterable[str] | None) -> dict[str, Rule]:
    cursor = await connection.execute(
        "SELECT to_jsonb(d)::text FROM dns_overrides d WHERE %(keys)s::text[] IS NULL OR lookup_key = ANY(%(keys)s)",
        {"keys": None if keys is None else list(keys)},
    )
    found: dict[str, Rule] = {}
    while rows := await cursor.fetchmany(_PIECE):
        found |= {rule.lookup_key: rule for rule in (read_rule(row[0]) for row in rows)}
        await asyncio.sleep(0)
    return found


async def _refuse_if_changed(connection: Connection, keys: Iterable[str] | None, version: int) -> None:
    latest = (await _versions(connection)).version
    if version > latest:
        raise ConflictError(f"there is no version {version} yet: the latest is {latest}")
    cursor = await connection.execute(
        "SELECT lookup_key, version, actor FROM dns_override_changes "
        "WHERE version > %(version)s AND (%(keys)s::text[] IS NULL OR lookup_key = ANY(%(keys)s)) "
        "ORDER BY version DESC LIMIT 1",
        {"version": version, "keys": None if keys is None else list(keys)},
    )
    for key, found, actor in await cursor.fetchall():
        raise ConflictError(f"{actor} changed {key} in version {found}, after version {version}: look again first")


async def _check(connection: Connection, changes: Sequence[Change]) -> None:
    """Refuse circles, over any number of steps through saved rules."""
    made = [change.after for change in changes if change.after is not None]
    touched = {change.lookup_key for change in changes}
    found: dict[str, Rule] = {}
    frontier = await _aside(len(made), lambda: _leads_to(made) - touched)
    while frontier:
        rows = await _rows(connection, frontier)
        found |= rows
        frontier = _leads_to(rows.values()) - found.keys() - touched
    await _aside(len(made), lambda: check_cycles(made, found.values()))


def _leads_to(rules: Iterable[Rule]) -> set[str]:
    keys: set[str] = set()
    for rule in rules:
        with contextlib.suppress(TargetError):  # as psql can write one
            keys |= {key_of(target) for target in rule.targets()}
    return keys


async def _write(connection: Connection, changes: Sequence[Change], progress: Progress | None) -> None:
    removed = [change.lookup_key for change in changes if change.after is None]
    if removed:
        await connection.execute("DELETE FROM dns_overrides WHERE lookup_key = ANY(%s)", (removed,))
    made = [change.after for change in changes if change.after is not None]
    for start in range(0, len(made), _PIECE):
        piece = made[start : start + _PIECE]
        await connection.execute(_UPSERT, [[getattr(rule, name) for rule in piece] for name in _COLUMNS])
        if progress is not None:
            progress(start + len(piece), len(made))


async def _versions(connection: Connection) -> Versions:
    cursor = await connection.execute("SELECT version, released FROM rulebook")
    version, released = (await cursor.fetchall())[0]
    return Versions(version=version, released=released)


async def _release(connection: Connection) -> Released:
    cursor = await connection.execute(
        "UPDATE rulebook SET released = version FROM (SELECT released AS since FROM rulebook) was "
        "RETURNING since, version"
    )
    since, version = (await cursor.fetchall())[0]
    return Released(since=since, version=version)


async def _saved(connection: Connection, changes: tuple[Change, ...], *, release: bool) -> Saved:
    if release:
        released = await _release(connection)
        return Saved(version=released.version, changes=changes, released=released)
    return Saved(version=(await _versions(connection)).version, changes=changes)
