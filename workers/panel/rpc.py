"""POST /api/admin: madmail's admin API, so that its panel can connect here and edit rules.

What the rules are asked for is done as everywhere: checked, released, and waited for. Other resources answer in the
shape that the client expects, with what this fleet has of them (`madmail.py`), or with status 404; nothing is pretended
to have been done.
"""

import msgspec
import structlog
from fastapi import APIRouter, Request, Response

from shared.fleet.change import Change, Followed, How
from shared.mail.rule import Rule, make_rule, parse_key
from shared.store.overrides import Overrides, Saved
from shared.store.tokens import Access
from workers.panel import madmail
from workers.panel.access import Doors
from workers.panel.envelope import CORS, RPC, envelope
from workers.panel.errors import Refused, refusal
from workers.panel.fleet import Fleet, fleet_of

log = structlog.get_logger()
router = APIRouter(include_in_schema=False)

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_WAIT = 10.0  # seconds for the routers
_BEARER = "Bearer "
_PAGE = 2_000  # rules read at once
_RULES = ("/admin/dns", "/admin/endpoint-cache")


class Call(msgspec.Struct, kw_only=True):
    """What is asked for. As in madmail, null is the same as nothing."""

    method: str | None = None
    resource: str | None = None
    headers: dict[str, str | None] | None = None
    body: msgspec.Raw = msgspec.Raw(b"{}")


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A rule, as madmail knows them."""

    lookup_key: str = ""
    target_host: str = ""
    comment: str = ""


class Edit(msgspec.Struct, kw_only=True):
    """A rule that a client sends; null is the same as nothing."""

    lookup_key: str | None = None
    target_host: str | None = None
    comment: str | None = None


@router.api_route(RPC, methods=_METHODS)
async def rpc(request: Request) -> Response:
    """Answer one call."""
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=CORS)
    if request.method != "POST":
        return envelope(405, error="only POST is accepted")
    try:
        call = msgspec.json.decode(await request.body(), type=Call)
    except (ValueError, RecursionError):  # of which msgspec's are
        return envelope(400, error="invalid JSON request body")
    doors: Doors = request.app.state.doors
    try:
        access = await _who(doors, call, request.state.address)
    except Exception as error:  # noqa: BLE001 - told as the caller can read it
        return _refused(error, resource="")
    try:
        status, body = await _answer(fleet_of(request), access, call)
    except Exception as error:  # noqa: BLE001
        return _refused(error, resource=call.resource or "")
    return envelope(status, resource=call.resource or "", body=body)


async def _who(doors: Doors, call: Call, address: str) -> Access:
    fields = call.headers or {}
    given = next((value for name, value in fields.items() if name.lower() == "authorization"), None) or ""
    if not given.startswith(_BEARER):
        raise Refused(401, "unauthorized")
    return await doors.by_secret(given.removeprefix(_BEARER), address)


def _refused(error: Exception, *, resource: str) -> Response:
    refused = refusal(error)
    status = refused.status_code
    if status == 500:  # noqa: PLR2004
        log.error("the panel failed", resource=resource, exc_info=error)
    # madmail knows no 422; and its client shows the words as they are.
    words = "unauthorized" if status == 401 else refused.detail  # noqa: PLR2004
    return envelope({422: 400}.get(status, status), resource=resource, error=words)


async def _answer(fleet: Fleet, access: Access, call: Call) -> tuple[int, object]:
    method, resource = (call.method or "GET").upper(), call.resource or ""
    if not access.may("viewer" if method == "GET" else "operator"):
        raise Refused(403, f"this takes the role operator; {access.name} is {access.role}")
    if resource in _RULES:
        return await _rules(fleet, access, method, call.body)
    if resource == "/admin/reload" and method == "POST":
        return 200, await _reload(fleet, access)
    return 200, await madmail.resource(fleet, resource, method)


async def _rules(fleet: Fleet, access: Access, method: str, body: msgspec.Raw) -> tuple[int, object]:
    if method == "GET":
        entries = await _entries(fleet.overrides)
        return 200, {"overrides": entries, "total": len(entries)}
    if method not in ("POST", "DELETE"):
        raise Refused(405, f"method {method} not allowed")
    try:
        edit = msgspec.json.decode(body, type=Edit | None) or Edit()
    except (ValueError, RecursionError) as error:
        raise Refused(400, "invalid request body") from error
    change = Change(fleet.pool, _how(access), fleet.connected)
    if method == "DELETE":
        key = parse_key(edit.lookup_key or "")
        removed = await change.rules.remove(key, actor=access.name, release=True)
        if removed is None:
            raise Refused(404, f"endpoint override not found: {key}")
        return 200, {"deleted": key} | _warning(await change.follow(removed))
    rule = await _edited(change.rules, edit)
    saved: Saved = await change.rules.set(rule, actor=access.name, release=True, only_changed=True)
    made = {"lookup_key": rule.lookup_key, "target_host": rule.target_host}
    return 201, made | _warning(await change.follow(saved))


async def _edited(rules: Overrides, edit: Edit) -> Rule:
    """Return the rule as it is to be; what madmail cannot say of one that its client sees stays as it is.

    Else a rule would lose its end, say, by a correction of its comment.
    """
    key, target, comment = edit.lookup_key or "", edit.target_host or "", edit.comment or ""
    made = make_rule(key, target, comment=comment)
    stored = await rules.get(made.lookup_key)
    if stored is None or not stored.rule.enabled:
        return made
    old = stored.rule
    return make_rule(
        key, target, comment=comment, transport=old.transport, tls=old.tls, expires_at=old.expires_at, share=old.share
    )


async def _entries(rules: Overrides) -> list[Entry]:
    """Return the rules in use: madmail knows no others, and would show them as if they were."""
    entries: list[Entry] = []
    after = None
    while found := await rules.page(after=after, limit=_PAGE, state="on"):
        entries += [
            Entry(lookup_key=each.rule.lookup_key, target_host=each.rule.target_host, comment=each.rule.comment)
            for each in found
        ]
        after = entries[-1].lookup_key
    return entries


async def _reload(fleet: Fleet, access: Access) -> object:
    change = Change(fleet.pool, _how(access), fleet.connected)
    await fleet.audit.record(actor=access.name, via="api", action="reload", object="rules")
    followed = await change.release(await change.rules.release())
    return {"status": "ok", "message": followed.sentence()}


def _how(access: Access) -> How:
    return How(actor=access.name, release=True, wait=_WAIT, flush=True, if_version=None)


def _warning(followed: Followed) -> dict[str, str]:
    """Return what must not be kept from whoever made a change."""
    troubled = followed.late or (followed.applied is not None and followed.applied.broker_away)
    return {"warning": followed.sentence()} if troubled else {}
