"""A panel that runs in the process of a test, and clients that ask it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.runtime.settings import Settings
from shared.store.pool import Pool
from shared.store.tokens import Role, Tokens
from tests.integration.conftest import until
from tests.peers.mxdeliv import free_port
from workers.panel import __main__ as panel_main

ADMIN_TOKEN = "the word of the first day"


class Panel:
    """A panel."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self.settings = settings
        self.pool = pool
        self.url = f"http://127.0.0.1:{settings.panel_port}"

    def client(self, secret: str | None = None, **fields: str) -> httpx.AsyncClient:
        """Return a client with a token, or without."""
        headers = fields | ({} if secret is None else {"Authorization": f"Bearer {secret}"})
        return httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=30)

    async def token(self, role: Role, name: str | None = None) -> str:
        """Make a token and return its secret."""
        return await Tokens(self.pool).make(name or f"a {role}", role, by="test", via="cli")

    async def login(self, secret: str, **fields: str) -> tuple[httpx.AsyncClient, str]:
        """Return a client with a session, and the token that its forms must send back."""
        client = self.client(**fields)
        answer = await client.post("/login", data={"token": secret})
        assert 303 == answer.status_code, answer.text
        session = (await client.get("/api/v1/session")).json()
        return client, session["csrf"]

    async def rpc(self, method: str, resource: str, body: object = None, *, token: str = "", **fields: str) -> Any:
        """Call madmail's API as its client does, and return the envelope."""
        call = {
            "method": method,
            "resource": resource,
            "headers": {"Authorization": f"Bearer {token}"},
            "body": {} if body is None else body,
        }
        async with self.client(**fields) as client:
            answer = await client.post("/api/admin", json=call)
        assert (200, "*") == (answer.status_code, answer.headers["access-control-allow-origin"])
        return answer.json()


@contextlib.asynccontextmanager
async def running(settings: Settings, pool: Pool, **changes: object) -> AsyncIterator[Panel]:
    """Run a panel; at the end stop it as SIGTERM does."""
    ours = {"panel_port": free_port(), "admin_token": ADMIN_TOKEN, **changes}
    panel = Panel(settings.model_copy(update=ours), pool)
    stop = asyncio.Event()
    task = asyncio.create_task(panel_main.work(panel.settings, stop))

    async def answers() -> bool:
        if task.done():
            task.result()
        async with panel.client() as client:
            try:
                return (await client.get("/login")).status_code == 200
            except httpx.TransportError:
                return False

    try:
        await until(answers, within=15)
        yield panel
    finally:
        stop.set()
        await task


@pytest.fixture
async def panel(settings: Settings, pool: Pool) -> AsyncIterator[Panel]:
    """A panel that runs, with empty tables."""
    async with running(settings, pool) as panel:
        yield panel
