"""Traces by OpenTelemetry, off unless PUSHPUSH_TRACES says otherwise; while they are off, nothing of it is imported.

What ties the spans of one message together travels with it as W3C trace context, `traceparent` and `tracestate`: in the
headers of an AMQP message, and in the envelope. Nothing of mail depends on a collector: spans are sent by a thread of
their own, those that find no room are dropped, and at the end no more than `FLUSH` seconds are spent on the last ones.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, Literal, Self

from shared.runtime.settings import ConfigError, Settings

FLUSH = 3.0  # seconds for the last spans when a process ends

Carrier = Mapping[str, str]  # `traceparent` and `tracestate`, or nothing
Kind = Literal["PRODUCER", "CONSUMER", "CLIENT"]


class Span:
    """What is done to one message, while traces are off: it only hands on what came.

    Attributes:
        carrier: The trace context for whoever comes next.
    """

    __slots__ = ("carrier",)

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier

    def end(self, outcome: str = "", *, well: bool = True) -> None:
        """Say that it is over, and what became of it; only the first time counts."""
        del outcome, well

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


_start: Callable[[str, Carrier, Kind, Mapping[str, Any]], Span] | None = None


def span(name: str, parent: Carrier, *, kind: Kind = "CONSUMER", **attributes: str | float | bool) -> Span:
    """Begin a span below another, or a trace of its own; what cannot be read in `parent` counts as nothing.

    Args:
        name: Of a closed set; what differs from message to message is an attribute.
        parent: The trace context that came with the message.
        kind: By which tools draw it.
        attributes: Get the prefix `pushpush.`; no local part of an address may be among them.
    """
    if _start is not None:
        with contextlib.suppress(Exception):  # whatever is wrong with it, the mail goes on
            return _start(name, parent, kind, attributes)
    return Span(parent)


@contextlib.contextmanager
def running(settings: Settings, room: str) -> Iterator[None]:
    """Send the spans of the block to the collector that the OTEL_* variables name, if the settings say so.

    Raises:
        ConfigError: The packages for it are not installed, or the variables not usable.
    """
    global _start  # noqa: PLW0603 - one for the process, looked at for each message
    if settings.traces == "off":
        yield
        return
    _start, stop = _open(settings, room)
    try:
        yield
    finally:
        _start = None
        stop()


def _open(
    settings: Settings, room: str
) -> tuple[Callable[[str, Carrier, Kind, Mapping[str, Any]], Span], Callable[[], None]]:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        from shared.runtime.spans import starter  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"PUSHPUSH_TRACES is otlp, but what it needs is not installed ({error}): install pushpush[traces], or set "
            "it to off"
        ) from error
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"pushpush-{room}"}
    own = {**named, "service.version": version("pushpush"), "service.instance.id": settings.instance}
    try:
        provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except Exception as error:
        raise ConfigError(f"PUSHPUSH_TRACES is otlp, but the OTEL_* variables are not usable: {error}") from error

    def stop() -> None:
        # It waits for a collector that does not answer, so not for it.
        stopping = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        stopping.start()
        stopping.join(FLUSH)

    return starter(provider.get_tracer("pushpush", version("pushpush"))), stop
