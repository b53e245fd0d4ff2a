"""The measurements."""

import asyncio
import json
import os
import re
import sys
import time

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from bench.measure import Cpu, Figure, Site, broker_pid, rss, spelled
from shared.broker import topology

BARE = 10_000  # messages through the library alone
ROUTED = 20_000  # messages through the router
DELIVERED = 12_000  # messages to the sink


async def idle_rooms(site: Site) -> list[Figure]:
    """Memory of each room when it has nothing to do."""
    async with site.fleet({"router": 1, "https": 1, "smtp": 1, "scheduler": 1}) as fleet:
        await fleet.wait_ready()
        await asyncio.sleep(3)
        return [
            Figure(what=f"idle {name.partition('-')[0]}", value=rss(fleet.pid(name)), unit="MB RSS", goal="at most 80")
            for name in fleet.names
        ]


async def router_alone(site: Site) -> list[Figure]:
    """The router: from mail.outbound to deliver.smtp, 4 KiB, quorum in and out, confirmed."""
    await site.rule("127.0.0.1:9")
    await site.empty()
    await site.fill(ROUTED)
    async with site.fleet({"router": 1}) as fleet:
        while await site.depth(topology.SMTP) == 0:
            await asyncio.sleep(0.01)
        pid = fleet.pid("router-1")
        cpu = Cpu({"router": pid} | broker_pid(site.services))
        began, before = time.monotonic(), await site.depth(topology.SMTP)
        await _until(site, topology.SMTP, ROUTED)
        seconds = time.monotonic() - began
        per = cpu.per(ROUTED - before)
    await site.empty()
    return [
        Figure(
            what="router alone",
            value=(ROUTED - before) / seconds,
            unit="messages/s",
            goal="at least 2500",
            detail=spelled(per),
        )
    ]


async def bare_library(site: Site) -> list[Figure]:
    """For comparison: aio-pika alone takes a message, publishes it again with confirm, and acks; nothing else."""
    await site.fill(BARE)
    done, count = asyncio.Event(), 0
    async with await aio_pika.connect(site.services.amqp_url) as connection:
        source, target = await connection.channel(), await connection.channel()

        async def again(message: AbstractIncomingMessage) -> None:
            nonlocal count
            await target.default_exchange.publish(aio_pika.Message(message.body, delivery_mode=2), topology.SMTP)
            await message.ack()
            count += 1
            if count == BARE:
                done.set()

        await source.set_qos(prefetch_count=256)
        cpu, began = Cpu({"aio-pika": os.getpid()} | broker_pid(site.services)), time.monotonic()
        await (await source.get_queue(topology.OUTBOUND)).consume(again)
        await done.wait()
        seconds, per = time.monotonic() - began, cpu.per(BARE)
    await site.empty()
    return [
        Figure(
            what="bare aio-pika", value=BARE / seconds, unit="messages/s", goal="(to compare with)", detail=spelled(per)
        )
    ]


async def end_to_end(site: Site) -> list[Figure]:
    """From mail.outbound to an SMTP sink: one router, one smtp worker, sink and broker on the same machine."""
    sink = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.sink", "--port", "0", "--count", str(DELIVERED), stdout=asyncio.subprocess.PIPE
    )
    assert sink.stdout is not None
    found = re.fullmatch(rb"port (\d+)\n", await sink.stdout.readline())
    assert found is not None
    await site.rule(f"127.0.0.1:{int(found[1])}")
    await site.empty()
    await site.fill(DELIVERED)
    async with site.fleet({"router": 1, "smtp": 1}) as fleet:
        pids = {name.partition("-")[0]: fleet.pid(name) for name in fleet.names}
        cpu = Cpu(pids | {"sink": sink.pid} | broker_pid(site.services))
        report = json.loads(await asyncio.wait_for(sink.stdout.readline(), 300))
        per = {name: value for name, value in cpu.per(DELIVERED).items() if name != "sink"}
        per["sink"] = report["cpu_seconds"] * 1000 / DELIVERED
    await sink.wait()
    await site.empty()
    return [
        Figure(
            what="broker to SMTP sink",
            value=DELIVERED / report["seconds"],
            unit="messages/s",
            goal="at least 800",
            detail=spelled(per) + "; start-up of the rooms included",
        )
    ]


async def _until(site: Site, queue: str, depth: int) -> None:
    while await site.depth(queue) < depth:
        await asyncio.sleep(0.01)
