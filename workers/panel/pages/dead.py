"""Dead letters: what could not be read, kept whole until a person decides."""

from typing import Annotated, Final

from fastapi import APIRouter, Form, Query, Response

from shared.broker import topology
from shared.fleet.dead import collect, discard
from shared.fleet.waiting import Who as Actor
from shared.runtime.errors import BrokerUnavailable
from shared.store.dead import DeadLetters
from workers.panel.access import Operator
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.view import BIGGEST, Line, Page, View, url
from workers.panel.words import plural

router = APIRouter(prefix="/dead")

_ROWS: Final = 50

Ids = Annotated[list[Annotated[int, Form(ge=0, le=BIGGEST)]], Form(alias="id", max_length=1_000)]


@router.get("")
async def list_(
    view: Page,
    fleet: Ours,
    search: Annotated[Line, Query(max_length=200)] = "",
    after: Annotated[int | None, Query(ge=0, le=BIGGEST)] = None,
) -> Response:
    """Show the letters, the latest first."""
    dead = DeadLetters(fleet.pool)
    found = await dead.page(after=after, limit=_ROWS + 1, search=search)
    last = found[_ROWS - 1].id if len(found) > _ROWS else None
    return view.show(
        "dead.html",
        letters=found[:_ROWS],
        total=await dead.count(search=search),
        ready=await _ready(fleet),
        search=search,
        first=url("/dead", search=search) if after is not None else None,
        next=url("/dead", search=search, after=last) if last else None,
    )


@router.post("/collect")
async def look(view: Page, who: Operator, fleet: Ours) -> Response:
    """Take what is in the queue into the store, where it can be looked at as often as need be."""
    collected = await collect(fleet.link, DeadLetters(fleet.pool))
    await fleet.audit.record(
        actor=who.name,
        via=who.via,
        action="dead collect",
        object=topology.UNDECODABLE,
        detail=plural(collected.kept, "new letter"),
    )
    words = f"{plural(collected.kept, 'new letter')}." if collected.kept else "There are no new letters."
    more = (f"{plural(collected.left, 'letter is', 'letters are')} still in the queue: look again.",)
    view.recent.forget("depths")
    return view.done("/dead", words, *(more if collected.left else ()), tone="ok")


@router.post("/discard")
async def ask(view: Page, who: Operator, fleet: Ours, ids: Ids = []) -> Response:  # noqa: B006 - FastAPI copies it
    """Ask before letters are thrown away."""
    del who, fleet
    if not ids:
        return view.done("/dead", "Choose some letters first.", tone="warn")
    return _asked(view, sorted(set(ids)))


@router.post("/discard/now")
async def throw_away(
    view: Page,
    who: Operator,
    fleet: Ours,
    expect: Annotated[int, Form(ge=1, le=BIGGEST)],
    ids: Ids = [],  # noqa: B006
) -> Response:
    """Throw letters away for good; ask again when some are gone already."""
    dead, wanted = DeadLetters(fleet.pool), sorted(set(ids))
    there = await dead.known(wanted)
    if len(there) != expect:
        refused = f"Nothing was done: of {plural(expect, 'letter')}, {len(there)} are there now."
        return _asked(view, there, refused=refused)
    gone = await discard(there, fleet.pool, who=Actor(actor=who.name, via=who.via), emit=fleet.emit)
    return view.done("/dead", f"{plural(len(gone), 'letter')} discarded.")


def _asked(view: View, ids: list[int], *, refused: str = "") -> Response:
    letters = plural(len(ids), "letter")
    return view.show(
        "confirm.html",
        status=409 if refused else 200,
        title=f"Discard {letters}?",
        refused=refused,
        lines=("They are thrown away with all that is in them, and do not come back.",),
        facts=(("Which", ", ".join(map(str, ids))),),
        action="/dead/discard/now",
        fields={"expect": len(ids)},
        ids=ids,
        button=f"Discard {letters}",
        danger=True,
        nothing=not ids,
        back="/dead",
        trail="Dead letters",
    )


async def _ready(fleet: Fleet) -> int:
    """Return how many letters are still in the queue; 0 when nobody can say."""
    try:
        found = await fleet.depths.all()
    except BrokerUnavailable:
        return 0
    return found.get(topology.UNDECODABLE, 0)
