"""Telling the routers: who counts as done, who is late, who is gone; and which waiting mail becomes due."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import aio_pika
import pytest
from aiormq.exceptions import ChannelLockedResource

from deploy.local.services import RabbitMQ
from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.fleet.release import announce, flush
from shared.mail.rule import make_rule
from shared.runtime.errors import BrokerUnavailable
from shared.runtime.settings import Settings
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import LIVE, Routers
from tests.integration.conftest import MESSAGE, NOON, Queues, Wire, delivery, through, until
from tests.integration.rooms import running

pytestmark = [pytest.mark.anyio, pytest.mark.services]

LATER = NOON + timedelta(hours=1)


@pytest.fixture
def routers(pool: Pool) -> Routers:
    """The routers, none yet."""
    return Routers(pool)


@pytest.fixture
async def distant(rabbitmq: RabbitMQ, broker_wire: Wire) -> AsyncIterator[Link]:
    """A link to the broker over the wire."""
    async with Link(through(rabbitmq.url, broker_wire), name="distant") as link:
        await link.wait_up()
        yield link
        broker_wire.passing.set()


async def sign_in(pool: Pool, name: str, applied: int, *, silent: bool = False) -> None:
    """Write a router's row."""
    await Routers(pool).seen(name, applied)
    if silent:
        async with pool.transaction() as connection:
            await connection.execute(
                "UPDATE routers SET seen_at = now() - make_interval(secs => %s) WHERE name = %s", (LIVE + 1, name)
            )


class TestAnnouncing:
    """`announce`: a confirmation is never given on trust."""

    async def test_a_live_router_that_is_behind_is_late(
        self, pool: Pool, routers: Routers, publisher: Publisher
    ) -> None:
        """It is named; those that have applied the version, or a later one, are done."""
        await sign_in(pool, "slow-1", 1)
        await sign_in(pool, "quick-1", 2)
        await sign_in(pool, "quick-2", 3)
        result = await announce(2, publisher, routers, wait=0.2)
        assert (["quick-1", "quick-2"], ["slow-1"], []) == (result.applied, result.late, result.gone)
        assert result.milliseconds >= 200
        assert "applied by 2 of 3 routers" in result.sentence()
        assert "not applied in time by slow-1, which may still route by older rules" in result.sentence()

    async def test_it_returns_once_the_last_one_has_applied(
        self, pool: Pool, routers: Routers, publisher: Publisher
    ) -> None:
        """Not before, and not at the end of the wait."""
        await sign_in(pool, "slow-1", 1)
        announcing = asyncio.create_task(announce(2, publisher, routers, wait=30))
        await asyncio.sleep(0.2)
        assert not announcing.done()
        await sign_in(pool, "slow-1", 2)
        async with asyncio.timeout(5):
            assert [] == (await announcing).late

    async def test_a_silent_router_with_a_connection_is_late(
        self, pool: Pool, routers: Routers, publisher: Publisher, rabbitmq: RabbitMQ
    ) -> None:
        """It hangs, or cannot reach PostgreSQL, and may still route by the rules it has."""
        await sign_in(pool, "silent-1", 1, silent=True)
        async with await aio_pika.connect(rabbitmq.url) as connection:
            channel = await connection.channel()
            await channel.declare_queue(topology.reload_queue("silent-1"), exclusive=True, auto_delete=True)
            result = await announce(2, publisher, routers, wait=0.3)
            assert ([], ["silent-1"], []) == (result.applied, result.late, result.gone)
            announcing = asyncio.create_task(announce(2, publisher, routers, wait=30))
            await asyncio.sleep(0.2)
            assert not announcing.done()
        async with asyncio.timeout(5):  # its connection has ended, so it is gone
            assert ["silent-1"] == (await announcing).gone

    async def test_a_silent_router_without_a_connection_is_gone(
        self, pool: Pool, routers: Routers, publisher: Publisher
    ) -> None:
        """It was killed, and holds nobody up."""
        await sign_in(pool, "dead-1", 1, silent=True)
        await sign_in(pool, "quick-1", 2)
        async with asyncio.timeout(5):
            result = await announce(2, publisher, routers, wait=30)
        assert (["quick-1"], [], ["dead-1"]) == (result.applied, result.late, result.gone)

    async def test_a_silent_router_that_has_applied_it_is_done(
        self, pool: Pool, routers: Routers, publisher: Publisher
    ) -> None:
        """What it wrote stays true."""
        await sign_in(pool, "silent-1", 2, silent=True)
        result = await announce(2, publisher, routers, wait=0)
        assert (["silent-1"], [], []) == (result.applied, result.late, result.gone)

    async def test_while_the_broker_is_away_silent_is_late(
        self, pool: Pool, routers: Routers, distant: Link, broker_wire: Wire
    ) -> None:
        """Nobody can say that its connection is gone; the event that could not be published is told too."""
        await sign_in(pool, "silent-1", 1, silent=True)
        await broker_wire.cut()
        await until(lambda: not distant.is_up)
        result = await announce(2, Publisher(distant), routers, wait=0.2)
        assert ([], ["silent-1"], []) == (result.applied, result.late, result.gone)
        assert result.broker_away is not None
        assert "could not be published" in result.sentence()

    @pytest.mark.parametrize("silent", [True, False])
    async def test_a_broker_that_hangs_does_not_hold_it_up_for_ever(
        self, pool: Pool, routers: Routers, distant: Link, broker_wire: Wire, silent: bool
    ) -> None:
        """Short of memory or disk, a broker answers nobody who publishes; whoever waits is told so all the same."""
        await sign_in(pool, "slow-1", 1, silent=silent)
        broker_wire.passing.clear()
        async with asyncio.timeout(8):
            result = await announce(2, Publisher(distant), routers, wait=0.3)
        assert (["slow-1"], True) == (result.late, bool(result.broker_away))

    async def test_without_routers_it_says_so(self, routers: Routers, publisher: Publisher) -> None:
        """To be told "applied by 0 of 0" would be no news to anybody."""
        result = await announce(1, publisher, routers)
        assert "no router is running" in result.sentence()


