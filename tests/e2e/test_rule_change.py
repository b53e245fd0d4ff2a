"""A rule changes while mail flows through several routers: "applied" means what it says."""

import asyncio
import time

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

COUNT = 3_000
CHANGES = 8


async def test_what_is_handed_in_after_a_change_was_applied_takes_the_new_rule(world: World) -> None:
    """Three routers, eight changes in mid-flow: from each confirmation to the next change, all mail goes one way."""
    async with MxdelivPeer() as one, MxdelivPeer() as other, Link(world.rabbitmq.url, name="operator") as link:
        peers = (one, other)
        await world.rule("a.example", one.url)
        pool = Pool(world.postgres.url, name="operator")
        await pool.open()
        # From, until, and where mail that is handed in then must arrive.
        periods: list[tuple[float, float, int]] = []
        async with world.fleet({"router": 3, "https": 1}), world.flow("a.example", COUNT) as flow:
            for change in range(1, CHANGES + 1):
                await flow.wait(*peers, share=change / (CHANGES + 2))
                rule = make_rule("a.example", peers[change % 2].url)
                if periods:
                    periods[-1] = (periods[-1][0], time.monotonic(), periods[-1][2])
                saved = await Overrides(pool).set(rule, actor="test", release=True)
                applied = await announce(saved.version, Publisher(link), Routers(pool))
                assert (3, []) == (len(applied.applied), applied.late)
                periods.append((time.monotonic(), float("inf"), change % 2))
            arrived = await flow.wait(*peers)
        await pool.close()
    assert (COUNT, COUNT) == (len(arrived), arrived.total())
    where = {
        int(each.rcpt_to[0].partition("@")[0][1:]): place for place, peer in enumerate(peers) for each in peer.received
    }
    judged = 0
    for number, (began, ended) in flow.times.items():
        for start, end, place in periods:
            if start < began and ended < end:
                assert place == where[number], f"message {number} was routed by a rule that was no longer in force"
                judged += 1
    assert judged > COUNT / 4, "too few messages were handed in between two changes for this test to mean anything"


async def test_a_router_that_joins_late_is_waited_for_or_has_the_rule(world: World) -> None:
    """Whoever starts while a rule changes either loads the change or is waited for."""
    pool = Pool(world.postgres.url, name="operator")
    await pool.open()
    async with MxdelivPeer() as one, MxdelivPeer() as other, Link(world.rabbitmq.url, name="operator") as link:
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
    await pool.close()
