"""Publishing: persistent, mandatory and confirmed. When a call returns, the message is in a queue on disk."""

import asyncio
from collections.abc import Mapping

import msgspec
from aiormq import Channel
from aiormq.exceptions import ChannelLockedResource
from pamqp.commands import Basic
from pamqp.common import FieldTable, FieldValue

from shared.broker import topology
from shared.broker.link import FAULTS, Link
from shared.mail import codec
from shared.mail.envelope import Delivery
from shared.runtime.errors import BrokerUnavailable

_PERSISTENT = 2


class Publisher:
    """Publishes on a link."""

    def __init__(self, link: Link, *, timeout: float | None = None) -> None:
        """Use the link's channel.

        Args:
            link: The connection.
            timeout: Seconds to wait for a confirm. None waits as long as the channel lives: a broker that is short of
                memory or disk confirms later, and whoever published again meanwhile would have doubled the message.
        """
        self._link = link
        self._timeout = timeout

    async def delivery(self, queue: str, delivery: Delivery, body: bytes) -> None:
        """Publish a delivery in its wire form.

        Its id is inside only: aiormq finds the publish that a returned message belongs to by the message_id property,
        and the deliveries of one message share one id.

        Raises:
            BrokerUnavailable: It was not confirmed; it may or may not be in the queue.
        """
        await self.raw(queue, codec.encode(delivery, body))

    async def raw(
        self,
        queue: str,
        body: bytes,
        *,
        message_id: str | None = None,
        content_type: str | None = None,
        headers: Mapping[str, object] | None = None,
    ) -> None:
        """Publish bytes to a queue. A `message_id` must be unique among the publishes under way.

        Raises:
            BrokerUnavailable: It was not confirmed; it may or may not be in the queue.
        """
        # Straight to aiormq: aio-pika's message objects and its wait for the socket cost a quarter of a router's time.
        properties = Basic.Properties(
            delivery_mode=_PERSISTENT, content_type=content_type, headers=_headers(headers), message_id=message_id
        )
        channel = self._channel()
        try:
            await channel.basic_publish(
                body, routing_key=queue, properties=properties, mandatory=True, timeout=self._timeout, wait=False
            )
        except BaseException as error:
            if not lost(error, channel):
                raise
            raise BrokerUnavailable(f"RabbitMQ did not take a message for {queue}: {error!r}") from error

    async def reload(self, version: int) -> None:
        """Publish the reload event: that version was released (CONTRACT, design 4.3).

        Raises:
            BrokerUnavailable: It was not confirmed.
        """
        channel = self._channel()
        event = msgspec.json.encode({"version": version})
        try:
            # Not mandatory: a fleet whose routers are all down has no queue bound, and they read the rules on start.
            await channel.basic_publish(event, exchange=topology.RELOAD, timeout=self._timeout)
        except BaseException as error:
            if not lost(error, channel):
                raise
            raise BrokerUnavailable(f"RabbitMQ did not confirm the reload event: {error!r}") from error

    async def fence(self, queue: str) -> bool:
        """Take a router's own queue while it is not connected, so that it cannot connect without noticing.

        Taking it is one step of the broker's: either the router has its queue, or it finds the fence.

        Args:
            queue: The name, by `topology.reload_queue`.

        Returns:
            Whether the fence stands; False while the queue is the router's, so that it may be publishing.

        Raises:
            BrokerUnavailable: It cannot be known.
        """
        ours = self._channel()
        try:
            channel = await ours.connection.channel()  # the broker closes the channel that asked for another's queue
            try:
                await channel.queue_declare(queue, durable=True, arguments=topology.FENCE, timeout=self._timeout)
            except ChannelLockedResource:
                return False
            await channel.close()
        except BaseException as error:
            if not lost(error, ours):
                raise
            raise BrokerUnavailable(f"RabbitMQ did not say whether the queue {queue} is taken: {error!r}") from error
        return True

    def _channel(self) -> Channel:
        channel = self._link.publishing
        if channel is None:
            raise BrokerUnavailable("RabbitMQ is away")
        return channel


def lost(error: BaseException, channel: Channel) -> bool:
    """Say whether the error means that the connection, or the confirm, was lost.

    When a connection ends, aiormq gives those who wait whatever ended it: its own errors, a bare Exception, or even a
    CancelledError that nobody asked for.
    """
    if isinstance(error, FAULTS):
        return True
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, Exception) and channel.is_closed


def _headers(headers: Mapping[str, object] | None) -> FieldTable | None:
    return None if headers is None else {name: writable(value) for name, value in headers.items()}


def writable(value: object) -> FieldValue:
    """Return a value of a header in a form that pamqp can write; it reads bytes that it would not."""
    match value:
        case bytes():
            return bytearray(value)
        case list():
            return [writable(each) for each in value]
        case dict():
            return {name: writable(each) for name, each in value.items()}
        case _:
            return value  # type: ignore[return-value] # what pamqp has read, it can write
