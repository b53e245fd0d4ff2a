"""A rule changes while mail flows through several routers: "applied" means what it says."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.fleet.release import announce
from shared.mail.rule import make_rule
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Routers
from tests.e2e.conftest import World
from tests.peers.mxdeliv import MxdelivPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

CHANGES = 8
BETWEEN = 100  # messages handed in from one confirmation to the next change


async def test_what_is_handed_in_after_a_change_was_applied_takes_the_new_rule(world: World) -> None:
    """Three routers, eight changes in mid-flow: mail handed in after a confirmation never goes where it went before."""
    async with (
        contextlib.AsyncExitStack() as stack,
        Link(world.rabbitmq.url, name="operator") as link,
        _pool(world) as pool,
    ):
        # Each rule has a peer of its own, so where a message arrived tells the rule by which it was routed.
        peers = [await stack.enter_async_context(MxdelivPeer()) for _ in range(CHANGES + 1)]
        await world.rule("a.example", peers[0].url)
        confirmed: list[float] = []  # when each change was
        async with world.fleet({"router": 3, "https": 1}):
            async with world.flow("a.example", None) as flow:
                await flow.more(BETWEEN)
                for peer in peers[1:]:
                    saved = await Overrides(pool).set(make_rule("a.example", peer.url), actor="test", release=True)
                    applied = await announce(saved.version, Publisher(link), Routers(pool))
                    assert (3, []) == (len(applied.applied), applied.late)
                    confirmed.append(time.monotonic())
                    await flow.more(BETWEEN)
                flow.stop()
            arrived = await flow.wait(*peers)
    assert (flow.count, flow.count) == (len(arrived), arrived.total())
    where = {
        int(each.rcpt_to[0].partition("@")[0][1:]): place for place, peer in enumerate(peers) for each in peer.received
    }
    for number, (began, _) in flow.times.items():
        in_force = sum(at < began for at in confirmed)
        assert in_force <= where[number], f"message {number} was routed by a rule that was no longer in force"


async def test_a_router_that_joins_late_is_waited_for_or_has_the_rule(world: World) -> None:
    """Whoever starts while a rule changes either loads the change or is waited for."""
    async with (
        MxdelivPeer() as one,
        MxdelivPeer() as other,
        Link(world.rabbitmq.url, name="operator") as link,
        _pool(world) as pool,
    ):
        await link.wait_up()
        for delay in (0.2, 0.6):
            await world.rule("a.example", one.url)
            async with world.fleet({"router": 1, "https": 1}) as fleet:
                fleet.kill("router-1")  # it is started again after a second
                await asyncio.sleep(0.8 + delay)
                saved = await Overrides(pool).set(make_rule("a.example", other.url), actor="test", release=True)
                await announce(saved.version, Publisher(link), Routers(pool))
                before = len(one.received)
                async with world.flow("a.example", 50) as flow:
                    pass
                await flow.wait(other)
                assert before == len(one.received)
            other.received.clear()


@contextlib.asynccontextmanager
async def _pool(world: World) -> AsyncIterator[Pool]:
    pool = Pool(world.postgres.url, name="operator")
    await pool.open()
    yield pool
    await pool.close()
