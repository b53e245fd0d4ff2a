"""The frame of a delivery room: store, broker, dramatiq worker and health, around one transport."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from shared.broker import topology
from shared.broker.dramatiq_broker import DeliveryWorker
from shared.broker.events import Events
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.delivery.actor import Actor, Deliver, Transport
from shared.delivery.memory import Memory
from shared.runtime import health, main
from shared.runtime.health import Health
from shared.runtime.settings import Settings
from shared.store.bodies import Bodies
from shared.store.deferred import Deferred
from shared.store.hops import NextHops
from shared.store.pool import Pool

_QUEUES = {"https": topology.HTTPS, "smtp": topology.SMTP}

Open = Callable[[Settings, Pool, Memory], contextlib.AbstractAsyncContextManager[Deliver]]


def run(by: Transport, open_transport: Open) -> None:
    """Run a delivery room until SIGTERM or SIGINT."""

    async def work(settings: Settings, stop: asyncio.Event) -> None:
        async with (
            _parts(by, settings) as (state, pool, link),
            _memory(pool) as memory,
            open_transport(settings, pool, memory) as transport,
        ):
            publisher = Publisher(link)
            events = Events(link, room=by)
            settler = Settler(
                publisher, Deferred(pool), hostname=settings.hostname, schedule=settings.schedule, emit=events, room=by
            )
            actor = Actor(
                by,
                transport,
                settler,
                Bodies(pool),
                hostname=settings.hostname,
                schedule=settings.schedule,
                log_addresses=settings.log_addresses,
                emit=events,
            )
            worker = DeliveryWorker(
                url=settings.amqp_url, queue=_QUEUES[by], concurrency=settings.concurrency, deliver=actor
            )
            if await main.done_before(stop, link.wait_up()):
                await _consume(worker, events, state, stop, drain=settings.drain.total_seconds())

    main.run(by, work)


@contextlib.asynccontextmanager
async def _parts(by: Transport, settings: Settings) -> AsyncIterator[tuple[Health, Pool, Link]]:
    # Without the store deliveries go on, and what must be tried again waits in limbo.
    state = Health("broker", "queue", once=("store",))
    pool = Pool(settings.database_url, name=by)
    await pool.open()
    stop_serving = health.serve(state, host=settings.metrics_host, port=settings.metrics_port)
    try:
        async with (
            Link(settings.amqp_url, name=by, health=state) as link,
            main.background(main.pulse(state), pool.watch(state)),
        ):
            yield state, pool, link
    finally:
        stop_serving()
        await pool.close()


@contextlib.asynccontextmanager
async def _memory(pool: Pool) -> AsyncIterator[Memory]:
    memory = Memory(NextHops(pool))
    async with main.background(memory.follow()):
        yield memory


async def _consume(worker: DeliveryWorker, events: Events, state: Health, stop: asyncio.Event, *, drain: float) -> None:
    """Consume until told to stop, then finish what runs and give back what only waited."""
    worker.start()
    async with main.background(_watch(worker, state), events.run()):
        await stop.wait()
        await worker.stop(drain)
    await events.close()


async def _watch(worker: DeliveryWorker, state: Health) -> None:
    while True:
        if worker.connected:
            state.well("queue")
        else:
            state.ill("queue", "not attached to its queue; it attaches when RabbitMQ is there")
        await asyncio.sleep(0.5)