class TestFencing:
    """`Publisher.fence`, and a router that comes back to one."""

    async def test_either_the_router_has_its_queue_or_it_is_fenced(
        self, publisher: Publisher, queues: Queues, rabbitmq: RabbitMQ
    ) -> None:
        """While it is connected there is no fence; afterwards there is, as often as one asks."""
        queue = topology.reload_queue("r-1")
        async with await aio_pika.connect(rabbitmq.url) as connection:
            await (await connection.channel()).declare_queue(queue, exclusive=True, auto_delete=True)
            assert [False, False] == [await publisher.fence(queue) for _ in range(2)]
        await until(lambda: publisher.fence(queue))
        assert await publisher.fence(queue)
        async with await aio_pika.connect(rabbitmq.url) as connection:
            channel = await connection.channel()
            with pytest.raises(ChannelLockedResource):
                await channel.declare_queue(queue, exclusive=True, auto_delete=True)
        await publisher.raw(topology.SMTP, b"still publishing")
        assert 1 == await queues.depth(topology.SMTP)
        await queues.channel.queue_delete(queue)

    async def test_it_does_not_guess(self, distant: Link, broker_wire: Wire) -> None:
        """While the broker is away there is no answer."""
        await broker_wire.cut()
        await until(lambda: not distant.is_up)
        with pytest.raises(BrokerUnavailable):
            await Publisher(distant).fence("none")

    @pytest.mark.usefixtures("impatient")
    async def test_a_router_that_lost_both_comes_back_only_with_the_rules(
        self,
        *,
        settings: Settings,
        pool: Pool,
        publisher: Publisher,
        queues: Queues,
        broker_wire: Wire,
        store_wire: Wire,
    ) -> None:
        """Cut off from both, it is passed over; with the broker back alone it may not route by what it had."""
        overrides = Overrides(pool)
        await overrides.set(make_rule("a.example", "old.example"), actor="ann", release=True)
        urls = {
            "amqp_url": through(settings.amqp_url, broker_wire),
            "database_url": through(settings.database_url, store_wire),
        }
        async with running(settings.model_copy(update=urls)) as router:
            await broker_wire.cut()
            await store_wire.cut()
            saved = await overrides.set(make_rule("a.example", "new.example"), actor="ann", release=True)
            result = await announce(saved.version, publisher, Routers(pool), wait=30)
            assert (1, []) == (len(result.gone), result.late)
            await queues.send("b@a.example")
            await broker_wire.mend()
            await asyncio.sleep(3)  # nothing can be waited for: it must not route
            assert 1 == await queues.depth(topology.OUTBOUND)
            await store_wire.mend()
            assert ("new.example",) == (await queues.delivery(topology.HTTPS, within=20))[0].route.targets
            await until(router.ready)
            applied = await announce(saved.version, publisher, Routers(pool), wait=10)
            assert (1, [], []) == (len(applied.applied), applied.late, applied.gone)


