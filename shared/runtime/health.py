"""What a room says of itself: /livez, /readyz and /metrics, for Kubernetes, the supervisor and people.

Served from a thread of its own, so that a room whose event loop hangs still answers, and answers "not ready".
"""

import json
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

_STALE = 30  # seconds without a pulse, after which a room counts as hung


class Health:
    """Named conditions of one room. Ready means that all of them hold."""

    def __init__(self, *needs: str) -> None:
        """Start with every need unmet."""
        self._faults: dict[str, str] = dict.fromkeys(needs, "not tried yet")
        self._pulse = time.monotonic()

    def well(self, name: str) -> None:
        """Say that a need is met."""
        self._faults.pop(name, None)

    def ill(self, name: str, why: str) -> None:
        """Say that a need is not met, and why, in words for an operator."""
        self._faults[name] = why

    def pulse(self) -> None:
        """Say that the room's loop still turns."""
        self._pulse = time.monotonic()

    @property
    def alive(self) -> bool:
        """Say whether the loop turned lately."""
        return time.monotonic() - self._pulse < _STALE

    @property
    def ready(self) -> bool:
        """Say whether the room does its work."""
        return self.alive and not self._faults

    def faults(self) -> dict[str, str]:
        """Return what is wrong, by need."""
        return dict(self._faults)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: probes come every few seconds."""


def serve(health: Health, *, host: str, port: int) -> Callable[[], None]:
    """Serve the health in a thread; return a function that stops it. Port 0 serves nothing.

    Raises:
        OSError: The port is taken.
    """
    if port == 0:
        return lambda: None
    metrics = make_wsgi_app()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return cast("Iterable[bytes]", metrics(environ, start_response))
            case "/livez":
                well, faults = health.alive, {}
            case "/readyz":
                well, faults = health.ready, health.faults()
            case _:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"try /livez, /readyz or /metrics\n"]
        start_response("200 OK" if well else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps({"ok": well, "faults": faults}).encode() + b"\n"]

    server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    threading.Thread(target=server.serve_forever, args=(0.05,), name="health", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop
