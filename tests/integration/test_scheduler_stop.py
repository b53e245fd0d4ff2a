"""A scheduler that is told to end hands out to the end what it has begun, so that no restart doubles mail."""

import asyncio

import psycopg
import pytest

from shared.broker import topology
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from shared.store.deferred import Deferred
from shared.store.pool import Pool
from tests.integration.conftest import MESSAGE, Queues, Wire, delivery, through, until
from workers.scheduler import __main__ as scheduler

pytestmark = [pytest.mark.anyio, pytest.mark.services]

COUNT = 20


def _free_rows(url: str) -> int:
    """Return how many rows wait that no scheduler has in hand."""
    with psycopg.connect(url) as connection:
        return len(connection.execute("SELECT id FROM deferred FOR UPDATE SKIP LOCKED").fetchall())


async def test_what_is_being_handed_out_is_handed_out_once(
    settings: Settings, pool: Pool, queues: Queues, broker_wire: Wire
) -> None:
    """Told to end while the broker has the messages and not confirmed them: the rows are gone when it ends."""
    stop = asyncio.Event()
    slow = settings.model_copy(update={"amqp_url": through(settings.amqp_url, broker_wire)})
    working = asyncio.create_task(scheduler.work(slow, stop))
    await Deferred(pool).defer(delivery(id="first"), MESSAGE, now())
    await queues.take(topology.REROUTE)
    broker_wire.passing.clear()
    await asyncio.gather(*(Deferred(pool).defer(delivery(id=f"m{n}"), MESSAGE, now()) for n in range(COUNT)))
    await until(lambda: _free_rows(settings.database_url) == 0, wanted="all rows in hand")
    stop.set()
    await asyncio.sleep(0.1)  # what would break off has done so by now
    broker_wire.passing.set()
    await working
    assert [] == await Deferred(pool).totals()
    assert COUNT == await queues.depth(topology.REROUTE)


async def test_a_broker_that_confirms_nothing_keeps_no_scheduler(
    settings: Settings, pool: Pool, queues: Queues, broker_wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while it ends all the same; the rows stay, and another one hands them out."""
    monkeypatch.setattr(scheduler, "DRAIN", 0.2)
    stop = asyncio.Event()
    slow = settings.model_copy(update={"amqp_url": through(settings.amqp_url, broker_wire)})
    working = asyncio.create_task(scheduler.work(slow, stop))
    await Deferred(pool).defer(delivery(id="first"), MESSAGE, now())
    await queues.take(topology.REROUTE)
    broker_wire.passing.clear()
    await Deferred(pool).defer(delivery(), MESSAGE, now())
    await until(lambda: _free_rows(settings.database_url) == 0, wanted="the row in hand")
    stop.set()
    await until(lambda: _free_rows(settings.database_url) == 1, wanted="the row free again")
    await broker_wire.cut()
    await working
