"""Traffic as operators ask for it: by domain, hour, transport and minute, with what nothing went to as zero."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from shared.mail.event import Event
from shared.mail.privacy import Privacy
from shared.runtime.clock import now
from shared.store.journal import Journal
from shared.store.pool import Pool
from shared.store.traffic import Counts, Traffic
from tests.integration.journals import batch, told

pytestmark = [pytest.mark.anyio, pytest.mark.services]

HOUR = timedelta(hours=1)
THIS = now().replace(minute=0, second=0, microsecond=0)
Keep = Callable[..., Awaitable[None]]


@pytest.fixture
def keep(pool: Pool) -> Keep:
    """Record events."""
    numbers = iter(range(1, 1_000))

    async def record(*events: Event) -> None:
        await Journal(pool, Privacy()).record([batch(next(numbers), *events)], now=now())

    return record


@pytest.fixture
def traffic(pool: Pool) -> Traffic:
    """The traffic."""
    return Traffic(pool)


async def test_each_kind_is_counted_for_itself(keep: Keep, traffic: Traffic) -> None:
    """Recipients, with the bytes that were delivered and the time that attempts took; a route is no attempt."""
    for _ in range(2):  # into counters that are there, too
        await keep(
            told("routed", room="router", size=9_999),
            told("delivered", size=100, ms=10),
            told("delivered", size=50, ms=20),
            told("deferred", size=100, ms=30),
            told("postponed"),
            told("fallback", ms=5),
            told("failed"),
            told("bounced", size=100, ms=7),
            told("dropped", ms=8),
            told("reported", report="r1"),
            told("removed", room="operator"),
            told("bounced", room="operator", ms=0),
            told("dropped", room="router", ms=0),
        )
    (found,) = await traffic.by_domain(since=THIS)
    assert ("a.example", 4, 2, 2, 2, 2, 4, 4, 2, 300, 160) == (
        found.domain,
        found.delivered,
        found.deferred,
        found.postponed,
        found.fallback,
        found.failed,
        found.bounced,
        found.dropped,
        found.removed,
        found.bytes,
        found.ms,
    )
    assert 12 == found.attempts  # neither the router nor an operator asks anybody


async def test_by_domain_the_most_first(keep: Keep, traffic: Traffic) -> None:
    """In the order that is asked for, within the hours, with a part of the name."""
    await keep(
        *(told(domain="big.example") for _ in range(5)),
        *(told("deferred", domain="slow.example") for _ in range(3)),
        told("dropped", domain="gone.example"),
        told("bounced", domain="gone.example"),
        told("bounced", domain="slow.example"),
        told(domain="old.example", at=THIS - 3 * HOUR),
    )
    names = {
        order: [each.domain for each in await traffic.by_domain(since=THIS, order=order, limit=2)]
        for order in ("delivered", "deferred", "bounced")
    }
    assert {
        "delivered": ["big.example", "gone.example"],
        "deferred": ["slow.example", "big.example"],
        "bounced": ["gone.example", "slow.example"],
    } == names
    assert ["old.example"] == [each.domain for each in await traffic.by_domain(since=THIS - 3 * HOUR, until=THIS)]
    assert ["slow.example"] == [each.domain for each in await traffic.by_domain(since=THIS, search="LOW.")]
    for nothing in ("%", "_", "\x00", "\ud800"):
        assert [] == await traffic.by_domain(since=THIS, search=nothing)


async def test_by_transport(keep: Keep, traffic: Traffic) -> None:
    """Of one domain."""
    await keep(told(room="https"), told(room="smtp"), told("bounced", room="router"), told(domain="b.example"))
    found = await traffic.of_domain("a.example", THIS)
    assert [("https", 1), ("router", 0), ("smtp", 1)] == [(each.transport, each.delivered) for each in found]


async def test_by_hour_with_hours_without_any(keep: Keep, traffic: Traffic) -> None:
    """All transports of an hour in one row; a gap in the mail is not a gap in the list."""
    await keep(
        told(at=THIS - 3 * HOUR + timedelta(minutes=59), room="https"),
        told(at=THIS - 3 * HOUR),
        told(at=THIS - HOUR, domain="b.example"),
    )
    found = await traffic.by_hour(since=THIS - 3 * HOUR + timedelta(minutes=30))
    assert [(THIS - n * HOUR, count) for n, count in ((3, 2), (2, 0), (1, 1), (0, 0))] == [
        (each.hour, each.delivered) for each in found
    ]
    assert {UTC} == {each.hour.tzinfo for each in found}
    one = await traffic.by_hour(since=THIS - 3 * HOUR, until=THIS - HOUR, domain="b.example")
    assert [0, 0] == [each.delivered for each in one]


async def test_by_hour_over_all_domains_adds_up_and_does_not_read_each(
    keep: Keep, traffic: Traffic, database: str
) -> None:
    """A day of a large provider is millions of counters: whoever looks at the overview must not wait for them."""
    rooms = ("https", "smtp", "router")
    for _ in range(2):
        await keep(*(told(domain=f"d{n}.example", room=rooms[n % 3], size=n, ms=1) for n in range(30)))
        await keep(told("removed", room="operator"), told("deferred", domain="d1.example"))
    domains = await traffic.by_domain(since=THIS)
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE traffic")
        async with asyncio.timeout(5):
            (hour,) = await traffic.by_hour(since=THIS, until=THIS + HOUR)
    for each in Counts.__struct_fields__:
        assert getattr(hour, each) == sum(getattr(domain, each) for domain in domains), each
    assert (60, 2, 2) == (hour.delivered, hour.removed, hour.deferred)


async def test_by_minute_with_minutes_without_any(keep: Keep, traffic: Traffic) -> None:
    """The last one is the one that runs; events of a clock that is ahead are not in it."""
    at = now()
    await keep(
        told(at=at - timedelta(minutes=2)),
        told("routed", at=at - timedelta(minutes=2)),
        told("deferred", at=at),
        told(at=at + timedelta(minutes=5)),
        told(at=at - timedelta(minutes=61)),
    )
    found = await traffic.by_minute(minutes=60)
    assert 60 == len(found)
    assert (1, 1, 1) == tuple(
        sum(getattr(each, kind) for each in found) for kind in ("routed", "delivered", "deferred")
    )
    last = found[-1].minute
    assert [last - timedelta(minutes=n) for n in range(60)][::-1] == [each.minute for each in found]
    assert datetime.now(UTC) - last < timedelta(minutes=1.2)


async def test_rates_of_the_last_seconds(keep: Keep, traffic: Traffic) -> None:
    """Older ones are not in it."""
    await keep(told(), told(), told("deferred"), told(at=now() - timedelta(seconds=61)))
    rates = await traffic.rates(60)
    assert (60, {"delivered": 2, "deferred": 1}) == (rates.seconds, rates.counts)


async def test_without_any_mail(traffic: Traffic) -> None:
    """A fleet that has just begun."""
    assert ([], [], {}) == (
        await traffic.by_domain(since=THIS),
        await traffic.of_domain("a.example", THIS),
        (await traffic.rates()).counts,
    )
    assert [0] == [each.delivered for each in await traffic.by_hour(since=now())]
