"""Overview: what the fleet does now, and what is not as it should be. It updates itself."""

from datetime import datetime, timedelta
from typing import Final

import msgspec
from fastapi import APIRouter, Response

from shared.broker import topology
from shared.mail.privacy import Privacy
from shared.runtime.clock import now
from shared.runtime.errors import BrokerUnavailable
from shared.store.dead import DeadLetters
from shared.store.deferred import Deferred
from shared.store.hops import NextHops
from shared.store.journal import Journal
from shared.store.pool import Pool
from shared.store.traffic import HourTraffic, MinuteTraffic, Rates, Traffic
from shared.store.waiting import DomainAges, WaitingMail
from workers.panel.chart import Chart, Point, stacked
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.traffic import SERIES, given_up
from workers.panel.pages.view import Page, View
from workers.panel.recent import Recent
from workers.panel.words import capped, count, span

router = APIRouter()

_MOST: Final = 10_000  # waiting deliveries that are counted
_RATES: Final = 60.0  # seconds: a minute, as the tiles say
_LIVE: Final = 2.0  # seconds that a count is good for: any number of people may look
_SLOW: Final = 15.0  # the same for what is dear to make
_DEAR: Final = 300.0  # the same for what reads every batch of a day
_DOMAINS: Final = 500  # of which the oldest are looked for
_ROWS: Final = 8
_WHAT: Final = {
    topology.OUTBOUND: "new mail, not routed yet",
    topology.REROUTE: "mail that is due again",
    topology.HTTPS: "deliveries for the HTTPS workers",
    topology.SMTP: "deliveries for the SMTP workers",
    topology.LIMBO: "mail that PostgreSQL could not keep; tried again within a minute",
    topology.UNDECODABLE: "what could not be read; see Dead letters",
    topology.JOURNAL: "events that the journal has not recorded yet",
}
_ONE: Final = 10.0  # below this a rate has a decimal


class Tile(msgspec.Struct, frozen=True, kw_only=True):
    """One number."""

    name: str
    figure: str
    unit: str = ""
    note: str = ""
    dot: str = ""
    path: str = ""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the store says."""

    rates: Rates
    minutes: list[MinuteTraffic]
    hours: list[HourTraffic]
    waiting: int
    ages: list[DomainAges]
    dead: int
    lost: int


@router.get("/")
async def whole(view: Page, fleet: Ours) -> Response:
    """Show the page."""
    return await _show(view, fleet, "overview.html")


@router.get("/overview/live")
async def live(view: Page, fleet: Ours) -> Response:
    """Show what changes: a part of the page."""
    return await _show(view, fleet, "overview_live.html")


async def _show(view: View, fleet: Fleet, template: str) -> Response:
    seen = await view.recent.get("overview", lambda: _look(fleet.pool, view.recent), seconds=_LIVE)
    ready: dict[str, int] | None = None
    faults = []
    try:
        ready = await view.recent.get("depths", fleet.depths.all, seconds=_LIVE)
    except BrokerUnavailable as error:
        faults.append(f"{error}. Mail is neither taken nor delivered until it is back; none is lost.")
    oldest = sorted(seen.ages, key=lambda each: each.oldest)
    return view.show(
        template,
        tiles=_tiles(seen, ready, oldest[0].oldest if oldest else None),
        charts=(
            (_minutes(seen.minutes), "The last hour", "recipients a minute"),
            (_hours(seen.hours), "The last day", "recipients an hour"),
        ),
        versions=await fleet.overrides.versions(),
        routers=await fleet.routers.all(),
        depths=None if ready is None else [(name, what, ready.get(name)) for name, what in _WHAT.items()],
        faults=faults,
        ages=[(each.domain, each.deliveries, span(now() - each.oldest)) for each in oldest[:_ROWS]],
        hops=await NextHops(fleet.pool).current(limit=_ROWS),
        lost=seen.lost,
    )


async def _look(pool: Pool, recent: Recent) -> Seen:
    traffic, at = Traffic(pool), now()
    return Seen(
        rates=await traffic.rates(_RATES),
        minutes=await traffic.by_minute(minutes=60),
        hours=await recent.get("day", lambda: traffic.by_hour(since=at - timedelta(hours=23)), seconds=_SLOW),
        waiting=await Deferred(pool).count(at_most=_MOST),
        ages=await recent.get("ages", lambda: WaitingMail(pool).ages(at, limit=_DOMAINS), seconds=_SLOW),
        dead=await DeadLetters(pool).count(),
        lost=await recent.get("lost", Journal(pool, Privacy()).lost, seconds=_DEAR),
    )


def _tiles(seen: Seen, ready: dict[str, int] | None, oldest: datetime | None) -> list[Tile]:
    counts = seen.rates.counts
    lost = sum(counts.get(kind, 0) for kind in ("bounced", "dropped", "failed"))
    lag = ready.get(topology.JOURNAL, 0) if ready else 0
    dead = seen.dead + (ready.get(topology.UNDECODABLE, 0) if ready else 0)
    return [
        _rate("Delivered", counts.get("delivered", 0), "delivered"),
        _rate("Deferred", counts.get("deferred", 0), "deferred"),
        _rate("Given up", lost, "given-up"),
        Tile(
            name="Waiting",
            figure=capped(seen.waiting, _MOST),
            note="nothing waits" if oldest is None else f"oldest for {span(now() - oldest)}",
            path="/waiting",
        ),
        Tile(
            name="Under way",
            figure="?" if ready is None else count(ready.get(topology.HTTPS, 0) + ready.get(topology.SMTP, 0)),
            note="?" if ready is None else f"{count(ready.get(topology.OUTBOUND, 0))} to be routed",
        ),
        Tile(
            name="Dead letters",
            figure=count(dead),
            note="all could be read" if not dead else "wait for a person",
            path="/dead",
        ),
        Tile(
            name="Journal behind",
            figure="?" if ready is None else count(lag),
            unit="batches",
            note=f"{count(seen.lost)} events lost" if seen.lost else "no event lost",
        ),
    ]


def _rate(name: str, number: int, dot: str) -> Tile:
    a_second = number / _RATES
    words = f"{a_second:.1f} a second" if a_second < _ONE else f"{a_second:,.0f} a second"
    return Tile(name=name, figure=count(number), unit="/ min", note=words, dot=dot)


def _minutes(minutes: list[MinuteTraffic]) -> Chart:
    return stacked(
        SERIES,
        [
            Point(label=f"{each.minute:%H:%M}", values=(each.delivered, each.deferred, given_up(each)))
            for each in minutes
        ],
    )


def _hours(hours: list[HourTraffic]) -> Chart:
    return stacked(
        SERIES,
        [Point(label=f"{each.hour:%H:00}", values=(each.delivered, each.deferred, given_up(each))) for each in hours],
    )
