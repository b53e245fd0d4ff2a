"""The journal's room: events are on their way through crashes and outages of everything, and counted once."""

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import aio_pika
import psycopg
import pytest

from deploy.local.services import RabbitMQ
from shared.broker import topology
from shared.mail.event import Batch, encode
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from tests.integration.conftest import Queues, Wire, through, until
from tests.integration.journals import batch, count, delivered, emit, running, told
from tests.integration.rooms import Router

pytestmark = [pytest.mark.anyio, pytest.mark.services]


@pytest.fixture(autouse=True)
async def events(queues: Queues) -> None:
    """The exchange and the queue of events, empty."""
    channel = await queues.channel.get_underlay_channel()
    await topology.declare_events(channel)  # type: ignore[arg-type] # what aio-pika calls it
    await (await queues.channel.get_queue(topology.JOURNAL, ensure=False)).purge()


async def test_what_rooms_emit_is_in_the_tables(settings: Settings, queues: Queues) -> None:
    """Several batches, and the broker has none of them any more."""
    async with running(settings):
        await emit(queues, *(batch(n, told(id=f"m{n}"), told("deferred", id=f"m{n}")) for n in range(1, 31)))
        await until(lambda: count(settings.database_url) == 60)
    assert (30, 0) == (delivered(settings.database_url), await queues.depth(topology.JOURNAL))


async def test_what_was_emitted_before_a_journal_runs_is_not_lost(settings: Settings, queues: Queues) -> None:
    """It waits in the queue."""
    await emit(queues, batch(1, told()))
    async with running(settings):
        await until(lambda: count(settings.database_url) == 1)


async def test_any_number_may_run(settings: Settings, queues: Queues) -> None:
    """They share the work, and count the same hour without being in each other's way."""
    async with running(settings), running(settings), running(settings):
        await emit(queues, *(batch(n, *(told(domain=f"d{d}.example") for d in range(20))) for n in range(1, 101)))
        await until(lambda: count(settings.database_url) == 2_000)
    assert 2_000 == delivered(settings.database_url)


@pytest.mark.parametrize(
    "poison",
    [
        b"",
        b"\xff\x00",
        b"{}",
        b"[" * 100_000,
        encode(batch(1, told())).replace(b'"delivered"', b'"eaten"'),
        encode(batch(1, told())).replace(b"Z", b""),
        encode(batch(2**62, told(code=2**62), source="poison")),
        encode(batch(1, told(), source="poison")).replace(b'"number":1', b'"number":99999999999999999999'),
    ],
    ids=["empty", "binary", "not one", "deep", "unknown kind", "no zone", "refused", "number"],
)
async def test_what_cannot_be_read_or_held_is_dropped_and_the_rest_recorded(
    settings: Settings, queues: Queues, poison: bytes
) -> None:
    """Before, beside and after good ones in the same transaction; it does not come again."""
    await emit(queues, batch(1, told()), poison, batch(2, told()))
    async with running(settings):
        await until(lambda: count(settings.database_url) == 2)
        await emit(queues, poison, batch(3, told()))
        await until(lambda: count(settings.database_url) == 3)
    assert 0 == await queues.depth(topology.JOURNAL)


async def test_a_stop_finishes_what_is_in_hand(settings: Settings, queues: Queues) -> None:
    """Recorded and acknowledged, or back on the queue; nothing is in between."""
    async with running(settings):
        await emit(queues, *(batch(n, told()) for n in range(1, 201)))
        await until(lambda: count(settings.database_url) > 0)
    assert 200 == count(settings.database_url) + await queues.depth(topology.JOURNAL)


