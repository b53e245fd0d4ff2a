"""Endpoint Cache: the list of rules, and what is done to one of them from there."""

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Form, Query, Response

from shared.fleet.change import Change, Followed, How
from shared.mail.rule import parse_key
from shared.store.overrides import Saved
from workers.panel.access import Operator, Who
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.said import Tone
from workers.panel.pages.view import BIGGEST, Line, Page, View, url
from workers.panel.words import sentence

router = APIRouter(prefix="/endpoint-cache")

ROWS: Final = 50
_WAIT: Final = 5.0  # seconds for the routers; the page goes on to ask when it took longer
_COUNTED: Final = 5.0  # seconds that a count of all rules is good for
_STATES: Final = (("", "any"), ("on", "on"), ("off", "off"), ("temporary", "with an end"))

Key = Annotated[Line, Form(max_length=300)]
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
            ("rules", search, state), lambda: fleet.overrides.count(search or None, state=chosen), seconds=_COUNTED
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
async def enable(view: Page, who: Operator, fleet: Ours, key: Key, back: Back = "") -> Response:
    """Take a rule into use again."""
    return await _switch(view, who, fleet, parse_key(key), on=True, back=back)


@router.post("/disable")
async def disable(view: Page, who: Operator, fleet: Ours, key: Key, back: Back = "") -> Response:
    """Take a rule out of use, and keep it."""
    return await _switch(view, who, fleet, parse_key(key), on=False, back=back)


@router.post("/release")
async def release(view: Page, who: Operator, fleet: Ours) -> Response:
    """Release what was only saved."""
    change = changing(fleet, who)
    followed = await change.release(await change.rules.release())
    return told(view, followed, "/endpoint-cache", "Released")


def changing(fleet: Fleet, who: Who) -> Change:
    """Return a change that this person makes."""
    how = How(actor=who.name, release=True, wait=_WAIT, flush=True, if_version=None)
    return Change(fleet.pool, how, fleet.connected)


def told(view: View, followed: Followed, path: str, what: str, *warnings: str) -> Response:
    """Return the way to a page that says what came of a change, and goes on to ask for routers that are late."""
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


async def _switch(view: View, who: Who, fleet: Fleet, key: str, *, on: bool, back: str) -> Response:
    change = changing(fleet, who)
    saved = existing(await change.rules.enable(key, enabled=on, actor=who.name, release=True), key)
    followed = await change.follow(saved)
    path = url("/endpoint-cache/rule", key=key) if back else "/endpoint-cache"
    return told(view, followed, path, f"{key} is {'on' if on else 'off'}{'' if saved.changed else ', as it was'}")
