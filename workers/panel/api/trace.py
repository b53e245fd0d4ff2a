"""/api/v1/trace: what became of a message."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field

from shared.mail.event import Kind
from shared.store.traces import Traces
from workers.panel.access import Viewer
from workers.panel.api.shape import LINE, Limit, Moment, Told, missing
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours

router = APIRouter(prefix="/trace", tags=["mail"])

MOST = 5_000  # events of a message that an answer has


class FoundOut(Told):
    """A message, in a list."""

    id: str = Field(description="Its queue id")
    at: datetime = Field(description="Its newest event that matches what was asked for")
    accepted_at: datetime | None
    sender: str | None = Field(description="The reverse-path; empty is the null one, null when it is not known")
    recipients: list[str] = Field(description="The first of them")
    recipient_count: int
    size: int = Field(description="0 when it is not known")
    header_id: str | None = Field(description="The Message-ID field")
    last_kind: Kind
    last_at: datetime
    states: dict[str, int] = Field(description="How many recipients are in which state")


class FoundPageOut(Told):
    """Messages, those with the newest events first."""

    messages: list[FoundOut]
    next: datetime | None = Field(description="`before` for the next page; null on the last one")


class EventOut(Told):
    """One thing that happened to one recipient."""

    at: datetime
    kind: Kind
    recipient: str
    domain: str
    room: str = Field(description="Who says so: router, https, smtp, operator")
    attempt: int = Field(description="0 for what was none")
    rule: str = Field(description="The lookup key; empty for direct federation")
    version: int = Field(description="Of the rules that routed it")
    target: str
    mta: str = Field(description="The host that spoke")
    code: int
    enhanced: str
    reply: str
    ms: int
    size: int
    until: datetime | None = Field(description="When it is tried next")
    report: str = Field(description="The id of the report that told the sender")
    actor: str = Field(description="The person who did it")


class AwaitedOut(Told):
    """What of the message waits for its next attempt."""

    recipients: list[str]
    domain: str
    target: str
    attempts: int
    next_attempt_at: datetime
    reply: str


class TraceOut(Told):
    """The life of one message."""

    id: str
    events: list[EventOut] = Field(description=f"The oldest first; of very many the newest {MOST:,}")
    waiting: list[AwaitedOut]


@router.get("")
async def find(
    who: Viewer,
    fleet: Ours,
    *,
    word: Annotated[
        str | None,
        Query(min_length=1, max_length=1_000, pattern=LINE, description="A queue id, a Message-ID, or an address"),
    ] = None,
    before: Annotated[Moment | None, Query(description="`next` of the last page")] = None,
    limit: Limit = 50,
) -> FoundPageOut:
    """Show the messages that a word names; without one, those with the newest events."""
    del who
    traces = _traces(fleet)
    found = (
        await traces.recent(limit=limit, before=before)
        if word is None
        else await traces.find(word, limit=limit, before=before)
    )
    told = [FoundOut.model_validate(each) for each in found]
    return FoundPageOut(messages=told, next=told[-1].at if len(told) >= limit else None)


@router.get("/{id}", responses=missing("message"))
async def timeline(
    who: Viewer,
    fleet: Ours,
    id: Annotated[str, Path(min_length=1, max_length=1_000, pattern=LINE)],  # noqa: A002 - the field's name
) -> TraceOut:
    """Show the life of one message, and what of it waits."""
    del who
    traces = _traces(fleet)
    events, waiting = await traces.timeline(id, limit=MOST), await traces.waiting(id)
    if not events and not waiting:
        raise Refused(404, f"nothing is known of a message {id}")
    return TraceOut(
        id=id,
        events=[EventOut.model_validate(each) for each in events],
        waiting=[AwaitedOut.model_validate(each) for each in waiting],
    )


def _traces(fleet: Fleet) -> Traces:
    return Traces(fleet.pool, fleet.privacy)
