"""/api/v1/queue/stats: how much waits where, for how long, and which next hops are left alone."""

import asyncio
from datetime import datetime

from fastapi import APIRouter
from pydantic import Field

from shared.runtime.clock import now
from shared.runtime.errors import BrokerUnavailable
from shared.store.deferred import Deferred
from shared.store.hops import NextHops, State
from shared.store.waiting import AGES, WaitingMail
from workers.panel.access import Viewer
from workers.panel.api.shape import Limit, Told
from workers.panel.fleet import Fleet, Ours

router = APIRouter(prefix="/queue", tags=["mail"])


class TotalOut(Told):
    """What waits for one domain, last tried at one target."""

    domain: str
    target: str
    deliveries: int
    bytes: int
    oldest: datetime
    next_attempt_at: datetime
    put_off: int = Field(description="Those for which a transport had no room")


class AgesOut(Told):
    """How long the mail for one domain has been here."""

    domain: str
    deliveries: int
    oldest: datetime
    counts: list[int] = Field(description=f"Younger than {AGES[0]} minutes, than {AGES[1]}, ..., older than {AGES[-1]}")


class HopOut(Told):
    """A next hop that is left alone for a while."""

    hop: str
    state: State
    until: datetime
    reason: str


class StatsOut(Told):
    """How much waits where."""

    queues: dict[str, int] | None = Field(description="Messages ready in the broker's queues; null while it is away")
    broker_away: str | None
    waiting: int = Field(description="Deliveries that wait for their next attempt")
    domains: list[TotalOut] = Field(description="The most first")
    ages: list[AgesOut] = Field(description="The most first")
    hops: list[HopOut]


@router.get("/stats")
async def stats(who: Viewer, fleet: Ours, *, limit: Limit = 100) -> StatsOut:
    """Show how much waits, of domains and next hops those with the most."""
    del who
    deferred, waiting = Deferred(fleet.pool), WaitingMail(fleet.pool)
    (queues, away), count, totals, ages, hops = await asyncio.gather(
        _queues(fleet),
        deferred.count(),
        deferred.totals(limit=limit),
        waiting.ages(now(), limit=limit),
        NextHops(fleet.pool).current(limit=limit),
    )
    return StatsOut(
        queues=queues,
        broker_away=away,
        waiting=count,
        domains=[TotalOut.model_validate(each) for each in totals],
        ages=[AgesOut.model_validate(each) for each in ages],
        hops=[HopOut.model_validate(each) for each in hops],
    )


async def _queues(fleet: Fleet) -> tuple[dict[str, int] | None, str | None]:
    try:
        return await fleet.depths.all(), None
    except BrokerUnavailable as error:
        return None, str(error)
