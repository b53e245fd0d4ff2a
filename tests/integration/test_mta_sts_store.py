"""MTA-STS policies that outlive the process, and a store that is away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from deploy.local.services import PostgreSQL
from shared.delivery.mta_sts import Policies, Store
from shared.delivery.resolver import Resolver
from shared.mail.mta_sts import Held
from shared.store.policies import StoredPolicies
from shared.store.pool import Pool
from tests.integration.conftest import NOON, Wire, through
from tests.integration.test_mta_sts import ENFORCED, GOOD, Domain, a_domain
from tests.peers.answers import Answer
from tests.peers.policy_host import policy

pytestmark = [pytest.mark.anyio, pytest.mark.services]

TEXT = GOOD.body.decode()


@pytest.fixture
async def domain(tmp_path: Path) -> AsyncIterator[Domain]:
    """A domain that enforces its policy."""
    async with a_domain(tmp_path) as domain:
        yield domain


@pytest.fixture
async def store(pool: Pool, postgres: PostgreSQL) -> StoredPolicies:
    """An empty table."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("TRUNCATE mta_sts_policies")
    return StoredPolicies(pool)


def process(domain: Domain, store: Store, *, store_patience: float = 5) -> Policies:
    """The policies of a process that has just begun."""
    return Policies(
        Resolver([(domain.dns.host, domain.dns.port)], allow_private=True),
        domain.contexts,
        store,
        clock=lambda: domain.time,
        https_port=domain.host.port,
        store_patience=store_patience,
    )


class Stuck:
    """A store that never answers, and takes its time to be cancelled."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.end = asyncio.Event()

    async def get(self, domain: str) -> Held | None:
        """Hang."""
        self.asked.append(domain)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await self.end.wait()
        return None

    async def put(self, domain: str, held: Held) -> None:
        """Hang."""
        del held
        await self.get(domain)


class TestTable:
    """The table `mta_sts_policies`."""

    async def test_it_gives_what_it_was_given(self, store: StoredPolicies) -> None:
        """Text, id and time; a domain without policy has none."""
        held = Held.of("1", TEXT, NOON)
        await store.put("a.example", held)
        assert held == await store.get("a.example")
        assert await store.get("b.example") is None

    async def test_the_later_fetch_stays(self, store: StoredPolicies) -> None:
        """A process that was slow does not bring an older policy back."""
        later, earlier = Held.of("2", TEXT, NOON), Held.of("1", TEXT, NOON - timedelta(seconds=1))
        await store.put("a.example", later)
        await store.put("a.example", earlier)
        assert later == await store.get("a.example")

    async def test_what_cannot_be_read_is_none(self, store: StoredPolicies, postgres: PostgreSQL) -> None:
        """A policy of a later release is fetched anew by this one."""
        await store.put("a.example", Held.of("1", TEXT, NOON))
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("UPDATE mta_sts_policies SET policy = 'version: STSv9'")
        assert await store.get("a.example") is None

    async def test_pruned_when_it_has_ended(self, store: StoredPolicies) -> None:
        """And not before."""
        await store.put("a.example", Held.of("1", TEXT, NOON))
        assert 0 == await store.prune(NOON + timedelta(days=1))
        assert 1 == await store.prune(NOON + timedelta(days=1, seconds=1))


class TestShared:
    """Processes that share a store."""

    async def test_one_fetch_for_all_processes(self, domain: Domain, store: StoredPolicies) -> None:
        """What one has fetched the other finds; and so for the next policy."""
        async with process(domain, store) as one, process(domain, store) as other:
            assert ENFORCED == await one.of("a.example")
            assert ENFORCED == await other.of("a.example")
            assert 1 == len(domain.host.gets)
            domain.announce("2")
            domain.host.answer = policy("mx.a.example")
            domain.passes(60)
            assert await one.of("a.example") == await other.of("a.example") != ENFORCED
            assert 2 == len(domain.host.gets)

    async def test_it_outlives_a_restart(self, domain: Domain, store: StoredPolicies) -> None:
        """Also without record and policy host; and it ends when it would have ended."""
        async with process(domain, store) as one:
            await one.of("a.example")
        domain.announce(None)
        domain.host.answer = Answer(status=404)
        domain.passes(86_399)
        async with process(domain, store) as other:
            assert ENFORCED == await other.of("a.example")
            domain.passes(1)
            assert await other.of("a.example") is None
        async with process(domain, store) as third:
            assert await third.of("a.example") is None

    async def test_a_failure_does_not_erase(self, domain: Domain, store: StoredPolicies) -> None:
        """What the store has stays, whatever a policy host says later."""
        async with process(domain, store) as one:
            await one.of("a.example")
        domain.announce("2")
        domain.host.answer = Answer(body=b"", content_type="text/plain")
        async with process(domain, store) as other:
            assert ENFORCED == await other.of("a.example")
        held = await store.get("a.example")
        assert held is not None
        assert "1" == held.id


class TestAway:
    """The store is away, or frozen: the process goes on with what it has."""

    @pytest.fixture
    async def wired(self, store: StoredPolicies, store_wire: Wire, database: str) -> AsyncIterator[StoredPolicies]:
        """The store, through a wire that can be cut."""
        del store  # it is empty
        pool = Pool(through(database, store_wire), name="test", timeout=0.3)
        await pool.open()
        yield StoredPolicies(pool)
        await pool.close()

    async def test_away_and_back(
        self, domain: Domain, store: StoredPolicies, wired: StoredPolicies, store_wire: Wire
    ) -> None:
        """Nothing is raised; when the store is back, it is given what it missed."""
        await store_wire.cut()
        async with process(domain, wired) as one:
            assert ENFORCED == await one.of("a.example")
            domain.announce(None)
            domain.passes(60)
            assert ENFORCED == await one.of("a.example")
            await store_wire.mend()
            domain.passes(61)
            assert ENFORCED == await one.of("a.example")
        assert Held.of("1", TEXT, NOON) == await store.get("a.example")
        assert 1 == len(domain.host.gets)

    async def test_frozen(self, domain: Domain, store: StoredPolicies, wired: StoredPolicies, store_wire: Wire) -> None:
        """A server that takes the question and says nothing is waited for once, not for each domain."""
        await wired.get("a.example")  # it is connected
        store_wire.passing.clear()
        async with process(domain, wired, store_patience=0.2) as one:
            assert ENFORCED == await one.of("a.example")
            assert ENFORCED == await one.of("a.example")
            store_wire.passing.set()
        assert await store.get("a.example") is None

    async def test_it_is_waited_for_once(self, domain: Domain) -> None:
        """Neither each domain nor the end of a cancelled question is waited for; after a minute it is asked again."""
        stuck = Stuck()
        async with asyncio.timeout(10), process(domain, stuck, store_patience=0.1) as one:
            assert ENFORCED == await one.of("a.example")
            assert await one.of("b.example") is None
            assert ["a.example"] == stuck.asked
            domain.passes(61)
            assert ENFORCED == await one.of("a.example")
            assert ["a.example", "a.example"] == stuck.asked
            stuck.end.set()

    async def test_not_migrated(self, domain: Domain, store: StoredPolicies, postgres: PostgreSQL) -> None:
        """A worker that is newer than the tables goes on without them."""
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("ALTER TABLE mta_sts_policies RENAME TO elsewhere")
            try:
                async with process(domain, store) as one:
                    assert ENFORCED == await one.of("a.example")
            finally:
                connection.execute("ALTER TABLE elsewhere RENAME TO mta_sts_policies")
