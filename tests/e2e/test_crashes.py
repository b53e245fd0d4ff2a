"""kill -9 in the middle of 2,000 messages loses none, whichever room it hits."""

import pytest

from tests.e2e.conftest import World
from tests.peers.mxdeliv import MxdelivPeer, free_port
from tests.peers.smtp import ScriptedSmtpPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]

COUNT = 2_000
KILLS = 2
PREFETCH = 256  # what a router has in hand
IN_A_WORKER = 64 + 64 // 4 + 1  # what a delivery worker has in hand
BATCH = 100  # what a scheduler has in hand


@pytest.mark.parametrize(("room", "in_hand"), [("router", PREFETCH), ("smtp", IN_A_WORKER)])
async def test_a_killed_room_on_the_way_by_smtp_loses_nothing(world: World, room: str, in_hand: int) -> None:
    """Nothing is lost, and doubled at most is what was in flight at each kill."""
    async with ScriptedSmtpPeer() as peer:
        await world.rule("a.example", f"127.0.0.1:{peer.port}")
        async with (
            world.fleet({"router": 1, "https": 1, "smtp": 1}, https_port=str(free_port())) as fleet,
            world.flow("a.example", COUNT) as flow,
        ):
            for kill in range(1, KILLS + 1):
                await flow.wait(peer, share=kill * 0.25)
                await fleet.wait_ready()  # a room that was killed before may still be down
                fleet.kill(f"{room}-1")
            arrived = await flow.wait(peer)
    assert COUNT == len(arrived)
    assert arrived.total() - COUNT <= KILLS * in_hand


async def test_a_killed_https_worker_loses_nothing(world: World) -> None:
    """Nothing is lost, and doubled at most is what was in flight at each kill."""
    async with MxdelivPeer() as peer:
        await world.rule("a.example", peer.url)
        async with world.fleet({"router": 1, "https": 1}) as fleet, world.flow("a.example", COUNT) as flow:
            for kill in range(1, KILLS + 1):
                await flow.wait(peer, share=kill * 0.25)
                await fleet.wait_ready()  # a room that was killed before may still be down
                fleet.kill("https-1")
            arrived = await flow.wait(peer)
    assert COUNT == len(arrived)
    assert arrived.total() - COUNT <= KILLS * IN_A_WORKER


async def test_a_killed_scheduler_loses_nothing(world: World) -> None:
    """All mail waits for a destination that is down; while it is handed back, schedulers are killed."""
    port = free_port()
    await world.rule("a.example", f"127.0.0.1:{port}")
    rooms = {"router": 1, "https": 1, "smtp": 1, "scheduler": 2}
    async with world.fleet(rooms, https_port=str(free_port()), retry_schedule="8s") as fleet:
        async with world.flow("a.example", COUNT) as flow:
            pass
        async with ScriptedSmtpPeer(port=port) as peer:
            for kill in range(1, KILLS + 1):
                await flow.wait(peer, share=kill * 0.2)
                await fleet.wait_ready()  # a room that was killed before may still be down
                fleet.kill(f"scheduler-{kill}")
            arrived = await flow.wait(peer)
    assert COUNT == len(arrived)
    assert arrived.total() - COUNT <= KILLS * BATCH
