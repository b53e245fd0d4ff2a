"""Publishing: persistent, mandatory and confirmed. When a call returns, the message is in a queue on disk."""

from collections.abc import Mapping

import msgspec
from aiormq import Channel
from pamqp.commands import Basic
from pamqp.common import FieldTable

from shared.broker import topology
from shared.broker.link import FAULTS, Link
from shared.mail import codec
from shared.mail.envelope import Delivery
from shared.runtime.errors import BrokerUnavailable

_PERSISTENT = 2
TIMEOUT = 30.0  # seconds for a confirm; a blocked broker does not answer at all


class Publisher:
    """Publishes on a link."""

    def __init__(self, link: Link) -> None:
        """Use the link's channel."""
        self._link = link

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
                body, routing_key=queue, properties=properties, mandatory=True, timeout=TIMEOUT, wait=False
            )
        except FAULTS as error:
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
            await channel.basic_publish(event, exchange=topology.RELOAD, timeout=TIMEOUT)
        except FAULTS as error:
            raise BrokerUnavailable(f"RabbitMQ did not confirm the reload event: {error!r}") from error

    def _channel(self) -> Channel:
        channel = self._link.publishing
        if channel is None:
            raise BrokerUnavailable("RabbitMQ is away")
        return channel


def _headers(headers: Mapping[str, object] | None) -> FieldTable | None:
    return None if headers is None else dict(headers)  # type: ignore[arg-type] # pamqp checks the values itself
