"""A collector of traces: OTLP over HTTP, as OpenTelemetry's exporters speak it."""

import asyncio
from typing import Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span:
    """A span as it came, with its parts as people read them."""

    def __init__(self, service: str, span: object) -> None:
        self.service = service
        self.name: str = span.name  # type: ignore[attr-defined] # made by protobuf
        self.trace: str = span.trace_id.hex()  # type: ignore[attr-defined]
        self.id: str = span.span_id.hex()  # type: ignore[attr-defined]
        self.parent: str = span.parent_span_id.hex()  # type: ignore[attr-defined]
        self.about: dict[str, object] = {
            each.key: getattr(each.value, each.value.WhichOneof("value"))
            for each in span.attributes  # type: ignore[attr-defined]
        }

    def __repr__(self) -> str:
        return f"{self.service}: {self.name} {self.about}"


class Collector:
    """Takes spans on a port of 127.0.0.1."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.spans: list[Span] = []
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.port}"

    async def _take(self, request: web.Request) -> web.Response:
        sent = ExportTraceServiceRequest.FromString(await request.read())
        for each in sent.resource_spans:
            about = {every.key: every.value.string_value for every in each.resource.attributes}
            self.spans += [Span(about["service.name"], span) for part in each.scope_spans for span in part.spans]
        return web.Response(content_type="application/x-protobuf")


class Mute:
    """A collector that takes connections and never answers."""

    def __init__(self) -> None:
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._keep, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    @property
    def url(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.port}"

    async def _keep(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)
        self._writers.append(writer)
