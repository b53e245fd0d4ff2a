"""uvicorn, without its signals and with less patience: the panel's HTTP server."""

import asyncio
import contextlib
import fcntl
import sys
import termios
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from shared.store.sessions import network
from workers.panel.proxies import Proxies

log = structlog.get_logger()

PATIENCE = 20.0  # seconds for the header of a request; of its body the gate says how long
IDLE = 10  # seconds that a connection stays after an answer
DRAIN = 20  # seconds for what is being answered when it is told to stop
STALLED = 15.0  # seconds between two looks at what a client has not taken yet: it has to take
LEAST = 16 * 1024  # bytes of it from one look to the next, or all there is
AT_ONCE = 2_000  # connections; strangers can hold them too, before anybody can ask who they are,
EACH = 64  # but not from one address


class Crowd:
    """How many connections each address has. What a known proxy hands on comes from many."""

    def __init__(self, proxies: Proxies) -> None:
        """Count everybody but these."""
        self._proxies = proxies
        self._held: Counter[str] = Counter()
        self._told: set[str] = set()

    def enter(self, address: str) -> str | None:
        """Return whom a connection is counted for, "" for nobody; None when they have too many."""
        if self._proxies.known(address):
            return ""
        whose = network(address)
        if self._held[whose] >= EACH:
            if whose not in self._told:
                self._told.add(whose)
                log.warning("too many connections from one address, more are closed", address=whose, most=EACH)
            return None
        self._held[whose] += 1
        return whose

    def leave(self, whose: str) -> None:
        """Count one less."""
        self._held[whose] -= 1
        if self._held[whose] <= 0:
            del self._held[whose]
            self._told.discard(whose)


class Protocol(H11Protocol):
    """One connection. Without a limit, whoever sends a byte now and then could keep it, and all of them, for ever.

    So could whoever reads no answer: a transport that is closed stays until all is written.
    """

    _waiting: asyncio.TimerHandle | None = None
    _looking: asyncio.TimerHandle | None = None
    _untaken = 0  # bytes at the last look; 0 when something moved since
    _whose: str | None = None

    def __init__(self, *args: Any, crowd: Crowd, **kwargs: Any) -> None:
        """Count it in a crowd."""
        super().__init__(*args, **kwargs)
        self._crowd = crowd

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._whose = self._crowd.enter(self.client[0] if self.client else "")
        if self._whose is None:
            transport.abort()
            return
        self._wait()
        self._looking = self.loop.call_later(STALLED, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        for timer in (self._waiting, self._looking):
            if timer is not None:
                timer.cancel()
        if self._whose is not None:
            self._crowd.leave(self._whose)

    def resume_writing(self) -> None:
        """Note that the client takes what is written."""
        super().resume_writing()
        self._untaken = 0

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._untaken = 0  # an answer more is written, which takes that it could be
        super().on_response_complete()
        self._wait()

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(PATIENCE, self._give_up, self.cycle)

    def _give_up(self, last: RequestResponseCycle | None) -> None:
        answered = last is None or last.response_complete
        if answered and self.cycle is last and not self.transport.is_closing():
            self.transport.close()

    def _look(self) -> None:
        """End a connection whose client takes too little of what is written, also one that is being closed."""
        untaken = self.transport.get_write_buffer_size() + _sent(self.transport)
        if self._untaken and untaken > max(0, self._untaken - LEAST):
            self.transport.abort()
            return
        self._untaken = untaken
        self._looking = self.loop.call_later(STALLED, self._look)


def _sent(transport: asyncio.Transport) -> int:
    """Return how many bytes the system has taken and the client has not; up to some MiB, which leave in large steps."""
    sock = transport.get_extra_info("socket")
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):
        return 0  # it is closed, or the system does not tell


class Server(uvicorn.Server):
    """The server; the frame of the process has the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def server(app: FastAPI, *, host: str, port: int, proxies: Proxies) -> Server:
    """Return a server for an app."""
    protocol = partial(Protocol, crowd=Crowd(proxies))
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=cast("type[asyncio.Protocol]", protocol),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the gate reads them, of proxies that are known
            limit_concurrency=AT_ONCE,
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=DRAIN,
        )
    )
