"""Acks that travel together: none twice, none forgotten, in whatever order the work is done."""

import asyncio
import random

import pytest
from aio_pika.abc import AbstractConnection

from deploy.local.services import RabbitMQ
from shared.broker import topology
from shared.broker.consumer import Consumer, Incoming
from shared.broker.link import Link
from tests.integration.conftest import Queues, until

pytestmark = [pytest.mark.anyio, pytest.mark.services]

COUNT = 1_500


@pytest.mark.parametrize("seed", range(3))
async def test_work_done_in_any_order_is_acked_once(rabbitmq: RabbitMQ, queues: Queues, seed: int) -> None:
    """Bursts, stragglers and some given back: one connection all the time, and nothing else is handled twice."""
    dice = random.Random(seed)
    await asyncio.gather(*(queues.put(topology.SMTP, str(number).encode()) for number in range(COUNT)))
    handled: list[int] = []
    given_back: list[int] = []
    connections: list[AbstractConnection] = []

    async def handle(message: Incoming) -> None:
        await asyncio.sleep(dice.choice((0, 0, 0.001, 0.02, 0.1)))
        handled.append(int(message.body))
        if dice.random() < 0.05 and int(message.body) not in given_back:
            given_back.append(int(message.body))
            await message.give_back()
        else:
            await message.ack()

    consumer = Consumer(topology.SMTP, handle, prefetch=200)

    async def on_up(connection: AbstractConnection) -> None:
        connections.append(connection)
        await consumer.start(connection)

    async with Link(rabbitmq.url, name="test", on_up=on_up):
        await until(lambda: len(handled) >= COUNT + len(given_back) and len(set(handled)) == COUNT, within=30)
        await consumer.drain()
    assert 1 == len(connections)
    assert COUNT + len(given_back) == len(handled)
    assert 0 == await queues.depth(topology.SMTP)
