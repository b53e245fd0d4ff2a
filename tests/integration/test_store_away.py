"""The store before it is migrated, while it is migrated, and while it is away."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.local.services import PostgreSQL
from shared.mail.rule import make_rule
from shared.runtime.errors import StoreUnavailable
from shared.store import migrate
from shared.store.bodies import Bodies
from shared.store.dead import DeadLetters, Letter
from shared.store.deferred import Deferred
from shared.store.hops import NextHops
from shared.store.overrides import Overrides, Versions
from shared.store.pool import Pool
from shared.store.routers import Routers
from shared.store.rulebooks import OtherHistoryError, Rulebooks
from shared.store.selection import Selection
from shared.store.waiting import WaitingMail
from tests.databases import new_database
from tests.integration.conftest import MESSAGE, NOON, Wire, delivery, through, until

pytestmark = [pytest.mark.anyio, pytest.mark.services]

TABLES = [
    "alembic_version",
    "audit",
    "bodies",
    "body_uses",
    "dead_letters",
    "deferred",
    "dns_override_changes",
    "dns_overrides",
    "event_batches",
    "event_minutes",
    "events",
    "login_failures",
    "mta_sts_policies",
    "next_hops",
    "routers",
    "rulebook",
    "sessions",
    "tokens",
    "traffic",
    "traffic_hours",
]
EVERY_CALL: list[Callable[[Pool], Any]] = [
    lambda pool: Overrides(pool).versions(),
    lambda pool: Rulebooks(pool).rulebook(),
    lambda pool: Overrides(pool).set(make_rule("a.example", "b.example"), actor="ann", release=True),
    lambda pool: Overrides(pool).remove("a.example", actor="ann", release=True),
    lambda pool: Overrides(pool).release(),
    lambda pool: Deferred(pool).defer(delivery(), MESSAGE, NOON),
    lambda pool: Deferred(pool).totals(),
    lambda pool: Deferred(pool).matching(Selection(domain="a.example")),
    lambda pool: Deferred(pool).retry(now=NOON),
    lambda pool: WaitingMail(pool).ages(NOON),
    lambda pool: WaitingMail(pool).stats(by="answer"),
    lambda pool: NextHops(pool).current(),
    lambda pool: DeadLetters(pool).keep([Letter(headers={}, data=b"", reason="")]),
    lambda pool: DeadLetters(pool).page(),
    lambda pool: DeadLetters(pool).get(1),
    lambda pool: DeadLetters(pool).delete([1]),
    lambda pool: Bodies(pool).get("one"),
    lambda pool: Bodies(pool).put("one", MESSAGE, message_id="m1", recipients=["b@a.example"]),
    lambda pool: Bodies(pool).use("one", "m1", ["b@a.example"]),
    lambda pool: Bodies(pool).head("one", "m1", ["b@a.example"]),
    lambda pool: Bodies(pool).reported("one"),
    lambda pool: Bodies(pool).end("one", "m1", ["b@a.example"]),
    lambda pool: Bodies(pool).prune(NOON),
    lambda pool: Routers(pool).all(),
]


@pytest.fixture
def empty(postgres: PostgreSQL) -> str:
    """The URL of a database without tables."""
    return new_database(postgres.url, "empty")


def tables(url: str) -> list[str]:
    """Return the names of the tables of a database."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
    return [name for (name,) in rows]


class TestMigrating:
    """`migrate.upgrade`."""

    def test_twice_is_as_once(self, empty: str) -> None:
        """A second upgrade changes nothing, and keeps what is in the tables."""
        migrate.upgrade(empty)
        with psycopg.connect(empty) as connection:
            connection.execute("INSERT INTO dns_overrides (lookup_key, target_host) VALUES ('a.example', 'b.example')")
        migrate.upgrade(empty)
        with psycopg.connect(empty) as connection:
            assert [(1,)] == connection.execute("SELECT count(*) FROM dns_overrides").fetchall()
            assert [(migrate.head(),)] == connection.execute("SELECT version_num FROM alembic_version").fetchall()

    def test_two_migrators_at_once(self, empty: str) -> None:
        """Pods that start together do not get in each other's way."""
        with ThreadPoolExecutor(2) as threads:
            for each in [threads.submit(_migrate_elsewhere, empty) for _ in range(2)]:
                assert (0, b"") == each.result()
        assert TABLES == tables(empty)

    async def test_before_it_the_store_names_the_command(self, empty: str) -> None:
        """Without tables every call says what to do, and the same pool works once it is done."""
        pool = Pool(empty, name="test", timeout=5)
        await pool.open()
        for call in EVERY_CALL:
            with pytest.raises(StoreUnavailable, match="pushpush migrate"):
                await call(pool)
        migrate.upgrade(empty)
        assert Versions(version=0, released=0) == await Overrides(pool).versions()
        await pool.close()


