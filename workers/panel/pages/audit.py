"""Audit log: who did what to rules, mail and tokens."""

from typing import Annotated, Final

from fastapi import APIRouter, Query, Response

from shared.store.audit import Cursor
from workers.panel.fleet import Ours
from workers.panel.pages.view import Page, url

router = APIRouter(prefix="/audit")

_ROWS: Final = 100


@router.get("")
async def list_(
    *,
    view: Page,
    fleet: Ours,
    before: Annotated[str, Query(pattern=r"^[0-9]*-?[0-9]*$", max_length=40)] = "",
) -> Response:
    """Show the log, the latest first."""
    found = await fleet.audit.page(Cursor.read(before) if before else None, limit=_ROWS + 1)
    next_ = url("/audit", before=found[_ROWS - 1].cursor.text) if len(found) > _ROWS else None
    return view.show("audit.html", entries=found[:_ROWS], first="/audit" if before else None, next=next_)
