"""`python -m workers.journal`: write down what becomes of mail. Any number may run, and mail waits for none of them."""

import asyncio
from datetime import timedelta
from typing import cast

import aiormq
import structlog
from aio_pika.abc import AbstractConnection
from prometheus_client import Counter, Gauge

from shared.broker import topology
from shared.broker.consumer import Consumer
from shared.broker.link import Link
from shared.mail.privacy import Privacy
from shared.runtime import health, main
from shared.runtime.clock import now
from shared.runtime.errors import StoreUnavailable
from shared.runtime.health import Health
from shared.runtime.settings import Settings
from shared.store.journal import Journal
from shared.store.pool import Pool
from workers.journal.recorder import ENOUGH, Recorder

log = structlog.get_logger()

PREFETCH = 2 * ENOUGH  # batches in hand: what is recorded, and what comes meanwhile; 20,000 events at most
LOOK = 5.0  # seconds between two looks whether the store is there, with today and tomorrow
PRUNE = 600.0  # seconds between two prunings
_PRUNED = Counter("pushpush_journal_pruned_days_total", "Days of events deleted, older than the retention")
_LOST = Gauge("pushpush_journal_lost_events", "Events of the last day that were emitted and never recorded")


async def work(settings: Settings, stop: asyncio.Event) -> None:
    """Record until told to stop, then finish what is in hand."""
    state = health.Health("broker", "store")
    pool = Pool(settings.database_url, name="journal")
    privacy = Privacy(mode=settings.journal_addresses, key=settings.journal_key or "")
    journal = Journal(pool, privacy, retention=settings.journal_retention)
    recorder = Recorder(journal, health=state)
    consumer = Consumer(topology.JOURNAL, recorder.handle, prefetch=PREFETCH)

    async def on_up(connection: AbstractConnection) -> None:
        channel = await connection.channel(publisher_confirms=False)
        await topology.declare_events(cast("aiormq.Channel", await channel.get_underlay_channel()))
        await channel.close()
        await consumer.start(connection)

    await pool.open()
    stop_serving = health.serve(state, host=settings.metrics_host, port=settings.metrics_port)
    try:
        async with Link(settings.amqp_url, name="journal", health=state, on_up=on_up) as link:
            keeping = keep(journal, settings.traffic_retention)
            endless = (main.pulse(state), recorder.run(), look(journal, state), keeping, watch(link, consumer))
            async with main.background(*endless):
                await stop.wait()
                recorder.finish()
                await consumer.drain()
    finally:
        stop_serving()
        await pool.close()


async def look(journal: Journal, state: Health) -> None:
    """Tell the health how the store is, also when nothing happens, and make tomorrow in time; never ends."""
    while True:
        try:
            await journal.prepare(now())
            state.well("store")
        except StoreUnavailable as error:
            state.ill("store", str(error), refused=error.refused)
        await asyncio.sleep(LOOK)


async def keep(journal: Journal, traffic_retention: timedelta) -> None:
    """Delete what is too old, and count what was lost on the way; never ends."""
    while True:
        try:
            pruned = await journal.prune(now=now(), traffic_before=now() - traffic_retention)
            lost = await journal.lost()
        except StoreUnavailable as error:
            log.warning("cannot prune, trying on", error=str(error))
            await asyncio.sleep(LOOK)
            continue
        _PRUNED.inc(pruned.days)
        _LOST.set(lost)
        if pruned.days or pruned.traffic:
            log.info("pruned", days=pruned.days, traffic=pruned.traffic)
        if lost:
            log.warning("events of the last day were lost on their way; the mail was not", events=lost)
        await asyncio.sleep(PRUNE)


async def watch(link: Link, consumer: Consumer) -> None:
    """Connect anew when the broker stopped giving us batches, as it does when a queue was deleted; never ends."""
    while True:
        await asyncio.sleep(1)
        if link.is_up and consumer.deaf:
            log.warning("no longer attached to the queue, connecting anew")
            await link.reconnect()


if __name__ == "__main__":
    main.run("journal", work)
