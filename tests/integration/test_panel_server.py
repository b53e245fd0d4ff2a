"""Strangers who hold what others need: connections, memory, the turn to log in."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import httpx
import pytest

from shared.runtime.settings import Settings
from shared.store.pool import Pool
from tests.integration.conftest import Wire, through, until
from tests.integration.panels import ADMIN_TOKEN, Panel, running
from tests.integration.panels import panel as panel  # noqa: PLC0414
from workers.panel import body, server

SIXTEEN = 16 * 1024 * 1024
HTMX = b"GET /static/htmx.min.js HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.asynccontextmanager
async def sockets(panel: Panel, number: int, sent: bytes, room: int = 2048) -> AsyncIterator[list[socket.socket]]:
    """Send something on some connections, and read nothing."""
    loop = asyncio.get_running_loop()
    made = [socket.socket() for _ in range(number)]
    try:
        for each in made:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            each.setblocking(False)
            await loop.sock_connect(each, ("127.0.0.1", panel.settings.panel_port))
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(each, sent)
        yield made
    finally:
        for each in made:
            each.close()


async def login_page(panel: Panel) -> int:
    """Return the status of the login page, 0 when nobody answers."""
    async with panel.client() as client:
        try:
            return (await client.get("/login")).status_code
        except httpx.TransportError:
            return 0


async def took(asked: Awaitable[Any]) -> tuple[Any, float]:
    """Return what came of it, and the seconds that it took."""
    began = time.monotonic()
    return await asked, time.monotonic() - began


class TestConnections:
    """Each is held for a while by whoever does something with it."""

    async def test_who_reads_no_answer_does_not_stay(
        self, settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else a few of them lock everybody out for good."""
        monkeypatch.setattr(server, "AT_ONCE", 6)
        monkeypatch.setattr(server, "STALLED", 6.0)
        async with running(settings, pool) as panel, contextlib.AsyncExitStack() as held:
            for _ in range(5):
                await asyncio.sleep(0.3)  # until nothing moves any more
                await held.enter_async_context(sockets(panel, 1, HTMX * 300))
            await until(lambda: _is(login_page(panel), 503), within=5)
            await until(lambda: _is(login_page(panel), 200), within=60)

    async def test_who_reads_slowly_does(self, settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slow line is no attack."""
        monkeypatch.setattr(server, "STALLED", 0.3)
        loop, times = asyncio.get_running_loop(), 120
        async with running(settings, pool) as panel, sockets(panel, 1, HTMX * times, 64 * 1024) as [reading]:
            got = b""
            while got.count(b"HTTP/1.1 200 OK") < times:
                data = await loop.sock_recv(reading, 32 * 1024)
                assert data, len(got)
                got += data
                await asyncio.sleep(0.01)
            assert len(got) > times * 50_000

    async def test_one_address_has_not_all_of_them(
        self, settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those beyond its share are closed, until it closes some; a proxy that is known has no share."""
        monkeypatch.setattr(server, "EACH", 5)
        async with running(settings, pool) as panel:
            async with sockets(panel, 5, b"GET "):
                await until(lambda: _is(login_page(panel), 0), within=5)
            await until(lambda: _is(login_page(panel), 200), within=5)
        async with running(settings, pool, panel_proxies=("127.0.0.1",)) as panel, sockets(panel, 20, b"GET "):
            assert 200 == await login_page(panel)


class TestBodies:
    """What is read before it is known who asks."""

    async def test_files_take_none(self, panel: Panel) -> None:
        """Nobody waits for it, and nothing of it is kept."""
        reader, writer = await asyncio.open_connection("127.0.0.1", panel.settings.panel_port)
        writer.write(b"GET /static/icon.svg HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000)
        async with asyncio.timeout(5):
            assert b"HTTP/1.1 200 OK\r\n" == await reader.readline()
        writer.close()

    @pytest.mark.parametrize("limit", ["STRANGERS", "SHARE"])
    async def test_calls_that_do_not_end_have_a_limit(
        self, panel: Panel, monkeypatch: pytest.MonkeyPatch, limit: str
    ) -> None:
        """Other calls are told to come again, and are answered once those are gone."""
        monkeypatch.setattr(body, limit, 600_000)
        begun = b"POST /api/admin HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b" " * 299_900

        async def status() -> int:
            return int((await panel.rpc("GET", "/admin/dns", {"x": "y" * 1_000}, token=ADMIN_TOKEN))["status"])

        async with sockets(panel, 2, begun):
            await until(lambda: _is(status(), 503), within=5)
            async with panel.client(ADMIN_TOKEN) as client:
                assert 200 == (await client.get("/api/v1/session")).status_code
            assert 200 == await login_page(panel)
        await until(lambda: _is(status(), 200), within=5)

    async def test_a_large_field_of_a_form(self, panel: Panel) -> None:
        """An import comes back from its page as one field; only operators may send one, and only there."""
        found = {}
        for role in ("viewer", "operator"):
            client, csrf = await panel.login(await panel.token(role))
            for path in ("/endpoint-cache/apply/import", "/endpoint-cache/enable"):
                answer = await client.post(path, data={"csrf": csrf, "packed": "x" * SIXTEEN})
                found[role, path.rpartition("/")[2]] = answer.status_code, "another session" in answer.text
            await client.aclose()
        assert {413} == {found[key][0] for key in found if key != ("operator", "import")}
        assert (422, False) == found["operator", "import"]  # the page misses the rest of it


class TestStoreThatDoesNotAnswer:
    """Frozen: connections stand, and nothing comes back."""

    async def test_everything_says_so_soon(self, settings: Settings, pool: Pool, store_wire: Wire) -> None:
        """503 while somebody still waits for it, and all is well when it goes on."""
        wired = settings.model_copy(update={"database_url": through(settings.database_url, store_wire)})
        async with running(wired, pool) as panel, panel.client(ADMIN_TOKEN) as api, panel.client() as stranger:
            session, _ = await panel.login(ADMIN_TOKEN)
            await api.get("/api/v1/overrides")
            store_wire.passing.clear()
            for _ in range(2):
                answers, seconds = await took(
                    asyncio.gather(
                        session.get("/"),
                        api.get("/api/v1/overrides"),
                        stranger.post("/login", data={"token": ADMIN_TOKEN}),
                        panel.rpc("GET", "/admin/dns", token=ADMIN_TOKEN),
                    )
                )
                assert [503] * 4 == [each["status"] if isinstance(each, dict) else each.status_code for each in answers]
                assert seconds < 20  # it was twice that, and a person gives up
            store_wire.passing.set()
            await until(lambda: _is(_status(session, "/"), 200), within=10)
            await session.aclose()

    async def test_logins_wait_for_each_other_no_longer_than_anybody_does(
        self, settings: Settings, pool: Pool, store_wire: Wire
    ) -> None:
        """A dozen before do not make it half a minute; nor can one network choose among its turns."""
        wired = settings.model_copy(update={"database_url": through(settings.database_url, store_wire)})
        async with running(wired, pool, panel_proxies=("127.0.0.1",)) as panel, panel.client() as client:
            await store_wire.cut()
            tries = (
                client.post("/login", data={"token": f"x{n}"}, headers={"X-Forwarded-For": f"2001:db8:1:2::{n}"})
                for n in range(12)
            )
            answers, seconds = await took(asyncio.gather(*tries))
            assert ({503}, True) == ({each.status_code for each in answers}, seconds < 6)
            assert any("Others from your network" in each.text for each in answers)
            await store_wire.mend()
            await until(lambda: _is(_status(client, "/login"), 200), within=10)


async def _status(client: httpx.AsyncClient, path: str) -> int:
    return (await client.get(path)).status_code


async def _is(asked: Awaitable[int], status: int) -> bool:
    return await asked == status
