"""One destination's trouble is its own: the whole fleet, with peers that are slow, dead, or have no mxdeliv."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import psycopg
import pytest

from tests.e2e.conftest import World
from tests.peers.answers import WEBSITE
from tests.peers.behaviour import END_OF_DATA
from tests.peers.mxdeliv import MxdelivPeer
from tests.peers.smtp import Behaviour, ScriptedSmtpPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

ROOMS = {"router": 1, "https": 1, "smtp": 1, "scheduler": 1}


async def test_a_slow_destination_never_has_more_than_its_share(world: World) -> None:
    """What is turned away comes back by itself, each message arrives once, and the healthy one is served meanwhile."""
    async with (
        ScriptedSmtpPeer(Behaviour(delays={END_OF_DATA: 0.5})) as slow,
        ScriptedSmtpPeer() as healthy,
        _most_connections(slow) as most,
    ):
        await world.rule("slow.example", f"127.0.0.1:{slow.port}", transport="smtp")
        await world.rule("healthy.example", f"127.0.0.1:{healthy.port}", transport="smtp")
        async with (
            world.fleet(ROOMS, concurrency="8", hop_concurrency="2"),
            world.flow("slow.example", 30) as hard,
            world.flow("healthy.example", 300) as easy,
        ):
            arrived = [await easy.wait(healthy), await hard.wait(slow)]
    assert [(300, 300), (30, 30)] == [(len(each), each.total()) for each in arrived]
    assert 2 == max(most)


async def test_a_host_without_mxdeliv_is_remembered_by_the_fleet(world: World) -> None:
    """Its web site is asked by the first messages only; once SMTP fails there, it is asked again."""
    async with MxdelivPeer(answer=WEBSITE) as web:
        async with ScriptedSmtpPeer() as mail:
            await world.rule("a.example", web.url)
            async with world.fleet(ROOMS, smtp_port=str(mail.port)):
                await _until_not_asked(world, web, mail)
                asked = web.connections, len(web.refused)
                async with world.flow("a.example", 20) as flow:
                    pass
                await flow.wait(mail)
                assert asked == (web.connections, len(web.refused))
                assert [(web.url, "without mxdeliv")] == _known(world)
        async with world.fleet(ROOMS, smtp_port=str(mail.port), retry_schedule="1s"), world.flow("a.example", 1):
            await web.wait_until(lambda: len(web.refused) > asked[1], within=60, wanted="another post")


async def _until_not_asked(world: World, web: MxdelivPeer, mail: ScriptedSmtpPeer) -> None:
    """Hand in one message at a time until one arrives without a post."""
    for number in range(30):
        before = len(web.refused)
        async with world.flow("a.example", 1):
            await mail.wait_for(number + 1, within=30)
        if before == len(web.refused):
            mail.received.clear()
            return
        await asyncio.sleep(0.5)
    raise AssertionError(f"the web site was asked for each of 30 messages: {web.describe()}")


def _known(world: World) -> list[tuple[str, str]]:
    with psycopg.connect(world.postgres.url) as connection:
        return connection.execute("SELECT hop, state FROM next_hops WHERE until > now()").fetchall()


@contextlib.asynccontextmanager
async def _most_connections(peer: ScriptedSmtpPeer) -> AsyncIterator[list[int]]:
    """Note how many connections are open, again and again."""
    seen = [0]

    async def look() -> None:
        while True:
            seen.append(peer.open_connections)
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        looking.cancel()
