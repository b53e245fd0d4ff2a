"""Endpoint Cache: where mail to an address goes, and why."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from shared.delivery.explain import explain
from shared.mail.address import AddressError, domain_of
from shared.mail.domain import DomainError, normalise
from workers.panel.fleet import Ours
from workers.panel.pages.view import Line, Page

router = APIRouter(prefix="/endpoint-cache")


@router.get("/explain")
async def show(
    request: Request, view: Page, fleet: Ours, address: Annotated[Line, Query(max_length=320)] = ""
) -> Response:
    """Explain: within the page that asks for a part of it, or as a page of its own."""
    template = "explained.html" if "hx-request" in request.headers else "explain.html"
    try:
        domain = domain_of(address) if "@" in address else normalise(address)
    except (AddressError, DomainError) as error:
        return view.show(template, fault=f"{error}" if address else "Name an address or a domain.", address=address)
    found = await explain(domain, fleet.pool, fleet.settings)
    return view.show(template, found=found, fault="", address=address)
