"""What every page needs: its template, who looks at it, and what the action before it had to say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import jinja2
import msgspec
from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import AfterValidator, StringConstraints

from shared.runtime.clock import now
from workers.panel import chart, words
from workers.panel.access import Viewer, Who
from workers.panel.pages import said, telling
from workers.panel.recent import Recent

_HERE = Path(__file__).parent.parent
BIGGEST = 2**63 - 1  # what PostgreSQL holds as a bigint
_MENU: tuple[tuple[str, str, str, bool], ...] = (
    ("/", "Overview", "overview", False),
    ("/endpoint-cache", "Endpoint Cache", "rules", False),
    ("/traffic", "Traffic", "traffic", False),
    ("/waiting", "Waiting mail", "waiting", False),
    ("/trace", "Trace", "trace", False),
    ("/dead", "Dead letters", "dead", False),
    ("/audit", "Audit log", "audit", False),
    ("/tokens", "Tokens", "tokens", True),
)


def _storable(text: str) -> str:
    if "\x00" in text or any("\ud800" <= each <= "\udfff" for each in text):
        raise ValueError("has a character that no text has")
    return text


Line = Annotated[str, StringConstraints(strip_whitespace=True, max_length=4_000), AfterValidator(_storable)]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the menu."""

    path: str
    name: str
    icon: str
    here: bool


class View:
    """A page that is asked for, by somebody who may see it.

    Attributes:
        said: What the action before had to say; None when there was none.
    """

    def __init__(self, request: Request, who: Viewer) -> None:
        """Look at a request."""
        self._who = who
        self.path = request.url.path
        # A part of a page is not where it is read; the next whole page is.
        self._part = "hx-request" in request.headers
        self._secure: bool = request.state.secure
        self.said = None if self._part else said.read(request.cookies.get(said.COOKIE), who.csrf)
        self.recent: Recent = _recent_of(request)

    @property
    def name(self) -> str:
        """Who looks."""
        return self._who.name

    @property
    def role(self) -> str:
        """What they may do."""
        return self._who.role

    @property
    def csrf(self) -> str:
        """What each form sends back."""
        return self._who.csrf

    def may(self, role: Literal["viewer", "operator", "admin"]) -> bool:
        """Say whether they may do what takes that role."""
        return self._who.may(role)

    def menu(self) -> list[Place]:
        """Return the pages they may see."""
        return [
            Place(path=path, name=name, icon=icon, here=self._is_here(path))
            for path, name, icon, admins in _MENU
            if not admins or self.may("admin")
        ]

    def show(self, template: str, *, status: int = 200, **values: object) -> HTMLResponse:
        """Return a page."""
        response = HTMLResponse(_render(template, self, values), status)
        if self.said is not None:
            response.delete_cookie(said.COOKIE, path="/", secure=self._secure, httponly=True, samesite="strict")
        return response

    def done(self, path: str, *lines: str, tone: said.Tone = "ok", version: int = 0) -> RedirectResponse:
        """Return the way to a page that shows what was done."""
        response = RedirectResponse(path, 303)
        response.set_cookie(
            said.COOKIE,
            said.written(tone, lines, version, self._who.csrf),
            max_age=said.SECONDS,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )
        return response

    def _is_here(self, path: str) -> bool:
        return self.path == path or (path != "/" and self.path.startswith(f"{path}/"))


Page = Annotated[View, Depends()]


def bare(template: str, *, status: int = 200, **values: object) -> HTMLResponse:
    """Return a page for whoever has not logged in."""
    return HTMLResponse(_render(template, None, values), status)


def fault(request: Request, who: Who | None, status: int, title: str, message: str) -> HTMLResponse:
    """Return a page that tells of a fault."""
    if who is None:
        return bare("fault_bare.html", status=status, title=title, message=message)
    return View(request, who).show("fault.html", status=status, title=title, message=message)


def url(path: str, **query: object) -> str:
    """Return a path with a query; what is empty is left out."""
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def _static(name: str) -> str:
    return f"/static/{name}"


def _render(template: str, view: View | None, values: Mapping[str, Any]) -> str:
    return _environment.get_template(template).render(view=view, now=now(), **values)


def _environment_of(folder: Path) -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=words.visible,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.globals |= {"url": url, "static": _static}
    made.filters |= {
        name: getattr(words, name)
        for name in ("ago", "clock", "count", "exact", "host", "lines", "plural", "sentence", "size", "span", "stamp")
    }
    made.filters |= {"when": words.when, "shares": chart.shares, "heat": chart.heat}
    made.filters |= {name: getattr(telling, name) for name in ("altered", "options", "told", "tone")}
    return made


_environment = _environment_of(_HERE / "templates")


def _recent_of(request: Request) -> Recent:
    state = request.app.state
    if not hasattr(state, "recent"):
        state.recent = Recent()
    recent: Recent = state.recent
    return recent