def _migrate_elsewhere(url: str) -> tuple[int, bytes]:
    # Alembic's context is one for a process, so each migrator needs its own.
    code = "import sys; from shared.store.migrate import upgrade; upgrade(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, check=False)
    return done.returncode, done.stderr


class TestAway:
    """PostgreSQL stopped, killed and unreachable."""

    async def test_every_call_says_so_and_it_recovers_by_itself(self, tmp_path: Path) -> None:
        """While PostgreSQL is down each call is StoreUnavailable; after the restart the same pool works again."""
        with PostgreSQL(tmp_path / "postgres") as own:
            migrate.upgrade(own.url)
            async with AsyncExitStack() as stack:
                pool = Pool(own.url, name="test", timeout=0.3)
                await pool.open()
                stack.push_async_callback(pool.close)
                await Overrides(pool).set(make_rule("a.example", "b.example"), actor="ann", release=True)
                own.kill()
                for call in EVERY_CALL:
                    with pytest.raises(StoreUnavailable, match="PostgreSQL is away"):
                        await call(pool)
                own.start()
                await until(lambda: _works(pool), within=15)
                assert Versions(version=1, released=1) == await Overrides(pool).versions()
            own.kill()

    async def test_a_pool_that_opens_before_the_database_is_there(self, store_wire: Wire, database: str) -> None:
        """A room may start first: the pool waits, and connects when PostgreSQL comes."""
        await store_wire.cut()
        pool = Pool(through(database, store_wire), name="test", timeout=0.3)
        await pool.open()
        for _ in range(10):  # longer than the pool's own patience with reconnecting
            assert not await _works(pool)
        await store_wire.mend()
        await until(lambda: _works(pool), within=10)
        await pool.close()

    async def test_a_connection_cut_in_the_middle_is_told_as_away(self, store_wire: Wire, database: str) -> None:
        """Nothing of a transaction that lost its connection is there, and the caller knows that it may not be."""
        pool = Pool(through(database, store_wire), name="test", timeout=5)
        await pool.open()
        with pytest.raises(StoreUnavailable):
            await _cut_in_the_middle(pool, store_wire)
        await store_wire.mend()
        assert None is await Bodies(pool).get("one")
        await pool.close()

    @pytest.mark.parametrize("taken_since", [0, 2, 5])
    async def test_a_database_with_another_history_is_noticed(
        self, pool: Pool, database: str, taken_since: int
    ) -> None:
        """After a failover that lost commits the numbers may be lower, the same, or higher: a delta would be wrong."""
        overrides, rulebooks = Overrides(pool), Rulebooks(pool)
        for target in ("b.example", "c.example", "d.example"):
            await overrides.set(make_rule("a.example", target), actor="ann", release=True)
        book = await rulebooks.rulebook()
        await Routers(pool).seen("r1", book.version, book.mark)
        assert [3] == [each.applied for each in await Routers(pool).all()]
        with psycopg.connect(database) as connection:
            connection.execute("DELETE FROM dns_override_changes WHERE version > 1")
            connection.execute("ALTER TABLE dns_overrides DISABLE TRIGGER USER")
            connection.execute("UPDATE dns_overrides SET target_host = 'b.example', version = 1")
            connection.execute("ALTER TABLE dns_overrides ENABLE TRIGGER USER")
            connection.execute("UPDATE rulebook SET version = 1, released = 1")
        for number in range(taken_since):
            await overrides.set(make_rule(f"k{number}.example", "b.example"), actor="ann", release=True)
        with pytest.raises(OtherHistoryError):
            await rulebooks.changed_since(book)
        assert [0] == [each.applied for each in await Routers(pool).all()]  # what it had applied confirms nothing here
        after = await rulebooks.rulebook()
        assert (1 + taken_since, ("b.example",)) == (after.version, after.route("a.example", "m1").targets)
        assert after is await rulebooks.changed_since(after)


async def _works(pool: Pool) -> bool:
    try:
        await Overrides(pool).versions()
    except StoreUnavailable:
        return False
    return True


async def _cut_in_the_middle(pool: Pool, wire: Wire) -> None:
    async with pool.transaction() as connection:
        await connection.execute("INSERT INTO bodies (id, body) VALUES ('one', 'x')")
        await wire.cut()
