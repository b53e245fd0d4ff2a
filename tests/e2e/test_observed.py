"""What people see of a fleet of real processes: spans of one trace, lines of the log, numbers of closed sets."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.fleet import Fleet
from tests.architecture.test_observed import SCRAPED, VALUES, ours
from tests.e2e.conftest import SENDER, World
from tests.integration.conftest import until
from tests.peers.mxdeliv import free_port
from tests.peers.otlp import Collector, Span
from tests.peers.smtp import Behaviour, ScriptedSmtpPeer

pytestmark = [pytest.mark.anyio]

ROOMS = {"router": 1, "https": 1, "smtp": 1, "journal": 1, "panel": 1}
# The connection of the first attempt ends with it: a kept one would go on as it began.
LATER = Behaviour(refuse={"later@a.example": "451 4.7.1 greylisted"}, hang_up_after="RCPT", extensions=())
THEN = Behaviour(refuse={"never@a.example": "550 5.1.1 no such user"})
# Of each outcome; what is not known is null.
FIELDS = {
    "event",
    "room",
    "level",
    "timestamp",
    "id",
    "recipient",
    "transport",
    "rule",
    "version",
    "attempt",
    "code",
} | {
    *("enhanced", "reply", "mta", "ms"),
}


async def send(fleet: Fleet, *recipients: str, body: str = "Subject: x\n\nx\n") -> str:
    """Hand in a message by `pushpush send`; return its id."""
    to = [word for each in recipients for word in ("--to", each)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.cli", "send", "-", "--from", SENDER, *to, "--json"),
        env=dict(fleet.env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(body.encode())
    assert 0 == process.returncode, out
    return str(json.loads(out)["data"]["id"])


def lines(folder: Path, room: str) -> list[dict[str, Any]]:
    """Return what a room wrote; each line must be JSON."""
    written = (folder / "log" / f"{room}-1.log").read_text().splitlines()
    return [json.loads(each) for each in written]


def about(folder: Path, room: str, id_: str) -> list[dict[str, Any]]:
    """Return the lines of a room about one message."""
    return [each for each in lines(folder, room) if each.get("id") == id_]


async def test_one_trace_across_a_retry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handed in, routed, deferred, routed again, delivered: each a span in its place, and no local part in any."""
    port = free_port()
    async with Collector() as collector, ScriptedSmtpPeer(LATER, THEN, port=port) as peer:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        await world.rule("a.example", f"127.0.0.1:{port}", transport="smtp")
        async with world.fleet({"router": 1, "smtp": 1}, traces="otlp", retry_schedule="1s") as fleet:
            id_ = await send(fleet, "later@a.example")
            await until(lambda: len(peer.received) == 1, within=60)
    mine = {(each.name, each.about.get("pushpush.attempt")): each for each in collector.spans if of(each, id_)}
    sent, first, second = mine["send", None], mine["deliver smtp", 1], mine["deliver smtp", 2]
    once, again = sorted(
        (each for each in collector.spans if of(each, id_) and each.name == "route"),
        key=lambda each: bool(each.about["pushpush.again"]),
    )
    assert {"pushpush-cli", "pushpush-router", "pushpush-smtp"} == {each.service for each in (sent, once, first)}
    assert {sent.trace} == {each.trace for each in (once, first, again, second)}
    assert ("", sent.id, once.id, once.id, once.id) == (
        *(sent.parent, once.parent, first.parent),
        *(again.parent, second.parent),
    )
    assert ("deferred", "delivered") == (first.about["pushpush.outcome"], second.about["pushpush.outcome"])
    assert {"smtp", "a.example"} == {second.about["pushpush.transport"], second.about["pushpush.domain"]}
    assert not [each for each in collector.spans if "later" in repr(each)]


def of(span: Span, id_: str) -> bool:
    """Say whether a span is about a message."""
    return span.about.get("pushpush.id") == id_


async def test_one_line_for_each_outcome(world: World, tmp_path: Path) -> None:
    """A retry and a delivery, a bounce, a refusal by the router: JSON, the same fields, domains only."""
    port = free_port()
    async with ScriptedSmtpPeer(LATER, THEN, port=port) as peer:
        await world.rule("a.example", f"127.0.0.1:{port}", transport="smtp")
        async with world.fleet(ROOMS, retry_schedule="1s", max_message_size="10000") as fleet:
            later = await send(fleet, "later@a.example")
            await until(lambda: len(peer.received) == 1, within=60)
            never = await send(fleet, "never@a.example")
            await until(lambda: bool(reports(tmp_path, "smtp", never)), within=60)
            large = await send(fleet, "large@a.example", body=f"Subject: x\n\n{'x' * 20_000}\n")
            await until(lambda: bool(reports(tmp_path, "router", large)), within=60)
            await until(lambda: bool(waited(lines(tmp_path, "scheduler"))), within=60)
            await numbers(fleet)
    deferred, delivered = about(tmp_path, "smtp", later)
    failed = about(tmp_path, "smtp", never)[0]
    assert ("deferred", "delivered", "failed") == (deferred["event"], delivered["event"], failed["event"])
    for each in (deferred, delivered, failed):
        assert FIELDS == set(each)
    assert (1, 451, "4.7.1", "a.example", "smtp", "a.example") == tuple(
        deferred[name] for name in ("attempt", "code", "enhanced", "recipient", "transport", "rule")
    )
    assert (2, 250) == (delivered["attempt"], delivered["code"])
    assert (550, "5.1.1") == (failed["code"], failed["enhanced"])
    [refused] = [each for each in about(tmp_path, "router", large) if each["event"] == "refused"]
    assert FIELDS - {"mta", "ms"} == set(refused)
    assert (552, "a.example", 0) == (refused["code"], refused["recipient"], refused["attempt"])
    told = reports(tmp_path, "smtp", never) + reports(tmp_path, "router", large)
    assert [("failed", "a.example")] * 2 == [(each["action"], each["recipient"]) for each in told]
    written = "".join((tmp_path / "log" / f"{room}-1.log").read_text() for room in (*ROOMS, "scheduler"))
    assert not [each for each in ("later@", "never@", "large@") if each in written]


def reports(folder: Path, room: str, id_: str) -> list[dict[str, Any]]:
    """Return what a room says of reports about one message."""
    return [each for each in about(folder, room, id_) if each["event"] == "reported"]


def waited(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a scheduler says of mail that it woke."""
    return [each for each in found if each["event"] == "woken"]


async def numbers(fleet: Fleet) -> None:
    """Look at what each room exports: metrics that are documented, labels and values of closed sets."""
    seen: dict[str, set[str]] = {}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        for name in fleet.names:
            answer = await client.get(f"http://127.0.0.1:{fleet.metrics_port(name)}/metrics")
            for family in text_string_to_metric_families(answer.text):
                if not family.name.startswith("pushpush_"):
                    continue
                assert {family.name, f"{family.name}_total"} & set(ours()) or family.name.endswith("_created")
                for sample in family.samples:
                    for label, value in sample.labels.items():
                        seen.setdefault(label, set()).add(value)
    assert set() == SCRAPED & set(seen)
    assert {"le", "version"} == set(seen) - set(VALUES)
    assert 1 == len(seen["version"])
    for label, values in VALUES.items():
        assert set() == seen.get(label, set()) - values, label
    assert {"delivered", "deferred", "failed"} <= seen["outcome"]
    assert VALUES["queue"] | VALUES["age"] | VALUES["state"] == seen["queue"] | seen["age"] | seen["state"]
