"""Measurements of the journal: how many events it records in a second, and what one costs."""

import asyncio
import time

import msgspec
import psycopg
from pamqp.commands import Basic

from bench.measure import Cpu, Figure, Site
from shared.broker import topology
from shared.mail import event
from shared.mail.event import Batch, Event
from shared.runtime.clock import now

EVENTS = 60_000  # recorded in one measurement
DOMAINS = 200  # told apart by the counters
WARM = 2_000  # events recorded before
_BATCHES = (500, 20)  # events in a batch: a busy room's, and one of a room with 80 attempts a second
_WINDOW = 64  # publishes under way at once


async def journal(site: Site) -> list[Figure]:
    """Events through one journal into PostgreSQL, in large batches and in small ones."""
    await topology.declare_events(site.channel)
    figures = []
    for size in _BATCHES:
        await site.channel.queue_purge(topology.JOURNAL)
        async with site.fleet({"journal": 1}) as fleet:
            await fleet.wait_ready()
            await _record(site, WARM, size, "warm")
            cpu, began = Cpu({"journal": fleet.pid("journal-1")}), time.monotonic()
            await _record(site, EVENTS, size, "measured")
            seconds, per = time.monotonic() - began, cpu.per(EVENTS)
        figures += _figures(size, EVENTS / seconds, per["journal"])
    return figures


def _figures(size: int, rate: float, cpu: float) -> list[Figure]:
    what = f"journal, batches of {size}"
    return [
        Figure(what=what, value=rate, unit="events/s", goal="at least 2000", detail="one journal"),
        Figure(what=f"{what}, CPU", value=cpu * 1000, unit="us an event", goal="below 250", detail="of the journal"),
    ]


async def _record(site: Site, count: int, size: int, name: str) -> None:
    """Emit so many events, and return when all are recorded."""
    before = await asyncio.to_thread(_recorded, site)
    numbers = iter(range(count // size))

    async def some() -> None:
        for number in numbers:
            await _emit(site, _batch(number, size, f"{name}-{size}"))

    await asyncio.gather(*(some() for _ in range(_WINDOW)))
    while await asyncio.to_thread(_recorded, site) < before + count:
        await asyncio.sleep(0.05)


def _batch(number: int, size: int, source: str) -> Batch:
    events = tuple(_event(number * size + each) for each in range(size))
    return Batch(source=source, number=number + 1, emitted=(number + 1) * size, events=events)


async def _emit(site: Site, batch: Batch) -> None:
    properties = Basic.Properties(delivery_mode=2)
    await site.channel.basic_publish(
        event.encode(batch), exchange=topology.EVENTS, routing_key="smtp", properties=properties, wait=False
    )


def _recorded(site: Site) -> int:
    with psycopg.connect(site.services.database_url) as connection:
        row = connection.execute("SELECT coalesce(sum(events), 0) FROM event_batches").fetchone()
    return 0 if row is None else int(row[0])


def _event(number: int) -> Event:
    """Return one of the events of a usual message: a route, and its delivery."""
    domain = f"d{number // 2 % DOMAINS}.example"
    told = Event(
        at=now(),
        kind="routed",
        id=f"{number // 2:032x}",
        recipient=f"someone{number // 2}@{domain}",
        domain=domain,
        room="router",
        rule=domain,
        version=41,
        target="b.example",
        size=4_096,
    )
    if number % 2 == 0:
        return msgspec.structs.replace(
            told, accepted_at=told.at, sender="ann@from.example", header_id=f"<{number}@from.example>"
        )
    reply = {"code": 250, "enhanced": "2.0.0", "reply": "Ok: queued as 4Wx1yZ2zKtz9sRk", "mta": "mx1.b.example"}
    return msgspec.structs.replace(told, kind="delivered", room="smtp", attempt=1, ms=35, **reply)


SCENES = (journal,)
