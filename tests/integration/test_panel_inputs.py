"""Whatever is sent to a page is answered with a page, and never with a fault of the panel."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import httpx

from shared.runtime.settings import Settings
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from tests.integration.conftest import Wire, through
from tests.integration.panels import Panel, running
from tests.integration.panels import panel as panel  # noqa: PLC0414

EVIL: Final = (
    "",
    "\x00",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    "'; DROP TABLE dns_overrides; --",
    "%",
    "<script>",
    "..\\..//",
    "-1",
    "99999999999999999999999999",
    "1e400",
    "x" * 5_000,
    "*",
    "[::1",
    "2026-13-45T99:99Z",
    "\u202e",
)
ASKED: Final[dict[str, tuple[str, ...]]] = {
    "/endpoint-cache": ("search", "state", "after"),
    "/endpoint-cache/applied": ("version",),
    "/endpoint-cache/rule": ("key",),
    "/endpoint-cache/edit": ("key",),
    "/endpoint-cache/new": ("key",),
    "/endpoint-cache/remove": ("key",),
    "/endpoint-cache/explain": ("address",),
    "/endpoint-cache/history": ("key", "before", "last"),
    "/endpoint-cache/undo": ("version", "key"),
    "/endpoint-cache/rollback": ("version",),
    "/endpoint-cache/export": ("format",),
    "/traffic": ("search", "since", "order"),
    "/traffic/domain": ("domain", "since"),
    "/waiting": ("domain", "target", "older", "error", "message_id", "at", "id"),
    "/waiting/delivery": ("id",),
    "/trace": ("word", "before"),
    "/trace/message": ("id",),
    "/dead": ("search", "after"),
    "/dead/letter": ("id",),
    "/dead/raw": ("id",),
    "/audit": ("before",),
    "/tokens/revoke": ("name",),
    "/login": ("next",),
}
SENT: Final[dict[str, tuple[str, ...]]] = {
    "/endpoint-cache/new": ("key", "target", "comment", "transport", "tls", "ends", "share", "seen"),
    "/endpoint-cache/edit": ("key", "target", "seen"),
    "/endpoint-cache/enable": ("key", "seen", "back"),
    "/endpoint-cache/expire": ("key", "seen", "ends"),
    "/endpoint-cache/remove": ("key", "seen"),
    "/endpoint-cache/undo": ("version", "key", "seen"),
    "/endpoint-cache/rollback": ("version", "seen"),
    "/endpoint-cache/import": ("file", "whole"),
    "/endpoint-cache/apply/import": ("format", "packed", "seen", "whole"),
    "/waiting/act": ("do", "scope", "id", "domain", "older"),
    "/waiting/end": ("do", "expect", "up_to", "id", "accepted_before", "domain"),
    "/dead/discard": ("id",),
    "/dead/discard/now": ("id", "expect"),
    "/dead/requeue": ("id", "mail_from", "rcpt_to"),
    "/tokens": ("name", "role", "expires"),
    "/tokens/revoke": ("name",),
}


async def test_what_is_asked(panel: Panel) -> None:
    """Each parameter with each evil value, alone."""
    client, _ = await panel.login(await panel.token("admin"))
    async with contextlib.aclosing(client):
        for (path, name), value in itertools.product(_each(ASKED), EVIL):
            answer = await client.get(
                path, params={name: value}, headers={"HX-Request": "true"} if value == "*" else {}
            )
            assert (path, name, value, True) == (path, name, value, answer.status_code in (200, 404, 409, 422))
            assert value != "<script>" or "<script>" not in answer.text.partition("<main")[2]


async def test_what_is_sent(panel: Panel, pool: Pool) -> None:
    """Each field with each evil value, the others as they should be."""
    good = {"key": "a.example", "target": "b.example", "force": "yes", "seen": "0", "version": "0", "do": "retry"}
    good |= {"scope": "some", "id": "1", "expect": "0", "up_to": "0", "format": "csv", "packed": "x", "role": "viewer"}
    good |= {"name": "x", "transport": "auto"}
    client, csrf = await panel.login(await panel.token("admin"))
    async with contextlib.aclosing(client):
        for (path, name), value in itertools.product(_each(SENT), EVIL):
            fields = {each: good[each] for each in (*SENT[path], "force") if each in good} | {name: value, "csrf": csrf}
            answer = await client.post(path, data=fields)
            told = (path, name, value[:40], answer.status_code)
            assert answer.status_code in (200, 303, 404, 409, 422), told
    # What was made of it, if anything, is in normal form.
    for each in await Overrides(pool).matching():
        assert (True, True) == (each.rule.lookup_key.isascii(), each.rule.target_host.isascii())


async def test_without_the_store_a_page_says_so(settings: Settings, pool: Pool, database: str) -> None:
    """And works again as soon as it is back."""
    port = int(database.rpartition(":")[2].partition("/")[0])
    async with Wire(port) as wire:
        ours = settings.model_copy(update={"database_url": through(database, wire)})
        async with running(ours, pool) as panel:
            client, _ = await panel.login(await panel.token("viewer"))
            async with contextlib.aclosing(client):
                assert 200 == (await client.get("/endpoint-cache")).status_code
                await wire.cut()
                answer = await client.get("/endpoint-cache")
                assert (503, True, True) == (
                    answer.status_code,
                    "<h1>" in answer.text,
                    "PostgreSQL is away" in answer.text,
                )
                await wire.mend()
                await _until_well(client)


async def test_without_the_broker_the_overview_says_so(settings: Settings, pool: Pool, broker_wire: Wire) -> None:
    """All that the store knows is shown; nothing is claimed of queues that cannot be counted."""
    ours = settings.model_copy(update={"amqp_url": through(settings.amqp_url, broker_wire)})
    async with running(ours, pool) as panel:
        client, csrf = await panel.login(await panel.token("operator"))
        async with contextlib.aclosing(client):
            await broker_wire.cut()
            page = await client.get("/overview/live")
            assert (200, True, True) == (page.status_code, "RabbitMQ" in page.text, "none is lost" in page.text)
            assert 200 == (await client.get("/dead")).status_code
            answer = await client.post("/dead/collect", data={"csrf": csrf})
            assert (503, True) == (answer.status_code, "RabbitMQ" in answer.text)


def _each(fields: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [(path, name) for path, names in fields.items() for name in names]


async def _until_well(client: httpx.AsyncClient) -> None:
    for _ in range(100):
        if (await client.get("/endpoint-cache")).status_code == 200:
            return
    raise AssertionError("the panel did not come back")
