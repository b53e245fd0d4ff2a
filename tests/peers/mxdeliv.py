"""An HTTP server for POST /mxdeliv, over TLS or in the clear, that answers as it is told.

HTTP/1.1 only. Every request for the path is recorded before it is answered: in `received` when the answer accepts the
message, else in `refused`.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import trustme
from aiohttp import web

from tests.peers.answers import MADMAIL_OK, Answer
from tests.peers.inbox import Inbox, Received, now
from tests.peers.tls import ca_file, tls_context

__all__ = ["Answer", "MxdelivPeer", "Received", "ca_file", "tls_context"]

Answering = Answer | Callable[[Received], Answer]


class MxdelivPeer(Inbox):
    """An mxdeliv server. With `authority=None` it speaks plain HTTP.

    `answer` is one `Answer` for all, or a function of the message; it may be set again at any time.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        authority: trustme.CA | None = None,
        names: Sequence[str] = ("localhost", "127.0.0.1"),
        path: str = "/mxdeliv",
        answer: Answering = MADMAIL_OK,
    ) -> None:
        super().__init__()
        self.host = host
        self.port = port
        self.authority = authority
        self.names = tuple(names)
        self.path = path
        self.answer: Answering = answer
        self._numbers: dict[object, int] = {}
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The address to post to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.authority is None else 'https'}://{host}:{self.port}{self.path}"

    def ca_file(self, path: Path) -> Path:
        """Write the authority's certificate as PEM to `path`, for `PUSHPUSH_CA_FILE`, and return `path`."""
        assert self.authority is not None, "a plain HTTP peer has no certificate"
        return ca_file(self.authority, path)

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=2**30)
        application.router.add_post(self.path, self._serve)
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        context = None if self.authority is None else tls_context(self.authority, self.names)
        await web.TCPSite(runner, self.host, self.port, ssl_context=context).start()
        self.port = runner.addresses[0][1]
        self._runner = runner
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        message = await self._message(request)
        answer = self.answer if isinstance(self.answer, Answer) else self.answer(message)
        self.record(message, accepted=answer.accepts)
        await asyncio.sleep(answer.after)
        if answer.hang_up and request.transport is not None:
            request.transport.abort()
            await asyncio.Event().wait()  # aiohttp cancels the handler of a connection that is gone
        return await _respond(request, answer)

    async def _message(self, request: web.Request) -> Received:
        self.saw(f"{request.method} {request.path}")
        return Received(
            mail_from=request.headers.get("X-Mail-From", ""),
            rcpt_to=tuple(request.headers.getall("X-Mail-To", ())),
            body=await request.read(),
            at=now(),
            connection=self._number(request),
            tls=request.secure,
        )

    def _number(self, request: web.Request) -> int:
        """Number the connection; a client's port names it, as no loopback test lives until a port comes round again."""
        transport = request.transport
        name = None if transport is None else transport.get_extra_info("peername")
        if name not in self._numbers:
            self._numbers[name] = self.connected()
        return self._numbers[name]


async def _respond(request: web.Request, answer: Answer) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    if answer.content_type is not None:
        response.headers["Content-Type"] = answer.content_type
    if answer.endless:
        response.enable_chunked_encoding()
    else:
        response.content_length = len(answer.body)
    await response.prepare(request)
    await _write(response, answer)
    await response.write_eof()
    return response


async def _write(response: web.StreamResponse, answer: Answer) -> None:
    while answer.endless:
        await response.write(answer.body)
        await asyncio.sleep(0)
    if not answer.pause:
        await response.write(answer.body)
        return
    for byte in answer.body:
        await asyncio.sleep(answer.pause)
        await response.write(bytes([byte]))


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which nothing listens, for "connection refused"."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
