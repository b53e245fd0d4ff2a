"""A whole fleet of real processes, on empty queues and tables, and mail that flows through it."""

import asyncio
import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import cast

import aio_pika
import psycopg
import pytest
from aiormq import Channel

from deploy.local.fleet import Fleet
from deploy.local.services import PostgreSQL, RabbitMQ
from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.mail.route import Transport
from shared.mail.rule import make_rule
from shared.runtime.errors import BrokerUnavailable
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from tests.integration.conftest import TABLES
from tests.peers.inbox import Inbox

SENDER = "a@from.example"
WINDOW = 64  # publishes under way at once


class Flow:
    """Numbered messages to one domain; each counts as handed in only when the broker has confirmed it."""

    def __init__(self, publisher: Publisher, domain: str, count: int | None) -> None:
        """Describe a flow of `count` messages, or with None one that goes on until `stop`."""
        self._publisher = publisher
        self._domain = domain
        self._numbers = iter(itertools.count() if count is None else range(count))
        self._stopped = False
        self.count = count or 0
        self.handed_in = 0
        self.times: dict[int, tuple[float, float]] = {}  # by number: when its publish began, when it was confirmed

    async def run(self) -> None:
        """Hand in every message; while the broker is away, try again."""
        await asyncio.gather(*(self._some() for _ in range(WINDOW)))
        self.count = self.handed_in

    async def more(self, count: int) -> None:
        """Return when so many messages more were handed in."""
        wanted = self.handed_in + count
        while self.handed_in < wanted:
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        """Hand in no more than what is under way."""
        self._stopped = True

    async def _some(self) -> None:
        while not self._stopped and (number := next(self._numbers, None)) is not None:
            await self._hand_in(number)

    async def _hand_in(self, number: int) -> None:
        recipient = f"n{number}@{self._domain}"
        body = f"From: {SENDER}\r\nTo: {recipient}\r\nSubject: {number}\r\n\r\n{'x' * 1000}\r\n".encode()
        headers = {"mail_from": SENDER, "rcpt_to": [recipient]}
        while True:
            began = time.monotonic()
            try:
                await self._publisher.raw(topology.OUTBOUND, body, content_type="message/rfc822", headers=headers)
            except BrokerUnavailable:
                await asyncio.sleep(0.1)
            else:
                self.handed_in += 1
                self.times[number] = (began, time.monotonic())
                return

    def arrived(self, *peers: Inbox) -> Counter[int]:
        """Return how often each number arrived."""
        recipients = [each.rcpt_to[0] for peer in peers for each in peer.received]
        mine = [each for each in recipients if each.endswith(f"@{self._domain}")]
        return Counter(int(each.partition("@")[0][1:]) for each in mine)

    async def wait(self, *peers: Inbox, share: float = 1.0, within: float = 90) -> Counter[int]:
        """Return as soon as that share of the numbers has arrived."""
        wanted = int(self.count * share)
        try:
            async with asyncio.timeout(within):
                while len(self.arrived(*peers)) < wanted:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            missing = sorted(set(range(self.count)) - self.arrived(*peers).keys())
            raise AssertionError(f"lost, or later than {within} s: {len(missing)} messages: {missing[:20]}") from None
        return self.arrived(*peers)


class World:
    """The services, and ways into them."""

    def __init__(self, rabbitmq: RabbitMQ, postgres: PostgreSQL, folder: Path) -> None:
        self.rabbitmq = rabbitmq
        self.postgres = postgres
        self._folder = folder

    @contextlib.asynccontextmanager
    async def fleet(self, rooms: Mapping[str, int], **env: str) -> AsyncIterator[Fleet]:
        """Run a fleet of these rooms and a scheduler; at the end stop it as SIGTERM does.

        Without a scheduler nothing comes back that a worker had no room for.
        """
        given = {f"PUSHPUSH_{name.upper()}": value for name, value in env.items()}
        fleet = Fleet(
            self._folder,
            amqp_url=self.rabbitmq.url,
            database_url=self.postgres.url,
            rooms={"scheduler": 1, **rooms},
            env=given,
            migrated=True,
        )
        async with fleet:
            await fleet.wait_ready()
            yield fleet

    @contextlib.asynccontextmanager
    async def flow(self, domain: str, count: int | None) -> AsyncIterator[Flow]:
        """Let mail to a domain flow; wait at the end until all of it is handed in."""
        async with Link(self.rabbitmq.url, name="test") as link:
            await link.wait_up()
            flow = Flow(Publisher(link), domain, count)
            running = asyncio.create_task(flow.run())
            try:
                yield flow
                await running
            finally:
                running.cancel()

    async def rule(self, key: str, target: str, *, transport: Transport = "auto") -> None:
        """Save a rule; a fleet that is started later reads it."""
        pool = Pool(self.postgres.url, name="test")
        await pool.open()
        await Overrides(pool).set(make_rule(key, target, transport=transport), actor="test", release=True)
        await pool.close()

    async def depths(self) -> dict[str, int]:
        """Return how many messages are ready in each queue."""
        async with await aio_pika.connect(self.rabbitmq.url) as connection:
            channel = await connection.channel()
            queues = {name: await channel.declare_queue(name, passive=True) for name in topology.QUEUES}
            return {name: queue.declaration_result.message_count or 0 for name, queue in queues.items()}

    def waiting(self) -> int:
        """Return how many deliveries wait in the store."""
        with psycopg.connect(self.postgres.url) as connection:
            row = connection.execute("SELECT count(*) FROM deferred").fetchone()
            assert row is not None
            return int(row[0])


@pytest.fixture
async def world(rabbitmq: RabbitMQ, postgres: PostgreSQL, tmp_path: Path) -> World:
    """Empty queues and empty tables."""
    await empty(rabbitmq, postgres)
    return World(rabbitmq, postgres, tmp_path)


async def empty(rabbitmq: RabbitMQ, postgres: PostgreSQL) -> None:
    """Remove what is left of an earlier test."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DELETE FROM dns_overrides")
        connection.execute(f"TRUNCATE {TABLES}")
    async with await aio_pika.connect(rabbitmq.url) as connection:
        channel = await connection.channel()
        await topology.declare(channel)
        await topology.declare_events(cast("Channel", await channel.get_underlay_channel()))
        for name in (*topology.QUEUES, topology.JOURNAL):
            await (await channel.get_queue(name, ensure=False)).purge()


@pytest.fixture(autouse=True)
def _show_logs_of_a_failed_fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        for log in sorted((tmp_path / "log").glob("*.log")):
            sys.stdout.write(f"--- {log.name}\n{log.read_text()[-1500:]}\n")
