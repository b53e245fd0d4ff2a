"""What schedulers count: waiting mail by age, queues, routers; and how far a router is behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from aio_pika.abc import AbstractIncomingMessage
from prometheus_client import REGISTRY

from shared.broker import topology
from shared.broker.link import Link
from shared.mail.rule import make_rule
from shared.runtime.clock import now
from shared.runtime.errors import StoreUnavailable
from shared.runtime.health import Health
from shared.store.dead import DeadLetters, Letter
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Routers
from shared.store.rulebooks import Rulebooks
from shared.store.waiting import WaitingMail
from tests.integration.conftest import MESSAGE, Queues, Wire, delivery, through, until
from workers.router.reload import Reloader
from workers.router.rules import Rules
from workers.scheduler import figures
from workers.scheduler.figures import AGES, BORDERS, count_queues, count_routers, count_waiting

pytestmark = [pytest.mark.anyio, pytest.mark.services]


def value(name: str, **labels: str) -> float:
    """Return what is exported, -1 when nothing is yet."""
    found = REGISTRY.get_sample_value(f"pushpush_{name}", labels)
    return -1 if found is None else found


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless work."""
    task = asyncio.create_task(work)
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()


async def test_waiting_mail_by_age(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each age for itself, the oldest, what is overdue, and dead letters; an empty table sets all to nothing."""
    monkeypatch.setattr(figures, "COUNT", 0.05)
    monkeypatch.setattr(figures, "SHARE", 0)
    deferred = Deferred(pool)
    minutes = (1, 2, 30, 30, 30, 100, 600, 3_000, 4_000)
    for number, age in enumerate(minutes):
        accepted = now() - timedelta(minutes=age)
        await deferred.defer(delivery(id=f"m{number}", accepted_at=accepted), MESSAGE, now() + timedelta(hours=1))
    await deferred.defer(delivery(id="due", accepted_at=now()), MESSAGE, now() - timedelta(minutes=10))
    await DeadLetters(pool).keep([Letter(headers={}, data=b"x", reason="a test")])
    async with running(count_waiting(pool)):
        await until(lambda: [3, 3, 1, 1, 2] == [value("waiting_deliveries", age=age) for age in AGES])
        assert (True, True) == (value("waiting_oldest_seconds") >= 4_000 * 60, value("waiting_overdue_seconds") >= 600)
        assert 1 == value("dead_letters")
        async with pool.statement() as connection:
            await connection.execute("TRUNCATE deferred")
        await until(lambda: [0] * 5 == [value("waiting_deliveries", age=age) for age in AGES])
        await until(lambda: (0, 0) == (value("waiting_oldest_seconds"), value("waiting_overdue_seconds")))


async def test_the_count_reads_an_index_and_no_row(pool: Pool, database: str) -> None:
    """A table with bodies of many megabytes is counted without them."""
    wide = delivery(accepted_at=now())
    for _ in range(50):
        await Deferred(pool).defer(wide, bytes(200_000), now() + timedelta(hours=1))
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("VACUUM ANALYZE deferred")
    assert [50, 0, 0, 0, 0] == (await WaitingMail(pool).standing(BORDERS)).counts
    async with pool.transaction() as connection:
        await connection.execute("SET LOCAL enable_seqscan = off")
        cursor = await connection.execute(
            "EXPLAIN SELECT count(*), count(*) FILTER (WHERE accepted_at <= now()) FROM deferred"
        )
        assert "Index Only Scan using deferred_by_age" in "".join(row[0] for row in await cursor.fetchall())


async def test_queues_and_who_takes_from_them(link: Link, queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, also one that somebody deleted."""
    monkeypatch.setattr(figures, "LOOK", 0.05)
    await queues.put(topology.SMTP, b"x")
    async with running(count_queues(link)):
        await until(lambda: (1, 0) == (value("queue_messages", queue=topology.SMTP), consumers(topology.SMTP)))
        taking = await queues.channel.get_queue(topology.SMTP, ensure=False)
        tag = await taking.consume(take)
        await until(lambda: (0, 1) == (value("queue_messages", queue=topology.SMTP), consumers(topology.SMTP)))
        await taking.cancel(tag)
        await queues.channel.queue_delete(topology.SMTP)
        await until(lambda: consumers(topology.SMTP) == 0)
    await queues.empty()


async def take(message: AbstractIncomingMessage) -> None:
    """Take a message."""
    await message.ack()


def consumers(queue: str) -> float:
    """Return how many consumers a queue is said to have."""
    return value("queue_consumers", queue=queue)


async def test_routers(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live and up to date, live and behind, silent."""
    monkeypatch.setattr(figures, "LOOK", 0.05)
    routers = Routers(pool)
    await Overrides(pool).set(make_rule("a.example", "b.example"), actor="ann", release=True)
    for name in ("one", "two", "gone"):
        await routers.seen(name, 0)
    async with pool.statement() as connection:
        await connection.execute("UPDATE routers SET seen_at = now() - interval '1 minute' WHERE name = 'gone'")
    async with running(count_routers(pool)):
        await until(lambda: [0, 2, 1] == [value("routers", state=each) for each in ("applied", "behind", "silent")])
        version, mark = (book := await Rulebooks(pool).rulebook()).version, book.mark
        await routers.seen("one", version, mark)
        await until(lambda: [1, 1, 1] == [value("routers", state=each) for each in ("applied", "behind", "silent")])


async def test_without_a_store_it_counts_on(
    store_wire: Wire, database: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was true last stands, and the time of the count says so."""
    monkeypatch.setattr(figures, "COUNT", 0.05)
    monkeypatch.setattr(figures, "SHARE", 0)
    await Deferred(pool).defer(delivery(accepted_at=now()), MESSAGE, now() + timedelta(hours=1))
    own = Pool(through(database, store_wire), name="test", timeout=0.2)
    await own.open()
    async with running(count_waiting(own)):
        await until(lambda: value("waiting_deliveries", age="0-5m") == 1)
        await store_wire.cut()
        await Deferred(pool).defer(delivery(id="m2", accepted_at=now()), MESSAGE, now() + timedelta(hours=1))
        await asyncio.sleep(0.5)
        assert 1 == value("waiting_deliveries", age="0-5m")
        await store_wire.mend()
        await until(lambda: value("waiting_deliveries", age="0-5m") == 2, within=20)
    await own.close()


async def test_a_count_that_failed_late_is_made_again_soon(
    store_wire: Wire, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that answered nothing for a minute must not leave the alerts blind for an hour."""
    monkeypatch.setattr(figures, "COUNT", 0.05)
    monkeypatch.setattr(figures, "BLIND", 0.1)
    monkeypatch.setattr(figures, "SHARE", 1_000)
    own = Pool(through(database, store_wire), name="test", timeout=0.5)
    await store_wire.cut()
    await own.open()
    before = value("figures_timestamp_seconds", of="waiting")
    async with running(count_waiting(own)):
        await asyncio.sleep(1)  # it has failed at least once, after half a second
        await store_wire.mend()
        await until(lambda: value("figures_timestamp_seconds", of="waiting") > before, within=30)
    await own.close()


async def test_a_router_that_is_behind(pool: Pool) -> None:
    """While a message is in flight under older rules, the lag grows; then there is none."""
    rules, overrides = Rules(), Overrides(pool)
    reloader = Reloader(rules, Rulebooks(pool), overrides, Routers(pool), name="r1", health=Health())
    await reloader.reload("start")
    assert (0, 0, 0) == (value("rules_version"), value("rules_released_version"), value("rules_lag_seconds"))
    with rules.reading():
        await overrides.set(make_rule("a.example", "b.example"), actor="ann", release=True)
        await overrides.set(make_rule("c.example", "b.example"), actor="ann", release=True)
        reloading = asyncio.create_task(reloader.reload("event"))
        await until(lambda: value("rules_lag_versions") == 2)
        await until(lambda: value("rules_lag_seconds") > 0)
        assert (0, 2) == (value("rules_version"), value("rules_released_version"))
    await reloading
    assert (2, 2, 0, 0) == (
        *(value("rules_version"), value("rules_released_version")),
        *(value("rules_lag_versions"), value("rules_lag_seconds")),
    )


async def test_what_is_applied_is_exported_though_it_could_not_be_written(
    store_wire: Wire, database: str, pool: Pool
) -> None:
    """The router routes by it; that the store went away just then must not show an older version until the next one."""
    rules, own = Rules(), Pool(through(database, store_wire), name="test", timeout=0.5)
    await own.open()
    reloader = Reloader(rules, Rulebooks(own), Overrides(own), Routers(own), name="r1", health=Health())
    await reloader.reload("start")
    with rules.reading():
        await Overrides(pool).set(make_rule("a.example", "b.example"), actor="ann", release=True)
        reloading = asyncio.create_task(reloader.reload("event"))
        await until(lambda: value("rules_lag_versions") == 1)
        await store_wire.cut()
    with pytest.raises(StoreUnavailable):
        await reloading
    assert (1, 0) == (value("rules_version"), value("rules_lag_versions"))
    await own.close()
