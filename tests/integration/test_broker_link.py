"""Publishing, consuming and coming back, on a real broker."""

import asyncio
import contextlib
import time

import aio_pika
import pytest
import uvloop
from aio_pika.abc import AbstractConnection

from deploy.local.services import RabbitMQ
from shared.broker import link as link_module
from shared.broker import topology
from shared.broker.consumer import Consumer, Incoming
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.mail import codec
from shared.runtime.errors import BrokerUnavailable
from shared.runtime.health import Health
from tests.integration.conftest import MESSAGE, Queues, Wire, delivery, through, until
from tests.peers.mxdeliv import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.services]


class TestPublisher:
    """When a call returns, the message is in a queue on disk; else BrokerUnavailable."""

    async def test_a_delivery_comes_out_as_it_went_in(self, publisher: Publisher, queues: Queues) -> None:
        """The wire form, persistent."""
        await publisher.delivery(topology.SMTP, delivery(), MESSAGE)
        message = await queues.take(topology.SMTP)
        assert codec.encode(delivery(), MESSAGE) == message.body
        assert aio_pika.DeliveryMode.PERSISTENT == message.delivery_mode

    async def test_without_a_broker(self) -> None:
        """A publisher says at once that the broker is away."""
        async with Link("amqp://guest:guest@127.0.0.1:1/", name="test") as link:
            publisher = Publisher(link)
            with pytest.raises(BrokerUnavailable, match="away"):
                await publisher.raw(topology.SMTP, b"x")
            with pytest.raises(BrokerUnavailable, match="away"):
                await publisher.reload(1)

    async def test_a_queue_that_is_not_there(self, publisher: Publisher) -> None:
        """What cannot be routed to a queue is refused, not dropped; and the publisher works on."""
        with pytest.raises(BrokerUnavailable, match=r"mail\.nowhere"):
            await publisher.raw("mail.nowhere", b"x")
        await publisher.raw(topology.SMTP, b"x")

    async def test_a_queue_that_is_full(self, publisher: Publisher, queues: Queues) -> None:
        """A publish that a queue rejects fails, and only that one."""
        full = await queues.channel.declare_queue(
            "test.full",
            durable=True,
            arguments={"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"},
        )
        try:
            with pytest.raises(BrokerUnavailable):
                await _fill(publisher)
            await publisher.raw(topology.SMTP, b"x")
        finally:
            await full.delete(if_unused=False, if_empty=False)

    async def test_the_connection_breaks_while_a_confirm_is_awaited(
        self, rabbitmq: RabbitMQ, broker_wire: Wire
    ) -> None:
        """Every publish in flight ends, confirmed or as BrokerUnavailable; none hangs and none raises anything else."""
        async with Link(through(rabbitmq.url, broker_wire), name="test") as link:
            await link.wait_up()
            publisher = Publisher(link)
            publishing = [asyncio.create_task(publisher.raw(topology.SMTP, b"x" * 100_000)) for _ in range(200)]
            await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)
            await broker_wire.cut()
            began = time.monotonic()
            results = await asyncio.gather(*publishing, return_exceptions=True)
            assert {type(None), BrokerUnavailable} == {type(each) for each in results}
            assert time.monotonic() - began < 5

    async def test_the_reload_event_needs_no_listener(self, publisher: Publisher, queues: Queues) -> None:
        """A fleet whose routers are all down still takes the event; a bound queue gets it."""
        await publisher.reload(7)
        queue = await queues.channel.declare_queue(exclusive=True)
        await queue.bind(topology.RELOAD)
        await publisher.reload(8)
        assert b'{"version":8}' == (await queues.take(queue.name)).body


class TestLink:
    """One connection that comes back by itself."""

    async def test_it_comes_back_after_a_power_cut_of_the_broker(self, rabbitmq: RabbitMQ) -> None:
        """Killed and started again: everything is declared, `on_up` runs again, what was confirmed is there."""
        ups: list[AbstractConnection] = []

        async def on_up(connection: AbstractConnection) -> None:
            await asyncio.sleep(0)
            ups.append(connection)

        health = Health("broker")
        async with Link(rabbitmq.url, name="test", health=health, on_up=on_up) as link:
            await link.wait_up()
            publisher = Publisher(link)
            await publisher.delivery(topology.SMTP, delivery(id="kept"), MESSAGE)
            assert health.ready
            try:
                await asyncio.to_thread(rabbitmq.kill)
                await until(lambda: not health.ready)
                assert link.channel is None
                with pytest.raises(BrokerUnavailable):
                    await publisher.raw(topology.SMTP, b"x")
            finally:
                await asyncio.to_thread(rabbitmq.start)
            await asyncio.wait_for(link.wait_up(), 15)
            await until(lambda: health.ready)
            assert 2 == len(ups)
            await publisher.raw(topology.HTTPS, b"x")
        async with await aio_pika.connect(rabbitmq.url) as connection:
            queues = Queues(await connection.channel())
            await until(lambda: _has_kept(queues))

    async def test_a_channel_error_heals_too(self, link: Link, publisher: Publisher) -> None:
        """The broker may close the channel alone; the link makes a new connection."""
        channel = link.channel
        assert channel is not None
        with contextlib.suppress(aio_pika.exceptions.AMQPError):
            await channel.declare_queue("mail.nowhere", passive=True)
        await until(lambda: link.channel not in {None, channel})
        await publisher.raw(topology.SMTP, b"x")

    async def test_a_fault_of_on_up_is_tried_again(self, rabbitmq: RabbitMQ, queues: Queues) -> None:
        """What the owner's start breaks on, such as a queue that is gone, is tried anew with a new connection."""
        del queues
        tries = 0

        async def on_up(connection: AbstractConnection) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                channel = await connection.channel()
                await channel.get_queue("mail.nowhere", ensure=True)

        async with Link(rabbitmq.url, name="test", on_up=on_up) as link:
            await asyncio.wait_for(link.wait_up(), 10)
        assert 3 == tries

    async def test_ending_while_the_broker_is_away(self) -> None:
        """A room can be stopped while it still tries to connect."""
        async with asyncio.timeout(2), Link("amqp://guest:guest@127.0.0.1:1/", name="test"):
            await asyncio.sleep(0.01)


