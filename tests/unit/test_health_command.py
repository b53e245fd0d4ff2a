"""`python -m shared.runtime.probe`: what it asks, and what it makes of the answer."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import create_server

import pytest

from shared.runtime.probe import probe

PORT = "PUSHPUSH_METRICS_PORT"
READY = b'{"ok": true, "faults": {}}\n'
FAULTY = b'{"ok": false, "faults": {"broker": "refused: wrong password", "store": "not tried yet"}}\n'


@contextmanager
def answering(status: int, body: bytes, *, path: str) -> Iterator[dict[str, str]]:
    """A room on 127.0.0.1 that knows one path; yield the environment of its container."""

    class Room(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == path else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with HTTPServer(("127.0.0.1", 0), Room) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield {PORT: str(server.server_port)}
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("arguments", "path", "status", "body", "expected"),
    [
        ([], "/readyz", 200, READY, (0, "ready")),
        (["readyz"], "/readyz", 200, READY, (0, "ready")),
        (["healthz"], "/healthz", 200, READY, (0, "alive")),
        ([], "/readyz", 200, FAULTY, (0, "ready\nbroker: refused: wrong password\nstore: not tried yet")),
        ([], "/readyz", 503, FAULTY, (1, "not ready (503)\nbroker: refused: wrong password\nstore: not tried yet")),
        (["healthz"], "/healthz", 503, READY, (1, "not alive (503)")),
        ([], "/healthz", 200, READY, (1, "not ready (404)")),
        ([], "/readyz", 503, b"an HTML page", (1, "not ready (503)")),
        ([], "/readyz", 503, b"[1]", (1, "not ready (503)")),
        ([], "/readyz", 503, b'{"faults": "none"}', (1, "not ready (503)")),
        ([], "/readyz", 503, b"\xff\xfe", (1, "not ready (503)")),
    ],
)
def test_it_says_in_words_how_the_room_is(
    arguments: list[str], path: str, status: int, body: bytes, expected: tuple[int, str]
) -> None:
    """A person who looks at the container reads the same words as the log has."""
    with answering(status, body, path=path) as environ:
        assert expected == probe(arguments, environ)


@pytest.mark.parametrize("port", [None, "", " ", "0", "65536", "-1", "metrics", "²"])
def test_without_a_port_nothing_is_asked(port: str | None) -> None:
    """The room serves nothing then, so it cannot be said to be well."""
    code, text = probe([], {} if port is None else {PORT: port})
    assert (1, True) == (code, text.startswith("PUSHPUSH_METRICS_PORT is "))


@pytest.mark.parametrize("arguments", [["livez"], [""], ["readyz", "healthz"], ["--help"]])
def test_a_question_that_no_room_knows_is_refused(arguments: list[str]) -> None:
    """A misspelt one must not look like a room that is ill."""
    assert (2, "usage: python -m shared.runtime.probe [readyz|healthz]") == probe(arguments, {PORT: "1"})


def test_no_answer_is_not_well() -> None:
    """Neither from a port where nobody listens, nor from somebody who speaks another protocol or only hangs up."""
    with create_server(("127.0.0.1", 0)) as server:
        environ = {PORT: str(server.getsockname()[1])}

        def speak(*words: bytes) -> None:
            for each in words:
                with server.accept()[0] as connection:
                    connection.recv(65_536)
                    connection.sendall(each)

        thread = threading.Thread(target=speak, args=(b"220 mx ESMTP\r\n", b""))
        thread.start()
        assert [(1, "not ready (not HTTP)")] * 2 == [probe([], environ) for _ in range(2)]
        thread.join()
    code, text = probe([], environ)
    assert (1, True) == (code, text.startswith(f"no answer on 127.0.0.1 port {environ[PORT]}: "))


def test_it_is_a_command_that_loads_next_to_nothing() -> None:
    """It is started every few seconds in every container: libraries would cost more than the room itself when idle."""
    command = [sys.executable, "-X", "importtime", "-m", "shared.runtime.probe"]
    with answering(503, FAULTY, path="/readyz") as environ:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert 1 == done.returncode
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert ["not ready (503)", "broker: refused: wrong password", "store: not tried yet"] == said
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"asyncio", "http", "urllib", "email", "ssl", "pydantic", "structlog", "uvloop", "workers"}
