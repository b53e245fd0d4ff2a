"""/api/v1/queue: mail that waits for its next attempt."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field

from shared.mail.domain import normalise
from shared.mail.retry import parse_duration
from shared.mail.route import Target
from shared.store.deferred import Cursor, Deferred
from shared.store.selection import Selection
from workers.panel.access import Viewer
from workers.panel.api.shape import BIGGEST, LINE, MAX_KEY, Limit, Told, missing
from workers.panel.errors import Refused
from workers.panel.fleet import Ours

router = APIRouter(prefix="/queue", tags=["mail"])

COUNTED = 100_000  # deliveries; a list says no more than that there are so many
_SHOWN = 1_000  # deliveries of one message, when it is shown
_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST = 2**53  # microseconds; in the year 2255

Word = Annotated[str, Field(min_length=1, max_length=1_000, pattern=LINE)]
TargetText = Annotated[
    str,
    Field(max_length=3_000, pattern=LINE, description="Where it was tried last; empty for the domain's own mail hosts"),
]
DomainText = Annotated[str, Field(min_length=1, max_length=MAX_KEY, pattern=LINE, description="The recipients' domain")]
Older = Annotated[
    str, Field(max_length=20, pattern=LINE, description="Only mail that is here for longer: 90s, 15m, 4h, 5d")
]
ErrorText = Annotated[
    str, Field(min_length=1, max_length=1_000, pattern=LINE, description="What was answered last has this in it")
]


class WaitingOut(Told):
    """A waiting delivery."""

    id: int = Field(description="Of the delivery; another attempt that fails makes a new one")
    message_id: str = Field(description="The queue id of the message")
    mail_from: str = Field(description="The reverse-path; empty is the null one")
    rcpt_to: list[str]
    domain: str
    target: str
    accepted_at: datetime
    deferred_at: datetime
    next_attempt_at: datetime
    attempts: int
    reply: str = Field(description="What was answered last")
    size: int = Field(description="0 when the body is stored apart")
    put_off: Literal["https", "smtp"] | None = Field(description="The transport that had no room for it")


class QueueOut(Told):
    """A page of waiting deliveries, those due first."""

    waiting: list[WaitingOut]
    total: int = Field(description=f"On all pages; {COUNTED:,} means that many or more")
    next: str | None = Field(description="`after` for the next page; null on the last one")


class MessageOut(Told):
    """What waits of one message, those due first."""

    waiting: list[WaitingOut] = Field(description=f"At most {_SHOWN:,}; /queue pages through all of them")
    total: int = Field(description=f"{COUNTED:,} means that many or more")


def choice(
    *,
    message_id: str | None,
    domain: str | None,
    target: str | None,
    older: str | None,
    error: str | None,
    ids: tuple[int, ...] | None = None,
) -> Selection:
    """Return which mail is meant.

    Raises:
        Refused: An age is none.
        DomainError: The domain is none.
        TargetError: The target is none.
    """
    try:
        age = None if older is None else parse_duration(older)
    except ValueError as fault:
        raise Refused(422, str(fault), fields={"older": "it is no span such as 4h"}) from fault
    return Selection(
        message_id=message_id,
        domain=None if domain is None else normalise(domain),
        target=None if target is None else _target(target),
        older=age,
        error=error,
        ids=ids,
    )


def _asked(
    *,
    message_id: Annotated[Word | None, Query()] = None,
    domain: Annotated[DomainText | None, Query()] = None,
    target: Annotated[TargetText | None, Query()] = None,
    older: Annotated[Older | None, Query()] = None,
    error: Annotated[ErrorText | None, Query()] = None,
) -> Selection:
    return choice(message_id=message_id, domain=domain, target=target, older=older, error=error)


Chosen = Annotated[Selection, Depends(_asked)]


@router.get("")
async def list_(
    who: Viewer,
    fleet: Ours,
    chosen: Chosen,
    *,
    after: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,16}-[0-9]{1,19}$", description="`next` of the last page")
    ] = None,
    limit: Limit = 100,
) -> QueueOut:
    """Show waiting deliveries, a page at a time."""
    del who
    deferred = Deferred(fleet.pool)
    found = await deferred.matching(chosen, limit=limit + 1, after=None if after is None else _place(after))
    return QueueOut(
        waiting=[WaitingOut.model_validate(each) for each in found[:limit]],
        total=await deferred.count(chosen, at_most=COUNTED),
        next=_text(found[limit - 1].cursor) if len(found) > limit else None,
    )


@router.get("/messages/{message_id}", responses=missing("waiting message"))
async def show(
    who: Viewer, fleet: Ours, message_id: Annotated[str, Path(min_length=1, max_length=1_000, pattern=LINE)]
) -> MessageOut:
    """Show what waits of one message."""
    del who
    deferred, chosen = Deferred(fleet.pool), Selection(message_id=message_id)
    found = await deferred.matching(chosen, limit=_SHOWN)
    if not found:
        raise Refused(404, f"nothing waits of a message {message_id}")
    total = len(found) if len(found) < _SHOWN else await deferred.count(chosen, at_most=COUNTED)
    return MessageOut(waiting=[WaitingOut.model_validate(each) for each in found], total=total)


def _target(text: str) -> str:
    """Return the target, or several in order, as a route has them; "" for the domain's own mail hosts."""
    return ",".join(str(Target.parse(each.strip())) for each in text.split(",")) if text.strip() else ""


def _text(cursor: Cursor) -> str:
    return f"{(cursor[0] - _START) // _MICROSECOND}-{cursor[1]}"


def _place(text: str) -> Cursor:
    moment, _, number = text.partition("-")
    return _START + min(int(moment), _LAST) * _MICROSECOND, min(int(number), BIGGEST)
