"""How many messages are ready in each queue of the broker, and who takes them."""

import asyncio
from typing import cast

import msgspec
from aiormq import Channel
from aiormq.exceptions import ChannelNotFoundEntity

from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import lost
from shared.runtime.errors import BrokerUnavailable

COUNTED = (*topology.QUEUES, topology.JOURNAL)
_PATIENCE = 2.0  # seconds for the broker; a person waits


class Queue(msgspec.Struct, frozen=True):
    """One queue: messages that are ready in it, and how many consumers it has."""

    ready: int
    consumers: int


class Depths:
    """Counts on a channel of its own, since to ask for a queue that is not there closes it."""

    def __init__(self, link: Link) -> None:
        """Use the connection of a link."""
        self._link = link
        self._opening: asyncio.Task[Channel] | None = None
        self._turn = asyncio.Lock()

    async def all(self) -> dict[str, int]:
        """Return the ready messages by queue; one that is not there has none, and is not in it.

        Raises:
            BrokerUnavailable: RabbitMQ is away, or does not answer.
        """
        return {name: queue.ready for name, queue in (await self.queues()).items()}

    async def queues(self) -> dict[str, Queue]:
        """Return the queues by name; one that is not there is not in it.

        Raises:
            BrokerUnavailable: RabbitMQ is away, or does not answer.
        """
        ours = self._link.publishing
        if ours is None:
            raise BrokerUnavailable("RabbitMQ is away, so its queues cannot be counted")
        try:
            async with asyncio.timeout(_PATIENCE), self._turn:
                counted = [(name, await self._queue(name, ours)) for name in COUNTED]
                return {name: queue for name, queue in counted if queue is not None}
        except BaseException as error:
            if not lost(error, ours):
                raise
            raise BrokerUnavailable(f"RabbitMQ did not count its queues: {error!r}") from error

    async def _queue(self, name: str, ours: Channel) -> Queue | None:
        try:
            declared = await (await self._opened(ours)).queue_declare(name, passive=True)
            return Queue(declared.message_count or 0, declared.consumer_count or 0)
        except ChannelNotFoundEntity:
            return None  # and the broker has closed the channel

    async def _opened(self, ours: Channel) -> Channel:
        """Return our channel; one that a busy broker has not opened yet is waited for, not asked for again."""
        opening = self._opening
        if opening is None or (opening.done() and not _good(opening, ours)):
            opening = self._opening = asyncio.create_task(_open(ours))
        return await asyncio.shield(opening)


def _good(opened: asyncio.Task[Channel], ours: Channel) -> bool:
    if opened.cancelled() or opened.exception() is not None:
        return False
    channel = opened.result()
    return not channel.is_closed and channel.connection is ours.connection


async def _open(ours: Channel) -> Channel:
    channel = cast("Channel", await ours.connection.channel())
    await topology.declare_events(channel)
    return channel
