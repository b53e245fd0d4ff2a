"""Rooms that run in the process of a test, against real services and peers."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from shared.runtime.settings import Settings
from tests.integration.conftest import until
from tests.peers.dns import DnsPeer
from tests.peers.mxdeliv import free_port
from tests.peers.smtp import Behaviour, ScriptedSmtpPeer
from workers.router import __main__ as router_main
from workers.smtp.transport import SmtpTransport
from workers.smtp.transport import open_transport as open_smtp_transport


class Router:
    """A router that runs in this process."""

    def __init__(self, settings: Settings, task: asyncio.Task[None], stop: asyncio.Event) -> None:
        self.settings = settings
        self.task = task
        self.stop = stop

    async def health(self, path: str = "/readyz") -> tuple[int, dict[str, str]]:
        """Return the status of an answer and the faults in it."""
        url = f"http://127.0.0.1:{self.settings.metrics_port}{path}"
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=60) as client:
            try:
                answer = await client.get(url)
            except httpx.HTTPError:
                return 0, {}
        return answer.status_code, answer.json()["faults"]

    async def ready(self) -> bool:
        """Say whether it does its work."""
        return (await self.health())[0] == 200


@contextlib.asynccontextmanager
async def running(settings: Settings, *, ready: bool = True) -> AsyncIterator[Router]:
    """Run a router; wait until it is ready unless told otherwise; at the end stop it as SIGTERM does."""
    settings = settings.model_copy(update={"metrics_port": free_port()})
    stop = asyncio.Event()
    task = asyncio.create_task(router_main.work(settings, stop))
    router = Router(settings, task, stop)
    try:
        if ready:
            await until(lambda: _ready_or_ended(router), within=15)
        yield router
    finally:
        stop.set()
        await task


async def _ready_or_ended(router: Router) -> bool:
    if router.task.done():
        router.task.result()
    return await router.ready()


class SmtpRoom:
    """The SMTP transport, with a DNS server of our own; the peers listen on one port of several loopback addresses."""

    def __init__(self, dns: DnsPeer, *, allow_private: bool, ca: Path | None) -> None:
        self.dns = dns
        self.stack = contextlib.AsyncExitStack()
        self._ending = contextlib.AsyncExitStack()
        self._port = free_port("127.0.0.1")
        self._hosts = 0
        self._settings = Settings(
            amqp_url="amqp://unused",
            database_url="postgresql://unused",
            hostname="mail.pushpush.example",
            dns_servers=((dns.host, dns.port),),
            smtp_port=self._port,
            allow_private_targets=allow_private,
            ca_file=ca,
        )
        self.transport: SmtpTransport

    async def open(self) -> None:
        """Open the transport."""
        self.transport = await self._ending.enter_async_context(open_smtp_transport(self._settings))

    async def close(self) -> None:
        """End the transport and its connections."""
        await self._ending.aclose()

    def peer(self, mx: str | None, *behaviours: Behaviour, tls: ssl.SSLContext | None = None) -> ScriptedSmtpPeer:
        """Return a peer that is an MX host of a.example ("10 mx1.example."), or the domain itself (None)."""
        self._hosts += 1
        host = f"127.0.0.{self._hosts + 1}"
        if mx is None:
            self.dns.add("a.example", "A", host)
        else:
            self.dns.add("a.example", "MX", mx)
            self.dns.add(mx.split()[1], "A", host)
        return ScriptedSmtpPeer(*behaviours, host=host, port=self._port, tls=tls)


@contextlib.asynccontextmanager
async def open_smtp(*, allow_private: bool = True, ca: Path | None = None) -> AsyncIterator[SmtpRoom]:
    """Open the SMTP transport."""
    async with DnsPeer() as dns:
        room = SmtpRoom(dns, allow_private=allow_private, ca=ca)
        await room.open()
        try:
            yield room
        finally:
            await room.close()
            await room.stack.aclose()
