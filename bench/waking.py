"""Measurements of waking: how fast waiting mail comes back when it is due."""

import asyncio
import time

import psycopg

from bench.measure import MESSAGE, Cpu, Figure, Site, broker_pid, spelled
from shared.broker import topology
from shared.mail import codec
from shared.mail.envelope import Delivery, Envelope
from shared.mail.route import Route
from shared.runtime.clock import now

WAITING = 20_000  # deliveries of 4 KiB
_FILL = f"""
    INSERT INTO deferred (message_id, mail_from, rcpt_to, domain, target, accepted_at, deferred_at, next_attempt_at,
                          attempts, reply, size, delivery)
    SELECT md5(n::text), 'a@x.example', ARRAY['b@bench.example'], 'bench.example', '', now(), now(),
           now() - n * interval '1 ms', 1, '450 4.4.1 cannot connect', 4000, %s
    FROM generate_series(1, {WAITING}) AS n
"""


async def waking(site: Site) -> list[Figure]:
    """One scheduler hands 20,000 deliveries that are due back to the routers."""
    await site.empty()
    await asyncio.to_thread(_fill, site)
    async with site.fleet({"scheduler": 1}) as fleet:
        while (before := await site.depth(topology.REROUTE)) == 0:
            await asyncio.sleep(0.01)
        cpu = Cpu({"scheduler": fleet.pid("scheduler-1")} | broker_pid(site.services))
        began = time.monotonic()
        while await site.depth(topology.REROUTE) < WAITING:
            await asyncio.sleep(0.01)
        seconds, per = time.monotonic() - began, cpu.per(WAITING - before)
    await site.empty()
    rate = (WAITING - before) / seconds
    return [Figure(what="waking", value=rate, unit="deliveries/s", detail=spelled(per))]


def _fill(site: Site) -> None:
    envelope = Envelope(id="bench", mail_from="a@x.example", rcpt_to=("b@bench.example",), accepted_at=now())
    delivery = Delivery(envelope=envelope, domain="bench.example", route=Route(version=0), attempts=1)
    with psycopg.connect(site.services.database_url, autocommit=True) as connection:
        connection.execute("TRUNCATE deferred")
        connection.execute(_FILL.encode(), (codec.encode(delivery, MESSAGE),))
        connection.execute("ANALYZE deferred")
