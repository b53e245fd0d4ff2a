"""/api/v1/audit: who did what."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from shared.store.audit import Cursor
from workers.panel.access import Viewer
from workers.panel.api.shape import Limit, Told
from workers.panel.errors import Refused
from workers.panel.fleet import Ours

router = APIRouter(tags=["access"])


class EntryOut(Told):
    """One line of the audit log."""

    at: datetime
    actor: str
    via: str = Field(description="cli, panel, api; rules, for a change of a rule by whichever")
    action: str
    object: str
    detail: str


class AuditOut(Told):
    """A page of the audit log, the latest first."""

    entries: list[EntryOut]
    next: str | None = Field(description="`before` for the next page; null on the last one")


@router.get("/audit")
async def audit(
    who: Viewer,
    fleet: Ours,
    before: Annotated[
        str | None, Query(max_length=39, pattern=r"^[0-9]{1,19}-[0-9]{1,19}$", description="`next` of the last page")
    ] = None,
    limit: Limit = 100,
) -> AuditOut:
    """Show who did what to mail, rules and tokens."""
    del who
    found = await fleet.audit.page(None if before is None else place(before), limit=limit + 1)
    shown = found[:limit]
    return AuditOut(
        entries=[EntryOut.model_validate(each) for each in shown],
        next=shown[-1].cursor.text if len(found) > limit else None,
    )


def place(text: str) -> Cursor:
    """Read where a page begins.

    Raises:
        Refused: It is no such place.
    """
    try:
        return Cursor.read(text)
    except ValueError as error:
        raise Refused(422, str(error), fields={"before": "not `next` of a page"}) from error
