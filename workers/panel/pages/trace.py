"""Trace: where a message is, what failed, and who said so."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime

from shared.mail.event import Event
from shared.mail.standing import Standing, standings
from shared.store.traces import Traces
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.view import Line, Page, url
from workers.panel.words import plural, size, stamp

router = APIRouter(prefix="/trace")

_ROWS: Final = 50
_EVENTS: Final = 1_000  # of one message that are shown
_NAMED: Final = 100  # recipients


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What happened at once to some recipients.

    Attributes:
        event: What; its recipient is left out.
        recipients: To whom.
    """

    event: Event
    recipients: tuple[str, ...]


@router.get("")
async def find(
    view: Page,
    fleet: Ours,
    word: Annotated[Line, Query(max_length=1_000)] = "",
    before: Annotated[AwareDatetime | None, Query()] = None,
) -> Response:
    """Find messages; without a word show the latest ones."""
    traces = _traces(fleet)
    if word:
        found = await traces.find(word, limit=_ROWS, before=before)
    else:
        found = await traces.recent(limit=_ROWS, before=before)
    more = len(found) >= _ROWS
    return view.show(
        "trace.html",
        found=found,
        word=word,
        first=url("/trace", word=word) if before else None,
        next=url("/trace", word=word, before=found[-1].at.isoformat()) if more else None,
    )


@router.get("/message")
async def message(
    view: Page, fleet: Ours, id_: Annotated[Line, Query(alias="id", min_length=1, max_length=1_000)]
) -> Response:
    """Show what happened to one message, and how each recipient stands."""
    traces = _traces(fleet)
    events = await traces.timeline(id_, limit=_EVENTS)
    waiting = {name: each.next_attempt_at for each in await traces.waiting(id_) for name in each.recipients}
    if not events and not waiting:
        raise Refused(404, f"neither the journal nor the waiting mail has a message {id_}")
    stand = standings(events, waiting)
    return view.show(
        "trace_message.html",
        id=id_,
        steps=steps_of(events),
        count=len(events),
        more=len(events) >= _EVENTS,
        recipients=stand[:_NAMED],
        left_out=max(0, len(stand) - _NAMED),
        where=_where(stand),
        waits=bool(waiting),
        facts=_facts(events),
    )


def steps_of(events: Sequence[Event]) -> list[Step]:
    """Return events with those together that differ in the recipient only, as all of one attempt do."""
    steps: dict[Event, list[str]] = {}
    for each in events:
        steps.setdefault(msgspec.structs.replace(each, recipient=""), []).append(each.recipient)
    return [Step(event=event, recipients=tuple(recipients)) for event, recipients in steps.items()]


def _traces(fleet: Fleet) -> Traces:
    return Traces(fleet.pool, fleet.privacy)


def _facts(events: Sequence[Event]) -> list[tuple[str, str]]:
    first = next((each for each in events if each.kind == "routed"), None)
    if first is None:
        return []
    return [
        ("From", "<> (a report)" if first.sender == "" else first.sender or "not known"),
        ("Message-ID", first.header_id or "none"),
        ("Accepted", stamp(first.accepted_at) if first.accepted_at else "not known"),
        ("Size", size(first.size)),
    ]


def _where(stand: Sequence[Standing]) -> str:
    """Return where the message is now, in a sentence."""
    counts = Counter(each.state for each in stand)
    words = {state: f"{state} for {plural(counts[state], 'recipient')}" for state in counts}
    words |= {"delivered": f"delivered to {plural(counts['delivered'], 'recipient')}"} if counts["delivered"] else {}
    text = "; ".join(words.values())
    return f"{text[:1].upper()}{text[1:]}." if text else ""
