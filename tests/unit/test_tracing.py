"""Trace context: what is taken from a sender, what is handed on, and what it costs while traces are off."""

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from shared.mail import codec
from shared.mail.envelope import Envelope
from shared.runtime import tracing
from shared.runtime.settings import Settings
from shared.runtime.spans import starter
from tests.integration.conftest import MESSAGE, NOON, delivery, envelope

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def read(**headers: object) -> Envelope:
    """Return the envelope of a message with these headers more."""
    given = {"mail_from": "a@from.example", "rcpt_to": ["b@a.example"], **headers}
    return codec.from_ingress(MESSAGE, given, content_type=None, message_id=None, new_id="m1", now=NOON)


def test_the_context_of_a_sender_goes_along() -> None:
    """From the headers into the envelope, and over the wire."""
    got = read(traceparent=PARENT, tracestate="vendor=1,other=2")
    assert {"traceparent": PARENT, "tracestate": "vendor=1,other=2"} == got.trace
    sent = delivery(traceparent=PARENT)
    assert {"traceparent": PARENT} == codec.decode(codec.encode(sent, b""))[0].envelope.trace


@pytest.mark.parametrize(
    "given",
    [
        *(None, "", b"00-", 7, [PARENT], "x" * 10_000, PARENT.upper(), f"{PARENT}-1", f"\n{PARENT}", f"ff{PARENT[2:]}"),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    ],
    ids=repr,
)
def test_one_that_cannot_be_read_is_none(given: object) -> None:
    """The mail goes on."""
    assert {} == read(traceparent=given, tracestate="vendor=1").trace


@pytest.mark.parametrize("given", [None, "", b"a=1", 7, "x" * 513, "a=\n1", "a=é"], ids=repr)
def test_a_state_that_cannot_be_read_is_left_out(given: object) -> None:
    """And the parent stays."""
    assert {"traceparent": PARENT} == read(traceparent=PARENT, tracestate=given).trace


def test_without_a_trace_nothing_travels() -> None:
    """The bytes are those of every release before."""
    assert b"trace" not in codec.encode(delivery(), b"")
    assert {} == envelope().trace


def test_off_it_hands_on_what_came() -> None:
    """So that the next hop of a trace may be another program's."""
    with tracing.running(Settings(amqp_url="amqp://x", database_url="postgresql://x"), "smtp"):
        span = tracing.span("deliver smtp", {"traceparent": PARENT}, kind="CLIENT", id="m1")
        span.end("delivered")
        assert {"traceparent": PARENT} == span.carrier


class Broken(SpanProcessor):
    """Part of a pipeline of spans that fails with each."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.failed = 0

    def on_start(self, *_: object, **__: object) -> None:
        """Fail when a span begins."""
        self._fail("start")

    def on_end(self, *_: object) -> None:
        """Fail when one ends."""
        self._fail("end")

    def _fail(self, now: str) -> None:
        if now == self.at:
            self.failed += 1
            raise RuntimeError("a fault of the pipeline")


@pytest.mark.parametrize("at", ["start", "end"])
def test_a_fault_of_a_pipeline_reaches_no_mail(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised after a delivery it would have it delivered again; and the context of the sender goes along."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(broken := Broken(at))
    monkeypatch.setattr(tracing, "_start", starter(provider.get_tracer("test")))
    with tracing.span("deliver smtp", {"traceparent": PARENT}, id="m1") as span:
        span.end("delivered")
    assert 1 == broken.failed
    assert PARENT[:35] == span.carrier["traceparent"][:35]


def test_a_state_of_a_sender_is_not_written_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """It comes with each message, and anything may stand in it."""
    start = starter(TracerProvider(shutdown_on_exit=False).get_tracer("test"))
    span = start("route", {"traceparent": PARENT, "tracestate": "ann@a.example, ?"}, "CONSUMER", {})
    assert {"traceparent"} == span.carrier.keys()
    assert [] == caplog.records


def run(code: str, **env: str) -> tuple[int, str]:
    """Run a program; return its exit code, and what it wrote to standard error."""
    command = (sys.executable, "-c", code)
    given = {f"PUSHPUSH_{name.upper()}": value for name, value in env.items()}
    ran = subprocess.run(command, env=given, capture_output=True, check=False, timeout=60)
    return ran.returncode, ran.stderr.decode()


@pytest.mark.parametrize("room", ["router", "https", "smtp", "scheduler", "journal", "panel"])
def test_off_nothing_of_it_is_loaded(room: str) -> None:
    """Not a module, but what FastAPI loads of its own accord for the panel."""
    looking = "print([m for m in sys.modules if m.startswith(UNWANTED)], file=sys.stderr)"
    code = f"import sys, workers.{room}.__main__; {looking}"
    unwanted = ["opentelemetry.sdk", "opentelemetry.exporter", "shared.runtime.spans"]
    unwanted += ["opentelemetry"] * (room != "panel")
    assert (0, "[]\n") == run(code.replace("UNWANTED", repr(tuple(unwanted))))


def test_without_its_packages_a_room_says_so() -> None:
    """One sentence, exit 78."""
    code = """if True:
        import runpy, sys
        sys.modules["opentelemetry"] = None
        runpy.run_module("workers.smtp", run_name="__main__")
    """
    exit_code, told = run(
        code, amqp_url="amqp://127.0.0.1:1/", database_url="postgresql://127.0.0.1:1/x", traces="otlp"
    )
    assert 78 == exit_code, told
    assert "smtp: the settings are not usable:\nPUSHPUSH_TRACES is otlp, but what it needs is not installed" in told
    assert "install pushpush[traces], or set it to off" in told
    assert "Traceback" not in told
