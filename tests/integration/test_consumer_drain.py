"""A consumer that drains waits for nobody longer than it may: Kubernetes kills whoever does."""

import asyncio

import pytest

from deploy.local.services import RabbitMQ
from shared.broker import consumer as module
from shared.broker import topology
from shared.broker.consumer import Consumer, Incoming
from shared.broker.link import Link
from tests.integration.conftest import Queues, Wire, through, until

pytestmark = [pytest.mark.anyio, pytest.mark.services]


async def test_a_broker_that_hears_nothing_keeps_no_consumer(
    rabbitmq: RabbitMQ, queues: Queues, broker_wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not until its heart is missed, which is longer than the grace period; and the message goes to somebody else."""
    monkeypatch.setattr(module, "DRAIN", 0.2)
    handed: list[bytes] = []

    async def handle(message: Incoming) -> None:
        handed.append(message.body)
        await asyncio.Event().wait()

    await queues.put(topology.SMTP, b"x")
    consumer = Consumer(topology.SMTP, handle, prefetch=1)
    link = Link(through(rabbitmq.url, broker_wire), name="test", on_up=consumer.start, heartbeat=600)
    async with link:
        await until(lambda: handed == [b"x"])
        broker_wire.passing.clear()
        async with asyncio.timeout(30):
            await consumer.drain()
        await broker_wire.cut()
    assert b"x" == (await queues.take(topology.SMTP)).body
