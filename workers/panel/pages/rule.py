"""Endpoint Cache: one rule whole, its end, and its removal."""

from datetime import UTC
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Form, Query, Response

from shared.mail.rule import ANY, Rule, parse_expiry, parse_key
from shared.runtime.clock import now
from shared.store.overrides import ConflictError
from workers.panel.access import Operator
from workers.panel.errors import Refused
from workers.panel.fleet import Ours
from workers.panel.pages.rules import Key, Seen, changing, existing, overtaken, rule_of, told
from workers.panel.pages.telling import options
from workers.panel.pages.view import Line, Page, View, url

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
    *, view: Page, who: Operator, fleet: Ours, key: Key, seen: Seen, ends: Annotated[Line, Form(max_length=60)] = ""
) -> Response:
    """Set or take away the end of a rule; refuse when it was changed since it was seen."""
    rule = await rule_of(fleet, parse_key(key))
    path = url("/endpoint-cache/rule", key=rule.lookup_key)
    expires_at = parse_expiry(ends, now()) if ends else None
    change = changing(fleet, who)
    try:
        saved = await change.rules.set(
            msgspec.structs.replace(rule, expires_at=expires_at),
            actor=who.name,
            release=True,
            if_version=seen,
            only_changed=True,
        )
    except ConflictError as error:
        return overtaken(view, path, error)
    end = "has no end" if expires_at is None else f"ends at {expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return told(view, await change.follow(saved), path, f"{rule.lookup_key} → {rule.target_host} {end}")


@router.get("/remove")
async def ask(view: Page, who: Operator, fleet: Ours, key: KeyAsked) -> Response:
    """Ask before a rule is removed."""
    del who
    return _asked(view, await rule_of(fleet, parse_key(key)))


@router.post("/remove")
async def remove(view: Page, who: Operator, fleet: Ours, key: Key, seen: Seen) -> Response:
    """Remove a rule that is still what was asked about; else ask again."""
    rule = await rule_of(fleet, parse_key(key))
    if rule.version != seen:
        return _asked(view, rule, refused="The rule was changed meanwhile, so nothing was removed. Look again:")
    lookup_key = rule.lookup_key
    change = changing(fleet, who)
    try:
        saved = existing(
            await change.rules.remove(lookup_key, actor=who.name, release=True, if_version=seen), lookup_key
        )
    except ConflictError as error:  # in the moment since we looked
        return _asked(view, await rule_of(fleet, lookup_key), refused=f"Nothing was removed: {error}.")
    words = f"{lookup_key} → {rule.target_host} removed"
    return told(view, await change.follow(saved), "/endpoint-cache", words)


def _asked(view: View, rule: Rule, *, refused: str = "") -> Response:
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