class TestFlushing:
    """`flush`: what waits for the domains that a release touches."""

    DOMAINS = (
        "a.example",
        "x.a.example",
        "y.x.a.example",
        "xa.example",
        "a_b.example",
        "axb.example",
        "x.axb.example",
        "[192.0.2.1]",
    )

    @pytest.mark.parametrize(
        ("keys", "due"),
        [
            (["a.example"], ["a.example"]),
            (["*.a.example"], ["x.a.example", "y.x.a.example"]),
            (["a_b.example", "*.a_b.example"], ["a_b.example"]),
            (["[192.0.2.1]", "xa.example"], ["[192.0.2.1]", "xa.example"]),
            (["none.example", "*.example.net"], []),
            (["*"], sorted(DOMAINS)),
        ],
    )
    async def test_only_these_domains(self, pool: Pool, keys: list[str], due: list[str]) -> None:
        """Exact keys, keys for all below a domain, and the one for all; `_` means itself."""
        deferred, overrides = Deferred(pool), Overrides(pool)
        for domain in self.DOMAINS:
            await deferred.defer(delivery(id=domain, domain=domain), MESSAGE, LATER)
        await overrides.set(make_rule("xa.example", "t.example"), actor="ann", release=True)
        saved = await overrides.apply({key: make_rule(key, "u.example") for key in keys}, actor="ann", release=True)
        assert saved.released is not None
        assert len(due) == await flush(saved.released, overrides, deferred, NOON)
        waiting = {each.domain: each.next_attempt_at for each in await deferred.matching()}
        assert due == sorted(domain for domain, at in waiting.items() if at == NOON)
        assert {NOON, LATER} >= set(waiting.values())

    async def test_what_is_due_already_keeps_its_place(self, pool: Pool) -> None:
        """The oldest is first, also after a flush."""
        deferred = Deferred(pool)
        earlier = NOON - timedelta(minutes=1)
        await deferred.defer(delivery(), MESSAGE, earlier)
        await deferred.defer(delivery(), MESSAGE, NOON)
        assert 0 == await deferred.flush(["a.example", "*"], NOON)
        assert [earlier, NOON] == [each.next_attempt_at for each in await deferred.matching()]

    async def test_a_release_that_changes_nothing_wakes_nothing(self, pool: Pool) -> None:
        """`pushpush reload` on a fleet that is up to date leaves mail where it is."""
        overrides, deferred = Overrides(pool), Deferred(pool)
        await overrides.set(make_rule("*", "t.example"), actor="ann", release=True)
        await deferred.defer(delivery(), MESSAGE, LATER)
        assert 0 == await flush(await overrides.release(), overrides, deferred, NOON)
