"""Measurements of the panel: how fast it answers with very many rules and very much waiting mail."""

import asyncio
import http.client
import statistics
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

import psycopg

from bench.measure import Figure, Site, rss

RULES = 100_000
WAITING = 1_000_000
ASKED = 40  # times, each page
_TOKEN = "for-this-measurement-only"

_FILL = (
    "DELETE FROM dns_overrides",
    "TRUNCATE deferred, events, event_minutes, traffic",
    f"""
    INSERT INTO dns_overrides (lookup_key, target_host, comment)
    SELECT 'd' || n || '.example', 'relay' || n % 50 || '.example', 'moved to another host, ticket ' || n
    FROM generate_series(1, {RULES}) AS n
    """,
    f"""
    INSERT INTO deferred (message_id, mail_from, rcpt_to, domain, target, accepted_at, deferred_at, next_attempt_at,
                          attempts, reply, size, delivery)
    SELECT md5(n::text), 'a' || n % 1000 || '@x.example', ARRAY['b' || n || '@d' || n % 20000 || '.example'],
           'd' || n % 20000 || '.example', 'relay' || n % 50 || '.example', now() - n * interval '0.2 s',
           now() - interval '10 min', now() + n % 14400 * interval '1 s', 1 + n % 20,
           CASE n % 3 WHEN 0 THEN '450 4.4.1 cannot connect' WHEN 1 THEN '452 4.2.2 mailbox full'
                      ELSE '451 4.7.1 greylisted, come back' END,
           4000, convert_to('no message', 'UTF8')
    FROM generate_series(1, {WAITING}) AS n
    """,
    "ANALYZE dns_overrides, deferred",
)
_PAGES: Sequence[tuple[str, str, Mapping[str, str]]] = (
    ("overview", "/", {}),
    ("rules", "/endpoint-cache", {}),
    ("rules, searched", "/endpoint-cache", {"search": "ticket 9999"}),
    ("waiting mail", "/waiting", {}),
    ("waiting mail of a domain", "/waiting", {"domain": "d77.example"}),
    ("API: overrides", "/api/v1/overrides", {}),
    ("API: overrides, searched", "/api/v1/overrides", {"search": "ticket 9999"}),
    ("API: waiting mail", "/api/v1/queue", {}),
)


async def panel(site: Site) -> list[Figure]:
    """Pages and API with 100,000 rules and 1,000,000 waiting deliveries: the median of 40 answers each."""
    await asyncio.to_thread(_fill, site, _FILL)
    async with site.fleet({"panel": 1}, {"PUSHPUSH_ADMIN_TOKEN": _TOKEN}) as fleet:
        await fleet.wait_ready()
        port = fleet.panel_port()
        figures = [await asyncio.to_thread(_asked, port, *page) for page in _PAGES]
        figures.append(
            Figure(what="panel", value=rss(fleet.pid("panel-1")), unit="MB RSS", detail="after all of these")
        )
    await asyncio.to_thread(_fill, site, _FILL[:2])
    return figures


def _fill(site: Site, statements: Sequence[str]) -> None:
    with psycopg.connect(site.services.database_url, autocommit=True) as connection:
        for each in statements:
            connection.execute(each.encode())


def _asked(port: int, name: str, path: str, query: Mapping[str, str]) -> Figure:
    """Ask for a page again and again on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took, size = [], 0
    for _ in range(ASKED):
        began = time.perf_counter()
        connection.request("GET", f"{path}?{urlencode(query)}", headers={"Authorization": f"Bearer {_TOKEN}"})
        answer = connection.getresponse()
        size = len(answer.read())
        took.append((time.perf_counter() - began) * 1000)
        if answer.status != http.client.OK:
            raise RuntimeError(f"{path} answered {answer.status}")
    connection.close()
    detail = f"slowest {max(took):.0f} ms, {size:,} bytes"
    return Figure(
        what=f"panel, {name} (median)", value=statistics.median(took), unit="ms", goal="at most 100", detail=detail
    )
