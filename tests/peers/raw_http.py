"""A peer on a real socket that says the bytes it is told, when it is told, and hangs up as it is told."""

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import Literal, Self

At = Literal["connect", "header", "request"]
Then = Literal["close", "abort", "hold", "deaf", "keep"]


def http(body: bytes = b"250 OK", *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """Return a well-formed answer in plain text."""
    lines = [b"HTTP/1.1 " + status, b"Content-Type: text/plain", *fields, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What happens with one request.

    Attributes:
        say: The bytes.
        at: When: as soon as the connection is there, after the header of the request, or after all of it.
        repeat: Further bytes, again and again until the client is gone.
        pause: Seconds before each single byte, for a slow peer; 0 says all at once.
        late: Further bytes, some moments after the rest, on a connection that is kept.
        then: What comes after it. `hold`: nothing more, until the client is gone; `deaf`: nor is a byte more read.
    """

    say: bytes = b""
    at: At = "request"
    repeat: bytes = b""
    pause: float = 0
    late: bytes = b""
    then: Then = "close"


OK = Script(say=http(), then="keep")


class RawHttpPeer:
    """Serves each request, over all connections, by the next script; the last one serves all that follow.

    Attributes:
        requests: What came in: header and, when the script waited for it, body.
        connections: Connections accepted since the start.
        open: Connections that are open now.
        idle: A connection is kept and all has been said on it.
        spoken: What ALPN agreed on, a connection each (RFC 7301).
    """

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self.scripts = [*scripts]
        self.tls = tls
        self.port = 0
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.idle = False
        self.spoken: list[str | None] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The address to post to."""
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}/mxdeliv"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self.tls, limit=2**26)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        self.spoken.append(None if tls is None else tls.selected_alpn_protocol())
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._serve(reader, writer):
                    pass
        finally:
            writer.transport.abort()
            self.open -= 1
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; say whether the connection is kept."""
        request, self.idle = b"", self.scripts[0].at != "connect"
        if self.scripts[0].at != "connect":
            request = await reader.readuntil(b"\r\n\r\n")
        # Not before: the scripts may have been set anew while a kept connection was idle.
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        if script.at == "request":
            request += await reader.readexactly(_length(request))
        if request:
            self.requests.append(request)
        self.idle = False
        await _say(writer, script)
        if script.then == "deaf":
            writer.transport.pause_reading()  # type: ignore[attr-defined] # asyncio's transports read as well
            await asyncio.Event().wait()
        if script.then == "hold":
            await reader.read()
        if script.then == "close":
            writer.close()
            await writer.wait_closed()
        return script.then == "keep"


async def _say(writer: asyncio.StreamWriter, script: Script) -> None:
    if script.pause:
        for byte in script.say:
            await asyncio.sleep(script.pause)
            writer.write(bytes([byte]))
            await writer.drain()
    else:
        writer.write(script.say)
        await writer.drain()
    while script.repeat:
        writer.write(script.repeat)
        await writer.drain()
        await asyncio.sleep(script.pause)
    if script.late:
        await asyncio.sleep(0.05)
        writer.write(script.late)
        await writer.drain()


def _length(header: bytes) -> int:
    """Return the length that the header tells; a client that tells none is at fault."""
    fields = dict(line.lower().split(b": ", 1) for line in header.rstrip().split(b"\r\n")[1:])
    return int(fields[b"content-length"])
