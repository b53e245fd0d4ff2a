"""`python -m workers.panel`: a process that starts, says how it is, tells no secrets, and ends."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator

import httpx
import pytest

from shared.broker.link import Link
from shared.runtime.settings import Settings
from shared.store.pool import Pool
from shared.store.tokens import Tokens
from tests.integration.conftest import until
from tests.integration.panels import ADMIN_TOKEN, running
from tests.peers.mxdeliv import free_port
from workers.panel import server
from workers.panel.app import create_app
from workers.panel.fleet import Fleet


class Process:
    """A panel in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, metrics_port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}"

    async def ended(self, *, within: float = 60) -> tuple[int | None, str]:
        """Return its exit code, and what it wrote."""
        async with asyncio.timeout(within):
            _, err = await self.process.communicate()
        return self.process.returncode, err.decode()


@contextlib.asynccontextmanager
async def started(settings: Settings, **env: str) -> AsyncIterator[Process]:
    """Start one; what is still there at the end is killed."""
    given = {
        "amqp_url": settings.amqp_url,
        "database_url": settings.database_url,
        "admin_token": ADMIN_TOKEN,
        "panel_port": str(free_port()),
        "metrics_port": str(free_port()),
        "log_level": "debug",
        **env,
    }
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PUSHPUSH_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "workers.panel",
        env=ours | {f"PUSHPUSH_{name.upper()}": value for name, value in given.items()},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process, int(given["panel_port"]), int(given["metrics_port"]))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def answers(url: str) -> bool:
    """Say whether somebody answers there."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        try:
            return (await client.get(url)).status_code == 200
        except httpx.TransportError:
            return False


async def test_it_tells_no_secrets(settings: Settings, pool: Pool) -> None:
    """Whatever is logged, and whoever failed to log in, no token, cookie or form is in the log."""
    secret = await Tokens(pool).make("ann", "admin", by="test", via="cli")
    wrong = f"pp_{'w' * 43}"
    async with started(settings) as panel:
        await until(lambda: answers(f"{panel.url}/login"), within=60)
        async with httpx.AsyncClient(base_url=panel.url, trust_env=False, timeout=60) as client:
            for token in (secret, ADMIN_TOKEN, wrong, "a guess"):
                await client.get("/api/v1/session", headers={"Authorization": f"Bearer {token}"})
                await client.post("/login", data={"token": token})
                call = {"resource": "/admin/dns", "headers": {"Authorization": f"Bearer {token}"}}
                await client.post("/api/admin", json=call)
            cookie = client.cookies["pushpush"]
        panel.process.terminate()
        code, log = await panel.ended()
    assert 0 == code, log
    assert "a token was refused" in log
    for word in (secret, ADMIN_TOKEN, wrong, "a guess", cookie):
        assert word not in log


async def test_it_is_ready_without_broker_and_database(settings: Settings) -> None:
    """That is when it is looked at; and it ends when it is told to."""
    away = {"database_url": "postgresql://nobody@127.0.0.1:9/none", "amqp_url": "amqp://127.0.0.1:9/"}
    async with started(settings, **away) as panel:
        await until(lambda: answers(f"{panel.metrics_url}/readyz"), within=60)
        panel.process.terminate()
        assert 0 == (await panel.ended())[0]


async def test_settings_that_are_not_usable(settings: Settings) -> None:
    """Exit 78 and a sentence; a port that is taken ends it, too."""
    async with started(settings, panel_proxies="10.0.0.0/8,proxy") as panel:
        code, log = await panel.ended()
    assert (78, True) == (code, "PUSHPUSH_PANEL_PROXIES is malformed" in log)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with started(settings, panel_port=str(taken.getsockname()[1])) as panel:
            code, log = await panel.ended()
    assert (3, True) == (code, "address already in use" in log.lower())


async def test_a_fault_that_nobody_foresaw(settings: Settings, pool: Pool) -> None:
    """500 in the one shape, without a word of what it was; with the fields that guard a browser."""

    async def asked() -> None:
        raise ValueError("the inside of the house")

    app = create_app(Fleet(settings.model_copy(update={"admin_token": ADMIN_TOKEN}), pool, Link("amqp://x", name="x")))
    app.add_api_route("/api/v1/broken", asked)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://panel.example") as client:
        answer = await client.get("/api/v1/broken", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    assert (500, "internal") == (answer.status_code, answer.json()["error"]["kind"])
    assert "inside" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_who_asks_nothing_does_not_stay(settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger who sends a byte now and then cannot hold a connection; who waits for an answer, and asks on, can."""
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    async with running(settings, pool) as panel:
        reader, writer = await asyncio.open_connection("127.0.0.1", panel.settings.panel_port)
        sent = 0
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /login HTTP/1.1":
                writer.write(bytes([byte]))
                sent += 1
                await asyncio.sleep(0.1)
                if reader.at_eof():
                    break
        assert b"" == await reader.read()
        assert sent < len(b"GET /login HTTP/1.1")
        writer.close()
        async with panel.client(ADMIN_TOKEN) as client:
            for _ in range(5):
                assert 200 == (await client.get("/api/v1/session")).status_code
                await asyncio.sleep(0.2)
