"""Every queue and exchange of the fleet, in one place.

All queues are durable quorum queues: they survive a broker restart and, in a cluster, the loss of a node. Whoever
declares one must use exactly these arguments, or RabbitMQ refuses with 406 PRECONDITION_FAILED. Nothing newer than
RabbitMQ 3.10 is required and nothing that RabbitMQ 4 removed is used (docs/adr/0001-queue-topology.md).
"""

from collections.abc import Mapping
from typing import Final

import aio_pika
from aio_pika.abc import AbstractChannel
from aiormq import Channel
from pamqp.common import FieldValue

OUTBOUND: Final = "mail.outbound"  # CONTRACT: RFC 5322 bytes, envelope in the headers
REROUTE: Final = "mail.reroute"  # deliveries that are due again; the router applies the rules of the moment
HTTPS: Final = "deliver.https"  # deliveries for the https workers
SMTP: Final = "deliver.smtp"  # deliveries for the smtp workers
LIMBO: Final = "mail.limbo"  # deliveries that could not be stored; back to mail.reroute after LIMBO_WAIT
UNDECODABLE: Final = "mail.undecodable"  # what could not be read, whole, with header `reason`

EVENTS: Final = "mail.events"  # topic exchange; batches of events, the routing key is the room that emitted them
JOURNAL: Final = "journal.events"  # what the journal has not recorded yet; the oldest make room when it is full

RELOAD: Final = "dns_overrides.reload"  # CONTRACT: fanout; {"version": N} or anything else for "release and reload"

FENCE: Final[dict[str, FieldValue]] = {"x-expires": 30 * 86_400_000}  # milliseconds; for a router that never returns

LIMBO_WAIT: Final = 60_000  # milliseconds; the queue's TTL, since a message's own TTL only counts at the head

# How often the broker hands out one message again before it is set aside. A crash of a consumer counts for all that it
# had prefetched, so this is well above the restarts of a bad day; a message that kills its worker still ends somewhere.
DELIVERY_LIMIT: Final = 50

_QUORUM: Final[Mapping[str, str | int]] = {"x-queue-type": "quorum"}

_WORK: Final[Mapping[str, str | int]] = {
    **_QUORUM,
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": UNDECODABLE,
    # The broker drops the message only when the other queue has confirmed it; this strategy demands reject-publish.
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}

QUEUES: Final[Mapping[str, Mapping[str, str | int]]] = {
    OUTBOUND: _WORK,
    REROUTE: _WORK,
    HTTPS: _WORK,
    SMTP: _WORK,
    LIMBO: {
        **_QUORUM,
        "x-message-ttl": LIMBO_WAIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": REROUTE,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    },
    UNDECODABLE: _QUORUM,
}

# Not among QUEUES, which hold mail: nothing of mail may wait for these, or fail with them.
JOURNAL_ARGUMENTS: Final[Mapping[str, str | int]] = {
    **_QUORUM,
    "x-max-length-bytes": 256 * 1024**2,  # some hours of a busy fleet
    "x-overflow": "drop-head",
    # RabbitMQ 4 drops what came back 20 times; batches come back whenever the store is away for long.
    "x-delivery-limit": 1_000_000,
}


def reload_queue(router: str) -> str:
    """Return the name of a router's own queue for reload events.

    It is exclusive, so it is there exactly as long as the router's connection. Whoever confirms a change without a
    router takes its queue instead (a fence, `Publisher.fence`): the router can publish nothing while it is not
    connected, and when it connects it finds the fence, and must read the rules before it takes it away.
    """
    return f"{RELOAD}.{router}"


async def declare(channel: AbstractChannel) -> None:
    """Declare every queue and the reload exchange; does nothing where they already are.

    Raises:
        aio_pika.exceptions.ChannelPreconditionFailed: A queue of this name exists with other arguments.
    """
    for name, arguments in QUEUES.items():
        await channel.declare_queue(name, durable=True, arguments=dict(arguments))
    await channel.declare_exchange(RELOAD, aio_pika.ExchangeType.FANOUT, durable=True)


async def declare_events(channel: Channel) -> None:
    """Declare the exchange of events and the journal's queue on a channel that is for nothing else.

    Raises:
        aiormq.exceptions.ChannelPreconditionFailed: One exists with other arguments; the channel is closed.
    """
    await channel.exchange_declare(EVENTS, exchange_type="topic", durable=True)
    await channel.queue_declare(JOURNAL, durable=True, arguments=dict(JOURNAL_ARGUMENTS))
    await channel.queue_bind(JOURNAL, EVENTS, routing_key="#")
