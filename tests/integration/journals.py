"""Journals that run in the process of a test, and events as rooms emit them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime

import aio_pika
import psycopg

from shared.broker import topology
from shared.mail import event
from shared.mail.event import Batch, Event
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from tests.integration.conftest import Queues, until
from tests.integration.rooms import Router
from tests.peers.mxdeliv import free_port
from workers.journal import __main__ as journal


def told(kind: str = "delivered", *, at: datetime | None = None, **fields: object) -> Event:
    """Return an event; what a test does not name does not matter to it."""
    given = {"id": "m1", "recipient": "bob@a.example", "domain": "a.example", "room": "smtp", **fields}
    return Event(at=at or now(), kind=kind, **given)  # type: ignore[arg-type] # fields by name


def batch(number: int, *events: Event, source: str = "smtp-1", emitted: int | None = None) -> Batch:
    """Return a batch; without word of its own the source has lost nothing, and all its batches are as long."""
    return Batch(
        source=source, number=number, emitted=number * len(events) if emitted is None else emitted, events=events
    )


async def emit(queues: Queues, *batches: Batch | bytes) -> None:
    """Put batches on the journal's queue."""
    exchange = await queues.channel.get_exchange(topology.EVENTS)
    for each in batches:
        body = each if isinstance(each, bytes) else event.encode(each)
        await exchange.publish(aio_pika.Message(body, delivery_mode=2), "smtp", mandatory=True)


@contextlib.asynccontextmanager
async def running(settings: Settings, *, ready: bool = True) -> AsyncIterator[Router]:
    """Run a journal; wait until it is ready unless told otherwise; at the end stop it as SIGTERM does."""
    settings = settings.model_copy(update={"metrics_port": free_port()})
    stop = asyncio.Event()
    task = asyncio.create_task(journal.work(settings, stop))
    room = Router(settings, task, stop)
    try:
        if ready:
            await until(room.ready, within=15)
        yield room
    finally:
        stop.set()
        await task


def count(database: str, table: str = "events") -> int:
    """Return how many rows a table has."""
    with psycopg.connect(database) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def delivered(database: str) -> int:
    """Return how many recipients the counters call delivered."""
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT coalesce(sum(delivered), 0) FROM traffic").fetchone()
    assert row is not None
    return int(row[0])
