"""How many messages are ready in each queue of the broker."""

import asyncio
from typing import cast

from aiormq import Channel
from aiormq.exceptions import ChannelNotFoundEntity

from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import lost
from shared.runtime.errors import BrokerUnavailable

COUNTED = (*topology.QUEUES, topology.JOURNAL)
_PATIENCE = 2.0  # seconds for the broker; a person waits


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
        ours = self._link.publishing
        if ours is None:
            raise BrokerUnavailable("RabbitMQ is away, so its queues cannot be counted")
        try:
            async with asyncio.timeout(_PATIENCE), self._turn:
                counted = [(name, await self._depth(name, ours)) for name in COUNTED]
                return {name: depth for name, depth in counted if depth is not None}
        except BaseException as error:
            if not lost(error, ours):
                raise
            raise BrokerUnavailable(f"RabbitMQ did not count its queues: {error!r}") from error

    async def _depth(self, name: str, ours: Channel) -> int | None:
        try:
            return (await (await self._opened(ours)).queue_declare(name, passive=True)).message_count or 0
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
