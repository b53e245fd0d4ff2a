"""Measurements of the rules: a million of them, changes while mail flows, and a large import."""

import asyncio
import csv
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiormq
import psycopg
from pamqp.commands import Basic

from bench.measure import MESSAGE, Figure, Site, rss
from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.fleet.release import announce
from shared.mail import codec
from shared.mail.rule import make_rule
from shared.mail.rulebook import Rulebook
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Routers
from shared.store.rulebooks import Rulebooks

MANY = 1_000_000  # rules, every key and every target its own
LOOKUPS = 200_000
EDITS = 50  # single edits whose time to applied is measured
ROUTERS = 10
RATE = 500  # messages a second while rules change
UNDER_LOAD = 20_000  # messages handed in meanwhile
CHANGES = 100
ROWS = 100_000  # of the import


async def many_rules(site: Site) -> list[Figure]:
    """A million rules: a router's start and memory, lookups, and one edit beside ten and beside a million."""
    await _rules(site, 10)
    small = await _one_router(site)
    await _rules(site, MANY)
    large = await _one_router(site)
    pool = await _pool(site)
    began = time.monotonic()
    book = await Rulebooks(pool).rulebook()
    loaded = time.monotonic() - began
    await pool.close()
    figures = [
        _figure("router start, 10 rules", small[0], "s", ""),
        _figure(f"router start, {book.size:,} rules", large[0], "s", "at most 5", f"reading them alone {loaded:.2f} s"),
        _figure("memory of the rules", large[1] - small[1], "MB RSS", "at most 250"),
        _figure("lookup, exact", _lookup(book, "d{n:07d}.example"), "us", "at most 2"),
        _figure("lookup, suffix 8 labels deep", _lookup(book, "a.b.c.d.e.f.w{n:07d}.example"), "us", "at most 6"),
        _figure("lookup, no rule", _lookup(book, "n{n:07d}.elsewhere.example"), "us", ""),
        _figure("edit to applied, 10 rules (median)", small[2], "ms", ""),
        _figure(f"edit to applied, {book.size:,} rules (median)", large[2], "ms", "as with 10"),
    ]
    await _rules(site, 0)
    return figures


async def changes_under_load(site: Site) -> list[Figure]:
    """Rules change under ten routers and 500 messages/s: commit to applied, and whether any confirmation was untrue."""
    await _rules(site, 0)
    await site.empty()
    pool = await _pool(site)
    overrides, routers = Overrides(pool), Routers(pool)
    await overrides.set(make_rule("bench.example", "t.example"), actor="bench", release=True)
    async with site.fleet({"router": ROUTERS}) as fleet, Link(site.services.amqp_url, name="bench") as link:
        await fleet.wait_ready()
        await link.wait_up()
        publisher = Publisher(link)
        loading = asyncio.create_task(_load(site))
        spans = []
        for number in range(CHANGES):
            await asyncio.sleep(UNDER_LOAD / RATE / CHANGES * 0.8 * random.uniform(0.5, 1.5))
            rule = make_rule("bench.example", f"t{number}.example")
            saved = await overrides.set(rule, actor="bench", release=True)
            began = time.monotonic()
            applied = await announce(saved.version, publisher, routers)
            spans.append((time.monotonic() - began) * 1000)
            assert len(applied.applied) == ROUTERS, applied
            await publisher.raw(topology.HTTPS, json.dumps({"mark": saved.version}).encode())
        seconds = await loading
        while await site.depth(topology.HTTPS) < UNDER_LOAD + CHANGES:
            await asyncio.sleep(0.1)
    await pool.close()
    untrue = await _untrue(site)
    await site.empty()
    spans.sort()
    detail = f"{CHANGES} changes, {ROUTERS} routers, {UNDER_LOAD / seconds:.0f} messages/s, from the commit"
    return [
        _figure("change to applied, p50", statistics.median(spans), "ms", "below 30", detail),
        _figure(
            "change to applied, p99", spans[int(len(spans) * 0.99) - 1], "ms", "below 100", f"max {spans[-1]:.0f} ms"
        ),
        _figure("under an older rule after a confirmation", untrue, "messages", "0", f"of {UNDER_LOAD:,}"),
    ]


async def large_import(site: Site) -> list[Figure]:
    """`pushpush endpoint-cache import` of 100,000 rows, the start of the command included."""
    await _rules(site, 0)
    file = site.folder / "rules.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("lookup_key", "target_host", "comment"))
        rows.writerows((f"d{n}.example", f"t{n % 1000}.example", "imported") for n in range(ROWS))
    began = time.monotonic()
    await _pushpush(site, file)
    seconds = time.monotonic() - began
    await _rules(site, 0)
    return [_figure(f"import of {ROWS:,} rows", seconds, "s", "at most 10")]


