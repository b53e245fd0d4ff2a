"""When a router reads its rules anew, and what it says about it."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from shared.broker import topology
from shared.broker.publisher import Publisher
from shared.fleet.release import announce
from shared.mail.rule import make_rule
from shared.runtime.settings import Settings
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Routers
from tests.integration.conftest import Queues, Wire, through, until
from tests.integration.rooms import running
from workers.router import reload

pytestmark = [pytest.mark.anyio, pytest.mark.services]


@pytest.fixture
def overrides(pool: Pool) -> Overrides:
    """The rules, none yet."""
    return Overrides(pool)


async def save(overrides: Overrides, target: str, *, release: bool = True) -> None:
    """Save the rule for a.example."""
    await overrides.set(make_rule("a.example", target), actor="ann", release=release)


def applied(pool: Pool, version: int) -> Callable[[], Awaitable[bool]]:
    """Return a condition: every router says that it has applied exactly this version."""

    async def condition() -> bool:
        return {version} == {each.applied for each in await Routers(pool).all()}

    return condition


async def target_of_the_next(queues: Queues) -> tuple[str, ...]:
    """Send a message and return the targets it is routed to."""
    await queues.send("b@a.example")
    queue = topology.SMTP
    await until(lambda: _either(queues))
    if await queues.depth(topology.HTTPS):
        queue = topology.HTTPS
    return (await queues.delivery(queue))[0].route.targets


async def _either(queues: Queues) -> bool:
    return await queues.depth(topology.SMTP) + await queues.depth(topology.HTTPS) > 0


class TestCauses:
    """Event, any other body, SIGHUP, reconnect and poll."""

    async def test_the_event_applies_what_was_released_and_no_more(
        self, settings: Settings, pool: Pool, overrides: Overrides, queues: Queues
    ) -> None:
        """`{"version": N}` releases nothing; changes saved with --no-reload stay where they are."""
        async with running(settings):
            await save(overrides, "b.example")
            await save(overrides, "c.example", release=False)
            await queues.event(b'{"version": 2}')
            await until(applied(pool, 1))
            assert ("b.example",) == await target_of_the_next(queues)
            assert 1 == (await overrides.versions()).released

    async def test_any_other_body_releases_and_reloads(
        self, settings: Settings, pool: Pool, overrides: Overrides, queues: Queues
    ) -> None:
        """Operators publish it by hand, with whatever comes to their mind."""
        async with running(settings):
            for number, body in enumerate((b"", b"{}", b"reload", b'{"version": "x"}', b"\xff", b"null"), start=1):
                await save(overrides, f"b{number}.example", release=False)
                await queues.event(body)
                await until(applied(pool, number), wanted=repr(body))

    async def test_sighup(self, settings: Settings, pool: Pool, overrides: Overrides) -> None:
        """The signal that every mail operator tries first; it releases nothing."""
        async with running(settings):
            await save(overrides, "b.example")
            await save(overrides, "c.example", release=False)
            os.kill(os.getpid(), signal.SIGHUP)
            await until(applied(pool, 1))

    async def test_a_reconnect_to_the_broker(
        self, settings: Settings, pool: Pool, overrides: Overrides, broker_wire: Wire
    ) -> None:
        """Events in the gap are lost, so the rules are read with each new connection."""
        url = through(settings.amqp_url, broker_wire)
        async with running(settings.model_copy(update={"amqp_url": url})) as router:
            await broker_wire.cut()
            await until(lambda: _status(router.health, 503))
            await save(overrides, "b.example")
            assert await applied(pool, 0)()
            await broker_wire.mend()
            await until(applied(pool, 1))

    async def test_the_poll(
        self, settings: Settings, pool: Pool, overrides: Overrides, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A release whose event nobody published is found."""
        monkeypatch.setattr(reload, "POLL", 0.0)
        monkeypatch.setattr(reload, "HEARTBEAT", 0.02)
        async with running(settings):
            await save(overrides, "b.example")
            await until(applied(pool, 1))


