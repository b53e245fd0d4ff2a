"""/api/v1/history and /api/v1/rollback: what was changed, and how to take it back."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from shared.mail.rule import Rule, parse_key
from shared.runtime.clock import now
from shared.store.overrides import Change as Difference
from workers.panel.access import Viewer
from workers.panel.api.change import Asks, FollowedOut, changing, followed_out
from workers.panel.api.rule import RuleOut
from workers.panel.api.shape import BIGGEST, CONFLICT, LINE, MAX_KEY, Asked, Limit, Told
from workers.panel.errors import Refused
from workers.panel.fleet import Ours

router = APIRouter(tags=["rules"])

SHOWN = 100  # changes that an answer names


class DifferenceOut(Told):
    """One rule before and after; null where there is none."""

    lookup_key: str
    before: RuleOut | None
    after: RuleOut | None


class RecordedOut(DifferenceOut):
    """One change of the history."""

    version: int
    at: datetime
    actor: str
    action: str


class HistoryOut(Told):
    """A page of the history, the latest first."""

    history: list[RecordedOut]
    next: str | None = Field(description="`before` for the next page; null on the last one")


class DifferencesOut(Told):
    """What a change of many rules does, or would do."""

    added: int
    altered: int
    removed: int
    changes: list[DifferenceOut] = Field(description=f"The first {SHOWN}")
    dry_run: bool = Field(description="Nothing was changed")
    change: FollowedOut | None = Field(description="What came of it; null for a dry run")


class RollbackIn(Asked):
    """Which version to go back to."""

    version: Annotated[int, Field(ge=0, le=BIGGEST)]
    dry_run: bool = False


@router.get("/history")
async def history(
    who: Viewer,
    fleet: Ours,
    key: Annotated[str | None, Query(min_length=1, max_length=MAX_KEY, pattern=LINE)] = None,
    before: Annotated[
        str | None, Query(max_length=MAX_KEY + 20, pattern=r"^[0-9]{1,18} [^\x00-\x1f\x7f-\x9f]*$")
    ] = None,
    limit: Limit = 100,
) -> HistoryOut:
    """Show who changed what and when."""
    del who
    version, _, last = (before or "").partition(" ")
    place = (int(version), last) if version else None
    found = await fleet.overrides.history(None if key is None else parse_key(key), limit=limit + 1, before=place)
    told = [
        RecordedOut(
            version=each.version,
            at=each.at,
            actor=each.actor,
            action=each.action,
            lookup_key=each.change.lookup_key,
            before=_side(each.change.before),
            after=_side(each.change.after),
        )
        for each in found[:limit]
    ]
    return HistoryOut(history=told, next=f"{told[-1].version} {told[-1].lookup_key}" if len(found) > limit else None)


@router.post("/rollback", responses=CONFLICT)
async def rollback(fleet: Ours, body: RollbackIn, ask: Asks) -> DifferencesOut:
    """Make the rules what they were at a version, as one new version. Rules that have ended since stay away."""
    if body.version > (latest := (await fleet.overrides.versions()).version):
        raise Refused(
            422, f"there is no version {body.version}: the latest is {latest}", fields={"version": "there is none"}
        )
    change = changing(fleet, ask)
    saved = await change.rules.rollback(
        body.version,
        actor=ask.actor,
        release=ask.release,
        now=now(),
        if_version=ask.if_version,
        dry=body.dry_run,
    )
    followed = None if body.dry_run else followed_out(await change.follow(saved))
    return differences(saved.changes, followed)


def differences(changes: tuple[Difference, ...], followed: FollowedOut | None) -> DifferencesOut:
    """Return what is told of a change of many rules; of a dry run when nothing followed."""
    return DifferencesOut(
        added=sum(each.before is None for each in changes),
        altered=sum(each.before is not None and each.after is not None for each in changes),
        removed=sum(each.after is None for each in changes),
        changes=[DifferenceOut.model_validate(each) for each in changes[:SHOWN]],
        dry_run=followed is None,
        change=followed,
    )


def _side(rule: Rule | None) -> RuleOut | None:
    return None if rule is None else RuleOut.model_validate(rule)
