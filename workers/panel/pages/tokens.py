"""Tokens: who may open the panel and the admin API. For admins."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Form, Query, Response

from shared.mail.rule import RuleError, parse_expiry
from shared.runtime.clock import now
from shared.store.tokens import Role, TakenError, TokenError
from workers.panel.access import Admin
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.view import Line, Page, View

router = APIRouter(prefix="/tokens")

Name = Annotated[Line, Form(max_length=100)]


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """The form as somebody filled it in."""

    name: str = ""
    role: str = "operator"
    expires: str = ""


@router.get("")
async def list_(view: Page, who: Admin, fleet: Ours) -> Response:
    """Show the tokens, without their secrets."""
    del who
    return await _show(view, fleet, Filled())


@router.post("")
async def make(
    *,
    view: Page,
    who: Admin,
    fleet: Ours,
    name: Name,
    role: Annotated[Role, Form()],
    expires: Annotated[Line, Form(max_length=60)] = "",
) -> Response:
    """Make a token and show its secret: in this answer only, so there is no redirect that could carry it."""
    form = Filled(name=name, role=role, expires=expires)
    try:
        ends = parse_expiry(expires, now()) if expires else None
        secret = await fleet.tokens.make(name, role, by=who.name, via=who.via, expires_at=ends)
    except (TokenError, TakenError, RuleError) as error:
        return await _show(view, fleet, form, fault=str(error))
    return await _show(view, fleet, Filled(), secret=secret, made=name)


@router.get("/revoke")
async def ask(view: Page, who: Admin, fleet: Ours, name: Annotated[Line, Query(max_length=100)]) -> Response:
    """Ask before a token is revoked."""
    del who
    token = await fleet.tokens.get(name)
    if token is None:
        raise Refused(404, f"there is no token {name!r}")
    return view.show(
        "confirm.html",
        title=f"Revoke the token of {token.name}?",
        refused="",
        lines=(
            "Whoever uses it is out at once, and so is every session that was opened with it. It does not come back.",
        ),
        facts=(("Role", token.role), ("Made by", token.created_by)),
        action="/tokens/revoke",
        fields={"name": token.name},
        button="Revoke it",
        danger=True,
        nothing=not token.live,
        back="/tokens",
        trail="Tokens",
    )


@router.post("/revoke")
async def revoke(view: Page, who: Admin, fleet: Ours, name: Name) -> Response:
    """End a token."""
    ended = await fleet.tokens.revoke(name, by=who.name, via=who.via)
    if ended is None:
        raise Refused(404, f"there is no token {name!r}")
    return view.done("/tokens", f"The token of {name} is revoked{'' if ended else ', as it was'}.")


async def _show(
    view: View, fleet: Fleet, form: Filled, *, fault: str = "", secret: str = "", made: str = ""
) -> Response:
    return view.show(
        "tokens.html",
        status=422 if fault else 200,
        tokens=await fleet.tokens.all(),
        form=form,
        fault=fault,
        secret=secret,
        made=made,
    )
