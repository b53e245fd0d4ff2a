"""The rules as they were released: whole, as a delta, and for one domain at any version of the past."""

from collections.abc import Sequence

import msgspec
from psycopg.rows import scalar_row

from shared.mail.rule import Rule
from shared.mail.rulebook import Building, Rulebook
from shared.store.pool import Connection, Pool

LOADING = 300.0  # seconds for reading every rule
_LARGE = 10_000  # changes; more are read as the whole rulebook, in pieces, or they would stop the loop for seconds
_PIECE = 10_000  # rules read at once, so that the loop turns in between and the memory stays small

_decode = msgspec.json.Decoder(Rule).decode

# What a rulebook keeps as its target alone.
_PLAIN = "transport = 'auto' AND tls IS NULL AND share IS NULL"
# One statement sees one state, so the version and the changes up to it belong together. `mark` is when the change of a
# version was made: it tells one history from another that counts to the same number.
_DELTA = """
    SELECT r.released,
           (SELECT max(at) FROM dns_override_changes WHERE version = %(version)s),
           (SELECT max(at) FROM dns_override_changes WHERE version = (SELECT released FROM rulebook)),
           c.lookup_key, c.after::text
    FROM rulebook r
    LEFT JOIN dns_override_changes c ON c.version > %(version)s AND c.version <= r.released
    ORDER BY c.version
    LIMIT %(limit)s
"""


class OtherHistoryError(Exception):
    """The database does not continue the history that was read before: a restore, or a failover that lost commits."""


def read_rule(row: str) -> Rule:
    """Return the rule of a row. One that cannot be read keeps its key, and has a target that sends no mail anywhere.

    Else a row that somebody wrote with psql, say with a date beyond the calendar, would stop every router.
    """
    try:
        return _decode(row)
    except msgspec.ValidationError as error:
        return Rule(lookup_key=msgspec.json.decode(row)["lookup_key"], target_host=f"unreadable rule: {error}")


class Rulebooks:
    """What routers are given."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def rulebook(self) -> Rulebook:
        """Return the released rules. Changes made since, but not released, are taken back in what is returned.

        Raises:
            StoreUnavailable: They could not be read.
        """
        async with self._pool.transaction(patience=LOADING) as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            cursor = await connection.execute(
                "SELECT version, released, (SELECT max(at) FROM dns_override_changes c WHERE c.version = released) "
                "FROM rulebook"
            )
            version, released, mark = (await cursor.fetchall())[0]
            book = Rulebook.built(await _all(connection), released, mark)
            if version > released:
                before = await states_at(connection, released)
                book = book.changed(before, released, mark)
            return book

    async def changed_since(self, book: Rulebook) -> Rulebook:
        """Return the released rules, from older ones and the changes in between.

        Raises:
            OtherHistoryError: The database does not continue what the book was read from; read it anew.
            StoreUnavailable: The changes could not be read.
        """
        async with self._pool.statement() as connection:
            cursor = await connection.execute(_DELTA, {"version": book.version, "limit": _LARGE + 1})
            rows = await cursor.fetchall()
        released, then, mark = rows[0][:3]
        if released < book.version or then != book.mark:
            raise OtherHistoryError
        if released == book.version:
            return book
        if len(rows) > _LARGE:
            return await self.rulebook()
        changes = {key: None if after is None else read_rule(after) for *_, key, after in rows if key is not None}
        return book.changed(changes, released, mark)

    async def part(self, keys: Sequence[str], version: int | None = None) -> Rulebook:
        """Return the rulebook of one version, as far as these keys go; None is the released version.

        Raises:
            StoreUnavailable: It could not be read.
        """
        async with self._pool.transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            if version is None:
                cursor = await connection.execute("SELECT released FROM rulebook")
                version = int((await cursor.fetchall())[0][0])
            cursor = await connection.execute(
                "SELECT to_jsonb(d)::text FROM dns_overrides d WHERE lookup_key = ANY(%s)", (list(keys),)
            )
            book = Rulebook([read_rule(row[0]) for row in await cursor.fetchall()], version)
            return book.changed(await states_at(connection, version, keys), version)


async def states_at(connection: Connection, version: int, keys: Sequence[str] | None = None) -> dict[str, Rule | None]:
    """Return the rules at a version for the keys that were changed after it; None where there was none."""
    cursor = await connection.execute(
        "SELECT DISTINCT ON (lookup_key) lookup_key, before::text FROM dns_override_changes "
        "WHERE version > %s AND (%s::text[] IS NULL OR lookup_key = ANY(%s)) ORDER BY lookup_key, version",
        (version, *[None if keys is None else list(keys)] * 2),
    )
    return {key: None if before is None else read_rule(before) for key, before in await cursor.fetchall()}


async def _all(connection: Connection) -> Building:
    building = Building()
    async with connection.cursor(name="plain_rules") as cursor:
        await cursor.execute(
            f"SELECT lookup_key, target_host FROM dns_overrides WHERE enabled AND {_PLAIN}",  # noqa: S608 - a constant
            binary=True,
        )
        while rows := await cursor.fetchmany(_PIECE):
            building.add_plain(rows)
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(
            f"SELECT to_jsonb(d)::text FROM dns_overrides d WHERE enabled AND NOT ({_PLAIN})"  # noqa: S608
        )
        async for row in cursor:
            building.add(read_rule(row))
    return building
