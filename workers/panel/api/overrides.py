"""/api/v1/overrides: the rules, one at a time."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from shared.fleet.change import Change, How
from shared.mail.rule import parse_key
from shared.store.overrides import Saved, State, Stored
from workers.panel.access import Viewer
from workers.panel.api.change import Asks, WrittenOut, no_rule, written
from workers.panel.api.rule import RuleIn, RulePatch, StoredOut, stored_out
from workers.panel.api.shape import CONFLICT, LINE, MAX_KEY, Key, Limit, Search, Told, missing
from workers.panel.fleet import Fleet, Ours

router = APIRouter(prefix="/overrides", tags=["rules"])
_NO_RULE = missing("rule")


class OverridesOut(Told):
    """A page of rules."""

    overrides: list[StoredOut]
    total: int = Field(description="On all pages")
    next: str | None = Field(description="`after` for the next page; null on the last one")


@router.get("")
async def list_(
    who: Viewer,
    fleet: Ours,
    *,
    search: Search = None,
    state: Annotated[State | None, Query(description="Only those in use, not in use, or with an end")] = None,
    after: Annotated[str | None, Query(max_length=MAX_KEY, pattern=LINE, description="`next` of the last page")] = None,
    limit: Limit = 100,
) -> OverridesOut:
    """Show rules by key, a page at a time."""
    del who
    found, total = await asyncio.gather(
        fleet.overrides.page(search, after=after, limit=limit + 1, state=state),
        fleet.overrides.count(search, state=state),
    )
    return OverridesOut(
        overrides=[stored_out(each) for each in found[:limit]],
        total=total,
        next=found[limit - 1].rule.lookup_key if len(found) > limit else None,
    )


@router.get("/{key}", responses=_NO_RULE)
async def get(who: Viewer, fleet: Ours, key: Key) -> StoredOut:
    """Show one rule."""
    del who
    return stored_out(await _stored(fleet, key))


@router.put("/{key}", responses=CONFLICT)
async def put(fleet: Ours, key: Key, body: RuleIn, ask: Asks) -> WrittenOut:
    """Make a rule, or put it in the place of the one with its key. Try it with `probe` first."""
    rule = body.rule(key)

    async def write(change: Change) -> Saved:
        return await change.rules.set(
            rule, actor=ask.actor, release=ask.release, if_version=ask.if_version, only_changed=True
        )

    return await written(fleet, ask, rule.lookup_key, write)


@router.patch("/{key}", responses=CONFLICT | _NO_RULE)
async def patch(fleet: Ours, key: Key, body: RulePatch, ask: Asks) -> WrittenOut:
    """Change some of a rule."""
    # What is not named must stay as it is also when somebody changes it between our look and our write.
    seen = await fleet.overrides.versions()
    rule = body.rule((await _stored(fleet, key)).rule)
    since = seen.version if ask.if_version is None else ask.if_version

    async def write(change: Change) -> Saved:
        return await change.rules.set(rule, actor=ask.actor, release=ask.release, if_version=since, only_changed=True)

    return await written(fleet, ask, rule.lookup_key, write)


@router.delete("/{key}", responses=CONFLICT | _NO_RULE)
async def delete(fleet: Ours, key: Key, ask: Asks) -> WrittenOut:
    """Remove a rule: its mail goes where it would go without it."""
    lookup_key = parse_key(key)

    async def write(change: Change) -> Saved | None:
        return await change.rules.remove(lookup_key, actor=ask.actor, release=ask.release, if_version=ask.if_version)

    return await written(fleet, ask, lookup_key, write)


@router.post("/{key}/enable", responses=CONFLICT | _NO_RULE)
async def enable(fleet: Ours, key: Key, ask: Asks) -> WrittenOut:
    """Take a rule into use again."""
    return await _switch(fleet, key, ask, enabled=True)


@router.post("/{key}/disable", responses=CONFLICT | _NO_RULE)
async def disable(fleet: Ours, key: Key, ask: Asks) -> WrittenOut:
    """Take a rule out of use, and keep it."""
    return await _switch(fleet, key, ask, enabled=False)


async def _switch(fleet: Fleet, key: str, ask: How, *, enabled: bool) -> WrittenOut:
    lookup_key = parse_key(key)

    async def write(change: Change) -> Saved | None:
        return await change.rules.enable(
            lookup_key,
            enabled=enabled,
            actor=ask.actor,
            release=ask.release,
            if_version=ask.if_version,
            only_changed=True,
        )

    return await written(fleet, ask, lookup_key, write)


async def _stored(fleet: Fleet, key: str) -> Stored:
    lookup_key = parse_key(key)
    if (stored := await fleet.overrides.get(lookup_key)) is None:
        raise no_rule(lookup_key)
    return stored
