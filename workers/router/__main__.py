"""`python -m workers.router`: the room's wiring."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import cast

import aiormq
import structlog
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aiormq.exceptions import ChannelLockedResource

from shared.broker import topology
from shared.broker.consumer import Consumer
from shared.broker.events import Events
from shared.broker.link import Link, close_quietly
from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.runtime import health, main
from shared.runtime.chance import new_id
from shared.runtime.errors import StoreUnavailable
from shared.runtime.settings import Settings
from shared.store.bodies import Bodies
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Routers
from shared.store.rulebooks import Rulebooks
from workers.router.handler import Handler
from workers.router.reload import Reloader
from workers.router.rules import Rules

log = structlog.get_logger()

_HEARTBEAT = 10  # seconds: a router that hangs is cut off soon, and only then a change can be confirmed without it


async def work(settings: Settings, stop: asyncio.Event) -> None:
    """Route until told to stop, then finish what is in hand and sign out."""
    state = health.Health("broker", once=("store", "rules"))  # with rules that may be old it routes on
    pool = Pool(settings.database_url, name="router")
    rules = Rules()
    name = f"{settings.instance}-{os.getpid()}-{new_id()[:6]}"  # in containers every process has the same pid
    reloader = Reloader(rules, Rulebooks(pool), Overrides(pool), Routers(pool), name=name, health=state)
    consumers: list[Consumer] = []
    ears: list[tuple[aiormq.Channel, str]] = []  # channel and consumer tag of the events

    def deaf() -> bool:
        return any(each.deaf for each in consumers) or any(tag not in channel.consumers for channel, tag in ears)

    async def on_up(connection: AbstractConnection) -> None:
        # The event queue comes first: a release after this moment is heard, one before it is read by on_connect.
        channel, events = await _event_queue(connection, name, reloader)
        channel.close_callbacks.add(lambda *_: asyncio.ensure_future(close_quietly(connection)))
        exchange = await channel.declare_exchange(topology.RELOAD, ExchangeType.FANOUT, durable=True)
        await events.bind(exchange)
        tag = await events.consume(reloader.on_event, no_ack=True)
        ears[:] = [(cast("aiormq.Channel", await channel.get_underlay_channel()), tag)]
        await reloader.on_connect()
        for consumer in consumers:
            await consumer.start(connection)

    await pool.open()
    stop_serving = health.serve(state, host=settings.metrics_host, port=settings.metrics_port)
    link = Link(settings.amqp_url, name=f"router {name}", health=state, on_up=on_up, heartbeat=_HEARTBEAT)
    publisher = Publisher(link)
    events = Events(link, room="router")
    settler = Settler(publisher, Deferred(pool), hostname=settings.hostname, schedule=settings.schedule, emit=events)
    handler = Handler(
        rules,
        publisher,
        settler,
        Bodies(pool),
        inline_limit=settings.inline_body_limit,
        max_size=settings.max_message_size,
        schedule=settings.schedule,
        emit=events,
    )
    consumers += [
        Consumer(topology.OUTBOUND, handler.outbound, prefetch=settings.prefetch),
        Consumer(topology.REROUTE, handler.reroute, prefetch=settings.prefetch),
    ]
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.on_signal)
    try:
        async with main.background(main.pulse(state), pool.watch(state)):
            await _serve(link, reloader, consumers, stop, events=events, deaf=deaf)
    finally:
        stop_serving()
        await pool.close()


async def _event_queue(
    connection: AbstractConnection, name: str, reloader: Reloader
) -> tuple[AbstractChannel, AbstractQueue]:
    """Declare this router's own queue for reload events, which is there as long as its connection.

    When it is taken, a change was confirmed without this router while it was away (`Publisher.fence`), so the rules
    must be read before it is freed; or the broker has not noticed the end of our last connection, and it stays taken.

    Raises:
        ConnectionError: It is taken, and the rules cannot be read: connecting is tried again.
    """
    queue = topology.reload_queue(name)
    channel = await connection.channel()
    try:
        return channel, await channel.declare_queue(queue, exclusive=True)
    except ChannelLockedResource:
        log.info("a change was confirmed while this router was away, reading the rules")
    try:
        await reloader.reload("fence")
    except StoreUnavailable as error:
        raise ConnectionError(
            f"older rules must not be used any more, and newer ones cannot be read: {error}"
        ) from error
    channel = await connection.channel()
    await channel.queue_delete(queue)
    return channel, await channel.declare_queue(queue, exclusive=True)


async def _serve(
    link: Link,
    reloader: Reloader,
    consumers: list[Consumer],
    stop: asyncio.Event,
    *,
    events: Events,
    deaf: Callable[[], bool],
) -> None:
    """Load the rules, and only then connect and consume; at the end drain, and only then sign out."""
    if not await main.done_before(stop, reloader.start()):
        return
    async with link:
        async with main.background(reloader.beat(), reloader.keep(), _watch(link, deaf), events.run()):
            await stop.wait()
            await asyncio.gather(*(consumer.drain() for consumer in consumers))
        await events.close()
    await reloader.leave()


async def _watch(link: Link, deaf: Callable[[], bool]) -> None:
    """Connect anew when the broker stopped giving us messages, as it does when a queue was deleted; never ends."""
    while True:
        await asyncio.sleep(1)
        if link.is_up and deaf():
            log.warning("no longer attached to a queue, connecting anew")
            await link.reconnect()


if __name__ == "__main__":
    main.run("router", work)
