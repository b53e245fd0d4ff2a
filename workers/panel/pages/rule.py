"""Endpoint Cache: one rule whole, its end, and its removal."""

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Form, Query, Response

from shared.mail.rule import ANY, parse_expiry, parse_key
from shared.runtime.clock import now
from shared.store.overrides import Stored
from workers.panel.access import Operator
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.rules import Key, changing, existing, told
from workers.panel.pages.telling import options
from workers.panel.pages.view import BIGGEST, Line, Page, View, url

router = APIRouter(prefix="/endpoint-cache")

_CHANGES: Final = 20  # of its history that are shown
KeyAsked = Annotated[Line, Query(max_length=300)]


@router.get("/rule")
async def show(view: Page, fleet: Ours, key: KeyAsked) -> Response:
    """Show a rule, or what one was that is gone."""
    lookup_key = parse_key(key)
    stored = await fleet.overrides.get(lookup_key)
    history = await fleet.overrides.history(lookup_key, limit=_CHANGES)
    if stored is None and not history:
        raise Refused(404, f"there is no rule for {lookup_key}")
    return view.show(
        "rule.html", key=lookup_key, domain=_example(lookup_key), stored=stored, history=history, first=None, next=None
    )


@router.post("/expire")
async def expire(
    view: Page, who: Operator, fleet: Ours, key: Key, ends: Annotated[Line, Form(max_length=60)] = ""
) -> Response:
    """Set or take away the end of a rule."""
    stored = await _stored(fleet, parse_key(key))
    lookup_key = stored.rule.lookup_key
    expires_at = parse_expiry(ends, now()) if ends else None
    change = changing(fleet, who)
    saved = await change.rules.set(
        msgspec.structs.replace(stored.rule, expires_at=expires_at),
        actor=who.name,
        release=True,
        # It was read a moment ago; what somebody changed since is not put back.
        if_version=stored.rule.version,
    )
    followed = await change.follow(saved)
    words = (
        f"{lookup_key} has no end" if expires_at is None else f"{lookup_key} ends at {expires_at:%Y-%m-%d %H:%M} UTC"
    )
    return told(view, followed, url("/endpoint-cache/rule", key=lookup_key), words)


@router.get("/remove")
async def ask(view: Page, who: Operator, fleet: Ours, key: KeyAsked) -> Response:
    """Ask before a rule is removed."""
    del who
    return _asked(view, await _stored(fleet, parse_key(key)))


@router.post("/remove")
async def remove(
    view: Page, who: Operator, fleet: Ours, key: Key, seen: Annotated[int, Form(ge=0, le=BIGGEST)]
) -> Response:
    """Remove a rule that is still what was asked about; else ask again."""
    stored = await _stored(fleet, parse_key(key))
    if stored.rule.version != seen:
        return _asked(view, stored, refused="The rule was changed meanwhile, so nothing was removed. Look again:")
    lookup_key = stored.rule.lookup_key
    change = changing(fleet, who)
    saved = await change.rules.remove(lookup_key, actor=who.name, release=True, if_version=seen)
    return told(view, await change.follow(existing(saved, lookup_key)), "/endpoint-cache", f"{lookup_key} removed")


async def _stored(fleet: Fleet, key: str) -> Stored:
    stored = await fleet.overrides.get(key)
    if stored is None:
        raise Refused(404, f"there is no rule for {key}")
    return stored


def _asked(view: View, stored: Stored, *, refused: str = "") -> Response:
    rule = stored.rule
    return view.show(
        "confirm.html",
        status=409 if refused else 200,
        title=f"Remove the rule for {rule.lookup_key}?",
        refused=refused,
        lines=("Its mail goes where it would go without this rule, at once, and so does what waits.",),
        facts=(
            ("Rule", f"{rule.lookup_key} → {rule.target_host} {options(rule)}"),
            ("Comment", rule.comment or "none"),
            ("Version", rule.version),
        ),
        action="/endpoint-cache/remove",
        fields={"key": rule.lookup_key, "seen": rule.version},
        button="Remove the rule",
        danger=True,
        nothing=False,
        back=url("/endpoint-cache/rule", key=rule.lookup_key),
        trail=rule.lookup_key,
    )


def _example(key: str) -> str:
    """Return a domain to which a rule with this key applies."""
    if key == ANY:
        return "any.example"
    return f"some.{key.removeprefix('*.')}" if key.startswith("*.") else key
