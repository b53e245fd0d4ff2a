"""Ready is the truth: what a room needs, what it must have met once, what is only told, and who refuses it."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import REGISTRY

from shared.runtime import health as module
from shared.runtime.health import Health, serve
from tests.peers.mxdeliv import free_port


def test_a_need_holds_now_or_the_room_is_not_ready() -> None:
    """Also one that nobody declared."""
    health = Health("broker")
    assert (False, {"broker": "not tried yet"}) == (health.ready, health.faults())
    health.well("broker")
    assert (True, {}) == (health.ready, health.faults())
    health.ill("recording", "the disk is full")
    assert (False, {"recording": "the disk is full"}) == (health.ready, health.faults())


def test_what_must_be_met_once() -> None:
    """Later it is told, and does not keep the room from its work."""
    health = Health(once=("store",))
    health.ill("store", "away")
    assert not health.ready
    health.well("store")
    health.ill("store", "away again")
    assert (True, {"store": "away again"}) == (health.ready, health.faults())


@pytest.mark.parametrize("health", [Health("store"), Health(once=("store",)), Health(told=("store",))])
def test_a_refusal_is_never_ready(health: Health) -> None:
    """Whatever kind of condition it is, and as long as the server is there to refuse."""
    health.well("store")
    health.ill("store", "refused", refused=True)
    assert not health.ready
    health.well("store")
    assert health.ready


def test_what_is_only_told() -> None:
    """The panel is looked at when broker and store are away."""
    health = Health("web", told=("broker",))
    health.well("web")
    assert (True, {"broker": "not tried yet"}) == (health.ready, health.faults())
    health.ill("broker", "refused", refused=True)
    health.ill("broker", "away")
    assert health.ready


def ask(port: int, path: str) -> tuple[int, str]:
    """Return status and body."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def served() -> Iterator[Callable[[Health], int]]:
    """Serve a health; return the port."""
    port = free_port()

    def start(health: Health) -> int:
        stops.append(serve(health, host="127.0.0.1", port=port))
        return port

    stops: list[Callable[[], None]] = []
    yield start
    for stop in stops:
        stop()


def test_over_http(served: Callable[[Health], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """/healthz is alive, /livez its other name; /readyz lists the faults also when it is ready; a room that hangs."""
    health = Health("queue", once=("store",))
    port = served(health)
    for path in ("/healthz", "/livez"):
        assert (200, {"ok": True, "faults": {}}) == (ask(port, path)[0], json.loads(ask(port, path)[1]))
    assert 503 == ask(port, "/readyz")[0]
    health.well("queue")
    health.well("store")
    health.ill("store", "PostgreSQL is away")
    status, body = ask(port, "/readyz")
    assert (200, {"ok": True, "faults": {"store": "PostgreSQL is away"}}) == (status, json.loads(body))
    assert "pushpush_ready 1.0" in ask(port, "/metrics")[1]
    assert (1, 0) == tuple(
        REGISTRY.get_sample_value("pushpush_need_met", {"need": each}) for each in ("queue", "store")
    )
    monkeypatch.setattr(module, "_STALE", -1)
    assert [503, 503] == [ask(port, path)[0] for path in ("/healthz", "/readyz")]
    assert "pushpush_ready 0.0" in ask(port, "/metrics")[1]
    assert 404 == ask(port, "/")[0]
