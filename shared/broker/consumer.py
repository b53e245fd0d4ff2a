"""Consuming with a bound on what is in hand, and a drain at the end.

Straight on aiormq, one layer below aio-pika: its message objects and its ack for each message cost a third of a
router's time. Acks that become due in one turn of the loop travel together.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

import aiormq
import structlog
from aio_pika.abc import AbstractConnection
from aiormq.abc import DeliveredMessage

from shared.broker.link import FAULTS, close_quietly

log = structlog.get_logger()

DRAIN = 20.0  # seconds to take no more and finish what is in hand; what is left then goes back to its queue


class Incoming:
    """One message as it came off a queue."""

    __slots__ = ("_acks", "_channel", "_tag", "body", "content_type", "headers", "message_id")

    def __init__(self, message: DeliveredMessage, channel: aiormq.Channel, acks: "_Acks") -> None:
        """Take what is needed out of aiormq's message."""
        properties = message.header.properties
        self.body = message.body
        self.headers = cast("Mapping[str, object]", properties.headers or {})
        self.content_type = properties.content_type
        self.message_id = properties.message_id
        self._tag = cast("int", message.delivery_tag)
        self._channel = channel
        self._acks = acks

    @property
    def lost(self) -> bool:
        """Say whether it belongs to the broker again, because its channel is gone."""
        return self._channel.is_closed

    async def ack(self) -> None:
        """Let the broker forget it. A lost channel raises one of `FAULTS`: then the broker hands it out again."""
        await self._acks.add(self._tag)

    async def give_back(self) -> None:
        """Put it back on its queue; counts towards its delivery limit. Raises as `ack` does."""
        await self._acks.add(self._tag, back=True)


class _Acks:
    """Delivery tags to settle on one channel, written by one task at a time, in an order that never settles one twice.

    To settle a tag twice, also as the end of a range, closes the channel.
    """

    def __init__(self, channel: aiormq.Channel) -> None:
        self._channel = channel
        self._settled: set[int] = set()  # written, above `_all_below`
        self._all_below = 1  # every lower tag is written
        self._acks: list[int] = []
        self._backs: list[int] = []
        self._writing = False

    async def add(self, tag: int, *, back: bool = False) -> None:
        (self._backs if back else self._acks).append(tag)
        if self._writing:
            return  # whoever writes takes it along
        self._writing = True
        try:
            await asyncio.sleep(0)  # what becomes due in this turn of the loop travels together
            while self._acks or self._backs:
                await self._write()
        finally:
            self._writing = False

    async def _write(self) -> None:
        backs, self._backs = self._backs, []
        for each in backs:
            await self._channel.basic_nack(each, requeue=True, wait=False)
        due, self._acks = sorted(self._acks), []
        self._settled.update(backs, due)
        while self._all_below in self._settled:
            self._settled.remove(self._all_below)
            self._all_below += 1
        together = [each for each in due if each < self._all_below]
        if together:
            await self._channel.basic_ack(together[-1], multiple=True, wait=False)
        # The others not behind one that takes long: they would be doubled if we died meanwhile.
        for each in due[len(together) :]:
            await self._channel.basic_ack(each, wait=False)


Handle = Callable[[Incoming], Awaitable[None]]


class Consumer:
    """Hands the messages of one queue to a handler, at most `prefetch` at once. The handler acks."""

    def __init__(self, queue: str, handle: Handle, *, prefetch: int) -> None:
        """Describe the consumer; `start` begins."""
        self._queue = queue
        self._handle = handle
        self._prefetch = prefetch
        self._channel: aiormq.Channel | None = None
        self._tag = ""
        self._draining = False
        self._in_hand = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def deaf(self) -> bool:
        """Say whether the broker gives us nothing though we want messages, as after the queue was deleted."""
        return not self._draining and not self._attached

    @property
    def _attached(self) -> bool:
        return self._channel is not None and self._tag in self._channel.consumers

    async def start(self, connection: AbstractConnection) -> None:
        """Consume on a new channel of a fresh connection. The channel's end ends the connection, which is rebuilt."""
        if self._draining:
            return
        opened = await connection.channel(publisher_confirms=False)
        opened.close_callbacks.add(lambda *_: asyncio.ensure_future(close_quietly(connection)))
        self._channel = channel = cast("aiormq.Channel", await opened.get_underlay_channel())
        acks = _Acks(channel)

        async def one(message: DeliveredMessage) -> None:
            await self._one(Incoming(message, channel, acks))

        await channel.basic_qos(prefetch_count=self._prefetch)
        self._tag = str((await channel.basic_consume(self._queue, one)).consumer_tag)

    async def drain(self) -> None:
        """Take no more, finish what is in hand, and return when the broker has every ack."""
        self._draining = True
        try:
            async with asyncio.timeout(DRAIN):
                await self._cancel()
                await self._idle.wait()
        except TimeoutError:
            log.warning("not finished in time, goes back to its queue", queue=self._queue, messages=self._in_hand)
        channel = self._channel
        if channel is not None and not channel.is_closed:
            with contextlib.suppress(*FAULTS):
                await self._fence(channel)

    async def _cancel(self) -> None:
        if self._channel is not None and self._attached:
            with contextlib.suppress(*FAULTS):
                await self._channel.basic_cancel(self._tag)

    async def _fence(self, channel: aiormq.Channel) -> None:
        """Make sure that acks are in the queue before the channel closes.

        RabbitMQ 3.10 holds acks of a busy quorum queue back in the channel, and forgets them when it closes: what was
        finished would be handed out again. A get goes through the queue behind them.
        """
        got = await channel.basic_get(self._queue, timeout=5)
        if got.delivery_tag is not None:
            await channel.basic_nack(got.delivery_tag, requeue=True)

    async def _one(self, message: Incoming) -> None:
        self._in_hand += 1
        self._idle.clear()
        try:
            await self._handle(message)
        except Exception:
            # A fault of our own: kept from a tight loop, not from people, and in the end set aside by the broker.
            log.exception("a message could not be handled", queue=self._queue, id=message.message_id)
            await asyncio.sleep(1)
            with contextlib.suppress(*FAULTS):
                await message.give_back()
        finally:
            self._in_hand -= 1
            if self._in_hand == 0:
                self._idle.set()
