"""Consuming with a bound on what is in hand, and a drain at the end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from shared.broker.link import FAULTS

log = structlog.get_logger()

DRAIN = 20.0  # seconds to finish what is in hand; what is left then goes back to its queue

Handle = Callable[[AbstractIncomingMessage], Awaitable[None]]


class Consumer:
    """Hands the messages of one queue to a handler, at most `prefetch` at once. The handler acks."""

    def __init__(self, queue: str, handle: Handle, *, prefetch: int) -> None:
        """Describe the consumer; `start` begins."""
        self._queue = queue
        self._handle = handle
        self._prefetch = prefetch
        self._channel: AbstractChannel | None = None
        self._tag: str | None = None
        self._in_hand = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, connection: AbstractConnection) -> None:
        """Consume on a new channel of a fresh connection. The channel's end ends the connection, which is rebuilt."""
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=self._prefetch)
        queue = await channel.get_queue(self._queue, ensure=False)
        self._channel = channel
        self._tag = await queue.consume(self._one)
        channel.close_callbacks.add(lambda *_: asyncio.ensure_future(_close(connection)))

    async def drain(self) -> None:
        """Take no more, and finish what is in hand."""
        if self._channel is not None and self._tag is not None:
            with contextlib.suppress(*FAULTS):
                queue = await self._channel.get_queue(self._queue, ensure=False)
                await queue.cancel(self._tag)
        try:
            await asyncio.wait_for(self._idle.wait(), DRAIN)
        except TimeoutError:
            log.warning("not finished in time, goes back to its queue", queue=self._queue, messages=self._in_hand)

    async def _one(self, message: AbstractIncomingMessage) -> None:
        self._in_hand += 1
        self._idle.clear()
        try:
            await self._handle(message)
        except Exception:
            # A fault of our own. The message stays unacked; it goes back when the channel closes, and that must not
            # happen in a tight loop, nor be kept from people.
            log.exception("a message could not be handled", queue=self._queue, id=message.message_id)
            await asyncio.sleep(1)
            with contextlib.suppress(*FAULTS):
                await message.reject(requeue=True)
        finally:
            self._in_hand -= 1
            if self._in_hand == 0:
                self._idle.set()


async def _close(connection: AbstractConnection) -> None:
    with contextlib.suppress(*FAULTS):
        await connection.close()