class TestApplied:
    """What "applied" means."""

    async def test_it_waits_for_what_is_in_flight_under_older_rules(
        self, settings: Settings, pool: Pool, overrides: Overrides, broker_wire: Wire, queues: Queues
    ) -> None:
        """While a message routed by the old rules is not confirmed, the new version is not called applied."""
        await save(overrides, "old.example")
        url = through(settings.amqp_url, broker_wire)
        async with running(settings.model_copy(update={"amqp_url": url})):
            broker_wire.passing.clear()
            await queues.send("b@a.example")
            await until(lambda: _empty(queues))  # the router has it, but cannot publish it
            await save(overrides, "new.example")
            await queues.event(b'{"version": 2}')
            await asyncio.sleep(0.3)  # nothing can be waited for: it must not happen
            assert await applied(pool, 1)()
            broker_wire.passing.set()
            await until(applied(pool, 2))
            assert ("old.example",) == (await queues.delivery(topology.HTTPS))[0].route.targets
            assert ("new.example",) == await target_of_the_next(queues)

    async def test_announce_waits_for_every_live_router(
        self, settings: Settings, pool: Pool, overrides: Overrides, publisher: Publisher
    ) -> None:
        """It returns when all have applied the version, and names those that have not in time."""
        async with (
            running(settings.model_copy(update={"instance": "one"})),
            running(settings.model_copy(update={"instance": "two"})),
        ):
            await save(overrides, "b.example")
            result = await announce(1, publisher, Routers(pool), wait=5)
            names = [name.rpartition("-")[0] for name in result.applied]
            assert ([f"one-{os.getpid()}", f"two-{os.getpid()}"], []) == (names, result.late)
            await Routers(pool).register("three-1")
            await save(overrides, "c.example")
            result = await announce(2, publisher, Routers(pool), wait=0.3)
            assert (2, ["three-1"]) == (len(result.applied), result.late)
        assert ["three-1"] == [each.name for each in await Routers(pool).all()]

    async def test_a_database_that_went_back_is_not_called_applied(
        self, settings: Settings, pool: Pool, overrides: Overrides, queues: Queues
    ) -> None:
        """After a restore the router has the older rules, and says so: its old, higher version counts no more."""
        for target in ("b.example", "c.example", "d.example"):
            await save(overrides, target)
        async with running(settings):
            await until(applied(pool, 3))
            with psycopg.connect(settings.database_url) as connection:
                connection.execute("TRUNCATE dns_override_changes")
                connection.execute("ALTER TABLE dns_overrides DISABLE TRIGGER USER")
                connection.execute("UPDATE dns_overrides SET target_host = 'b.example', version = 1")
                connection.execute("ALTER TABLE dns_overrides ENABLE TRIGGER USER")
                connection.execute("UPDATE rulebook SET version = 1, released = 1")
            await queues.event(b'{"version": 1}')
            await until(applied(pool, 1))
            assert ("b.example",) == await target_of_the_next(queues)


@pytest.mark.usefixtures("impatient")
class TestWithoutDatabase:
    """A router keeps the last good rules; one that never had any does not consume."""

    async def test_it_does_not_consume_before_it_has_rules(
        self, settings: Settings, overrides: Overrides, store_wire: Wire, queues: Queues
    ) -> None:
        """It says why in /readyz, is alive all the same, and begins by itself when PostgreSQL comes."""
        await save(overrides, "b.example")
        await store_wire.cut()
        url = through(settings.database_url, store_wire)
        async with running(settings.model_copy(update={"database_url": url}), ready=False) as router:
            await queues.send("b@a.example")
            await until(lambda: _says(router.health, "rules", "never loaded: PostgreSQL is away"))
            assert 200 == (await router.health("/livez"))[0]
            assert 1 == await queues.depth(topology.OUTBOUND)
            await store_wire.mend()
            assert ("b.example",) == (await queues.delivery(topology.HTTPS, within=15))[0].route.targets
            await until(router.ready)

    async def test_it_stops_while_it_waits_for_the_database(self, settings: Settings, store_wire: Wire) -> None:
        """SIGTERM ends a router that has never loaded its rules."""
        await store_wire.cut()
        url = through(settings.database_url, store_wire)
        async with asyncio.timeout(5), running(settings.model_copy(update={"database_url": url}), ready=False):
            await asyncio.sleep(0.05)

    async def test_it_keeps_the_last_good_rules(
        self, settings: Settings, overrides: Overrides, store_wire: Wire, queues: Queues
    ) -> None:
        """Small mail is routed on by the rules it had, /readyz says that they may be old, and it recovers by itself."""
        await save(overrides, "b.example")
        url = through(settings.database_url, store_wire)
        async with running(settings.model_copy(update={"database_url": url})) as router:
            await store_wire.cut()
            await queues.event(b'{"version": 1}')
            assert ("b.example",) == await target_of_the_next(queues)
            await until(lambda: _says(router.health, "rules", "version 1 is kept", status=200))
            await save(overrides, "c.example")
            await store_wire.mend()
            await until(lambda: _is_well(router.health), within=15)
            assert ("c.example",) == await target_of_the_next(queues)


async def _empty(queues: Queues) -> bool:
    return await queues.depth(topology.OUTBOUND) == 0


async def _status(health: Callable[[], Awaitable[tuple[int, dict[str, str]]]], status: int) -> bool:
    return (await health())[0] == status


async def _says(
    health: Callable[[], Awaitable[tuple[int, dict[str, str]]]], need: str, words: str, *, status: int = 503
) -> bool:
    found, faults = await health()
    return found == status and words in faults.get(need, "")


async def _is_well(health: Callable[[], Awaitable[tuple[int, dict[str, str]]]]) -> bool:
    return not (await health())[1]
