"""Waiting mail: what could not be delivered yet, why, and when it is tried again."""

from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise, starmap
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, Form, Query, Response
from pydantic import AwareDatetime

from shared.mail.domain import DomainError, normalise
from shared.mail.retry import parse_duration
from shared.mail.trace import header_of
from shared.runtime.clock import now
from shared.store.deferred import Deferred
from shared.store.selection import Selection
from shared.store.waiting import AGES, WaitingMail
from workers.panel.errors import Refused
from workers.panel.fleet import Ours
from workers.panel.pages.view import BIGGEST, Line, Page, url
from workers.panel.words import capped

router = APIRouter(prefix="/waiting")

ROWS: Final = 50
_MOST: Final = 10_000  # deliveries that are counted
_COUNTED: Final = 3.0  # seconds that a count is good for
_AGED: Final = 15.0  # the same for the ages, which every row counts for
_DOMAINS: Final = 50
_LONGEST: Final = 262_144  # bytes that are looked through for the end of a header
_HEADER: Final = 16_384  # bytes of it that are shown
_NO_RULE: Final = "mx"  # as a target: the domain's own mail hosts


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody typed into the filter."""

    domain: str = ""
    target: str = ""
    older: str = ""
    error: str = ""
    message_id: str = ""

    def selection(self) -> Selection:
        """Return what it means.

        Raises:
            DomainError: The domain is none.
            ValueError: The age is none.
        """
        return Selection(
            domain=normalise(self.domain) if self.domain else None,
            target=None if not self.target else "" if self.target.lower() == _NO_RULE else self.target,
            older=parse_duration(self.older) if self.older else None,
            error=self.error or None,
            message_id=self.message_id or None,
        )

    def fields(self) -> Mapping[str, str]:
        """Return what is not empty, by name."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value}


def asked(
    domain: Annotated[Line, Query(max_length=260)] = "",
    target: Annotated[Line, Query(max_length=3_000)] = "",
    older: Annotated[Line, Query(max_length=40)] = "",
    error: Annotated[Line, Query(max_length=200)] = "",
    message_id: Annotated[Line, Query(max_length=1_000)] = "",
) -> Filter:
    """Return the filter of an address."""
    return Filter(domain=domain, target=target, older=older, error=error, message_id=message_id)


def sent(
    domain: Annotated[Line, Form(max_length=260)] = "",
    target: Annotated[Line, Form(max_length=3_000)] = "",
    older: Annotated[Line, Form(max_length=40)] = "",
    error: Annotated[Line, Form(max_length=200)] = "",
    message_id: Annotated[Line, Form(max_length=1_000)] = "",
) -> Filter:
    """Return the filter that a form carried along."""
    return Filter(domain=domain, target=target, older=older, error=error, message_id=message_id)


@router.get("")
async def list_(
    view: Page,
    fleet: Ours,
    filter_: Annotated[Filter, Depends(asked)],
    at: Annotated[AwareDatetime | None, Query()] = None,
    id_: Annotated[int, Query(alias="id", ge=0, le=BIGGEST)] = 0,
) -> Response:
    """Show deliveries, those due first."""
    fields = filter_.fields()
    try:
        selection = filter_.selection()
    except (DomainError, ValueError) as error:
        return view.show(
            "waiting.html",
            status=422,
            fault=str(error),
            waiting=[],
            filter=msgspec.structs.asdict(filter_),
            filtered=True,
            total="",
            first=None,
            next=None,
        )
    deferred = Deferred(fleet.pool)
    found = await deferred.matching(selection, limit=ROWS + 1, after=None if at is None else _place(at, id_))
    total = len(found)
    if at is not None or total > ROWS:
        total = await view.recent.get(
            ("waiting", filter_), lambda: deferred.count(selection, at_most=_MOST), seconds=_COUNTED
        )
    after = found[ROWS - 1].cursor if len(found) > ROWS else None
    return view.show(
        "waiting.html",
        fault="",
        waiting=found[:ROWS],
        filter=msgspec.structs.asdict(filter_),
        filtered=bool(fields),
        total=capped(total, _MOST),
        first=url("/waiting", **fields) if at else None,
        next=url("/waiting", **fields, at=after[0].isoformat(), id=after[1]) if after else None,
    )


@router.get("/ages")
async def ages(view: Page, fleet: Ours) -> Response:
    """Show how old the mail of each domain is, as qshape does."""
    found = await view.recent.get(
        "ages of most", lambda: WaitingMail(fleet.pool).ages(now(), limit=_DOMAINS + 1), seconds=_AGED
    )
    shown = found[:_DOMAINS]
    names = ["0", *map(str, AGES)]
    buckets = [*starmap("{}-{}".format, pairwise(names)), f"{AGES[-1]}+"]
    return view.show(
        "waiting_ages.html",
        ages=shown,
        more=len(found) > _DOMAINS,
        buckets=buckets,
        totals=[sum(column) for column in zip(*(each.counts for each in shown), strict=True)],
        most=max((value for each in shown for value in each.counts), default=0),
    )


@router.get("/delivery")
async def delivery(view: Page, fleet: Ours, id_: Annotated[int, Query(alias="id", ge=0, le=BIGGEST)]) -> Response:
    """Show one delivery, with the header of its message."""
    deferred = Deferred(fleet.pool)
    rows = await deferred.matching(Selection(ids=(id_,)), limit=1)
    whole = await deferred.message(id_)
    if not rows or whole is None:
        raise Refused(404, "this delivery does not wait any more: it was delivered, is being tried, or was given up")
    return view.show("waiting_delivery.html", row=rows[0], header=_text(header_of(whole[1][:_LONGEST])))


def _text(header: bytes) -> str:
    """Return a header as text; what is no text is written out."""
    return header[:_HEADER].decode("utf-8", "backslashreplace")


def _place(at: AwareDatetime, id_: int) -> tuple[datetime, int]:
    return at, id_
