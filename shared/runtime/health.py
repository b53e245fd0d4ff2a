"""What a room says of itself: /healthz, /readyz and /metrics, for Kubernetes, the supervisor and people.

Served from a thread of its own, so that a room whose event loop hangs still answers, and answers "not ready".
"""

import json
import threading
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import Gauge, make_wsgi_app

_STALE = 30  # seconds without a pulse, after which a room counts as hung
_MET = Gauge("pushpush_need_met", "Whether something that this room needs is there: 1 or 0", ["need"])
_READY = Gauge("pushpush_ready", "Whether this room does its work, as /readyz says: 1 or 0")
_BUILD = Gauge("pushpush_build_info", "Always 1; the label is the version that runs", ["version"])


class Health:
    """Named conditions of one room. Alive means that its loop turns, ready that it does its work.

    Without a need the room cannot work: it is ready only while all of them are met. What must be met once shows that
    the room was set up rightly; when it is lost later, the room goes on as well as it can. Others are only told.
    Whatever it is, a server that refuses us makes the room not ready: a secret is wrong, which only people can mend,
    and a rollout with it must not go on.
    """

    def __init__(self, *needs: str, once: tuple[str, ...] = (), told: tuple[str, ...] = ()) -> None:
        """Start with every condition unmet."""
        self._needed_once = set(once)
        self._no_need = set(told)
        self._refused: set[str] = set()
        self._faults: dict[str, str] = {}
        for name in (*needs, *once, *told):
            self.ill(name, "not tried yet")
        self._pulse = time.monotonic()

    def well(self, name: str) -> None:
        """Say that a condition is met."""
        if name in self._needed_once:
            self._needed_once.remove(name)
            self._no_need.add(name)
        self._refused.discard(name)
        self._faults.pop(name, None)
        _MET.labels(name).set(1)

    def ill(self, name: str, why: str, *, refused: bool = False) -> None:
        """Say that a condition is not met, and why, in words for an operator; `refused` by a server that is there."""
        (self._refused.add if refused else self._refused.discard)(name)
        self._faults[name] = why
        _MET.labels(name).set(0)

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
        return self.alive and not self._refused and self._faults.keys() <= self._no_need

    def faults(self) -> dict[str, str]:
        """Return what is wrong, by condition; also what does not keep the room from its work."""
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
    _BUILD.labels(version("pushpush")).set(1)
    _READY.set_function(lambda: float(health.ready))

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return cast("Iterable[bytes]", metrics(environ, start_response))
            case "/healthz" | "/livez":
                well, faults = health.alive, {}
            case "/readyz":
                well, faults = health.ready, health.faults()
            case _:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"try /healthz, /readyz or /metrics\n"]
        start_response("200 OK" if well else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps({"ok": well, "faults": faults}).encode() + b"\n"]

    server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    threading.Thread(target=server.serve_forever, args=(0.05,), name="health", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop
