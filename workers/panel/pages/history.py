"""Endpoint Cache: who changed what and when, and how to take it back: one change, or all since a version."""

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Form, Query, Response

from shared.mail.rule import Rule, parse_key
from shared.runtime.clock import now
from shared.store.overrides import Change, ConflictError, Recorded
from workers.panel.access import Operator
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.rule import KeyAsked
from workers.panel.pages.rules import Key, changing, told
from workers.panel.pages.telling import summary
from workers.panel.pages.view import BIGGEST, Line, Page, View, url

router = APIRouter(prefix="/endpoint-cache")

ROWS: Final = 50


# The one after it is looked for, too.
Version = Annotated[int, Query(ge=0, le=BIGGEST - 1)]
VersionSent = Annotated[int, Form(ge=0, le=BIGGEST - 1)]


@router.get("/history")
async def list_(
    view: Page,
    fleet: Ours,
    key: Annotated[Line, Query(max_length=300)] = "",
    before: Annotated[int | None, Query(ge=0, le=BIGGEST)] = None,
    last: Annotated[Line, Query(max_length=300)] = "",
) -> Response:
    """Show the changes, the latest first."""
    lookup_key = parse_key(key) if key else None
    place = None if before is None else (before, last)
    found = await fleet.overrides.history(lookup_key, limit=ROWS + 1, before=place)
    end = found[ROWS - 1] if len(found) > ROWS else None
    return view.show(
        "history.html",
        history=found[:ROWS],
        key=key,
        fault="" if found or not key else f"The rule {lookup_key} was never there",
        first=url("/endpoint-cache/history", key=key) if before is not None else None,
        next=url("/endpoint-cache/history", key=key, before=end.version, last=end.change.lookup_key) if end else None,
    )


@router.get("/undo")
async def ask_undo(view: Page, who: Operator, fleet: Ours, version: Version, key: KeyAsked) -> Response:
    """Ask before one change is taken back."""
    del who
    return await _undo_asked(view, fleet, await _recorded(fleet, version, parse_key(key)))


@router.post("/undo")
async def undo(
    *, view: Page, who: Operator, fleet: Ours, version: VersionSent, key: Key, seen: VersionSent
) -> Response:
    """Take one change back: the rule is again what it was before; refuse when it was changed since the question."""
    recorded = await _recorded(fleet, version, parse_key(key))
    lookup_key = recorded.change.lookup_key
    if _has_ended(recorded):
        return await _undo_asked(view, fleet, recorded, refused="Nothing was changed.")
    change = changing(fleet, who)
    try:
        saved = await change.rules.apply(
            {lookup_key: recorded.change.before},
            actor=who.name,
            release=True,
            action=f"undo of {version}",
            if_version=seen,
            only_changed=True,
        )
    except ConflictError as error:
        return await _undo_asked(view, fleet, recorded, refused=f"Nothing was changed: {error}.")
    followed = await change.follow(saved)
    return told(
        view, followed, url("/endpoint-cache/rule", key=lookup_key), f"Version {version} of {lookup_key} undone"
    )


@router.get("/rollback")
async def ask_rollback(view: Page, who: Operator, fleet: Ours, version: Version) -> Response:
    """Show what would differ, and ask."""
    return await _rollback_asked(view, who, fleet, version)


@router.post("/rollback")
async def rollback(view: Page, who: Operator, fleet: Ours, version: VersionSent, seen: VersionSent) -> Response:
    """Make the rules what they were; refuse when any was changed since the question."""
    change = changing(fleet, who)
    try:
        saved = await change.rules.rollback(version, actor=who.name, release=True, now=now(), if_version=seen)
    except ConflictError as error:
        return await _rollback_asked(view, who, fleet, version, refused=f"Nothing was changed: {error}.")
    words = f"Back to version {version}, {summary(saved.changes)}"
    return told(view, await change.follow(saved), "/endpoint-cache/history", words)


async def _recorded(fleet: Fleet, version: int, key: str) -> Recorded:
    # From the version after it on, so that it is the first one found.
    found = await fleet.overrides.history(key, limit=1, before=(version + 1, "\U0010ffff"))
    if not found or found[0].version != version:
        raise Refused(404, f"version {version} did not change {key}")
    return found[0]


async def _undo_asked(view: View, fleet: Fleet, recorded: Recorded, *, refused: str = "") -> Response:
    key, version = recorded.change.lookup_key, recorded.version
    latest = (await fleet.overrides.versions()).version
    stored = await fleet.overrides.get(key)
    change = Change(lookup_key=key, before=stored.rule if stored else None, after=recorded.change.before)
    same = _says(change.before) == _says(change.after)
    nothing = same or _has_ended(recorded)
    since = (await fleet.overrides.history(key, limit=1))[0]
    lines = [f"What {recorded.actor} did to {key} in version {version} is taken back. Then:"]
    if _has_ended(recorded):
        lines = [f"The rule {key} was temporary before version {version}, and it has ended: it cannot come back."]
    elif same:
        lines = [f"The rule {key} already is what it was before version {version}: there is nothing to undo."]
    elif since.version > version:
        lines.append(f"It was changed since, last by {since.actor} in version {since.version}; that is lost, too.")
    return view.show(
        "confirm.html",
        status=409 if refused else 200,
        title=f"Undo version {version} of {key}?",
        refused=refused,
        lines=lines,
        facts=(),
        changes=() if nothing else (change,),
        action="/endpoint-cache/undo",
        fields={"version": version, "key": key, "seen": latest},
        button="Undo it",
        danger=False,
        nothing=nothing,
        back=url("/endpoint-cache/history", key=key),
        trail="History",
    )


async def _rollback_asked(view: View, who: Operator, fleet: Fleet, version: int, *, refused: str = "") -> Response:
    latest = (await fleet.overrides.versions()).version
    saved = await fleet.overrides.rollback(version, actor=who.name, release=False, now=now(), dry=True)
    return view.show(
        "confirm.html",
        status=409 if refused else 200,
        title=f"Back to version {version}?",
        refused=refused,
        lines=(
            f"All rules become what they were right after version {version}: {summary(saved.changes)}.",
            "It is one new version, which can be taken back as well. Rules that have ended since stay away.",
        ),
        facts=(),
        changes=saved.changes,
        action="/endpoint-cache/rollback",
        fields={"version": version, "seen": latest},
        button=f"Go back to version {version}",
        danger=True,
        nothing=not saved.changed,
        back="/endpoint-cache/history",
        trail="History",
    )


def _has_ended(recorded: Recorded) -> bool:
    """Say whether what a change is to be taken back to is a rule whose time is over."""
    before = recorded.change.before
    return before is not None and before.expires_at is not None and before.expires_at <= now()


def _says(rule: object) -> object:
    """Return what a rule says; the version that wrote it is no part of that."""
    return rule if not isinstance(rule, Rule) else msgspec.structs.replace(rule, version=0)
