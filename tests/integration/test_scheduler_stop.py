"""A scheduler that is told to end hands out to the end what it has begun, so that no restart doubles mail."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta

import psycopg
import pytest

from shared.broker import topology
from shared.mail.rule import make_rule
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from tests.integration.conftest import MESSAGE, Queues, Wire, delivery, through, until
from workers.scheduler import __main__ as scheduler

pytestmark = [pytest.mark.anyio, pytest.mark.services]

COUNT = 20


def _free_rows(url: str) -> int:
    """Return how many rows wait that no scheduler has in hand."""
    with psycopg.connect(url) as connection:
        return len(connection.execute("SELECT id FROM deferred FOR UPDATE SKIP LOCKED").fetchall())


async def _at_work(
    settings: Settings, stop: asyncio.Event, pool: Pool, queues: Queues, wire: Wire
) -> asyncio.Task[None]:
    """Return a scheduler that speaks to the broker through a wire, once it has handed out its first row."""
    slow = settings.model_copy(update={"amqp_url": through(settings.amqp_url, wire)})
    working = asyncio.create_task(scheduler.work(slow, stop))
    await Deferred(pool).defer(delivery(id="first"), MESSAGE, now())
    await queues.take(topology.REROUTE)
    return working


async def test_what_is_being_handed_out_is_handed_out_once(
    settings: Settings, pool: Pool, queues: Queues, broker_wire: Wire
) -> None:
    """Told to end while the broker has the messages and not confirmed them: the rows are gone when it ends."""
    stop = asyncio.Event()
    working = await _at_work(settings, stop, pool, queues, broker_wire)
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
    working = await _at_work(settings, stop, pool, queues, broker_wire)
    broker_wire.passing.clear()
    await Deferred(pool).defer(delivery(), MESSAGE, now())
    await until(lambda: _free_rows(settings.database_url) == 0, wanted="the row in hand")
    stop.set()
    await until(lambda: _free_rows(settings.database_url) == 1, wanted="the row free again")
    await broker_wire.cut()
    await working


@contextlib.contextmanager
def _slow_to_be_made_due(url: str) -> Iterator[Callable[[], bool]]:
    """Let each making due take some seconds, as that of a million deliveries does; yield whether one is under way."""
    under_way = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3); RETURN NULL; END'"
        )
        connection.execute("CREATE TRIGGER slowly BEFORE UPDATE ON deferred EXECUTE FUNCTION slowly()")
        try:
            yield lambda: bool(connection.execute(under_way).fetchall())
        finally:
            connection.execute("DROP FUNCTION slowly CASCADE")


async def test_mail_of_a_rule_that_ends_is_made_due_to_the_end(settings: Settings, pool: Pool, queues: Queues) -> None:
    """Told to end in the midst of it: nobody would do the rest, and the mail would wait for hours."""
    rule = make_rule("a.example", "b.example", expires_at=now() + timedelta(days=1))
    await Overrides(pool).set(rule, actor="ann", release=True)
    await Deferred(pool).defer(delivery(), MESSAGE, now() + timedelta(hours=4))
    async with pool.statement() as connection:
        await connection.execute("UPDATE dns_overrides SET expires_at = now()")
    stop = asyncio.Event()
    with _slow_to_be_made_due(settings.database_url) as under_way:
        working = asyncio.create_task(scheduler.work(settings, stop))
        await until(under_way, wanted="mail being made due", within=30)
        stop.set()
        await working
    async with pool.statement() as connection:
        left = await connection.execute("SELECT count(*) FROM deferred WHERE next_attempt_at > now()")
        assert (0,) == await left.fetchone()
    await queues.empty()
