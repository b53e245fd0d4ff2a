"""The scheduler: waiting mail comes back when it is due, once, and what is over is pruned."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from shared.broker import topology
from shared.mail import codec
from shared.mail.rule import make_rule
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from shared.store.bodies import FREED, Bodies
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Routers
from tests.integration.conftest import MESSAGE, NOON, Queues, Wire, delivery, through, until
from tests.integration.rooms import running as running_router
from workers.scheduler import __main__ as scheduler

pytestmark = [pytest.mark.anyio, pytest.mark.services]


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[None]:
    """Run a scheduler; at the end stop it as SIGTERM does."""
    stop = asyncio.Event()
    task = asyncio.create_task(scheduler.work(settings, stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def none_waits(pool: Pool) -> bool:
    """Say whether nothing waits any more."""
    return not await Deferred(pool).totals()


async def test_what_is_due_comes_back_and_the_rest_waits(settings: Settings, pool: Pool, queues: Queues) -> None:
    """The delivery is on `mail.reroute` as it was stored."""
    await Deferred(pool).defer(delivery(attempts=2), MESSAGE, now())
    await Deferred(pool).defer(delivery(id="later"), MESSAGE, now() + timedelta(hours=1))
    async with running(settings):
        assert (delivery(attempts=2), MESSAGE) == await queues.delivery(topology.REROUTE)
    assert ["later"] == [each.message_id for each in await Deferred(pool).matching()]
    assert 0 == await queues.depth(topology.REROUTE)


async def test_two_at_once_hand_out_each_delivery_once(settings: Settings, pool: Pool, queues: Queues) -> None:
    """Any number may run; more than a batch is due, and it is handed out without a pause between batches."""
    count = 350
    await asyncio.gather(*(Deferred(pool).defer(delivery(id=f"m{n}"), MESSAGE, NOON) for n in range(count)))
    async with running(settings), running(settings):
        await until(lambda: none_waits(pool))
    found = [codec.decode((await queues.take(topology.REROUTE)).body)[0].id for _ in range(count)]
    assert Counter(f"m{n}" for n in range(count)) == Counter(found)
    assert 0 == await queues.depth(topology.REROUTE)


async def test_while_the_broker_is_away_mail_stays_where_it_is(
    settings: Settings, pool: Pool, queues: Queues, broker_wire: Wire
) -> None:
    """Nothing leaves the table before the broker has it; when it comes back, everything is handed out, once."""
    await broker_wire.cut()
    await asyncio.gather(*(Deferred(pool).defer(delivery(id=f"m{n}"), MESSAGE, NOON) for n in range(20)))
    async with running(settings.model_copy(update={"amqp_url": through(settings.amqp_url, broker_wire)})):
        await asyncio.sleep(0.3)  # it has looked by now; nothing tells of it
        assert 20 == sum(each.deliveries for each in await Deferred(pool).totals())
        await broker_wire.mend()
        await until(lambda: none_waits(pool))
    assert 20 == await queues.depth(topology.REROUTE)


async def test_it_begins_when_the_store_comes(
    settings: Settings, pool: Pool, queues: Queues, store_wire: Wire, impatient: None
) -> None:
    """A scheduler may start before PostgreSQL, and goes on after an outage."""
    del impatient
    await Deferred(pool).defer(delivery(), MESSAGE, NOON)
    await store_wire.cut()
    async with running(settings.model_copy(update={"database_url": through(settings.database_url, store_wire)})):
        await asyncio.sleep(0.5)
        await store_wire.mend()
        assert (delivery(), MESSAGE) == await queues.delivery(topology.REROUTE, within=15)


async def test_what_is_over_is_pruned(
    settings: Settings, pool: Pool, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies a month older than any delivery can be, and routers that are gone, are deleted; others stay.

    What is left of a freed body stays while a double of its deliveries can come. Mail that waits for longer than any
    should does not hold that up.

    A router that has long been silent, but has its connection, may be routing: whoever forgot it would confirm changes
    that it has not applied.
    """
    monkeypatch.setattr("workers.scheduler.__main__.PRUNE", 0.2)
    async with pool.transaction() as connection:
        await connection.execute(
            "INSERT INTO bodies (id, body, created_at) VALUES ('old', 'x', now() - interval '35 days 1 hour'), "
            "('young', 'x', now() - interval '34 days 23 hours')"
        )
        await connection.execute(
            "INSERT INTO bodies (id, body, freed_at) VALUES ('freed', NULL, now() - interval '6 days 1 hour'), "
            "('just freed', NULL, now() - interval '5 days 23 hours')"
        )
        await connection.execute(
            "INSERT INTO routers (name, own_queue, seen_at) VALUES ('gone', true, now() - interval '61 minutes'), "
            "('young', true, now() - interval '59 minutes'), ('cut off', true, now() - interval '2 days'), "
            "('of old', false, now() - interval '25 hours'), ('of old, young', false, now() - interval '23 hours')"
        )
    stuck = delivery(id="stuck", accepted_at=now() - timedelta(days=40))
    await Deferred(pool).defer(stuck, MESSAGE, now() + timedelta(days=1))
    await queues.channel.declare_queue(topology.reload_queue("cut off"), exclusive=True)

    async def pruned() -> bool:
        return [each.name for each in await Routers(pool).all()] == ["cut off", "of old, young", "young"]

    async with running(settings):
        await until(pruned)
    assert (None, b"x") == (await Bodies(pool).get("old"), await Bodies(pool).get("young"))
    assert (None, FREED) == (await Bodies(pool).get("freed"), await Bodies(pool).get("just freed"))


async def test_a_temporary_rule_ends_by_itself(settings: Settings, pool: Pool, queues: Queues) -> None:
    """The router applies its end, and what waited under the rule goes where it goes without it."""
    ends = now() + timedelta(seconds=2)
    async with running_router(settings):
        overrides = Overrides(pool)
        saved = await overrides.set(make_rule("a.example", "b.example", expires_at=ends), actor="ann", release=True)
        await queues.event(b'{"version": 1}')
        await until(lambda: _applied(pool, saved.version))
        later = now() + timedelta(hours=1)
        await Deferred(pool).defer(delivery(attempts=2, accepted_at=now()), MESSAGE, later)
        await Deferred(pool).defer(delivery(id="other", domain="c.example"), MESSAGE, later)
        async with running(settings):
            await until(lambda: _applied(pool, 2))
            assert now() >= ends
            await until(lambda: _waits_alone(pool, "other"))
            queue = topology.HTTPS if await queues.depth(topology.HTTPS) else topology.SMTP
            route = (await queues.delivery(queue))[0].route
    assert (2, ()) == (route.version, route.targets)
    assert None is await overrides.get("a.example")
    assert ("scheduler", "expire") == ((told := (await overrides.history(limit=1))[0]).actor, told.action)


async def _applied(pool: Pool, version: int) -> bool:
    return [version] == [each.applied for each in await Routers(pool).all()]


async def _waits_alone(pool: Pool, message_id: str) -> bool:
    return [message_id] == [each.message_id for each in await Deferred(pool).matching()]
