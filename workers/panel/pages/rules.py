"""Endpoint Cache: the list of rules, and what is done to one of them from there."""

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Form, Query, Response

from shared.fleet.change import Change, Followed, How
from shared.mail.rule import Rule, parse_key
from shared.store.overrides import ConflictError, Saved
from workers.panel.access import Operator, Who
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.said import Tone
from workers.panel.pages.view import BIGGEST, Line, Page, View, url
from workers.panel.words import sentence

router = APIRouter(prefix="/endpoint-cache")

ROWS: Final = 50
COUNTED: Final = "rules"  # under which counts of them are kept
_WAIT: Final = 5.0  # seconds for the routers; the page goes on to ask when it took longer
_COUNTED: Final = 5.0  # seconds that a count of all rules is good for
_STATES: Final = (("", "any"), ("on", "on"), ("off", "off"), ("temporary", "with an end"))

Key = Annotated[Line, Form(max_length=300)]
Seen = Annotated[int, Form(ge=0, le=BIGGEST)]  # the version of the rule that the page showed
Back = Annotated[Literal["", "rule"], Form()]
State = Literal["", "on", "off", "temporary"]


@router.get("")
async def list_(
    view: Page,
    fleet: Ours,
    search: Annotated[Line, Query(max_length=200)] = "",
    state: State = "",
    after: Annotated[Line, Query(max_length=300)] = "",
) -> Response:
    """Show the rules, a page at a time."""
    chosen = state or None
    found = await fleet.overrides.page(search or None, after=after or None, limit=ROWS + 1, state=chosen)
    total = len(found)
    if after or total > ROWS:
        total = await view.recent.get(
            (COUNTED, search, state), lambda: fleet.overrides.count(search or None, state=chosen), seconds=_COUNTED
        )
    last = found[ROWS - 1].rule.lookup_key if len(found) > ROWS else None
    return view.show(
        "endpoint_cache.html",
        rules=found[:ROWS],
        total=f"{total:,}",
        versions=await fleet.overrides.versions(),
        search=search,
        state=state,
        states=_STATES,
        first=url("/endpoint-cache", search=search, state=state) if after else None,
        next=url("/endpoint-cache", search=search, state=state, after=last) if last else None,
    )


@router.get("/applied")
async def applied(view: Page, fleet: Ours, version: Annotated[int, Query(ge=0, le=BIGGEST)]) -> Response:
    """Show which routers have applied a version; a part of a page."""
    routers = await fleet.routers.all()
    waiting = any(each.applied < version for each in routers)
    return view.show("applied.html", routers=routers, version=version, waiting=waiting)


@router.post("/enable")
async def enable(*, view: Page, who: Operator, fleet: Ours, key: Key, seen: Seen, back: Back = "") -> Response:
    """Take a rule into use again; refuse when it was changed since it was seen."""
    return await _switch(view, who, fleet, parse_key(key), seen=seen, on=True, back=back)


@router.post("/disable")
async def disable(*, view: Page, who: Operator, fleet: Ours, key: Key, seen: Seen, back: Back = "") -> Response:
    """Take a rule out of use, and keep it; refuse when it was changed since it was seen."""
    return await _switch(view, who, fleet, parse_key(key), seen=seen, on=False, back=back)


@router.post("/release")
async def release(view: Page, who: Operator, fleet: Ours) -> Response:
    """Release what was only saved."""
    change = changing(fleet, who)
    await fleet.audit.record(actor=who.name, via=who.via, action="reload", object="rules")
    followed = await change.release(await change.rules.release())
    return told(view, followed, "/endpoint-cache", "Released")


def changing(fleet: Fleet, who: Who) -> Change:
    """Return a change that this person makes."""
    how = How(actor=who.name, release=True, wait=_WAIT, flush=True, if_version=None)
    return Change(fleet.pool, how, fleet.connected)


def told(view: View, followed: Followed, path: str, what: str, *warnings: str) -> Response:
    """Return the way to a page that says what came of a change, and goes on to ask for routers that are late."""
    view.recent.forget_all(COUNTED)
    version = 0 if followed.applied is None else followed.version
    tone: Tone = "warn" if followed.late or warnings else "ok"
    return view.done(path, f"{what}: {followed.sentence()}.", *map(sentence, warnings), tone=tone, version=version)


def existing(saved: Saved | None, key: str) -> Saved:
    """Return what was saved.

    Raises:
        Refused: There is no rule with this key.
    """
    if saved is None:
        raise Refused(404, f"there is no rule for {key}")
    return saved


def overtaken(view: View, path: str, error: ConflictError) -> Response:
    """Return the way to a page that shows what is there now, and says who changed it meanwhile."""
    return view.done(path, f"Nothing was changed: {error}.", tone="warn")


async def rule_of(fleet: Fleet, key: str) -> Rule:
    """Return the rule with this key.

    Raises:
        Refused: There is none.
    """
    stored = await fleet.overrides.get(key)
    if stored is None:
        raise Refused(404, f"there is no rule for {key}")
    return stored.rule


async def _switch(view: View, who: Who, fleet: Fleet, key: str, *, seen: int, on: bool, back: str) -> Response:
    rule = await rule_of(fleet, key)
    path = url("/endpoint-cache/rule", key=key) if back else "/endpoint-cache"
    change = changing(fleet, who)
    try:
        saved = existing(
            await change.rules.enable(
                key, enabled=on, actor=who.name, release=True, if_version=seen, only_changed=True
            ),
            key,
        )
    except ConflictError as error:
        return overtaken(view, path, error)
    words = f"{key} → {rule.target_host} is {'on' if on else 'off'}{'' if saved.changed else ', as it was'}"
    return told(view, await change.follow(saved), path, words)
