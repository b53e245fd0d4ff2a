"""The history of the rules: the database itself versions and records every change, whoever makes it."""

from collections.abc import Sequence

import psycopg
import pytest

from shared.mail.rule import make_rule
from shared.store.overrides import Overrides, Saved, Versions
from shared.store.pool import Pool
from shared.store.rulebooks import Rulebooks

pytestmark = [pytest.mark.anyio, pytest.mark.services]

UPSERT = (
    "INSERT INTO dns_overrides (lookup_key, target_host) VALUES ('a.example', 'c.example') "
    "ON CONFLICT (lookup_key) DO UPDATE SET target_host = excluded.target_host"
)


@pytest.fixture
def overrides(pool: Pool) -> Overrides:
    """The rules, none yet."""
    return Overrides(pool)


@pytest.fixture
def rulebooks(pool: Pool) -> Rulebooks:
    """The rules as routers get them."""
    return Rulebooks(pool)


def by_hand(database: str, *statements: str) -> None:
    """Run SQL in one transaction, as a person with psql does."""
    with psycopg.connect(database) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def history(database: str) -> Sequence[tuple[object, ...]]:
    """Return the changes, oldest first, with the targets before and after."""
    with psycopg.connect(database) as connection:
        return connection.execute(
            "SELECT version, actor, action, lookup_key, before ->> 'target_host', after ->> 'target_host' "
            "FROM dns_override_changes ORDER BY version, lookup_key"
        ).fetchall()


async def test_every_change_is_kept_with_its_actor(overrides: Overrides, database: str) -> None:
    """Set, change and remove each leave one row: who, what, before and after."""
    await overrides.set(make_rule("a.example", "b.example"), actor="ann", release=True)
    await overrides.set(make_rule("a.example", "c.example"), actor="bob", release=True)
    await overrides.set(make_rule("a.example", "c.example"), actor="eve", release=True)  # no change
    await overrides.remove("a.example", actor="cid", release=False)
    assert [
        (1, "ann", "set", "a.example", None, "b.example"),
        (2, "bob", "change", "a.example", "b.example", "c.example"),
        (3, "cid", "remove", "a.example", "c.example", None),
    ] == history(database)


async def test_the_row_and_its_history_have_the_same_version(overrides: Overrides, database: str) -> None:
    """A rule knows the version that wrote it, and so does the `after` a router reads."""
    await overrides.set(make_rule("b.example", "c.example"), actor="ann", release=True)
    saved = await overrides.set(make_rule("a.example", "b.example"), actor="ann", release=True)
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT d.version, (c.after ->> 'version')::bigint, c.version FROM dns_overrides d "
            "JOIN dns_override_changes c USING (lookup_key) WHERE lookup_key = 'a.example'"
        ).fetchall()
    assert [(saved.version,) * 3] == rows


async def test_plain_sql_is_versioned_and_recorded_too(
    overrides: Overrides, rulebooks: Rulebooks, database: str
) -> None:
    """INSERT, UPDATE and DELETE by hand: versions, history with the database's user, and routers see them."""
    before = await rulebooks.rulebook()
    by_hand(database, "INSERT INTO dns_overrides (lookup_key, target_host) VALUES ('a.example', 'b.example')")
    by_hand(database, "UPDATE dns_overrides SET target_host = 'c.example'")
    by_hand(database, "UPDATE dns_overrides SET target_host = 'c.example'")  # no change
    by_hand(database, "DELETE FROM dns_overrides")
    assert [
        (1, "pushpush", "set", "a.example", None, "b.example"),
        (2, "pushpush", "change", "a.example", "b.example", "c.example"),
        (3, "pushpush", "remove", "a.example", "c.example", None),
    ] == history(database)
    assert Versions(version=3, released=0) == await overrides.versions()
    await overrides.release()
    assert (3, 0) == ((after := await rulebooks.changed_since(before)).version, after.size)


async def test_an_upsert_by_hand_keeps_what_was_before(
    overrides: Overrides, rulebooks: Rulebooks, database: str
) -> None:
    """ON CONFLICT fires insert and update triggers; the history says "change", with the row as it was."""
    by_hand(database, UPSERT.replace("c.example", "b.example"))
    by_hand(database, UPSERT)
    assert [
        (1, "pushpush", "set", "a.example", None, "b.example"),
        (2, "pushpush", "change", "a.example", "b.example", "c.example"),
    ] == history(database)
    await overrides.release()
    assert ("c.example",) == (await rulebooks.rulebook()).route("a.example", "m1").targets


