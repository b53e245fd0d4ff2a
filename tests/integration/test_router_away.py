"""A router whose broker or store is away: messages are kept, and routed later; nothing is lost on the way."""

import asyncio
from collections import Counter
from datetime import UTC, datetime

import pytest

from shared.broker import topology
from shared.mail import codec
from shared.runtime.settings import Settings
from shared.store.pool import Pool
from tests.integration.conftest import MESSAGE, Queues, Wire, delivery, through, until
from tests.integration.rooms import running

pytestmark = [pytest.mark.anyio, pytest.mark.services, pytest.mark.usefixtures("impatient")]

LARGE = MESSAGE.ljust(300_000, b"x")


async def collect(queues: Queues, count: int) -> Counter[tuple[str, ...]]:
    """Take deliveries for the SMTP workers until there are so many different ones; count each by its recipients."""
    found: Counter[tuple[str, ...]] = Counter()
    async with asyncio.timeout(15):
        while len(found) < count or await queues.depth(topology.SMTP):
            found[(await queues.delivery(topology.SMTP))[0].envelope.rcpt_to] += 1
    return found


async def empty(queues: Queues, name: str = topology.OUTBOUND) -> bool:
    """Say whether nothing is ready in a queue."""
    return await queues.depth(name) == 0


async def test_a_large_message_travels_along_while_the_store_is_away(
    settings: Settings, store_wire: Wire, queues: Queues, pool: Pool
) -> None:
    """With PostgreSQL away a body that belongs there goes with its delivery, and keeps no small mail waiting."""
    url = through(settings.database_url, store_wire)
    async with running(settings.model_copy(update={"database_url": url})):
        await store_wire.cut()
        await queues.send("large@a.example", body=LARGE)
        await until(lambda: empty(queues))
        await queues.send("small@a.example")
        part, body = await queues.delivery(topology.SMTP)
        assert (("small@a.example",), MESSAGE) == (part.envelope.rcpt_to, body)
        part, body = await queues.delivery(topology.SMTP, within=15)
        assert (("large@a.example",), None, LARGE) == (part.envelope.rcpt_to, part.envelope.body_ref, body)
        await store_wire.mend()
    assert 0 == await _bodies(pool)


async def test_what_is_in_hand_goes_back_when_the_router_is_stopped(
    settings: Settings, store_wire: Wire, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that cannot route a message by the end of its drain leaves it, whole, in its queue."""
    monkeypatch.setattr("shared.broker.consumer.DRAIN", 0.2)
    url = through(settings.database_url, store_wire)
    async with running(settings.model_copy(update={"database_url": url})):
        await store_wire.cut()
        await queues.send("large@a.example", body=LARGE)
        await until(lambda: empty(queues))
    assert LARGE == (await queues.take(topology.OUTBOUND)).body


async def test_the_broker_breaks_while_messages_are_routed(
    settings: Settings, broker_wire: Wire, queues: Queues
) -> None:
    """Messages whose publish was not confirmed come again with the next connection; none is lost."""
    url = through(settings.amqp_url, broker_wire)
    count = 300
    async with running(settings.model_copy(update={"amqp_url": url})):
        sending = [queues.send(f"r{number}@a.example") for number in range(count)]
        cutting = asyncio.create_task(_cut_and_mend(broker_wire, queues))
        await asyncio.gather(*sending)
        await cutting
        found = await collect(queues, count)
        assert {(f"r{number}@a.example",) for number in range(count)} == set(found)
        assert max(found.values()) <= 3  # doubled at most once for each of the two cuts
        await until(lambda: empty(queues))


async def _cut_and_mend(wire: Wire, queues: Queues) -> None:
    for _ in range(2):
        await until(lambda: _some(queues))
        await wire.cut()
        await wire.mend()


async def _some(queues: Queues) -> bool:
    return await queues.depth(topology.SMTP) > 20


async def test_a_next_queue_that_refuses_does_not_fill_the_store(
    settings: Settings, queues: Queues, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a queue cannot be published to, the message is tried again and again; its body is stored once."""
    monkeypatch.setattr("workers.router.handler._PAUSE", 0.01)
    async with running(settings):
        await queues.channel.queue_delete(topology.SMTP)
        await queues.send("large@a.example", body=LARGE)
        await until(lambda: _stored(pool))
        await asyncio.sleep(0.2)  # time for a few tries; nothing tells of them
        await topology.declare(queues.channel)
        await queues.delivery(topology.SMTP)
        assert 1 == await _bodies(pool)


async def _stored(pool: Pool) -> bool:
    return await _bodies(pool) > 0


async def _bodies(pool: Pool) -> int:
    async with pool.transaction() as connection:
        return int((await (await connection.execute("SELECT count(*) FROM bodies")).fetchall())[0][0])


async def test_limbo_goes_round_while_the_store_is_away(settings: Settings, store_wire: Wire, queues: Queues) -> None:
    """A delivery from limbo that is not due, with the store still away, goes back to limbo, whole."""
    waiting = delivery(attempts=1, retry_at=datetime(2099, 1, 1, tzinfo=UTC))
    url = through(settings.database_url, store_wire)
    async with running(settings.model_copy(update={"database_url": url})):
        await store_wire.cut()
        await queues.put(topology.REROUTE, codec.encode(waiting, MESSAGE))
        assert (waiting, MESSAGE) == await queues.delivery(topology.LIMBO)
        await until(lambda: empty(queues, topology.REROUTE))
