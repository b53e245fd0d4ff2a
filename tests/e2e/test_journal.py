"""The journal knows what became of each message, and mail waits for no journal."""

import asyncio
from collections.abc import Callable

import psycopg
import pytest

from tests.e2e.conftest import World
from tests.peers.mxdeliv import free_port
from tests.peers.smtp import Behaviour, ScriptedSmtpPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]

COUNT = 2_000
ROOMS = {"router": 1, "https": 1, "smtp": 1, "journal": 2}


async def test_killed_journals_record_every_event_once(world: World) -> None:
    """SIGKILL to both in the middle: no mail is lost or late for it, and nothing is counted twice or not at all."""
    async with ScriptedSmtpPeer() as peer:
        await world.rule("a.example", f"127.0.0.1:{peer.port}", transport="smtp")
        async with world.fleet(ROOMS) as fleet, world.flow("a.example", COUNT) as flow:
            for kill, share in enumerate((0.2, 0.5, 0.7, 0.9)):
                await flow.wait(peer, share=share)
                await fleet.wait_ready()
                fleet.kill(f"journal-{kill % 2 + 1}")
            arrived = await flow.wait(peer)
            await _until(lambda: COUNT == _count(world, "SELECT count(*) FROM events WHERE kind = 'delivered'"))
            await fleet.wait_ready()
    assert COUNT == arrived.total()
    assert COUNT == _count(world, "SELECT count(*) FROM events WHERE kind = 'routed'")
    assert COUNT == _count(world, "SELECT count(DISTINCT message_id) FROM events WHERE kind = 'delivered'")
    assert COUNT == _count(world, "SELECT sum(delivered) FROM traffic WHERE domain = 'a.example'")
    assert 0 == _count(world, "SELECT count(*) FROM events WHERE kind NOT IN ('routed', 'delivered')")


async def test_mail_flows_while_the_database_is_away_and_is_recorded_later(world: World) -> None:
    """What cannot be recorded waits in the broker, apart from the mail."""
    async with ScriptedSmtpPeer() as peer:
        await world.rule("a.example", f"127.0.0.1:{peer.port}", transport="smtp")
        async with world.fleet(ROOMS) as fleet:
            await asyncio.to_thread(world.postgres.kill)
            try:
                async with world.flow("a.example", COUNT) as flow:
                    arrived = await flow.wait(peer)
            finally:
                await asyncio.to_thread(world.postgres.start)
            await _until(lambda: COUNT == _count(world, "SELECT count(*) FROM events WHERE kind = 'delivered'"))
            await fleet.wait_ready()
    assert COUNT == arrived.total()


async def test_a_restarted_broker_loses_no_event_that_it_had(world: World) -> None:
    """Batches whose confirm was lost are published again, and count once."""
    async with ScriptedSmtpPeer() as peer:
        await world.rule("a.example", f"127.0.0.1:{peer.port}", transport="smtp")
        async with world.fleet(ROOMS) as fleet, world.flow("a.example", COUNT) as flow:
            await flow.wait(peer, share=0.3)
            await asyncio.to_thread(world.rabbitmq.kill)
            await asyncio.to_thread(world.rabbitmq.start)
            arrived = await flow.wait(peer)
            # What was in hand when the broker went is delivered twice, and told twice.
            await _until(lambda: arrived.total() <= _count(world, "SELECT sum(delivered) FROM traffic"))
            await fleet.wait_ready()
            arrived = flow.arrived(peer)
            assert arrived.total() == _count(world, "SELECT sum(delivered) FROM traffic")
            assert arrived.total() == _count(world, "SELECT count(*) FROM events WHERE kind = 'delivered'")
    assert COUNT == len(arrived)


async def test_every_attempt_is_told(world: World) -> None:
    """Each deferral with what the host said, then the delivery; the counters say the same."""
    port = free_port()
    await world.rule("a.example", f"127.0.0.1:{port}", transport="smtp")
    deferred = "SELECT count(*) FROM events WHERE kind = 'deferred'"
    busy = f"{deferred} AND code = 450 AND enhanced = '4.2.1' AND reply = 'mailbox busy' AND attempt > 0 AND until > at"
    async with world.fleet(ROOMS, retry_schedule="1s"), world.flow("a.example", 20) as flow:
        async with ScriptedSmtpPeer(Behaviour(replies={"RCPT": "450 4.2.1 mailbox busy"}), port=port):
            await _until(lambda: _count(world, busy) >= 20)
        # Another host from here on: on a connection that is kept the first one would say the same for ever.
        async with ScriptedSmtpPeer(port=port) as peer:
            await flow.wait(peer)
            await _until(lambda: 20 == _count(world, "SELECT count(*) FROM events WHERE kind = 'delivered'"))
    assert _count(world, deferred) == _count(world, "SELECT sum(deferred) FROM traffic")
    routes = "SELECT count(*) FROM events WHERE kind IN ('routed', 'rerouted')"
    assert _count(world, routes) == _count(world, f"{routes} AND rule = 'a.example'") >= 40


def _count(world: World, query: str) -> int:
    """Return one number from the database."""
    with psycopg.connect(world.postgres.url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0] or 0)


async def _until(condition: Callable[[], bool], within: float = 60) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.1)
