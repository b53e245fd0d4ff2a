"""What measurements share: a site with services, CPU and memory of processes, and a way to fill a queue."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aiormq
import psutil
from pamqp.commands import Basic

from deploy.local.fleet import Fleet
from deploy.local.services import OpenServices, open_services
from shared.broker import topology
from shared.mail.rule import make_rule
from shared.store import migrate
from shared.store.overrides import Overrides
from shared.store.pool import Pool

MESSAGE = b"Subject: bench\r\nFrom: a@x.example\r\nTo: b@bench.example\r\n\r\n" + b"0123456789abcde\r\n" * 237
_WINDOW = 256  # publishes under way at once


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One thing measured.

    Attributes:
        what: In words.
        value: The number.
        unit: Of the number.
        goal: What it should be, in words; "" for none.
        detail: What it is made of.
    """

    what: str
    value: float
    unit: str
    goal: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where measurements take place."""

    folder: Path
    services: OpenServices
    channel: aiormq.Channel

    def fleet(self, rooms: Mapping[str, int], env: Mapping[str, str] | None = None) -> Fleet:
        """Return a fleet of these rooms, not started."""
        return Fleet(
            self.folder,
            amqp_url=self.services.amqp_url,
            database_url=self.services.database_url,
            rooms=rooms,
            env={"PUSHPUSH_LOG_LEVEL": "info", "PUSHPUSH_LOG_FORMAT": "json"} | dict(env or {}),
        )

    async def migrated(self) -> None:
        """Bring the database to the newest schema."""
        await asyncio.to_thread(migrate.upgrade, self.services.database_url)

    async def fill(self, count: int) -> None:
        """Put so many messages of 4 KiB on `mail.outbound`, persistent and confirmed."""
        properties = {"content_type": "message/rfc822", "delivery_mode": 2}
        headers = {"mail_from": "a@x.example", "rcpt_to": ["b@bench.example"]}
        left = iter(range(count))

        async def some() -> None:
            for _ in left:
                await self.channel.basic_publish(
                    MESSAGE,
                    routing_key=topology.OUTBOUND,
                    properties=Basic.Properties(headers=dict(headers), **properties),  # type: ignore[arg-type]
                    wait=False,
                )

        await asyncio.gather(*(some() for _ in range(_WINDOW)))

    async def depth(self, queue: str) -> int:
        """Return how many messages are ready in a queue."""
        return (await self.channel.queue_declare(queue, passive=True)).message_count or 0

    async def empty(self) -> None:
        """Take every message out of every queue."""
        for name in topology.QUEUES:
            await self.channel.queue_purge(name)

    async def rule(self, target: str) -> None:
        """Send mail for bench.example to a target, by SMTP only."""
        pool = Pool(self.services.database_url, name="bench")
        await pool.open()
        await Overrides(pool).set(make_rule("bench.example", target, transport="smtp"), actor="bench", release=True)
        await pool.close()


class Cpu:
    """CPU seconds used by processes since this was made."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        """Watch processes by name."""
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._start = self._now()

    def per(self, messages: int) -> dict[str, float]:
        """Return milliseconds a message, by name."""
        now = self._now()
        return {name: (now[name] - self._start[name]) * 1000 / messages for name in now}

    def _now(self) -> dict[str, float]:
        return {name: _seconds([process]) for name, process in self._processes.items()}


def broker_pid(services: OpenServices) -> dict[str, int]:
    """Return RabbitMQ's process, when it is ours."""
    return {} if services.rabbitmq is None else {"rabbitmq": services.rabbitmq.pid}


def rss(pid: int) -> float:
    """Return the resident memory of a process, in MB."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def spelled(per_message: Mapping[str, float]) -> str:
    """Return CPU per message in words, with the sum."""
    parts = ", ".join(f"{name} {value:.2f}" for name, value in per_message.items())
    return f"CPU ms a message: {parts}; in all {sum(per_message.values()):.2f}"


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Site]:
    """Start the services in an empty folder."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        services = await asyncio.to_thread(stack.enter_context, open_services(folder))
        connection = await aiormq.connect(services.amqp_url)
        channel = await connection.channel()
        for name, arguments in topology.QUEUES.items():
            await channel.queue_declare(name, durable=True, arguments=dict(arguments))
        yield Site(folder=folder, services=services, channel=cast("aiormq.Channel", channel))
        await connection.close()


def _seconds(processes: Iterable[psutil.Process]) -> float:
    return sum(each.cpu_times().user + each.cpu_times().system for each in processes)
