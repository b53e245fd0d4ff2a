"""uvicorn, without its signals and with less patience: the panel's HTTP server."""

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

PATIENCE = 20.0  # seconds for the header of a request; of its body the gate says how long
IDLE = 10  # seconds that a connection stays after an answer
DRAIN = 20  # seconds for what is being answered when it is told to stop
AT_ONCE = 2_000  # connections; strangers can hold them too, before anybody can ask who they are


class Protocol(H11Protocol):
    """One connection. Without a limit, whoever sends a byte now and then could keep it, and all of them, for ever."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        if self._waiting is not None:
            self._waiting.cancel()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._wait()

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(PATIENCE, self._give_up, self.cycle)

    def _give_up(self, last: RequestResponseCycle | None) -> None:
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """The server; the frame of the process has the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def server(app: FastAPI, *, host: str, port: int) -> Server:
    """Return a server for an app."""
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=Protocol,
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
