"""Waiting mail: try it now, bounce it, remove it: what is chosen, or all that matches."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from fastapi import APIRouter, Depends, Form, Response
from pydantic import AwareDatetime

from shared.fleet.waiting import Ended, bounce, remove
from shared.fleet.waiting import Who as Actor
from shared.mail.domain import DomainError
from shared.runtime.clock import now
from shared.store.deferred import Deferred
from shared.store.selection import Selection
from workers.panel.access import Operator
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.view import BIGGEST, Page, View, url
from workers.panel.pages.waiting import Filter, sent
from workers.panel.words import plural, span

router = APIRouter(prefix="/waiting")

Do = Literal["retry", "bounce", "remove"]
Scope = Literal["some", "every"]
Ids = Annotated[list[Annotated[int, Form(ge=0, le=BIGGEST)]], Form(alias="id", max_length=1_000)]
Filled = Annotated[Filter, Depends(sent)]

_MANY: Final = 5_000  # deliveries that take long to end
_A_SECOND: Final = 500  # of them
_WORDS: Final[Mapping[Do, tuple[str, str, str]]] = {
    "bounce": (
        "Bounce",
        "It is given up, and its senders are told by a report, unless it is a report itself.",
        "bounced",
    ),
    "remove": ("Remove", "It is given up, and nobody is told. It does not come back.", "removed"),
}


@router.post("/act")
async def act(
    *,
    view: Page,
    who: Operator,
    fleet: Ours,
    filter_: Filled,
    do: Annotated[Do, Form()],
    scope: Annotated[Scope, Form()] = "some",
    ids: Ids = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Try mail now; ask before it is bounced or removed."""
    selection = _selection(filter_, scope, ids)
    if selection is None:
        return view.done(url("/waiting", **filter_.fields()), "Choose some mail first.", tone="warn")
    if do != "retry":
        chosen = selection.as_of(now(), await Deferred(fleet.pool).newest())
        return await _asked(view, fleet, filter_, chosen, do)
    due = await Deferred(fleet.pool).retry(selection, now=now())
    await fleet.audit.record(
        actor=who.name,
        via=who.via,
        action="queue retry",
        object=selection.told(fleet.privacy),
        detail=plural(due, "delivery", "deliveries"),
    )
    _counted_anew(view)
    words = f"{plural(due, 'delivery is', 'deliveries are')} due now; the rules of this moment apply."
    return view.done(url("/waiting", **filter_.fields()), words)


@router.post("/end")
async def end(
    *,
    view: Page,
    who: Operator,
    fleet: Ours,
    filter_: Filled,
    do: Annotated[Literal["bounce", "remove"], Form()],
    expect: Annotated[int, Form(ge=0, le=BIGGEST)],
    up_to: Annotated[int, Form(ge=0, le=BIGGEST)],
    accepted_before: Annotated[AwareDatetime | Literal[""], Form()] = "",
    ids: Ids = [],  # noqa: B006
) -> Response:
    """Bounce or remove what was asked about; ask again when it is not what it was."""
    # The age was made a moment when it was asked.
    chosen = msgspec.structs.replace(filter_, older="").selection()
    chosen = chosen.but(ids=tuple(ids) or None, accepted_before=accepted_before or None, up_to=up_to)
    count = await Deferred(fleet.pool).count(chosen)
    if count != expect:
        refused = f"Nothing was done: it was {plural(expect, 'delivery', 'deliveries')}, and is {count:,} now."
        return await _asked(view, fleet, filter_, chosen, do, refused=refused)
    actor = Actor(actor=who.name, via=who.via)
    if do == "bounce":
        ended = await bounce(chosen, fleet.pool, fleet.settler, who=actor, emit=fleet.emit, privacy=fleet.privacy)
    else:
        ended = await remove(chosen, fleet.pool, who=actor, emit=fleet.emit, privacy=fleet.privacy)
    _counted_anew(view)
    words = _told(ended, _WORDS[do][2])
    return view.done(url("/waiting", **filter_.fields()), *words, tone="warn" if ended.left else "ok")


def _selection(filter_: Filter, scope: Scope, ids: list[int]) -> Selection | None:
    """Return what is meant; None when nothing is chosen.

    Raises:
        Refused: The filter is not understood.
    """
    if scope == "some":
        return Selection(ids=tuple(ids)) if ids else None
    try:
        return filter_.selection()
    except (DomainError, ValueError) as error:
        raise Refused(422, str(error)) from error


async def _asked(
    view: View, fleet: Fleet, filter_: Filter, chosen: Selection, do: Do, *, refused: str = ""
) -> Response:
    count = await Deferred(fleet.pool).count(chosen)
    name, what, _ = _WORDS[do]
    mail = plural(count, "waiting delivery", "waiting deliveries")
    fields: dict[str, object] = {"do": do, "expect": count, "up_to": chosen.up_to or 0}
    if chosen.ids is None:
        fields |= filter_.fields()
    if chosen.accepted_before is not None:
        fields["accepted_before"] = chosen.accepted_before.isoformat()
    lines = [what, "Mail that is just being tried is left alone."]
    if count > _MANY:
        lines.append(f"That many take about {span(count / _A_SECOND)}; the answer comes when it is done.")
    return view.show(
        "confirm.html",
        status=409 if refused else 200,
        title=f"{name} {mail}?",
        refused=refused,
        lines=lines,
        facts=(("Which", str(chosen)),),
        action="/waiting/end",
        fields=fields,
        ids=chosen.ids or (),
        button=f"{name} {mail}",
        danger=True,
        nothing=not count,
        back=url("/waiting", **filter_.fields()),
        trail="Waiting mail",
    )


def _counted_anew(view: View) -> None:
    view.recent.forget_all("waiting")
    view.recent.forget("ages of most")


def _told(ended: Ended, done: str) -> list[str]:
    lines = [
        f"{plural(ended.deliveries, 'delivery', 'deliveries')} {done}, for {plural(ended.recipients, 'recipient')}."
    ]
    if ended.reports:
        lines.append(f"{plural(ended.reports, 'sender was', 'senders were')} told.")
    if ended.doubles:
        lines.append(
            f"{plural(ended.doubles, 'delivery was a double', 'deliveries were doubles')}, which has ended before."
        )
    if ended.left:
        lines.append(f"{plural(ended.left, 'delivery was', 'deliveries were')} just being tried, and left alone.")
    if ended.unreadable:
        lines.append(f"{ended.unreadable:,} of them cannot be read here.")
    return lines
