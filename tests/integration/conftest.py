"""What the tests against real services share: empty queues, empty tables, and connections that can be cut."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Self, cast

import aio_pika
import psycopg
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq import Channel

from deploy.local.services import PostgreSQL, RabbitMQ
from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.mail import codec
from shared.mail.envelope import Delivery, Envelope
from shared.mail.route import Route
from shared.runtime.settings import Settings
from shared.store.pool import Pool

MESSAGE = b"From: a@from.example\r\nTo: b@a.example\r\nSubject: hello\r\n\r\nHello.\r\n"
# All but the rules, whose rows are versioned and cannot be truncated.
TABLES = (
    "dns_override_changes, deferred, bodies, body_uses, next_hops, mta_sts_policies, routers, events, event_batches, "
    "event_minutes, traffic, traffic_hours, dead_letters, sessions, tokens, login_failures, audit"
)
NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


def envelope(*rcpt_to: str, **fields: object) -> Envelope:
    """Return an envelope; what a test does not name does not matter to it."""
    given = {"id": "m1", "mail_from": "a@from.example", "accepted_at": NOON, **fields}
    return Envelope(rcpt_to=rcpt_to or ("b@a.example",), **given)  # type: ignore[arg-type] # fields by name


def delivery(*rcpt_to: str, **fields: object) -> Delivery:
    """Return a delivery for `a.example`, whose route names targets only when the test does."""
    ours = {name: fields.pop(name) for name in Delivery.__struct_fields__ if name in fields}
    given = {"domain": "a.example", "route": Route(version=1), "envelope": envelope(*rcpt_to, **fields), **ours}
    return Delivery(**given)  # type: ignore[arg-type] # fields by name


async def until(condition: Callable[[], bool | Awaitable[bool]], *, within: float = 10, wanted: str = "") -> None:
    """Return as soon as the condition holds."""
    deadline = time.monotonic() + within
    while True:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return
        assert time.monotonic() < deadline, f"not within {within} s: {wanted or condition}"
        await asyncio.sleep(0.01)


class Queues:
    """The broker's queues as another program sees them."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel

    async def empty(self) -> None:
        """Declare every queue and remove what is left of an earlier test."""
        await topology.declare(self.channel)
        await topology.declare_events(cast("Channel", await self.channel.get_underlay_channel()))
        for name in topology.QUEUES:
            await (await self.channel.get_queue(name, ensure=False)).purge()
        await (await self.channel.get_queue(topology.JOURNAL, ensure=False)).purge()

    async def depth(self, name: str) -> int:
        """Return how many messages are ready in a queue."""
        declared = await self.channel.declare_queue(name, passive=True)
        return declared.declaration_result.message_count or 0

    async def take(self, name: str, *, within: float = 10) -> AbstractIncomingMessage:
        """Take the next message out of a queue; wait for it."""
        queue = await self.channel.get_queue(name, ensure=False)
        deadline = time.monotonic() + within
        while True:
            if (message := await queue.get(fail=False)) is not None:
                await message.ack()
                return message
            assert time.monotonic() < deadline, f"nothing in {name} within {within} s"
            await asyncio.sleep(0.01)

    async def delivery(self, name: str, *, within: float = 10) -> tuple[Delivery, bytes]:
        """Take the next message out of a queue, and read it."""
        return codec.decode((await self.take(name, within=within)).body)

    async def put(self, name: str, body: bytes, **properties: object) -> None:
        """Put a message into a queue."""
        message = aio_pika.Message(body, delivery_mode=2, **properties)  # type: ignore[arg-type] # by name
        await self.channel.default_exchange.publish(message, name, mandatory=True)

    async def send(
        self, *rcpt_to: str, body: bytes = MESSAGE, mail_from: str = "a@from.example", **fields: str
    ) -> None:
        """Put a message on `mail.outbound`, as the contract says."""
        headers = {"mail_from": mail_from, "rcpt_to": list(rcpt_to), **fields}
        await self.put(topology.OUTBOUND, body, headers=headers, content_type="message/rfc822")

    async def event(self, body: bytes) -> None:
        """Publish a reload event."""
        exchange = await self.channel.get_exchange(topology.RELOAD, ensure=False)
        await exchange.publish(aio_pika.Message(body), "")


class Wire:
    """Stands before a server and can be cut: then every connection breaks and new ones are refused.

    Attributes:
        passing: While it is not set, nothing reaches the server; what the server says still comes through.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.passing = asyncio.Event()
        self.passing.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def mend(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Break every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                there, away = await asyncio.open_connection("127.0.0.1", self._to)
                self._writers.add(away)
                await asyncio.gather(_pass(reader, away, self.passing), _pass(there, writer))
                self._writers.discard(away)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event | None = None
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            if passing is not None:
                await passing.wait()
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
def database(postgres: PostgreSQL) -> str:
    """The URL of a database with empty tables, at version 0 of the rules."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DELETE FROM dns_overrides")
        connection.execute(f"TRUNCATE {TABLES}")
        connection.execute("UPDATE rulebook SET version = 0, released = 0")
    return postgres.url


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    """An open pool on a database with empty tables."""
    pool = Pool(database, name="test", timeout=5)
    await pool.open()
    yield pool
    await pool.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms count the store as away after 0.3 s instead of 5 s."""
    defaults = Pool.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout", 0.3)


@pytest.fixture
async def queues(rabbitmq: RabbitMQ) -> AsyncIterator[Queues]:
    """Every queue, declared and empty."""
    async with await aio_pika.connect(rabbitmq.url) as connection:
        queues = Queues(await connection.channel())
        await queues.empty()
        yield queues


@pytest.fixture
async def link(rabbitmq: RabbitMQ, queues: Queues) -> AsyncIterator[Link]:
    """A link to the broker that is up, with every queue empty."""
    del queues
    async with Link(rabbitmq.url, name="test") as link:
        await link.wait_up()
        yield link


@pytest.fixture
def publisher(link: Link) -> Publisher:
    """A publisher on a link that is up."""
    return Publisher(link)


@pytest.fixture
async def broker_wire(rabbitmq: RabbitMQ, queues: Queues) -> AsyncIterator[Wire]:
    """A wire to the broker."""
    del queues
    async with Wire(rabbitmq.ports["amqp"]) as wire:
        yield wire


@pytest.fixture
async def store_wire(postgres: PostgreSQL, database: str) -> AsyncIterator[Wire]:
    """A wire to the database."""
    del database
    async with Wire(postgres.ports["postgresql"]) as wire:
        yield wire


@pytest.fixture
def settings(rabbitmq: RabbitMQ, database: str, queues: Queues) -> Settings:
    """Settings for a room on the private broker and database."""
    del queues
    return Settings(amqp_url=rabbitmq.url, database_url=database, hostname="mail.pushpush.example", instance="test")


def through(url: str, wire: Wire) -> str:
    """Return the URL with the wire's port in place of the server's."""
    before, _, after = url.rpartition(":")
    return f"{before}:{wire.port}/{after.partition('/')[2]}"
