"""The way in and out: the login page, and the end of a session."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from workers.panel.access import log_in, log_out
from workers.panel.errors import Refused
from workers.panel.pages.view import bare
from workers.panel.words import sentence

router = APIRouter()

_LONGEST = 4_000  # characters


@router.get("/login")
async def ask(next_: Annotated[str, Query(alias="next")] = "") -> Response:
    """Show the form."""
    return bare("login.html", fault="", next=_ours(next_))


@router.post("/login")
async def open_(
    request: Request,
    token: Annotated[str, Form(max_length=1_000)] = "",
    next_: Annotated[str, Form(alias="next")] = "",
) -> Response:
    """Open a session, and go to the page that was asked for."""
    where = _ours(next_)
    response = RedirectResponse(where or "/", 303)
    try:
        await log_in(request, response, token)
    except Refused as refused:
        return bare("login.html", status=refused.status_code, fault=sentence(refused.detail), next=where)
    return response


@router.post("/logout")
async def close(request: Request) -> Response:
    """End the session."""
    response = RedirectResponse("/login", 303)
    await log_out(request, response)
    return response


def _ours(path: str) -> str:
    """Return the path if it is one of this panel, else nothing: a link to the login must not lead elsewhere.

    Nothing too for one that is very long: whoever logs in then comes to the first page.
    """
    plain = len(path) <= _LONGEST and path.isascii() and path.isprintable() and "\\" not in path
    return path if plain and path.startswith("/") and not path.startswith("//") else ""
