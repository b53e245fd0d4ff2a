"""/api/v1/reload and /api/v1/routers: release what was saved, and see who has applied it."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from shared.fleet.change import How
from shared.fleet.release import WAIT
from workers.panel.access import Operator, Viewer
from workers.panel.api.change import FollowedOut, changing, followed_out
from workers.panel.api.shape import Told
from workers.panel.fleet import Ours

router = APIRouter(tags=["routers"])


class RouterOut(Told):
    """A router."""

    name: str
    started_at: datetime
    seen_at: datetime = Field(description="Its last sign of life")
    applied: int = Field(description="It publishes nothing under rules older than this version")
    live: bool
    state: Literal["current", "behind", "silent"]


class RoutersOut(Told):
    """Every router that is signed in."""

    version: int = Field(description="The latest version of the rules")
    released: int = Field(description="The version that routers are to apply")
    routers: list[RouterOut]


@router.get("/routers")
async def routers(who: Viewer, fleet: Ours) -> RoutersOut:
    """Show the routers, and the version of the rules that each has applied."""
    del who
    versions = await fleet.overrides.versions()
    told = []
    for each in await fleet.routers.all():
        current = each.applied >= versions.released
        state: Literal["current", "behind", "silent"] = (
            "silent" if not each.live else "current" if current else "behind"
        )
        told.append(
            RouterOut(
                name=each.name,
                started_at=each.started_at,
                seen_at=each.seen_at,
                applied=each.applied,
                live=each.live,
                state=state,
            )
        )
    return RoutersOut(version=versions.version, released=versions.released, routers=told)


@router.post("/reload")
async def reload(
    who: Operator,
    fleet: Ours,
    *,
    wait: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False, description="Seconds to wait for them")] = WAIT,
    flush: Annotated[bool, Query(description="false leaves waiting mail until its next attempt")] = True,
) -> FollowedOut:
    """Release every saved change; answers when every live router has applied it."""
    change = changing(fleet, How(actor=who.name, release=True, wait=wait, flush=flush, if_version=None))
    await fleet.audit.record(actor=who.name, via=who.via, action="reload", object="rules")
    return followed_out(await change.release(await change.rules.release()))
