"""What every change of the rules has in common: what is asked of it, and what is told of it."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from fastapi import Depends, Query
from pydantic import Field

from shared.fleet.change import Change, Followed, How, ends_for_good
from shared.fleet.release import WAIT
from shared.store.overrides import Saved
from workers.panel.access import Operator
from workers.panel.api.rule import StoredOut, stored_out
from workers.panel.api.shape import BIGGEST, Told
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet

Write = Callable[[Change], Awaitable[Saved | None]]


class AppliedOut(Told):
    """How far a release has come."""

    version: int
    applied: list[str] = Field(description="Routers that publish nothing under older rules any more")
    late: list[str] = Field(description="Routers that have not applied it in time, and may still route by older rules")
    gone: list[str] = Field(description="Routers that ended without signing out; fenced off until they have the rules")
    milliseconds: float
    broker_away: str | None = Field(description="Why the reload event could not be published")


class FollowedOut(Told):
    """What came of a change."""

    version: int = Field(description="Of the rules, with the change")
    changed: bool = Field(description="Whether anything differed")
    waited: bool = Field(description="Whether it was waited for the routers")
    earlier: int = Field(description="Changes that had been saved without a release, and were released with it")
    applied: AppliedOut | None = Field(description="null when it was only saved")
    due: int = Field(description="Waiting deliveries that are due now")
    sentence: str = Field(description="All of it, for people")


class WrittenOut(Told):
    """A change of one rule."""

    override: StoredOut | None = Field(description="As it is now; null when it was removed")
    change: FollowedOut
    warnings: list[str] = Field(description="Sentences for people")


def _how(
    who: Operator,
    *,
    release: Annotated[bool, Query(description="false only saves it; a reload applies it")] = True,
    wait: Annotated[
        float, Query(ge=0, le=60, allow_inf_nan=False, description="Seconds to wait for the routers; 0 does not wait")
    ] = WAIT,
    flush: Annotated[bool, Query(description="false leaves waiting mail until its next attempt")] = True,
    if_version: Annotated[
        int | None, Query(ge=0, le=BIGGEST, description="Refuse when somebody changed the same after this version")
    ] = None,
) -> How:
    return How(actor=who.name, release=release, wait=wait, flush=flush, if_version=if_version)


Asks = Annotated[How, Depends(_how)]


def changing(fleet: Fleet, ask: How) -> Change:
    """Return a change that is to be made."""
    return Change(fleet.pool, ask, fleet.connected)


async def written(fleet: Fleet, ask: How, key: str, write: Write) -> WrittenOut:
    """Make a change of one rule, and do what follows it.

    Raises:
        Refused: There is no rule with the key.
        RuleError: The rule closes a circle.
        ConflictError: Somebody else changed it.
        StoreUnavailable: What is said of it tells how far it came.
    """
    change = changing(fleet, ask)
    saved = await write(change)
    if saved is None:
        raise no_rule(key)
    followed = await change.follow(saved)
    stored = await fleet.overrides.get(key)
    return WrittenOut(
        override=None if stored is None else stored_out(stored),
        change=followed_out(followed),
        warnings=ends_for_good(saved),
    )


def followed_out(followed: Followed) -> FollowedOut:
    """Return what is told of a change."""
    applied = None if followed.applied is None else msgspec.structs.asdict(followed.applied)
    fields = msgspec.structs.asdict(followed) | {"applied": applied, "sentence": followed.sentence()}
    return FollowedOut.model_validate(fields)


def no_rule(key: str) -> Refused:
    """Return what is told of a rule that is not there."""
    return Refused(404, f"there is no rule for {key}")
