"""Refusals and faults in one shape: `{"error": {"kind": ..., "message": ..., "fields": {...}}}`; a page for people.

A reason of our own is told to whoever has logged in; of a fault that nobody foresaw the log tells.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from shared.mail.address import AddressError
from shared.mail.domain import DomainError
from shared.mail.route import TargetError
from shared.mail.rule import RuleError
from shared.runtime.errors import BrokerUnavailable, StoreUnavailable
from shared.runtime.settings import ConfigError
from shared.store.overrides import ConflictError
from shared.store.tokens import TakenError, TokenError
from workers.panel.envelope import RPC, envelope

API = "/api/"
LOGIN = "/login"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SHOWN = 300  # characters of what was wrong with one field
_AGAIN = "5"  # seconds after which to ask again while something is away
_KINDS = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported",
    422: "invalid",
    429: "too_many_tries",
    500: "internal",
    503: "unavailable",
}


class Fault(BaseModel):
    """What went wrong."""

    kind: str = Field(description="For programs: " + ", ".join(_KINDS.values()))
    message: str = Field(description="One sentence for people")
    fields: dict[str, str] = Field(description="What is wrong with which field of the request")


class Faulty(BaseModel):
    """The shape of every refusal."""

    error: Fault


class Refused(HTTPException):
    """What was asked for is not done; the message is one sentence for whoever asked."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "",
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.kind = kind or _KINDS.get(status, "refused")
        self.fields = dict(fields or {})


class ErrorPage(Protocol):
    """Makes the page that tells people of a refusal."""

    def __call__(self, request: Request, status: int, message: str) -> Response:
        """Return it."""


def install(app: FastAPI, page: ErrorPage) -> None:
    """Answer every exception that an app may raise in the one shape."""
    app.state.error_page = page

    def handled(request: Request, error: Exception) -> Response:
        return answer(request, refusal(error))

    for kind in (HTTPException, RequestValidationError, *_STATUS):
        app.add_exception_handler(kind, handled)


def refusal(error: Exception) -> Refused:
    """Return what is told of an exception."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        return Refused(error.status_code, _words(error), headers=error.headers)
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    for kind, (status, name) in _STATUS.items():
        if isinstance(error, kind):
            return Refused(status, str(error), kind=name, headers={"Retry-After": _AGAIN} if status == 503 else None)  # noqa: PLR2004
    return Refused(500, "something is wrong with the panel itself; its log says what")


def answer(request: Request, refused: Refused) -> Response:
    """Return the answer: an object below /api/, else a page, or the way to the login page."""
    if request.url.path == RPC:
        return envelope(refused.status_code, error=refused.detail)
    status, headers = refused.status_code, dict(refused.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = _allowed(request)
    if request.url.path.startswith(API):
        fault = {"kind": refused.kind, "message": refused.detail, "fields": refused.fields}
        return JSONResponse({"error": fault}, status, headers)
    if status == HTTPStatus.UNAUTHORIZED and request.url.path != LOGIN:
        return _to_login(request)
    page: ErrorPage = request.app.state.error_page
    response = page(request, status, refused.detail)
    response.headers.update(headers)
    return response


# By exception, the most special first.
_STATUS: dict[type[Exception], tuple[int, str]] = {
    StoreUnavailable: (503, "store_unavailable"),
    BrokerUnavailable: (503, "broker_unavailable"),
    ConfigError: (503, "misconfigured"),
    ConflictError: (409, "conflict"),
    TakenError: (409, "conflict"),
    TokenError: (422, "invalid"),
    RuleError: (422, "invalid"),
    TargetError: (422, "invalid"),
    DomainError: (422, "invalid"),
    AddressError: (422, "invalid"),
}


def _allowed(request: Request) -> str:
    """Return every method that a path has; the framework tells those of the first route alone."""
    routes, scope = request.app.routes, request.scope
    return ", ".join(
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    )


def _to_login(request: Request) -> Response:
    if "hx-request" in request.headers:
        # htmx would put the login page where a part of a page is to go.
        return Response(status_code=401, headers={"HX-Redirect": LOGIN})
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    back = f"?next={quote(wanted, safe='')}" if request.method == "GET" and wanted != "/" else ""
    return RedirectResponse(LOGIN + back, HTTPStatus.SEE_OTHER)


def _words(error: HTTPException) -> str:
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return "there is nothing here"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return "this cannot be asked for in that way"
        case _:
            return error.detail


def _invalid(errors: Sequence[Any]) -> Refused:
    if any(each["type"] == "json_invalid" for each in errors):
        return Refused(400, "the body is no JSON")
    fields: dict[str, str] = {}
    for each in errors:
        where = [str(part) for part in each["loc"]]
        name = ".".join(where[1:] if len(where) > 1 else where) or "body"
        fields.setdefault(name[:_SHOWN], str(each["msg"]).removeprefix("Value error, ")[:_SHOWN])
    told = "; ".join(f"{name}: {why}" for name, why in list(fields.items())[:3])
    return Refused(422, f"the request is not acceptable: {told}", fields=fields)
