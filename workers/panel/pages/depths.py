"""How many messages are ready in each queue of the broker."""

import asyncio
from typing import Final, cast

from aiormq import Channel

from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import lost
from shared.runtime.errors import BrokerUnavailable

WHAT: Final = {
    topology.OUTBOUND: "new mail, not routed yet",
    topology.REROUTE: "mail that is due again",
    topology.HTTPS: "deliveries for the HTTPS workers",
    topology.SMTP: "deliveries for the SMTP workers",
    topology.LIMBO: "mail that PostgreSQL could not keep; tried again within a minute",
    topology.UNDECODABLE: "what could not be read; see Dead letters",
    topology.JOURNAL: "events that the journal has not recorded yet",
}
_PATIENCE: Final = 2.0  # seconds for the broker


async def depths(link: Link) -> dict[str, int]:
    """Return the ready messages by queue; one that is not there yet has none.

    On a channel of its own: to ask for a queue that is not there closes it.

    Raises:
        BrokerUnavailable: RabbitMQ is away, or does not answer.
    """
    ours = link.publishing
    if ours is None:
        raise BrokerUnavailable("RabbitMQ is away, so its queues cannot be counted")
    try:
        async with asyncio.timeout(_PATIENCE):
            channel = cast("Channel", await ours.connection.channel())
            try:
                await topology.declare_events(channel)
                return {name: await _depth(channel, name) for name in WHAT}
            finally:
                await channel.close()
    except BaseException as error:
        if not lost(error, ours):
            raise
        raise BrokerUnavailable(f"RabbitMQ did not count its queues: {error!r}") from error


async def _depth(channel: Channel, name: str) -> int:
    declared = await channel.queue_declare(name, passive=True)
    return declared.message_count or 0
