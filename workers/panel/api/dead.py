"""/api/v1/dead: what no room could read, and what was handed out too often."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Query, Response
from pydantic import Field

from shared.broker import topology
from shared.fleet.dead import NoLetterError, collect, discard, requeue
from shared.fleet.letter import opened, plain
from shared.fleet.resend import StaysDeadError
from shared.fleet.waiting import Who as Actor
from shared.store.dead import DeadLetters, Stored
from workers.panel.access import Operator, Viewer
from workers.panel.api.shape import BIGGEST, CONFLICT, LINE, Asked, Id, Limit, Told, missing
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.words import plural

router = APIRouter(prefix="/dead", tags=["mail"])

_NO_LETTER = missing("dead letter")
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
Address = Annotated[str, Field(max_length=1_000, pattern=LINE)]


class DeadOut(Told):
    """A dead letter, in a list."""

    id: int
    taken_at: datetime
    reason: str
    queue: str = Field(description="Where it could not be read; empty when that is not known")
    message_id: str
    content_type: str | None
    size: int


class DeadPageOut(Told):
    """A page of dead letters, the latest first."""

    letters: list[DeadOut]
    total: int = Field(description="On all pages")
    next: int | None = Field(description="`after` for the next page; null on the last one")


class LetterOut(DeadOut):
    """A dead letter, but for its bytes."""

    kind: Literal["delivery", "message"] = Field(description="On its way between the rooms, or as it came from outside")
    mail_from: str | None = Field(description="null when it cannot be told")
    rcpt_to: list[str]
    fields: dict[str, str] = Field(description="Of the message's header")
    headers: dict[str, Any] = Field(description='AMQP headers; bytes are `{"base64": ...}`')


class CollectedOut(Told):
    """What a look into the queue brought."""

    kept: int = Field(description="Letters that are new here")
    left: int = Field(description="Letters that are still in the queue, for the next look")


class RequeueIn(Asked):
    """How a letter is sent again."""

    queue: Literal["mail.outbound", "mail.reroute"] | None = Field(None, description="null for the one that takes it")
    mail_from: Address | None = Field(None, description="The reverse-path, in place of its own")
    rcpt_to: Annotated[list[Address], Field(min_length=1, max_length=1_000)] | None = Field(
        None, description="The recipients, in place of its own"
    )
    force: bool = Field(False, description="Send it though it would come back at once")


class RequeuedOut(Told):
    """How a letter was sent again."""

    id: int
    queue: str
    message_id: str
    dropped: list[str] = Field(description="Headers that cannot be written as they came, and went missing")


class DiscardIn(Asked):
    """Which letters are to be thrown away."""

    ids: Annotated[list[Annotated[int, Field(ge=1, le=BIGGEST)]], Field(min_length=1, max_length=1_000)]
    expect: Annotated[int, Field(ge=0, le=BIGGEST, description="How many of them are there, as it was seen")]


class DiscardedOut(Told):
    """What was thrown away."""

    discarded: list[int]


@router.get("")
async def list_(
    who: Viewer,
    fleet: Ours,
    *,
    search: Annotated[str, Query(max_length=200, pattern=LINE)] = "",
    after: Annotated[int | None, Query(ge=1, le=BIGGEST, description="`next` of the last page")] = None,
    limit: Limit = 100,
) -> DeadPageOut:
    """Show the letters that were taken out of the queue; `collect` takes what is new."""
    del who
    dead = DeadLetters(fleet.pool)
    found = await dead.page(after=after, limit=limit + 1, search=search)
    return DeadPageOut(
        letters=[DeadOut.model_validate(each) for each in found[:limit]],
        total=await dead.count(search=search),
        next=found[limit - 1].id if len(found) > limit else None,
    )


@router.post("/collect")
async def collect_(who: Operator, fleet: Ours) -> CollectedOut:
    """Take what is in `mail.undecodable` into the store, up to 1,000 letters at once."""
    collected = await collect(fleet.link, DeadLetters(fleet.pool))
    await fleet.audit.record(
        actor=who.name,
        via=who.via,
        action="dead collect",
        object=topology.UNDECODABLE,
        detail=plural(collected.kept, "new letter"),
    )
    return CollectedOut.model_validate(collected)


@router.get("/letters/{id}", responses=_NO_LETTER)
async def show(who: Viewer, fleet: Ours, id: Id) -> LetterOut:  # noqa: A002 - the field's name
    """Show one letter: whose mail it is, as far as that can be read, and its headers."""
    del who
    letter = await _letter(fleet, id)
    seen = opened(letter)
    return LetterOut(
        **DeadOut.model_validate(letter).model_dump(),
        kind=seen.kind,
        mail_from=seen.mail_from,
        rcpt_to=seen.rcpt_to,
        fields=seen.fields,
        headers=cast("dict[str, Any]", plain(cast("Mapping[str, object]", letter.headers))),
    )


@router.get("/letters/{id}/raw", response_class=Response, responses=_NO_LETTER | _BYTES)
async def raw(who: Operator, fleet: Ours, id: Id) -> Response:  # noqa: A002
    """Return the bytes of one letter; mail may be in them, so this takes an operator."""
    letter = await _letter(fleet, id)
    await fleet.audit.record(actor=who.name, via=who.via, action="dead raw", object=str(id))
    name = {"Content-Disposition": f'attachment; filename="letter-{id}.eml"'}
    return Response(letter.data, media_type="application/octet-stream", headers=name)


@router.post("/letters/{id}/requeue", responses=_NO_LETTER | CONFLICT)
async def requeue_(who: Operator, fleet: Ours, id: Id, body: RequeueIn) -> RequeuedOut:  # noqa: A002
    """Send a letter again, and forget it once the broker has it; refused when it would come back at once."""
    try:
        done = await requeue(
            id,
            fleet.pool,
            fleet.publisher,
            who=Actor(actor=who.name, via=who.via),
            queue=body.queue,
            mail_from=body.mail_from,
            rcpt_to=body.rcpt_to,
            force=body.force,
        )
    except NoLetterError as error:
        raise Refused(404, str(error)) from error
    except StaysDeadError as error:
        raise Refused(409, str(error)) from error
    return RequeuedOut.model_validate(done)


@router.post("/discard", responses=CONFLICT)
async def discard_(who: Operator, fleet: Ours, body: DiscardIn) -> DiscardedOut:
    """Throw letters away for good."""
    ids = sorted(set(body.ids))
    if (there := len(await DeadLetters(fleet.pool).known(ids))) != body.expect:
        raise Refused(409, f"{there} of these letters are there, not {body.expect}: look again; nothing was changed")
    gone = await discard(ids, fleet.pool, who=Actor(actor=who.name, via=who.via), emit=fleet.emit)
    return DiscardedOut(discarded=gone)


async def _letter(fleet: Fleet, number: int) -> Stored:
    if (letter := await DeadLetters(fleet.pool).get(number)) is None:
        raise Refused(404, f"there is no dead letter {number}")
    return letter
