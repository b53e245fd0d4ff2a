"""RabbitMQ and PostgreSQL restart in mid-flow: nothing is lost, and every room recovers by itself."""

import asyncio

import pytest

from tests.e2e.conftest import World
from tests.peers.mxdeliv import free_port
from tests.peers.smtp import Behaviour, ScriptedSmtpPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]

COUNT = 2_000
ROOMS = {"router": 1, "https": 1, "smtp": 1, "scheduler": 1}


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_restarted_broker_loses_nothing(world: World, end: str) -> None:
    """Stopped in order or killed as in a power cut: what was confirmed is there afterwards, and flows on."""
    async with ScriptedSmtpPeer() as peer:
        await world.rule("a.example", f"127.0.0.1:{peer.port}")
        async with (
            world.fleet(ROOMS, https_port=str(free_port())) as fleet,
            world.flow("a.example", COUNT) as flow,
        ):
            pids = [fleet.pid(name) for name in fleet.names]
            await flow.wait(peer, share=0.3)
            await asyncio.to_thread(getattr(world.rabbitmq, end))
            await asyncio.to_thread(world.rabbitmq.start)
            arrived = await flow.wait(peer)
            await fleet.wait_ready()
            assert pids == [fleet.pid(name) for name in fleet.names], "a room had to be restarted"
    assert COUNT == len(arrived)


async def test_a_restarted_database_loses_nothing(world: World) -> None:
    """Killed as in a power cut: what must be stored meanwhile waits in the broker; what was stored is still there."""
    busy = Behaviour(replies={"RCPT": "450 4.3.2 busy, come again"})
    async with ScriptedSmtpPeer(busy) as peer:
        await world.rule("a.example", f"127.0.0.1:{peer.port}")
        async with (
            world.fleet(ROOMS, https_port=str(free_port()), retry_schedule="2s") as fleet,
            world.flow("a.example", COUNT) as flow,
        ):
            pids = [fleet.pid(name) for name in fleet.names]
            await _until(lambda: world.waiting() >= 300)
            await asyncio.to_thread(world.postgres.kill)
            await _until_in_limbo(world, 200)
            await asyncio.to_thread(world.postgres.start)
            peer.behave(Behaviour())
            # What went to limbo comes back after a minute.
            arrived = await flow.wait(peer, within=150)
            await fleet.wait_ready()
            assert pids == [fleet.pid(name) for name in fleet.names], "a room had to be restarted"
    assert COUNT == len(arrived)


async def _until(condition: object, within: float = 60) -> None:
    assert callable(condition)
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.05)


async def _until_in_limbo(world: World, count: int) -> None:
    async with asyncio.timeout(60):
        while (await world.depths())["mail.limbo"] < count:
            await asyncio.sleep(0.1)
