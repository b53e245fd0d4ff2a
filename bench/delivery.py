"""Measurements of delivery: what a worker costs above dramatiq, and what a slow or dead destination does to others."""

import asyncio
import contextlib
import re
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime

import psycopg
import trustme
from pamqp.commands import Basic

from bench.measure import MESSAGE, Cpu, Figure, Site
from shared.broker import topology
from shared.mail import codec
from shared.mail.envelope import Delivery, Envelope
from shared.mail.route import Route, Transport

JOBS = 10_000  # deliveries whose cost is measured
HEALTHY = 12_000  # deliveries to the healthy destination
TROUBLED = 200  # deliveries to the slow or dead one
SLOW = 30.0  # seconds until it answers
_WINDOW = 256  # publishes under way at once


async def worker_cost(site: Site) -> list[Figure]:
    """CPU of the smtp and https workers a message of 4 KiB, above that of a room that delivers nothing."""
    certificate, authority = _certificates(site)
    idle = await _no_op(site)
    async with _sink("bench.sink", "--count", str(JOBS)) as (_, port):
        smtp = await _cost(site, "smtp", f"127.0.0.1:{port}", {})
    async with _sink("bench.https_sink", "--certificate", certificate) as (_, port):
        https = await _cost(site, "https", f"https://127.0.0.1:{port}", {"PUSHPUSH_CA_FILE": authority})
    detail = "of {:.2f}; a room that delivers nothing takes {:.2f}"
    return [
        _figure("smtp worker above dramatiq", smtp - idle, "ms CPU", "below 0.35", detail.format(smtp, idle)),
        _figure("https worker above dramatiq", https - idle, "ms CPU", "below 0.5", detail.format(https, idle)),
    ]


async def troubled_destinations(site: Site) -> list[Figure]:
    """The rate to a healthy destination: alone, beside one that answers after 30 s, and beside one that is dead."""
    alone = await _healthy_rate(site, None)
    async with _sink("bench.sink", "--delay", str(SLOW)) as (_, port):
        slow = await _healthy_rate(site, f"127.0.0.1:{port}")
    with _black_hole() as port:
        dead = await _healthy_rate(site, f"127.0.0.1:{port}")
    goal = "at least 80 %"
    return [
        _figure("healthy destination alone", alone, "messages/s", "", f"{HEALTHY:,} messages by one smtp worker"),
        _figure(f"beside {TROUBLED} for one that takes 30 s", slow, "messages/s", goal, f"{slow / alone:.0%} of alone"),
        _figure(f"beside {TROUBLED} for a dead one", dead, "messages/s", goal, f"{dead / alone:.0%} of alone"),
    ]


async def _healthy_rate(site: Site, troubled: str | None) -> float:
    """Hand in mail for both at once, the troubled first, and return the rate at which the healthy one gets its own."""
    await site.empty()
    async with _sink("bench.sink", "--count", str(HEALTHY)) as (sink, port):
        if troubled is not None:
            await _fill(site, topology.SMTP, "smtp", troubled, TROUBLED)
        await _fill(site, topology.SMTP, "smtp", f"127.0.0.1:{port}", HEALTHY)
        began = time.monotonic()
        async with site.fleet({"router": 1, "smtp": 1, "scheduler": 1}):
            assert sink.stdout is not None
            await asyncio.wait_for(sink.stdout.readline(), 300)
            # From the start of the fleet, so that a worker that stands still at first is not passed over.
            seconds = time.monotonic() - began
    await site.empty()
    await _no_deferred(site)
    return HEALTHY / seconds


async def _no_deferred(site: Site) -> None:
    """Forget what the troubled destination has left in the store."""

    def forget() -> None:
        with psycopg.connect(site.services.database_url) as connection:
            connection.execute("TRUNCATE deferred, next_hops")

    await asyncio.to_thread(forget)


async def _cost(site: Site, room: Transport, target: str, env: dict[str, str]) -> float:
    """Return the CPU in ms a message of a room that delivers to a sink, its start not included."""
    queue = topology.SMTP if room == "smtp" else topology.HTTPS
    await site.empty()
    async with site.fleet({room: 1}, env) as fleet:
        await fleet.wait_ready()
        return await _drain(site, queue, room, target, fleet.pid(f"{room}-1"))


async def _no_op(site: Site) -> float:
    await site.empty()
    env = dict(site.fleet({}).env)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.no_op", topology.SMTP, env=env)
    try:
        await asyncio.sleep(2)
        return await _drain(site, topology.SMTP, "smtp", "127.0.0.1:9", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _drain(site: Site, queue: str, transport: Transport, target: str, pid: int) -> float:
    await _fill(site, queue, transport, target, 200)  # connections are made
    await _until(lambda: _left(site, queue))
    cpu = Cpu({"room": pid})
    await _fill(site, queue, transport, target, JOBS)
    await _until(lambda: _left(site, queue))
    await asyncio.sleep(0.5)  # what was taken last is acked
    return cpu.per(JOBS)["room"]


async def _left(site: Site, queue: str) -> bool:
    return await site.depth(queue) == 0


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(300):
        while not await condition():
            await asyncio.sleep(0.05)


async def _fill(site: Site, queue: str, transport: Transport, target: str, count: int) -> None:
    """Put deliveries of 4 KiB straight into a delivery queue, persistent and confirmed."""
    route = Route(version=1, key="bench.example", targets=(target,), transport=transport)
    envelope = Envelope(
        id="bench", mail_from="a@x.example", rcpt_to=("b@bench.example",), accepted_at=datetime.now(UTC)
    )
    wire = codec.encode(Delivery(envelope=envelope, domain="bench.example", route=route), MESSAGE)
    left = iter(range(count))

    async def some() -> None:
        for _ in left:
            properties = Basic.Properties(delivery_mode=2)
            await site.channel.basic_publish(wire, routing_key=queue, properties=properties, wait=False)

    await asyncio.gather(*(some() for _ in range(_WINDOW)))


@contextlib.asynccontextmanager
async def _sink(module: str, *options: str) -> AsyncIterator[tuple[Process, int]]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, *options, stdout=PIPE)
    assert process.stdout is not None
    found = re.fullmatch(rb"port (\d+)\n", await process.stdout.readline())
    assert found is not None
    try:
        yield process, int(found[1])
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        await process.wait()


@contextlib.contextmanager
def _black_hole() -> Iterator[int]:
    """Give a port that answers no connection: its queue is full, and nobody takes anything out of it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


def _certificates(site: Site) -> tuple[str, str]:
    """Write a certificate for 127.0.0.1 and its authority; return both files."""
    authority = trustme.CA()
    certificate, trusted = site.folder / "https-sink.pem", site.folder / "authority.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    authority.cert_pem.write_to_path(trusted)
    return str(certificate), str(trusted)


def _figure(what: str, value: float, unit: str, goal: str, detail: str = "") -> Figure:
    return Figure(what=what, value=value, unit=unit, goal=goal, detail=detail)


SCENES = (worker_cost, troubled_destinations)
