"""An MTA-STS policy host: HTTPS, `GET /.well-known/mta-sts.txt`; it answers as it is told, or misbehaves."""

import asyncio
import ssl
from typing import Self

from aiohttp import web

from tests.peers.answers import Answer

PATH = "/.well-known/mta-sts.txt"


def policy(*mx: str, mode: str = "enforce", max_age: int = 86_400) -> Answer:
    """Answer with a policy that lists hosts."""
    lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {each}" for each in mx), f"max_age: {max_age}"]
    return Answer(body="".join(f"{line}\r\n" for line in lines).encode(), content_type="text/plain")


class PolicyHost:
    """A policy host. `answer` may be set again at any time.

    Attributes:
        gets: The Host field of each request for the policy.
        open: While it is not set, requests wait for their answer.
    """

    def __init__(self, context: ssl.SSLContext, *, host: str = "127.0.0.1") -> None:
        self.answer = policy("*.a.example")
        self.gets: list[str] = []
        self.other_paths: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.host = host
        self.port = 0
        self._context = context
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_get(PATH, self._serve)
        application.router.add_get("/{other:.*}", self._other)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port, ssl_context=self._context).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _other(self, request: web.Request) -> web.Response:
        self.other_paths.append(request.path)
        return web.Response(body=policy("*.a.example").body, content_type="text/plain")

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.gets.append(request.host)
        await self.open.wait()
        answer = self.answer
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        if answer.content_type is not None:
            response.headers["Content-Type"] = answer.content_type
        await response.prepare(request)
        if answer.pause:
            for byte in answer.body:
                await response.write(bytes([byte]))
                await asyncio.sleep(answer.pause)
            return response
        await response.write(answer.body)
        while answer.endless:
            await response.write(answer.body)
            await asyncio.sleep(0)
        return response
