"""/api/v1/queue/retry, bounce and remove: do something about mail that waits.

What ends mail for good must say how many deliveries that will be, as they were counted before: then nobody ends more
than they have seen.
"""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from shared.fleet.waiting import Who as Actor
from shared.fleet.waiting import bounce, remove
from shared.runtime.clock import now
from shared.store.deferred import Deferred
from shared.store.selection import Selection
from workers.panel.access import Operator
from workers.panel.api.queue import DomainText, ErrorText, Older, TargetText, Word, choice
from workers.panel.api.shape import BIGGEST, CONFLICT, Asked, Told
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours

router = APIRouter(prefix="/queue", tags=["mail"])

Ids = Annotated[list[Annotated[int, Field(ge=1, le=BIGGEST)]], Field(min_length=1, max_length=10_000)]


class ChoiceIn(Asked):
    """Which waiting mail: what fulfils all that is given."""

    message_id: Word | None = None
    domain: DomainText | None = None
    target: TargetText | None = None
    older: Older | None = None
    error: ErrorText | None = None
    ids: Ids | None = None
    everything: bool = Field(False, description="true when nothing else is given: all that waits is meant")

    def selection(self) -> Selection:
        """Return it.

        Raises:
            Refused: It is not said which mail.
        """
        ids = None if self.ids is None else tuple(self.ids)
        given = self.model_dump(include={"message_id", "domain", "target", "older", "error"})
        chosen = choice(**given, ids=ids)
        if chosen.everything != self.everything:
            words = "say which mail, or `everything` for all that waits, and not both"
            raise Refused(422, words, fields={"everything": words})
        return chosen


class EndIn(ChoiceIn):
    """Which waiting mail is to end."""

    expect: Annotated[int, Field(ge=0, le=BIGGEST, description="How many deliveries that is, as it was seen")]


class RetriedOut(Told):
    """What is due now."""

    retried: int = Field(description="Deliveries that were not due, and are now")


class EndedOut(Told):
    """What became of the mail that was to be ended."""

    deliveries: int = Field(description="Those that are ended")
    recipients: int
    reports: int = Field(description="Sent to senders")
    silent: int = Field(description="Deliveries of which nobody was told")
    doubles: int = Field(description="Deliveries that a crash had left, and whose recipients had ended")
    left: int = Field(description="Deliveries that match and wait on: they were just being tried")
    unreadable: int = Field(description="Of those that are left: no report can be made of them")


@router.post("/retry")
async def retry(who: Operator, fleet: Ours, body: ChoiceIn) -> RetriedOut:
    """Make waiting mail due at once; the rules of this moment apply to it."""
    chosen = body.selection()
    count = await Deferred(fleet.pool).retry(chosen, now=now())
    told = chosen.told(fleet.privacy)
    detail = f"{count} {'delivery' if count == 1 else 'deliveries'}"
    await fleet.audit.record(actor=who.name, via=who.via, action="queue retry", object=told, detail=detail)
    return RetriedOut(retried=count)


@router.post("/bounce", responses=CONFLICT)
async def bounce_(who: Operator, fleet: Ours, body: EndIn) -> EndedOut:
    """Give waiting mail up and tell its senders, unless it is a report itself."""
    chosen = await _expected(fleet, body)
    actor = Actor(actor=who.name, via=who.via)
    ended = await bounce(chosen, fleet.pool, fleet.settler, who=actor, emit=fleet.emit, privacy=fleet.privacy)
    return EndedOut.model_validate(ended)


@router.post("/remove", responses=CONFLICT)
async def remove_(who: Operator, fleet: Ours, body: EndIn) -> EndedOut:
    """Give waiting mail up and tell nobody. It does not come back."""
    chosen = await _expected(fleet, body)
    actor = Actor(actor=who.name, via=who.via)
    ended = await remove(chosen, fleet.pool, who=actor, emit=fleet.emit, privacy=fleet.privacy)
    return EndedOut.model_validate(ended)


async def _expected(fleet: Fleet, body: EndIn) -> Selection:
    """Return what is meant as it is at this moment.

    Raises:
        Refused: It is not as much as was expected.
    """
    deferred = Deferred(fleet.pool)
    chosen = body.selection().as_of(now(), await deferred.newest())
    if (count := await deferred.count(chosen)) != body.expect:
        raise Refused(409, f"{count} deliveries match, not {body.expect}: look again first; nothing was changed")
    return chosen