class TestConsumer:
    """A bound on what is in hand, and a drain at the end."""

    async def test_no_more_than_the_prefetch_is_in_hand(self, rabbitmq: RabbitMQ, queues: Queues) -> None:
        """The rest stays with the broker; what was not acked goes back when the connection ends."""
        handed: list[Incoming] = []

        async def keep(message: Incoming) -> None:
            handed.append(message)
            await asyncio.Event().wait()

        consumer = Consumer(topology.SMTP, keep, prefetch=3)
        for number in range(5):
            await queues.put(topology.SMTP, b"%d" % number)
        async with Link(rabbitmq.url, name="test", on_up=consumer.start):
            await until(lambda: len(handed) == 3)
            assert 2 == await queues.depth(topology.SMTP)
        assert [b"0", b"1", b"2", b"3", b"4"] == sorted([(await queues.take(topology.SMTP)).body for _ in range(5)])

    async def test_drain_finishes_what_is_in_hand_and_takes_no_more(self, rabbitmq: RabbitMQ, queues: Queues) -> None:
        """After `drain` everything taken is acked, and what comes later stays in its queue."""
        handled: list[bytes] = []
        go = asyncio.Event()

        async def handle(message: Incoming) -> None:
            await go.wait()
            await message.ack()
            handled.append(message.body)

        consumer = Consumer(topology.SMTP, handle, prefetch=2)
        await queues.put(topology.SMTP, b"1")
        await queues.put(topology.SMTP, b"2")
        async with Link(rabbitmq.url, name="test", on_up=consumer.start):
            await until(lambda: _is_empty(queues))
            draining = asyncio.create_task(consumer.drain())
            await asyncio.sleep(0.05)
            assert not draining.done()
            await queues.put(topology.SMTP, b"3")
            go.set()
            await draining
            assert {b"1", b"2"} == set(handled)
        assert b"3" == (await queues.take(topology.SMTP)).body
        assert 0 == await queues.depth(topology.SMTP)

    async def test_a_fault_of_the_handler_keeps_the_message(self, rabbitmq: RabbitMQ, queues: Queues) -> None:
        """A message whose handling breaks goes back to its queue after a pause, and is handed out again."""
        handled: list[bytes] = []

        async def handle(message: Incoming) -> None:
            handled.append(message.body)
            if len(handled) == 1:
                raise ZeroDivisionError
            await message.ack()

        await queues.put(topology.SMTP, b"x")
        consumer = Consumer(topology.SMTP, handle, prefetch=1)
        async with Link(rabbitmq.url, name="test", on_up=consumer.start):
            await until(lambda: len(handled) == 2)
            await consumer.drain()
        assert [b"x", b"x"] == handled
        assert 0 == await queues.depth(topology.SMTP)

    async def test_consuming_goes_on_after_the_connection_broke(
        self, rabbitmq: RabbitMQ, queues: Queues, broker_wire: Wire
    ) -> None:
        """The consumer starts anew with each connection; what was in hand is handed out again."""
        handed: list[bytes] = []

        async def handle(message: Incoming) -> None:
            handed.append(message.body)
            if len(handed) == 1:
                await broker_wire.cut()
                await broker_wire.mend()
                return
            await message.ack()

        await queues.put(topology.SMTP, b"x")
        consumer = Consumer(topology.SMTP, handle, prefetch=10)
        async with Link(through(rabbitmq.url, broker_wire), name="test", on_up=consumer.start):
            await until(lambda: len(handed) == 2)
            await queues.put(topology.SMTP, b"y")
            await until(lambda: handed == [b"x", b"x", b"y"])
            await consumer.drain()


async def _is_empty(queues: Queues) -> bool:
    return await queues.depth(topology.SMTP) == 0


async def _has_kept(queues: Queues) -> bool:
    read, message = await queues.delivery(topology.SMTP)
    return (read.id, message) == ("kept", MESSAGE)


async def _fill(publisher: Publisher) -> None:
    for _ in range(200):  # RabbitMQ notices that a quorum queue is full a little late
        await publisher.raw("test.full", b"x")


async def test_a_broker_that_does_not_answer_while_all_is_set_up_is_tried_anew(
    rabbitmq: RabbitMQ, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that only beats its heart, as after a crash, must not keep a room deaf until somebody restarts it."""
    del queues
    monkeypatch.setattr(link_module, "SET_UP", 0.5)
    asked = 0

    async def on_up(_: AbstractConnection) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()

    async with Link(rabbitmq.url, name="test", on_up=on_up) as link:
        await asyncio.wait_for(link.wait_up(), 10)
    assert 2 == asked


def test_it_ends_whenever_it_is_told_to() -> None:
    """Also amid a try to connect: one in eight rooms that were told to stop without a broker never did.

    On the loop of the rooms, since it depends on what comes in the same turn.
    """
    nobody = free_port()

    async def ended(after: float) -> None:
        async with Link(f"amqp://127.0.0.1:{nobody}/", name="test"):
            await asyncio.sleep(after)

    async def all_ended() -> None:
        async with asyncio.timeout(60):
            for _ in range(10):
                await asyncio.gather(*(ended(after / 10_000) for after in range(50)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(all_ended())
