"""Spans of OpenTelemetry's, as `shared/runtime/tracing.py` hands them out; imported only while traces are on."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span as TheirSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.runtime.tracing import Carrier, Kind, Span

_W3C = TraceContextTextMapPropagator()


class _Recorded(Span):
    """A span that is sent."""

    __slots__ = ("_span",)

    def __init__(self, span: TheirSpan, parent: Carrier) -> None:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(span, Context()))
        super().__init__(carrier or parent)
        self._span = span

    def end(self, outcome: str = "", *, well: bool = True) -> None:
        # What it is about may have been delivered and not settled: raising here would deliver it again.
        with contextlib.suppress(Exception):
            if not self._span.is_recording():
                return
            if outcome:
                self._span.set_attribute("pushpush.outcome", outcome)
            if not well:
                self._span.set_status(Status(StatusCode.ERROR, outcome))
            self._span.end()


def starter(tracer: Tracer) -> Callable[[str, Carrier, Kind, Mapping[str, Any]], Span]:
    """Return a function that begins spans of a tracer."""
    # For each message it would warn of a state that it cannot read, and quote it.
    logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)

    def start(name: str, parent: Carrier, kind: Kind, attributes: Mapping[str, Any]) -> Span:
        began = tracer.start_span(
            name,
            context=_W3C.extract(parent, Context()),
            kind=SpanKind[kind],
            attributes={f"pushpush.{key}": value for key, value in attributes.items()},
        )
        return _Recorded(began, parent)

    return start
