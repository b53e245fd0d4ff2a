"""/api/v1/traffic: how much went where."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from shared.mail.domain import normalise
from shared.runtime.clock import now
from shared.store.traffic import Order, Traffic
from workers.panel.access import Viewer
from workers.panel.api.shape import LINE, MAX_KEY, Limit, Moment, Search, Told
from workers.panel.errors import Refused
from workers.panel.fleet import Ours

router = APIRouter(prefix="/traffic", tags=["mail"])

_DAY = timedelta(days=1)
_MOST_HOURS = timedelta(days=400)  # one answer has at most so many of them


class CountsOut(Told):
    """What happened, by recipient and attempt."""

    delivered: int
    deferred: int = Field(description="Attempts that failed, with another to follow")
    postponed: int = Field(description="Not tried: there was no room, or the next hop is suspended")
    fallback: int = Field(description="The other transport, or the next target, had its turn")
    failed: int = Field(description="It could not be settled, and was set aside")
    bounced: int = Field(description="Given up, and the sender was told")
    dropped: int = Field(description="Given up, and nobody was told")
    removed: int = Field(description="Taken out by an operator, and nobody was told")
    bytes: int = Field(description="Delivered")
    ms: int = Field(description="That all attempts took together")
    attempts: int = Field(description="How often a next hop was asked")


class DomainOut(CountsOut):
    """What went to one domain."""

    domain: str


class HourOut(CountsOut):
    """What went out in one hour."""

    hour: datetime = Field(description="Its beginning")


class TransportOut(CountsOut):
    """What went by one transport, or was ended by the router or an operator."""

    transport: str


class DomainsOut(Told):
    """What went to each domain, the most first."""

    since: datetime
    domains: list[DomainOut]


class HoursOut(Told):
    """What went out in each hour, the oldest first."""

    since: datetime
    hours: list[HourOut]
    transports: list[TransportOut] = Field(description="Of the domain; empty when none was asked for")


Since = Annotated[Moment | None, Query(description="From the hour of this time on; default: a day ago")]
Until = Annotated[Moment | None, Query(description="Up to this time; default: now")]


@router.get("/domains")
async def by_domain(
    who: Viewer,
    fleet: Ours,
    *,
    since: Since = None,
    until: Until = None,
    order: Annotated[Order, Query(description="Of what the most; `bounced` is whatever was given up")] = "delivered",
    search: Search = None,
    limit: Limit = 100,
) -> DomainsOut:
    """Show what went to each domain."""
    del who
    begin = _span(since, until)
    found = await Traffic(fleet.pool).by_domain(since=begin, until=until, limit=limit, order=order, search=search)
    return DomainsOut(since=begin, domains=[DomainOut.model_validate(each) for each in found])


@router.get("/hours")
async def by_hour(
    who: Viewer,
    fleet: Ours,
    *,
    since: Since = None,
    until: Until = None,
    domain: Annotated[str | None, Query(min_length=1, max_length=MAX_KEY, pattern=LINE)] = None,
) -> HoursOut:
    """Show what went out in each hour, to all domains or to one."""
    del who
    begin, traffic = _span(since, until), Traffic(fleet.pool)
    name = None if domain is None else normalise(domain)
    hours = await traffic.by_hour(since=begin, until=until, domain=name)
    transports = [] if name is None else await traffic.of_domain(name, begin, until)
    return HoursOut(
        since=begin,
        hours=[HourOut.model_validate(each) for each in hours],
        transports=[TransportOut.model_validate(each) for each in transports],
    )


def _span(since: datetime | None, until: datetime | None) -> datetime:
    """Return when it begins.

    Raises:
        Refused: It is too long, or outside of the calendar.
    """
    moment = now()
    begin, end = since or moment - _DAY, until or moment
    if not moment - 2 * _MOST_HOURS < begin < moment + _DAY or not end < moment + _DAY or end - begin > _MOST_HOURS:
        words = f"a span ends no later than now and has {_MOST_HOURS.days} days at most"
        raise Refused(422, words, fields={"since": words})
    return begin
