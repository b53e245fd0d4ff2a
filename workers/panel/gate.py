"""What every request goes through first: who asks, how much they may send, and what no browser may do with the answer.

It is closed by default. Only the paths named here are open without a login; whatever else there is, or will be, is not.
"""

import contextlib
import hmac
from urllib.parse import urlsplit

import structlog
from fastapi import Request
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workers.panel import body as bodies
from workers.panel.access import CSRF_FIELD, CSRF_HEADER, Doors, Who, by_session, cookie_name
from workers.panel.envelope import RPC
from workers.panel.errors import LOGIN, Refused, answer, refusal
from workers.panel.proxies import Caller, Proxies

log = structlog.get_logger()

STATIC = "/static/"
_SAFE = ("GET", "HEAD", "OPTIONS")
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_FIELDS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: forms of such a page come from the origin "null", and by plain HTTP nothing else tells it.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, doors: Doors, proxies: Proxies) -> None:
        """Stand before an app."""
        self._app = app
        self._doors = doors
        self._proxies = proxies
        self._strangers = bodies.Strangers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the server closes what nobody has accepted
        started = False
        kept = "no-cache" if scope["path"].startswith(STATIC) else "no-store"

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                fields = MutableHeaders(scope=message)
                for name, value in (*_FIELDS.items(), ("Cache-Control", kept)):
                    fields[name] = value
                if scope.get("state", {}).get("secure"):  # by plain HTTP browsers complain of it, and pass over it
                    fields["Cross-Origin-Opener-Policy"] = "same-origin"
            await send(message)

        try:
            with contextlib.ExitStack() as until_done:
                await self._app(scope, await self._let_in(scope, receive, until_done), guarded)
        except Exception as error:
            refused = refusal(error)
            if refused.status_code == 500:  # noqa: PLR2004
                log.exception("the panel failed", method=scope["method"], path=scope["path"])
            if started:
                raise
            await answer(Request(scope), refused)(scope, receive, guarded)

    async def _let_in(self, scope: Scope, receive: Receive, until_done: contextlib.ExitStack) -> Receive:
        """Return what the app is to read the request from, once it may.

        Args:
            scope: Of the request.
            receive: Its body.
            until_done: Takes what is to be given back when it was answered.

        Raises:
            Refused: It may not.
            StoreUnavailable: It cannot be known whether it may.
        """
        headers, path = Headers(scope=scope), scope["path"]
        client = scope.get("client")
        caller = self._proxies.caller(client[0] if client else "", scope["scheme"], headers)
        state = scope.setdefault("state", {})
        state["address"], state["secure"] = caller.address, caller.secure
        if path.startswith(STATIC):
            return bodies.again(b"")  # files take none; the server throws away what comes
        if path == RPC:  # madmail's API looks at tokens by itself: they come in the body
            hold = until_done.enter_context(self._strangers.held(caller.address))
            return bodies.again(await bodies.read(headers, receive, bodies.CAP, hold))
        unsafe = scope["method"] not in _SAFE
        if unsafe and "authorization" not in headers and _foreign(headers, caller):
            raise Refused(403, "this was asked for by a page of another site")
        if path == LOGIN:
            return bodies.again(await bodies.read(headers, receive, bodies.LOGIN_CAP))
        found = state["who"] = await self._who(scope, headers, caller)
        large = path.endswith("/import") and found.may("operator")
        cap = bodies.IMPORT_CAP if large else bodies.CAP
        body = await bodies.read(headers, receive, cap)
        if unsafe and found.csrf and not await _meant(scope, headers, body, found.csrf, cap):
            raise Refused(403, "the form is from another session: load the page again")
        return bodies.again(body)

    async def _who(self, scope: Scope, headers: Headers, caller: Caller) -> Who:
        if (given := headers.get("authorization")) is not None:
            scheme, secret = get_authorization_scheme_param(given)
            if scheme.lower() != "bearer" or not secret:
                raise Refused(401, "send `Authorization: Bearer TOKEN`", headers={"WWW-Authenticate": "Bearer"})
            access = await self._doors.by_secret(secret, caller.address)
            return Who(name=access.name, role=access.role, via="api")
        cookie = Request(scope).cookies.get(cookie_name(secure=caller.secure))
        if cookie is not None and (owner := await self._doors.by_cookie(cookie)) is not None:
            return by_session(owner, cookie)
        raise Refused(401, "log in first, or send a token", headers={"WWW-Authenticate": "Bearer"})


def _foreign(headers: Headers, caller: Caller) -> bool:
    """Say whether another site's page made the browser ask. What no browser has sent is not foreign."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc != caller.host
    except ValueError:
        return True


async def _meant(scope: Scope, headers: Headers, body: bytes, csrf: str, cap: int) -> bool:
    """Say whether the request comes from a page that we gave to this session."""
    sent: object = headers.get(CSRF_HEADER)
    if sent is None and headers.get("content-type", "").partition(";")[0].strip().lower() in _FORMS:
        async with Request(scope, bodies.again(body)).form(max_part_size=cap) as form:
            sent = form.get(CSRF_FIELD)
    return isinstance(sent, str) and hmac.compare_digest(sent.encode(errors="replace"), csrf.encode())
