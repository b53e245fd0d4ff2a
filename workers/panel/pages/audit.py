"""Audit log: who did what to rules, mail and tokens."""

from typing import Annotated, Final

from fastapi import APIRouter, Query, Response

from shared.store.audit import Cursor
from workers.panel.errors import Refused
from workers.panel.fleet import Ours
from workers.panel.pages.view import Page, url

router = APIRouter(prefix="/audit")

_ROWS: Final = 100


@router.get("")
async def list_(
    *,
    view: Page,
    fleet: Ours,
    before: Annotated[str, Query(max_length=40)] = "",
) -> Response:
    """Show the log, the latest first."""
    try:
        place = Cursor.read(before) if before else None
    except ValueError as error:
        raise Refused(422, str(error)) from error
    found = await fleet.audit.page(place, limit=_ROWS + 1)
    next_ = url("/audit", before=found[_ROWS - 1].cursor.text) if len(found) > _ROWS else None
    return view.show("audit.html", entries=found[:_ROWS], first="/audit" if before else None, next=next_)