class TestStoreAway:
    """PostgreSQL goes."""

    async def test_the_broker_keeps_the_events_until_it_is_back(
        self, settings: Settings, queues: Queues, store_wire: Wire, impatient: None
    ) -> None:
        """The health says so meanwhile, also of an idle journal; then everything is recorded."""
        del impatient
        away = settings.model_copy(update={"database_url": through(settings.database_url, store_wire)})
        async with running(away) as room:
            await store_wire.cut()
            await emit(queues, *(batch(n, told()) for n in range(1, 101)))
            await until(lambda: _ill(room, "PostgreSQL is away"), within=15)
            await store_wire.mend()
            await until(room.ready, within=15)
            await until(lambda: count(settings.database_url) == 100, within=15)
            await until(lambda: _ready(queues, 0))
        assert 100 == delivered(settings.database_url)

    async def test_a_stop_meanwhile_is_prompt_and_loses_nothing(
        self, settings: Settings, queues: Queues, store_wire: Wire, impatient: None
    ) -> None:
        """A pod that is told to end must not wait for a database; the next one records."""
        del impatient
        away = settings.model_copy(update={"database_url": through(settings.database_url, store_wire)})
        await store_wire.cut()
        await emit(queues, *(batch(n, told()) for n in range(1, 101)))
        async with running(away, ready=False):
            await until(lambda: _ready(queues, 60), within=15, wanted="40 are in hand")
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 20  # less than a pod is given
        async with running(settings):
            await until(lambda: count(settings.database_url) == 100)

    async def test_it_begins_before_the_tables_are_there(self, settings: Settings, queues: Queues) -> None:
        """After an upgrade the journal may be up before the migration, and says what is missing."""
        with psycopg.connect(settings.database_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE events RENAME TO not_yet")
            try:
                await emit(queues, batch(1, told()))
                async with running(settings, ready=False) as room:
                    await until(lambda: _ill(room, "pushpush migrate"), within=15)
                    connection.execute("ALTER TABLE not_yet RENAME TO events")
                    await until(lambda: count(settings.database_url) == 1, within=15)
                    await until(room.ready, within=15)
            finally:
                connection.execute("ALTER TABLE IF EXISTS not_yet RENAME TO events")


async def _ill(room: Router, words: str) -> bool:
    return words in (await room.health())[1].get("store", "")


async def _empty(queues: Queues) -> bool:
    return await queues.depth(topology.JOURNAL) == 0


class TestBrokerAway:
    """RabbitMQ goes."""

    async def test_a_cut_connection_brings_batches_twice_and_counts_them_once(
        self, settings: Settings, queues: Queues, broker_wire: Wire
    ) -> None:
        """Recorded, but the acknowledgement was lost: the broker hands them out again."""
        settings = settings.model_copy(update={"amqp_url": through(settings.amqp_url, broker_wire)})
        async with running(settings):
            for round_ in range(4):
                numbers = range(round_ * 30 + 1, round_ * 30 + 31)
                await emit(queues, *(batch(n, *(told() for _ in range(10))) for n in numbers))
                await asyncio.sleep(0.1 * round_)
                await broker_wire.cut()
                await broker_wire.mend()
            await until(lambda: count(settings.database_url) == 1_200, within=20)
            await until(lambda: _empty(queues), within=20)
        assert (1_200, 120) == (delivered(settings.database_url), count(settings.database_url, "event_batches"))

    async def test_acknowledgements_that_never_arrive(
        self, settings: Settings, queues: Queues, broker_wire: Wire
    ) -> None:
        """Everything is recorded while nothing reaches the broker; all of it comes a second time and counts once."""
        settings = settings.model_copy(update={"amqp_url": through(settings.amqp_url, broker_wire)})
        async with running(settings):
            broker_wire.passing.clear()
            await emit(queues, *(batch(n, told()) for n in range(1, 21)))
            await until(lambda: count(settings.database_url) == 20)
            await broker_wire.cut()
            broker_wire.passing.set()
            await until(lambda: _ready(queues, 20), within=10, wanted="the broker has all of them again")
            await broker_wire.mend()
            await until(lambda: _empty(queues), within=20)
            await emit(queues, batch(21, told()))
            await until(lambda: count(settings.database_url) == 21)
        assert 21 == delivered(settings.database_url)

    async def test_what_the_broker_took_back_while_the_store_is_away_is_let_go(
        self, settings: Settings, queues: Queues, broker_wire: Wire, store_wire: Wire, impatient: None
    ) -> None:
        """RabbitMQ ends a consumer that holds a message for half an hour: what is in hand must not grow each time."""
        del impatient
        away = settings.model_copy(
            update={
                "amqp_url": through(settings.amqp_url, broker_wire),
                "database_url": through(settings.database_url, store_wire),
            }
        )
        await store_wire.cut()
        await emit(queues, *(batch(n, told()) for n in range(1, 101)))
        async with running(away, ready=False) as room:
            for _ in range(3):
                await until(lambda: _ready(queues, 60), within=15, wanted="40 are in hand")
                await broker_wire.cut()
                await until(lambda: _ready(queues, 100), within=15, wanted="the broker has them again")
                await broker_wire.mend()
            await store_wire.mend()
            await until(lambda: count(settings.database_url) == 100, within=20)
            await until(room.ready, within=15)
            await until(lambda: _empty(queues), within=15)
        assert 100 == delivered(settings.database_url)

    async def test_a_queue_that_was_deleted_is_made_again(self, settings: Settings, queues: Queues) -> None:
        """By hand, in the management page."""
        async with running(settings) as room:
            await queues.channel.queue_delete(topology.JOURNAL)
            await until(lambda: _there(settings), within=20)
            await until(room.ready, within=15)
            await emit(queues, batch(1, told()))
            await until(lambda: count(settings.database_url) == 1)

    async def test_a_restart_of_the_broker(self, settings: Settings, tmp_path: Path) -> None:
        """What was emitted before it is recorded after it, and what comes later too; also with batches in hand."""
        with RabbitMQ(tmp_path / "rabbitmq") as own:
            async with running(settings.model_copy(update={"amqp_url": own.url})) as room:
                with psycopg.connect(settings.database_url) as connection:
                    connection.execute("LOCK TABLE event_batches")
                    await _emitted(own, batch(1, told()))
                    await asyncio.to_thread(own.stop)
                    await until(lambda: _not_ready(room))
                await asyncio.to_thread(own.start)
                await until(room.ready, within=30)
                await until(lambda: _emitted(own, batch(2, told())), within=30)
                await until(lambda: count(settings.database_url) == 2, within=30)


async def _emitted(broker: RabbitMQ, some: Batch) -> bool:
    async with await aio_pika.connect(broker.url) as connection:
        try:
            await emit(Queues(await connection.channel()), some)
        except aio_pika.exceptions.AMQPError:  # the queue is not up yet
            return False
    return True


async def _not_ready(room: Router) -> bool:
    return not await room.ready()


async def _ready(queues: Queues, number: int) -> bool:
    return await queues.depth(topology.JOURNAL) == number


async def _there(settings: Settings) -> bool:
    async with await aio_pika.connect(settings.amqp_url) as connection:
        try:
            await (await connection.channel()).declare_queue(topology.JOURNAL, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
    return True


class TestKilled:
    """The process dies."""

    async def test_kill_9_at_any_moment_loses_nothing_and_counts_nothing_twice(
        self, settings: Settings, queues: Queues
    ) -> None:
        """Six times while batches come; the next one records what was in hand, and only what was not recorded."""
        number = 0
        for pause in (0.0, 0.05, 0.1, 0.2, 0.35, 0.5):
            process = await _process(settings)
            try:
                for _ in range(20):
                    number += 1
                    await emit(queues, batch(number, *(told() for _ in range(50))))
                await asyncio.sleep(pause)
            finally:
                os.kill(process.pid, signal.SIGKILL)
                await process.wait()
        async with running(settings):
            await until(lambda: count(settings.database_url) == number * 50, within=30)
            await until(lambda: _empty(queues), within=15)
        assert (6_000, 120) == (delivered(settings.database_url), count(settings.database_url, "event_batches"))

    async def test_sigterm_ends_it_in_order(self, settings: Settings, queues: Queues) -> None:
        """Exit code 0, and everything that was emitted is recorded or on the queue."""
        process = await _process(settings)
        await emit(queues, *(batch(n, told()) for n in range(1, 51)))
        process.send_signal(signal.SIGTERM)
        assert 0 == await asyncio.wait_for(process.wait(), 15)
        assert 50 == count(settings.database_url) + await queues.depth(topology.JOURNAL)


async def _process(settings: Settings) -> asyncio.subprocess.Process:
    """Start a journal as a process, and return when it has connected."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PUSHPUSH_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "workers.journal"),
        env=ours
        | {
            "PUSHPUSH_AMQP_URL": settings.amqp_url,
            "PUSHPUSH_DATABASE_URL": settings.database_url,
            "PUSHPUSH_HOSTNAME": "mail.pushpush.example",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(15):
            while b"broker connected" not in (line := await process.stderr.readline()):
                assert line, "it has ended"
    except BaseException:
        process.kill()
        raise
    return process


async def test_what_is_too_old_goes_while_it_runs(
    settings: Settings, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events by the day, counters by the hour, each by its own retention."""
    monkeypatch.setattr("workers.journal.__main__.PRUNE", 0.2)
    old = told(at=now() - timedelta(days=3))
    async with running(settings):
        await emit(queues, batch(1, old, told()))
        await until(lambda: count(settings.database_url) == 2)
    short = {"journal_retention": timedelta(days=2), "traffic_retention": timedelta(days=1)}
    async with running(settings.model_copy(update=short)):
        await until(lambda: count(settings.database_url) == 1)
        await until(lambda: delivered(settings.database_url) == 1)
