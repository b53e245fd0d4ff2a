"""Bodies of requests: read whole before anything looks at them, and never more of them than there is memory for."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from shared.store.sessions import network
from workers.panel.errors import Refused

CAP = 1024 * 1024  # bytes of a request
IMPORT_CAP = 32 * 1024 * 1024
LOGIN_CAP = 16 * 1024  # so small that as many as there are connections are no burden
_PATIENCE = 60.0  # seconds for a request to come whole
STRANGERS = 32 * 1024 * 1024  # bytes of all requests together that are read before it is known who asks,
SHARE = 4 * 1024 * 1024  # and of those from one network, lest it keep all others out


class Strangers:
    """What is held of requests that are read before it is known who asks."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._held = 0
        self._by_network: Counter[str] = Counter()

    @contextlib.contextmanager
    def held(self, address: str) -> Iterator["Hold"]:
        """Count one request until it is done with."""
        hold = Hold(self, network(address))
        try:
            yield hold
        finally:
            self._add(hold.whose, -hold.size)

    def room(self, whose: str, size: int) -> bool:
        """Take room for some bytes, if there is."""
        if self._held + size > STRANGERS or self._by_network[whose] + size > SHARE:
            return False
        self._add(whose, size)
        return True

    def _add(self, whose: str, size: int) -> None:
        self._held += size
        self._by_network[whose] += size
        if not self._by_network[whose]:
            del self._by_network[whose]


class Hold:
    """What one request holds."""

    def __init__(self, strangers: Strangers, whose: str) -> None:
        """Hold nothing yet."""
        self._strangers = strangers
        self.whose = whose
        self.size = 0

    def add(self, size: int) -> None:
        """Hold more.

        Raises:
            Refused: There is no room.
        """
        if not self._strangers.room(self.whose, size):
            raise Refused(503, "too much is being sent at the same time: try again", headers={"Retry-After": "5"})
        self.size += size


async def read(headers: Headers, receive: Receive, cap: int, hold: Hold | None = None) -> bytes:
    """Return the body.

    Raises:
        Refused: It is too large, or does not come, or there is no room for it.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > cap:
        raise _too_large(cap)
    pieces, size = [], 0
    try:
        async with asyncio.timeout(_PATIENCE):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the request did not come whole")
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > cap:
                    raise _too_large(cap)
                if hold is not None:
                    hold.add(len(pieces[-1]))
                if not message.get("more_body", False):
                    return b"".join(pieces)
    except TimeoutError as error:
        raise Refused(408, f"the request did not come within {_PATIENCE:.0f} s") from error


def again(body: bytes) -> Receive:
    """Return a `receive` that gives the body once more."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            # There is no more; whether the client waits on is seen when it is written to.
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _too_large(cap: int) -> Refused:
    return Refused(413, f"the request is larger than {cap // 1024} KiB")
