"""SIGTERM at bad moments: during a long delivery, while the broker is away, and while a pod starts."""

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import pytest

from deploy.local.fleet import ROOT
from deploy.local.manifests import rendered
from deploy.local.pods import Ended, Pods
from shared.broker import topology
from tests.e2e.conftest import World
from tests.peers.mxdeliv import free_port
from tests.peers.smtp import ScriptedSmtpPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

OVERLAY = ROOT / "deploy" / "k8s" / "overlays" / "dev"
ROOMS = {"router": 1, "https": 1, "smtp": 1, "scheduler": 1, "journal": 1}
TURNS = 8  # deliveries that run
COUNT = 40  # a worker holds more than it runs, and the queue has more than it holds


class HeldSmtp:
    """An SMTP server that takes messages, and says so only once it is let go.

    Attributes:
        taken: how often each recipient's message came.
        go: set it, and whoever waits gets the reply.
    """

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.go = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 held ESMTP\r\n")
        recipient = ""
        while line := await reader.readline():
            if line.startswith(b"RCPT"):
                recipient = line.partition(b"<")[2].partition(b">")[0].decode()
            if line.startswith(b"DATA"):
                writer.write(b"354 go ahead\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                self.taken[recipient] += 1
                await self.go.wait()
            writer.write(b"250 2.0.0 OK\r\n")
        writer.close()


def pods(world: World, folder: Path, replicas: dict[str, int], **env: str) -> Pods:
    """Return pods of the manifests; no host answers by HTTPS."""
    secrets = {"amqp_url": world.rabbitmq.url, "database_url": world.postgres.url}
    given = {f"PUSHPUSH_{name}": value for name, value in env.items()}
    ours = {"PUSHPUSH_HTTPS_PORT": str(free_port()), "PUSHPUSH_RETRY_SCHEDULE": "1s"}
    return Pods(folder, rendered(OVERLAY), secrets=secrets, replicas=replicas, env=ours | given)


async def _until(condition: Callable[[], bool | Awaitable[bool]], within: float = 60) -> None:
    async with asyncio.timeout(within):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.02)


async def _end(fleet: Pods) -> list[Ended]:
    return await asyncio.gather(*(fleet.end(pod) for pod in fleet.all()))


def _started(fleet: Pods) -> bool:
    """Say whether all have begun to work; then they know what SIGTERM means."""
    return all(fleet.log(pod).stat().st_size for pod in fleet.all())


async def test_a_delivery_that_takes_long_is_finished_and_acked(world: World, tmp_path: Path) -> None:
    """A worker that is told to end waits for the hosts it has sent to, and gives back at once what had no turn yet."""
    turns = {"CONCURRENCY": str(TURNS), "HOP_CONCURRENCY": str(TURNS)}
    async with HeldSmtp() as peer:
        await world.rule("a.example", f"127.0.0.1:{peer.port}", transport="smtp")
        async with pods(world, tmp_path, ROOMS, **turns) as fleet, world.flow("a.example", COUNT):
            await _until(lambda: peer.taken.total() == TURNS)
            [worker] = fleet.of("smtp")
            ending = asyncio.create_task(fleet.end(worker))

            async def given_back() -> bool:
                return (await world.depths())[topology.SMTP] == COUNT - TURNS

            await _until(given_back)
            assert not ending.done()
            peer.go.set()
            assert 0 == (await ending).code
            assert COUNT - TURNS == (await world.depths())[topology.SMTP]
            async with pods(world, tmp_path / "next", {"smtp": 1}, **turns):
                await _until(lambda: len(peer.taken) == COUNT)
    assert COUNT == peer.taken.total()


async def test_no_room_waits_for_a_broker_that_is_away(world: World, tmp_path: Path) -> None:
    """In the middle of mail the broker goes, and then every pod is told to end: it does, and nothing is lost."""
    async with ScriptedSmtpPeer() as peer:
        await world.rule("a.example", f"127.0.0.1:{peer.port}", transport="smtp")
        async with world.flow("a.example", 500) as flow:
            async with pods(world, tmp_path, ROOMS) as fleet:
                await fleet.wait_ready()
                await flow.wait(peer, share=0.2)
                await asyncio.to_thread(world.rabbitmq.kill)
                try:
                    ended = await _end(fleet)
                finally:
                    await asyncio.to_thread(world.rabbitmq.start)
            assert [] == [each for each in ended if each.code]
            async with pods(world, tmp_path / "next", ROOMS):
                arrived = await flow.wait(peer)
    assert 500 == len(arrived)


@pytest.mark.parametrize("away", ["nothing", "broker", "store"])
async def test_a_pod_that_starts_can_be_ended(world: World, tmp_path: Path, away: str) -> None:
    """Whatever it waits for, it ends; and what it may have taken of the waiting mail arrives once."""
    service = {"broker": world.rabbitmq, "store": world.postgres}.get(away)
    async with ScriptedSmtpPeer() as peer:
        await world.rule("a.example", f"127.0.0.1:{peer.port}", transport="smtp")
        async with world.flow("a.example", COUNT) as flow:
            pass
        if service is not None:
            await asyncio.to_thread(service.stop)
        try:
            async with pods(world, tmp_path / "at once", ROOMS) as fleet:
                ended = await _end(fleet)
            assert set() == {each.code for each in ended} - {0, -signal.SIGTERM}
            async with pods(world, tmp_path / "soon", ROOMS) as fleet:
                await _until(lambda: _started(fleet))
                ended = await _end(fleet)
            assert [] == [each for each in ended if each.code]
        finally:
            if service is not None:
                await asyncio.to_thread(service.start)
        async with pods(world, tmp_path / "next", ROOMS):
            arrived = await flow.wait(peer)
    assert (COUNT, COUNT) == (len(arrived), arrived.total())
