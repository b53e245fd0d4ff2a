"""Endpoint Cache: make a rule or change one; the target is tried before it is saved."""

from typing import Annotated, Final, Literal

import msgspec
from fastapi import APIRouter, Depends, Form, Query, Request, Response

from shared.delivery.probe import Found
from shared.delivery.trial import tried, unusable
from shared.mail.route import Tls, Transport
from shared.mail.rule import Rule, RuleError, make_rule, parse_expiry, parse_key, parse_share
from shared.runtime.clock import now
from shared.store.overrides import ConflictError
from workers.panel.access import Operator
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.rules import changing, told
from workers.panel.pages.view import BIGGEST, Line, Page, View, url

router = APIRouter(prefix="/endpoint-cache")

_SHORT: Final = 60  # characters of a span or a share


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """The form as somebody filled it in.

    Attributes:
        seen: The version of the rules that they saw; 0 for a rule that is new.
        force: Save it whatever the probe finds.
    """

    key: str = ""
    target: str = ""
    comment: str = ""
    transport: Transport = "auto"
    tls: Literal["", "verify", "encrypt", "none"] = ""
    ends: str = ""
    share: str = ""
    enabled: bool = True
    seen: int = 0
    force: bool = False

    def rule(self) -> Rule:
        """Return the rule.

        Raises:
            RuleError: It is not acceptable.
        """
        tls: Tls | None = self.tls or None
        return make_rule(
            self.key,
            self.target,
            comment=self.comment,
            transport=self.transport,
            tls=tls,
            expires_at=parse_expiry(self.ends, now()) if self.ends else None,
            share=parse_share(self.share) if self.share else None,
            enabled=self.enabled,
        )


def filled(
    *,
    key: Annotated[Line, Form(max_length=300)] = "",
    target: Annotated[Line, Form()] = "",
    comment: Annotated[Line, Form()] = "",
    transport: Annotated[Transport, Form()] = "auto",
    tls: Annotated[Literal["", "verify", "encrypt", "none"], Form()] = "",
    ends: Annotated[Line, Form(max_length=_SHORT)] = "",
    share: Annotated[Line, Form(max_length=_SHORT)] = "",
    enabled: Annotated[Literal["", "yes"], Form()] = "",
    seen: Annotated[int, Form(ge=0, le=BIGGEST)] = 0,
    force: Annotated[Literal["", "yes"], Form()] = "",
) -> Filled:
    """Return the form as it was sent."""
    return Filled(
        key=key,
        target=target,
        comment=comment,
        transport=transport,
        tls=tls,
        ends=ends,
        share=share,
        enabled=bool(enabled),
        seen=seen,
        force=bool(force),
    )


Form_ = Annotated[Filled, Depends(filled)]


@router.get("/new")
async def new(view: Page, who: Operator, key: Annotated[Line, Query(max_length=300)] = "") -> Response:
    """Show an empty form."""
    del who
    return _form(view, Filled(key=key), edits=False)


@router.get("/edit")
async def edit(view: Page, who: Operator, fleet: Ours, key: Annotated[Line, Query(max_length=300)]) -> Response:
    """Show the form of a rule that is there."""
    del who
    lookup_key = parse_key(key)
    stored = await fleet.overrides.get(lookup_key)
    if stored is None:
        raise Refused(404, f"there is no rule for {lookup_key}")
    return _form(view, _shown(stored.rule), edits=True)


def _shown(rule: Rule) -> Filled:
    """Return the form of a rule that is there."""
    return Filled(
        key=rule.lookup_key,
        target=rule.target_host,
        comment=rule.comment,
        transport=rule.transport,
        tls=rule.tls or "",
        ends=rule.expires_at.isoformat(timespec="seconds") if rule.expires_at else "",
        share=f"{rule.share}%" if rule.share else "",
        enabled=rule.enabled,
        seen=rule.version,
    )


@router.post("/probe")
async def try_(request: Request, view: Page, who: Operator, fleet: Ours, form: Form_) -> Response:
    """Try the target and show what is there, within the form; nothing is saved."""
    del who
    found: list[Found] = []
    fault = ""
    try:
        found = await tried(fleet.settings, form.rule())
    except RuleError as error:
        fault = str(error)
    if "hx-request" in request.headers:
        return view.show("probed.html", found=found, refused=unusable(found), probe_fault=fault)
    return _form(view, form, edits=form.seen > 0, found=found, fault=fault)


@router.post("/new")
async def make(view: Page, who: Operator, fleet: Ours, form: Form_) -> Response:
    """Make a rule; refuse where there is one with this key."""
    return await _save(view, who, fleet, form, edits=False)


@router.post("/edit")
async def change_(view: Page, who: Operator, fleet: Ours, form: Form_) -> Response:
    """Change a rule that is still what the form was made from."""
    return await _save(view, who, fleet, form, edits=True)


async def _save(view: View, who: Operator, fleet: Ours, form: Filled, *, edits: bool) -> Response:
    try:
        rule = form.rule()
        seen = form.seen if edits else await _free(fleet, rule.lookup_key)
        found = [] if form.force else await tried(fleet.settings, rule)
        if unusable(found):
            return _form(view, form, edits=edits, found=found)
        change = changing(fleet, who)
        if edits:
            rule = await _as_it_was(fleet, rule, form)
        saved = await change.rules.set(rule, actor=who.name, release=True, if_version=seen, only_changed=True)
    except (RuleError, ConflictError) as error:
        return _form(view, form, edits=edits, fault=f"{error}")
    warnings = [warning for each in found for warning in each.warnings]
    if rule.expires_at and any(each.before and not each.before.expires_at for each in saved.changes):
        warnings.append("The rule had no end before. When it ends now, mail goes where it would go without a rule.")
    followed = await change.follow(saved)
    words = f"{rule.lookup_key} → {rule.target_host}"
    return told(view, followed, url("/endpoint-cache/rule", key=rule.lookup_key), words, *warnings)


async def _as_it_was(fleet: Fleet, rule: Rule, form: Filled) -> Rule:
    """Return the rule with what nobody has typed as it was: a form has less of a time, and of the ends of a comment."""
    stored = await fleet.overrides.get(rule.lookup_key)
    if stored is None or stored.rule.version != form.seen:
        return rule  # which is refused
    shown = _shown(stored.rule)
    if form.ends == shown.ends:
        rule = msgspec.structs.replace(rule, expires_at=stored.rule.expires_at)
    if form.comment == shown.comment.strip():
        rule = msgspec.structs.replace(rule, comment=stored.rule.comment)
    return rule


async def _free(fleet: Fleet, key: str) -> int:
    """Return a version at which there is no rule with this key.

    Raises:
        ConflictError: There is one.
    """
    version = (await fleet.overrides.versions()).version
    if await fleet.overrides.get(key) is not None:
        raise ConflictError(f"there is a rule for {key} already: edit that one")
    return version


def _form(view: View, form: Filled, *, edits: bool, found: list[Found] | None = None, fault: str = "") -> Response:
    refused = unusable(found or [])
    return view.show(
        "rule_form.html",
        status=422 if fault or refused else 200,
        form=form,
        edits=edits,
        found=found or [],
        refused=refused,
        probe_fault="",
        fault=fault,
    )
