"""`pushpush check`: each fault is named in words, with what to do, and nothing else is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import aio_pika
import psycopg
import pytest
from aio_pika.abc import AbstractIncomingMessage

from deploy.local.services import PostgreSQL, RabbitMQ
from shared.broker import topology
from shared.mail.rule import make_rule
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from shared.store.dead import DeadLetters, Letter
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Routers
from tests.databases import new_database
from tests.integration.command_line import CommandLine, commands
from tests.integration.conftest import MESSAGE, Queues, Wire, delivery, through, until
from tests.integration.rooms import running
from tests.integration.test_refused import control

pytestmark = [pytest.mark.anyio, pytest.mark.services]

LOOKS = {"broker", "database", "dns", "rules", "routers", "workers", "waiting", "limbo", "dead"}
TAKEN = (topology.OUTBOUND, topology.REROUTE, topology.HTTPS, topology.SMTP, topology.JOURNAL)


@pytest.fixture
async def pushpush(settings: Settings) -> AsyncIterator[CommandLine]:
    """The command line for the private broker, database and DNS."""
    async with commands(settings) as pushpush:
        yield pushpush


async def keep(message: AbstractIncomingMessage) -> None:
    """Take a message and do nothing."""
    await asyncio.sleep(0)
    del message


@pytest.fixture
async def fleet(settings: Settings, rabbitmq: RabbitMQ, queues: Queues) -> AsyncIterator[None]:
    """A router, and somebody who takes from every queue."""
    del queues
    async with running(settings), await aio_pika.connect(rabbitmq.url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        for name in TAKEN[2:]:
            await (await channel.get_queue(name, ensure=False)).consume(keep)
        yield


async def faults(pushpush: CommandLine, **env: str) -> dict[str, str]:
    """Return what is not well, in words; the exit code and the shape of the data are as they always are."""
    ran = await pushpush("check", "--json", stdin=b"", **env)
    found = ran.object["data"]
    assert LOOKS == set(found)
    assert all({"ok", "detail"} == set(each) and each["detail"] for each in found.values())
    wrong = {name: each["detail"] for name, each in found.items() if not each["ok"]}
    assert (1 if wrong else 0) == ran.code
    if wrong:
        assert "; ".join(f"{name}: {why}" for name, why in wrong.items()) == ran.object["error"]["message"]
    return wrong


@pytest.mark.usefixtures("fleet")
async def test_all_is_well(pushpush: CommandLine, pool: Pool) -> None:
    """Exit 0, as text too; mail that waits its time and letters that were looked at are no faults."""
    await Deferred(pool).defer(delivery(accepted_at=now() - timedelta(hours=3)), MESSAGE, now() + timedelta(hours=1))
    await DeadLetters(pool).keep([Letter(headers={}, data=b"x", reason="a test")])
    assert {} == await faults(pushpush)
    text = await pushpush("check", hostname="mail.us.example")
    assert (0, "", False) == (text.code, text.err, "NO" in text.out)
    assert "1 delivery waits, the oldest for 3 h" in text.out
    assert "RabbitMQ 3." in text.out
    warned = await pushpush("check", hostname="mail")
    assert (0, True) == (warned.code, "set PUSHPUSH_HOSTNAME to one that has an address" in warned.err)


async def test_nobody_runs(pushpush: CommandLine, queues: Queues) -> None:
    """Each room that is missing is named once, with what waits for it."""
    await queues.put(topology.HTTPS, b"x")
    found = await faults(pushpush)
    assert {
        "routers": "no router is running: start one",
        "workers": "no router is running; no https worker is running, 1 message in its queue; "
        "no smtp worker is running; no journal is running: start what is missing",
    } == found


@pytest.mark.usefixtures("fleet")
async def test_mail_that_stands_still(pushpush: CommandLine, pool: Pool, queues: Queues) -> None:
    """Due and not handed out, in limbo, set aside."""
    await Deferred(pool).defer(delivery(accepted_at=now()), MESSAGE, now() - timedelta(minutes=7))
    await queues.put(topology.LIMBO, b"x")
    await queues.put(topology.UNDECODABLE, b"x")
    assert {
        "waiting": "mail is due for 7 m and not handed out: is a scheduler running?",
        "limbo": "1 delivery could not be stored: does PostgreSQL take writes?",
        "dead": "1 new dead letter: see `pushpush dead list`",
    } == await faults(pushpush)


@pytest.mark.usefixtures("fleet")
async def test_mail_that_should_have_been_given_up(pushpush: CommandLine, pool: Pool) -> None:
    """It is older than the patience for it."""
    await Deferred(pool).defer(delivery(accepted_at=now() - timedelta(days=9)), MESSAGE, now() + timedelta(hours=1))
    found = await faults(pushpush)
    assert ["waiting"] == list(found)
    assert "the oldest for 9 d, beyond PUSHPUSH_MAX_AGE" in found["waiting"]


@pytest.mark.usefixtures("fleet")
async def test_rules_and_routers(pushpush: CommandLine, pool: Pool, database: str, queues: Queues) -> None:
    """A rule that psql wrote, a router that is behind, one that went without a word."""
    await Overrides(pool).set(make_rule("a.example", "b.example"), actor="ann", release=True)
    await queues.event(b'{"version": 1}')
    await until(lambda: applied(pool, 1))
    await Routers(pool).seen("slow", 0)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("INSERT INTO dns_overrides (lookup_key, target_host) VALUES ('c.example', 'x/y')")
    found = await faults(pushpush)
    assert {"rules", "routers"} == set(found)
    assert "behind the released rules: slow; if that lasts, run `pushpush reload`" == found["routers"]
    assert found["rules"].endswith("set it again, mail under it waits")


async def applied(pool: Pool, version: int) -> bool:
    """Say whether every router has applied a version."""
    return all(each.applied >= version for each in await Routers(pool).all())


@pytest.mark.usefixtures("fleet")
async def test_a_broker_that_takes_nothing(pushpush: CommandLine, rabbitmq: RabbitMQ) -> None:
    """It is connected and answers, and is short of memory."""
    await control(rabbitmq, "set_vm_memory_high_watermark", "0")
    try:
        await until(lambda: takes_nothing(pushpush), within=60)
    finally:
        await control(rabbitmq, "set_vm_memory_high_watermark", "0.4")
        await until(lambda: takes_all(pushpush), within=60)


async def takes_nothing(pushpush: CommandLine) -> bool:
    """Say whether that is the one fault."""
    found = await faults(pushpush)
    return ["broker"] == list(found) and found["broker"].startswith("RabbitMQ takes no messages: it is short of memory")


async def takes_all(pushpush: CommandLine) -> bool:
    """Say whether there is no fault."""
    return {} == await faults(pushpush)


async def test_a_broker_that_is_away(pushpush: CommandLine, broker_wire: Wire, settings: Settings) -> None:
    """What only it knows is said to be not known."""
    await broker_wire.cut()
    found = await faults(pushpush, amqp_url=through(settings.amqp_url, broker_wire))
    assert {"broker", "routers", "workers", "limbo", "dead"} == set(found)
    assert found["broker"].startswith("RabbitMQ is away: cannot connect: ")
    assert found["workers"].startswith("not known: RabbitMQ is away")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://guest:wr0ng@HOST/", "RabbitMQ refuses user guest or the password: check PUSHPUSH_AMQP_URL"),
        (
            "amqp://guest:guest@HOST/none",
            "RabbitMQ refuses the vhost, or user guest on it: NOT_ALLOWED - vhost none not found",
        ),
    ],
)
async def test_a_broker_that_refuses(pushpush: CommandLine, rabbitmq: RabbitMQ, url: str, words: str) -> None:
    """A wrong password and a vhost that is not there are told apart, and the password is not told."""
    host = rabbitmq.url.partition("@")[2].rstrip("/")
    found = await faults(pushpush, amqp_url=url.replace("HOST", host))
    assert found["broker"].startswith(words)
    assert not [each for each in found.values() if "wr0ng" in each]


async def test_a_queue_with_other_arguments(pushpush: CommandLine, queues: Queues) -> None:
    """Whoever made it by hand is told which, and what to do."""
    await queues.channel.queue_delete(topology.LIMBO)
    await queues.channel.declare_queue(topology.LIMBO, durable=True)
    try:
        found = await faults(pushpush)
    finally:
        await queues.channel.queue_delete(topology.LIMBO)
        await queues.empty()
    assert found["broker"].startswith(
        "RabbitMQ has a queue or exchange of ours with other arguments: PRECONDITION_FAILED"
    )
    assert topology.LIMBO in found["broker"]


async def test_a_database_that_is_away(pushpush: CommandLine, store_wire: Wire, settings: Settings) -> None:
    """It is said wherever it is needed."""
    await store_wire.cut()
    found = await faults(pushpush, database_url=through(settings.database_url, store_wire))
    assert {"database", "rules", "routers", "workers", "waiting", "dead"} == set(found)
    assert "PostgreSQL is away" in found["database"]


async def test_a_database_that_is_not_there(pushpush: CommandLine, postgres: PostgreSQL) -> None:
    """A name that is misspelt."""
    found = await faults(pushpush, database_url=f"{postgres.url}x")
    assert "PostgreSQL has no database pushpushx: check PUSHPUSH_DATABASE_URL" == found["database"]


async def test_tables_of_another_release(pushpush: CommandLine, database: str) -> None:
    """Older ones want `pushpush migrate`, newer ones are all right while a release is rolled out; no tables at all."""
    async with revision(database, "0003"):
        found = await faults(pushpush)
        assert found["database"] == "the tables are at revision 0003, this release needs 0004: run `pushpush migrate`"
    async with revision(database, "9999"):
        ran = await pushpush("check", "--json")
        assert "the tables are of a newer release (9999)" in ran.object["data"]["database"]["detail"]
    found = await faults(pushpush, database_url=await asyncio.to_thread(new_database, database, "bare"))
    assert "the tables are not there yet: run `pushpush migrate`" == found["database"]


@contextlib.asynccontextmanager
async def revision(database: str, number: str) -> AsyncIterator[None]:
    """Have the tables say that they are of another revision."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = %s", (number,))
        try:
            yield
        finally:
            await connection.execute("UPDATE alembic_version SET version_num = '0004'")