async def _pushpush(site: Site, file: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "workers.cli", "endpoint-cache", "import", str(file), "--json"),
        env=dict(site.fleet({}).env),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0


def _figure(what: str, value: float, unit: str, goal: str, detail: str = "") -> Figure:
    return Figure(what=what, value=value, unit=unit, goal=goal, detail=detail)


async def _one_router(site: Site) -> tuple[float, float, float]:
    """Return seconds to start, memory in MB and milliseconds of one edit."""
    began = time.monotonic()
    async with site.fleet({"router": 1}) as fleet, Link(site.services.amqp_url, name="bench") as link:
        await fleet.wait_ready()
        started = time.monotonic() - began
        await link.wait_up()
        memory = rss(fleet.pid("router-1"))
        pool = await _pool(site)
        spans = []
        for number in range(EDITS):
            rule = make_rule("edited.example", f"t{number}.example")
            saved = await Overrides(pool).set(rule, actor="bench", release=True)
            applied = await announce(saved.version, Publisher(link), Routers(pool))
            spans.append(applied.milliseconds)
        await pool.close()
    return started, memory, statistics.median(spans)


async def _rules(site: Site, count: int) -> None:
    """Make the table anew with so many rules, half of them wildcards, without a history of their making."""

    def write() -> None:
        with psycopg.connect(site.services.database_url) as connection:
            connection.execute("ALTER TABLE dns_overrides DISABLE TRIGGER USER")
            connection.execute("TRUNCATE dns_overrides, dns_override_changes")
            connection.execute(
                "INSERT INTO dns_overrides (lookup_key, target_host) SELECT CASE n %% 2 WHEN 0 THEN 'd' ELSE '*.w' END "
                "|| lpad(n::text, 7, '0') || '.example', 't' || n || '.example' FROM generate_series(1, %s) n",
                (count,),
            )
            connection.execute("ALTER TABLE dns_overrides ENABLE TRIGGER USER")
            connection.execute("UPDATE rulebook SET version = 1, released = 1")
        with psycopg.connect(site.services.database_url, autocommit=True) as connection:
            connection.execute("ANALYZE dns_overrides")

    await asyncio.to_thread(write)


async def _pool(site: Site) -> Pool:
    pool = Pool(site.services.database_url, name="bench")
    await pool.open()
    return pool


def _lookup(book: Rulebook, form: str) -> float:
    """Return microseconds for one lookup, the loop around it taken off."""
    dice = random.Random(1)
    domains = [form.format(n=2 * dice.randrange(1, MANY // 2) + ("w{" in form)) for _ in range(LOOKUPS)]
    lookup = book.lookup
    began = time.perf_counter()
    for domain in domains:
        lookup(domain, "m1")
    looked = time.perf_counter() - began
    began = time.perf_counter()
    for _ in domains:
        pass
    return (looked - (time.perf_counter() - began)) / LOOKUPS * 1e6


async def _load(site: Site) -> float:
    """Hand in the messages at their rate; return how long it took."""
    headers = {"mail_from": "a@x.example", "rcpt_to": ["b@bench.example"]}
    connection = await aiormq.connect(site.services.amqp_url)
    channel = await connection.channel()
    under_way: set[asyncio.Task[object]] = set()
    began = time.monotonic()
    for number in range(UNDER_LOAD):
        properties = Basic.Properties(content_type="message/rfc822", delivery_mode=2, headers=dict(headers))  # type: ignore[arg-type]
        task = asyncio.ensure_future(
            channel.basic_publish(MESSAGE, routing_key=topology.OUTBOUND, properties=properties)
        )
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        await _wait_for(lambda due=began + number / RATE: time.monotonic() >= due)  # type: ignore[misc]
    await asyncio.gather(*under_way)
    seconds = time.monotonic() - began
    await connection.close()
    return seconds


async def _wait_for(due: Callable[[], bool]) -> None:
    while not due():
        await asyncio.sleep(0.002)


async def _untrue(site: Site) -> int:
    """Read the deliveries in the order they were published; count those behind a mark with an older version."""
    confirmed = untrue = left = 0
    left = await site.depth(topology.HTTPS)
    done = asyncio.Event()

    async def look(message: aiormq.abc.DeliveredMessage) -> None:
        nonlocal confirmed, untrue, left
        if message.body.startswith(b'{"mark"'):
            confirmed = json.loads(message.body)["mark"]
        else:
            untrue += codec.decode(message.body)[0].route.version < confirmed
        left -= 1
        if left == 0:
            done.set()

    connection = await aiormq.connect(site.services.amqp_url)
    channel = await connection.channel()
    await channel.basic_consume(topology.HTTPS, look, no_ack=True)
    await done.wait()
    await connection.close()
    return untrue


SCENES: tuple[Callable[[Site], Awaitable[list[Figure]]], ...] = (many_rules, changes_under_load, large_import)
