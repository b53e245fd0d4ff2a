"""Who asks, and what they may do: a token in the Authorization field, or the cookie of a session.

Every request but that for the login page comes through here before anything else looks at it (`gate.py`), so that a
route whose author forgot to ask for a role is still closed to strangers.
"""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Literal
from weakref import WeakValueDictionary

import msgspec
import structlog
from fastapi import Depends, Request, Response

from shared.store.sessions import MOST_TRIES, network
from shared.store.tokens import BOOTSTRAP, PREFIX, Access, Role, digest
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, fleet_of

log = structlog.get_logger()

COOKIE = "pushpush"
_SECURE_COOKIE = "__Host-pushpush"  # browsers take it by TLS only, and from no other host of the domain
_DAYS = 7 * 86_400  # seconds; the store ends a session earlier when nobody uses it
CSRF_FIELD = "csrf"
CSRF_HEADER = "x-csrf-token"
_LONGEST = 1_000  # characters of a secret; longer ones are none
TURN = 2.0  # seconds to wait while others from the same network try theirs


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks.

    Attributes:
        name: For the history and the audit log.
        role: What they may do.
        via: `panel` with a session, `api` with a token.
        csrf: What every form of theirs must send back in the field `csrf`, or htmx in X-CSRF-Token; "" with a token.
    """

    name: str
    role: Role
    via: Literal["panel", "api"]
    csrf: str = ""

    def may(self, role: Role) -> bool:
        """Say whether they may do what takes that role."""
        return Access(id=None, name=self.name, role=self.role).may(role)


class Doors:
    """Compares secrets. Tries that fail are counted by address, for all panels together."""

    def __init__(self, fleet: Fleet) -> None:
        """Use the fleet's tokens and sessions."""
        self._fleet = fleet
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by network

    async def by_secret(self, secret: str, address: str) -> Access:
        """Return what a token, or ADMIN_TOKEN, opens.

        A token with 256 bits of chance needs no limit on guesses, and whoever has one is not locked out by a stranger
        behind the same address. What is typed in ADMIN_TOKEN's place may be weak: it is not even compared any more
        once too many tries have failed.

        Raises:
            Refused: It opens nothing (401), too many tries have failed (429), or too many are being made (503).
            StoreUnavailable: It cannot be known.
        """
        if secret.startswith(PREFIX) and (found := await self._fleet.tokens.find(secret)):
            return found
        sessions, bootstrap = self._fleet.sessions, self._fleet.bootstrap
        async with self._turn(network(address)):
            if await sessions.failed(address) >= MOST_TRIES:
                raise Refused(429, "too many tries failed: wait a minute", headers={"Retry-After": "60"})
            right = hmac.compare_digest(digest(secret[:_LONGEST]), bootstrap or b"")
            if bootstrap is not None and right:
                return Access(id=None, name=BOOTSTRAP, role="admin")
            await sessions.fail(address)
        log.warning("a token was refused", address=address)
        raise Refused(401, "the token is none, or its time is over", headers={"WWW-Authenticate": "Bearer"})

    @contextlib.asynccontextmanager
    async def _turn(self, whose: str) -> AsyncIterator[None]:
        """Let one after the other try, or a thousand guesses at once would all be compared before the first is counted.

        Raises:
            Refused: Those before took too long: the store is slow, or away.
        """
        lock = self._turns.setdefault(whose, asyncio.Lock())
        try:
            async with asyncio.timeout(TURN):
                await lock.acquire()
        except TimeoutError as error:
            message = "others from your network are trying to log in, and PostgreSQL is slow or away: try again"
            raise Refused(503, message, headers={"Retry-After": "5"}) from error
        try:
            yield
        finally:
            lock.release()

    async def by_cookie(self, cookie: str) -> Access | None:
        """Return whose session it is, or None.

        Raises:
            StoreUnavailable: It cannot be known.
        """
        return await self._fleet.sessions.find(cookie) if len(cookie) < _LONGEST else None


def needs(role: Role) -> Callable[[Request], Who]:
    """Return a dependency that lets in whoever has the role, or one that may do more."""

    def check(request: Request) -> Who:
        found = who(request)
        if not found.may(role):
            raise Refused(403, f"this takes the role {role}; {found.name} is {found.role}")
        return found

    return check


def who(request: Request) -> Who:
    """Return who asks, as the gate found it.

    Raises:
        Refused: Nobody has logged in.
    """
    found: Who | None = getattr(request.state, "who", None)
    if found is None:
        raise Refused(401, "log in first")
    return found


Viewer = Annotated[Who, Depends(needs("viewer"))]
Operator = Annotated[Who, Depends(needs("operator"))]
Admin = Annotated[Who, Depends(needs("admin"))]


async def log_in(request: Request, response: Response, secret: str) -> Who:
    """Open a session for whoever typed a token, and put its cookie on the response.

    Raises:
        Refused: It is no token (401), or too many tries have failed (429).
        StoreUnavailable: It cannot be known.
    """
    doors: Doors = request.app.state.doors
    access = await doors.by_secret(secret.strip(), request.state.address)
    opened = await fleet_of(request).sessions.open(access)
    response.set_cookie(
        cookie_name(secure=request.state.secure),
        opened.cookie,
        max_age=_DAYS,
        path="/",
        secure=request.state.secure,
        httponly=True,
        samesite="strict",
    )
    log.info("logged in", name=access.name, role=access.role, address=request.state.address)
    return by_session(access, opened.cookie)


async def log_out(request: Request, response: Response) -> None:
    """End the session of whoever asks, and take its cookie away."""
    secure = request.state.secure
    name = cookie_name(secure=secure)
    if (cookie := request.cookies.get(name)) is not None:
        await fleet_of(request).sessions.close(cookie)
    response.delete_cookie(name, path="/", secure=secure, httponly=True, samesite="strict")


def by_session(access: Access, cookie: str) -> Who:
    """Return who has this session."""
    csrf = hmac.digest(cookie.encode(), b"csrf", "sha256").hex()
    return Who(name=access.name, role=access.role, via="panel", csrf=csrf)


def cookie_name(*, secure: bool) -> str:
    """Return the name of the cookie of a session."""
    return _SECURE_COOKIE if secure else COOKIE
