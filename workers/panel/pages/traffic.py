"""Traffic: how much mail went to which domain, and how it went."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Response

from shared.mail.domain import normalise
from shared.runtime.clock import now
from shared.store.traffic import Counts, HourTraffic, MinuteTraffic, Order, Traffic
from workers.panel.chart import Chart, Point, stacked
from workers.panel.fleet import Ours
from workers.panel.pages.view import Line, Page

router = APIRouter(prefix="/traffic")

SERIES: Final = ("delivered", "deferred", "given up")
_MOST: Final = 100  # domains shown
_RECENT: Final = 5.0  # seconds that an answer is good for
_HOURLY: Final = 48  # hours that are drawn as such; more are drawn as days

Since = Literal["6h", "24h", "7d", "30d", "90d"]
_HOURS: Final[dict[Since, int]] = {"6h": 6, "24h": 24, "7d": 7 * 24, "30d": 30 * 24, "90d": 90 * 24}
_SPANS: Final = (("6h", "6 hours"), ("24h", "24 hours"), ("7d", "7 days"), ("30d", "30 days"), ("90d", "90 days"))


@router.get("")
async def list_(
    view: Page,
    fleet: Ours,
    search: Annotated[Line, Query(max_length=260)] = "",
    since: Since = "24h",
    order: Order = "delivered",
) -> Response:
    """Show the domains with the most."""
    traffic, hours = Traffic(fleet.pool), _HOURS[since]
    began = now() - timedelta(hours=hours - 1)
    domains = await view.recent.get(
        ("traffic", search, since, order),
        lambda: traffic.by_domain(since=began, limit=_MOST, order=order, search=search or None),
        seconds=_RECENT,
    )
    by_hour = await view.recent.get(("hours", since), lambda: traffic.by_hour(since=began), seconds=_RECENT)
    return view.show(
        "traffic.html",
        domains=domains,
        chart=_chart(by_hour, hours),
        hours=hours,
        words=f"the last {dict(_SPANS)[since]}",
        search=search,
        since=since,
        spans=_SPANS,
        order=order,
        most=_MOST,
    )


@router.get("/domain")
async def one(
    view: Page, fleet: Ours, domain: Annotated[Line, Query(max_length=260)], since: Since = "24h"
) -> Response:
    """Show one domain by transport."""
    name, traffic, hours = normalise(domain), Traffic(fleet.pool), _HOURS[since]
    began = now() - timedelta(hours=hours - 1)
    return view.show(
        "traffic_domain.html",
        domain=name,
        transports=await traffic.of_domain(name, began),
        chart=_chart(await traffic.by_hour(since=began, domain=name), hours),
        hours=hours,
        words=f"The last {dict(_SPANS)[since]}",
        since=since,
    )


def given_up(counts: Counts | MinuteTraffic) -> int:
    """Return how many were given up, whoever was told."""
    return counts.bounced + counts.dropped + counts.failed


def _chart(by_hour: Sequence[HourTraffic], hours: int) -> Chart:
    if hours <= _HOURLY:
        return stacked(SERIES, [Point(label=f"{each.hour:%H:00}", values=_values(each)) for each in by_hour])
    days: dict[datetime, tuple[int, ...]] = {}
    for each in by_hour:
        day = each.hour.replace(hour=0)
        days[day] = tuple(map(sum, zip(days.get(day, (0, 0, 0)), _values(each), strict=True)))
    return stacked(SERIES, [Point(label=f"{day:%d %b}", values=values) for day, values in days.items()])


def _values(each: HourTraffic) -> tuple[int, int, int]:
    return each.delivered, each.deferred, given_up(each)
