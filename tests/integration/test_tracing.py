"""Spans of a real router, sent to a collector that is there, that does not answer, and that is not there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.broker import topology
from shared.broker.publisher import Publisher
from shared.runtime.settings import Settings
from shared.store.pool import Pool
from tests.integration.conftest import Queues, delivery, until
from tests.integration.test_actor import NEVER, always, job
from tests.integration.test_actor import Room as ActorRoom
from tests.integration.test_refused import Room
from tests.peers.mxdeliv import free_port
from tests.peers.otlp import Collector, Mute

pytestmark = [pytest.mark.anyio, pytest.mark.services]

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextlib.asynccontextmanager
async def router(settings: Settings, folder: Path) -> AsyncIterator[Room]:
    """Run a router with traces; at the end it stops as it is told to."""
    room = Room("router", folder, amqp_url=settings.amqp_url, database_url=settings.database_url, traces="otlp")
    try:
        await until(lambda: room.says(200, "{}"), within=60)
        yield room
        room.process.terminate()
        assert 0 == await asyncio.to_thread(room.process.wait, 30), room.log
    finally:
        room.process.kill()
        room.process.wait()


@pytest.mark.parametrize("sampler", ["parentbased_always_on", "always_off"])
async def test_a_span_of_the_senders_trace(
    settings: Settings, queues: Queues, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """The delivery's spans will be below it, with the sender's state; the last spans are sent at the end."""
    async with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        async with router(settings, tmp_path):
            await queues.send("b@a.example", traceparent=f"00-{TRACE}-{SPAN}-01", tracestate="vendor=1")
            context = (await queues.delivery(topology.SMTP, within=30))[0].envelope.trace
    version, trace, parent, flags = context["traceparent"].split("-")
    assert ("00", TRACE, "vendor=1") == (version, trace, context["tracestate"])
    if sampler == "always_off":
        assert ([], "00") == (collector.spans, flags)
        return
    [span] = collector.spans
    assert ("pushpush-router", "route", TRACE, SPAN, parent) == (
        *(span.service, span.name, span.trace, span.parent),
        span.id,
    )
    assert flags == "01"
    assert {"pushpush.id", "pushpush.again"} == set(span.about)


@pytest.mark.parametrize("there", [True, False], ids=["mute", "not there"])
async def test_a_collector_that_does_not_answer(
    settings: Settings, queues: Queues, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """Mail goes on, more of it than spans are kept; the room ends when it is told to, and no secret is in its log."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20horse-battery")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    async with Mute() as mute:
        url = mute.url if there else f"http://127.0.0.1:{free_port()}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        async with router(settings, tmp_path) as room:
            for _ in range(100):
                await queues.send("b@a.example")
            for _ in range(100):
                await queues.delivery(topology.SMTP, within=30)
    assert "horse-battery" not in room.log


async def test_a_report_belongs_to_the_trace_of_what_it_is_about(
    publisher: Publisher, pool: Pool, queues: Queues
) -> None:
    """Also while traces are off; a message without a trace makes a report without one."""
    actor = ActorRoom(publisher, pool).actor(always(NEVER))
    for context in ({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}, {}):
        await actor(job(delivery(**context)))
        headers = (await queues.take(topology.OUTBOUND)).headers
        assert context == {name: value for name, value in headers.items() if name.startswith("trace")}


async def test_settings_of_a_collector_that_are_not_usable(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence, and exit 78."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    room = Room("router", tmp_path, amqp_url=settings.amqp_url, database_url=settings.database_url, traces="otlp")
    try:
        assert 78 == await asyncio.to_thread(room.process.wait, 60), room.log
    finally:
        room.process.kill()
        room.process.wait()
    assert "PUSHPUSH_TRACES is otlp, but the OTEL_* variables are not usable" in room.log