async def test_one_transaction_is_one_version(rulebooks: Rulebooks, database: str) -> None:
    """Several edits committed together appear together; a row written twice keeps its first `before`."""
    by_hand(database, UPSERT)
    by_hand(
        database,
        "UPDATE dns_overrides SET target_host = 'd.example'",
        "INSERT INTO dns_overrides (lookup_key, target_host) VALUES ('b.example', 'e.example')",
        "UPDATE dns_overrides SET target_host = 'f.example' WHERE lookup_key = 'a.example'",
    )
    assert [
        (1, "pushpush", "set", "a.example", None, "c.example"),
        (2, "pushpush", "change", "a.example", "c.example", "f.example"),
        (2, "pushpush", "set", "b.example", None, "e.example"),
    ] == history(database)
    assert 0 == (await rulebooks.rulebook()).size


async def test_a_rule_made_and_removed_in_one_transaction_never_was(
    overrides: Overrides, rulebooks: Rulebooks, database: str
) -> None:
    """Neither before nor after the release does a router see it; replacing by DELETE and INSERT is a change."""
    by_hand(database, UPSERT, "DELETE FROM dns_overrides")
    assert 0 == (await rulebooks.rulebook()).size
    await overrides.release()
    assert 0 == (await rulebooks.rulebook()).size
    by_hand(database, UPSERT)
    await overrides.release()
    by_hand(database, "DELETE FROM dns_overrides", UPSERT.replace("c.example", "d.example"))
    assert ("c.example",) == (await rulebooks.rulebook()).route("a.example", "m1").targets


async def test_what_is_rolled_back_leaves_nothing(overrides: Overrides, database: str) -> None:
    """A savepoint taken back takes its version back with it; what follows is versioned on its own."""
    by_hand(database, "SAVEPOINT here", UPSERT, "ROLLBACK TO here", UPSERT.replace("c.example", "d.example"))
    assert [(1, "pushpush", "set", "a.example", None, "d.example")] == history(database)
    assert 1 == (await overrides.versions()).version


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("TRUNCATE dns_overrides", "no history would be kept"),
        ("UPDATE dns_overrides SET lookup_key = 'b.example'", "cannot be renamed"),
        ("INSERT INTO dns_overrides (lookup_key, target_host) VALUES ('B.example', 'c.example')", "check constraint"),
        ("INSERT INTO dns_overrides (lookup_key, target_host) VALUES ('b.example', '')", "check constraint"),
    ],
)
async def test_what_would_break_the_rules_is_refused(database: str, statement: str, why: str) -> None:
    """No edit by hand can skip the history, or make a key that is never found."""
    by_hand(database, UPSERT)
    with pytest.raises(psycopg.Error, match=why):
        by_hand(database, statement)
    assert 1 == len(history(database))


async def test_the_actor_of_one_change_is_not_that_of_the_next(overrides: Overrides, pool: Pool, database: str) -> None:
    """The actor ends with its transaction, also on a pooled connection; plain SQL then counts as the role's."""
    for number in range(8):
        assert isinstance(
            await overrides.set(make_rule(f"k{number}.example", "b.example"), actor="ann", release=True), Saved
        )
        async with pool.transaction() as connection:
            await connection.execute("DELETE FROM dns_overrides")
    assert ["ann", "pushpush"] * 8 == [actor for _, actor, *_ in history(database)]


async def test_a_page_of_the_history(overrides: Overrides) -> None:
    """Each change once, the latest first and then by key, also where one version has more changes than a page."""
    for number in range(3):
        await overrides.set(make_rule("a.example", f"b{number}.example"), actor="ann", release=True)
    many = {f"k{number:02}.example": make_rule(f"k{number:02}.example", "b.example") for number in range(25)}
    await overrides.apply(many, actor="ann", release=True, action="import")
    await overrides.remove("a.example", actor="ann", release=True)
    whole = await overrides.history()
    expected = [(5, "a.example"), *((4, key) for key in many), *((version, "a.example") for version in (3, 2, 1))]
    assert expected == [(each.version, each.change.lookup_key) for each in whole]
    for key, count in ((None, len(expected)), ("a.example", 4), ("k07.example", 1)):
        paged = page = await overrides.history(key, limit=4)
        while page:
            page = await overrides.history(key, limit=4, before=(page[-1].version, page[-1].change.lookup_key))
            paged = paged + page
        assert [each for each in whole if key in (None, each.change.lookup_key)] == paged
        assert count == len(paged)
