"""An SMTP sink for benchmarks: takes mail as fast as Python can, counts it, and keeps nothing.

    python -m bench.sink --port 0 [--host 127.0.0.1] [--count N] [--delay SECONDS]

It prints `port N` once it listens, and one line of JSON at its end: messages, bytes, connections, cpu_seconds, and
seconds from the first message to the last. The end is the N-th message, SIGTERM or SIGINT; SIGUSR1 prints the same line
at once and goes on. Message bodies are not looked at, so dots stay stuffed in the count of bytes.
"""

import argparse
import asyncio
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import uvloop

HELLO = b"250-sink\r\n250-PIPELINING\r\n250-SIZE 67108864\r\n250 8BITMIME\r\n"
OK = b"250 2.0.0 OK\r\n"
START = b"354 go ahead\r\n"
NO_RECIPIENT = b"503 5.5.1 need RCPT first\r\n"
UNKNOWN = b"500 5.5.2 command not recognised\r\n"
BYE = b"221 2.0.0 bye\r\n"
END = b"\r\n.\r\n"
FIXED = {b"EHLO": HELLO, b"HELO": OK, b"MAIL": OK, b"RCPT": OK, b"RSET": OK, b"NOOP": OK, b"QUIT": BYE}


@dataclass(slots=True)
class Counts:
    """What the sink has taken, over all connections."""

    limit: int = 0  # 0 is no limit
    delay: float = 0  # seconds before the reply to a message
    messages: int = 0
    bytes: int = 0
    connections: int = 0
    first: float = 0
    last: float = 0
    cpu_before: float = field(default_factory=time.process_time)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def took(self) -> None:
        """Count one whole message."""
        self.messages += 1
        self.last = time.perf_counter()
        if self.messages == 1:
            self.first = self.last
        if self.messages == self.limit:
            self.reached.set()

    def line(self) -> str:
        """Return the counts as a line of JSON."""
        return json.dumps(
            {
                "messages": self.messages,
                "bytes": self.bytes,
                "connections": self.connections,
                "cpu_seconds": round(time.process_time() - self.cpu_before, 6),
                "seconds": round(self.last - self.first, 6),
            }
        )


class SinkProtocol(asyncio.Protocol):
    """One connection. Replies to pipelined commands leave in one write."""

    __slots__ = ("counts", "held", "in_data", "open", "recipients", "took", "transport")

    def __init__(self, counts: Counts, connections: "set[SinkProtocol]") -> None:
        self.counts = counts
        self.open = connections
        self.held = b""  # an unfinished command line, or the last bytes of a body, where a terminator may begin
        self.in_data = False
        self.recipients = False
        self.took = False  # a whole message, with the data that came last

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclasses
        self.counts.connections += 1
        self.open.add(self)
        self.transport.write(b"220 sink ESMTP\r\n")

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget the connection."""
        self.open.discard(self)

    def data_received(self, data: bytes) -> None:
        """Take commands and body bytes in whatever pieces they come."""
        chunk = self.held + data if self.held else data
        replies: list[bytes] = []
        self.took = False
        before, at = -1, 0
        while at != before:  # until a step cannot get on with what there is
            before = at
            at = self._take_body(chunk, at, replies) if self.in_data else self._take_command(chunk, at, replies)
        self.held = chunk[at:]
        if replies and self.counts.delay and self.took:
            asyncio.get_running_loop().call_later(self.counts.delay, self.transport.write, b"".join(replies))
        elif replies:
            self.transport.write(b"".join(replies))
            if replies[-1] is BYE:
                self.transport.close()

    def _take_command(self, chunk: bytes, at: int, replies: list[bytes]) -> int:
        """Answer the command line at `at`, if it is whole; return where the next one begins."""
        end = chunk.find(b"\n", at)
        if end < 0:
            return at
        verb = chunk[at : at + 4].upper()
        if verb == b"DATA":
            return self._begin_data(end, replies)
        replies.append(FIXED.get(verb, UNKNOWN))
        if verb == b"RCPT":
            self.recipients = True
        elif verb != b"NOOP":
            self.recipients = False
        return end + 1

    def _begin_data(self, end: int, replies: list[bytes]) -> int:
        if not self.recipients:
            replies.append(NO_RECIPIENT)
            return end + 1
        replies.append(START)
        self.in_data = True
        return end - 1  # the command's own CRLF is kept, so that an empty message ends like any other

    def _take_body(self, chunk: bytes, at: int, replies: list[bytes]) -> int:
        """Take what there is of the body, but the last four bytes, in which a terminator may have begun."""
        end = chunk.find(END, at)
        if end < 0:
            kept = max(at, len(chunk) - len(END) + 1)
            self.counts.bytes += kept - at
            return kept
        self.counts.bytes += end - at
        self.in_data = self.recipients = False
        self.counts.took()
        self.took = True
        replies.append(OK)
        return end + len(END)


async def serve(host: str, port: int, counts: Counts, announce: Callable[[int], None]) -> None:
    """Serve until the wanted count is reached or a signal comes."""
    loop = asyncio.get_running_loop()
    connections: set[SinkProtocol] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, counts.reached.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: print(counts.line(), flush=True))
    server = await loop.create_server(lambda: SinkProtocol(counts, connections), host, port, backlog=1024)
    announce(server.sockets[0].getsockname()[1])
    await counts.reached.wait()
    server.close()
    await hang_up(connections)


async def hang_up(connections: set[SinkProtocol]) -> None:
    """Close every connection once its replies are sent, waiting a second at most."""
    for protocol in list(connections):
        protocol.transport.close()
    for _ in range(100):
        if not connections:
            return
        await asyncio.sleep(0.01)


def main() -> None:
    """Run the sink from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.sink", description="An SMTP sink that counts.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--count", type=int, default=0, help="exit after this many messages; 0 never does")
    parser.add_argument("--delay", type=float, default=0, help="seconds before the reply to a message")
    options = parser.parse_args()
    counts = Counts(limit=options.count, delay=options.delay)
    uvloop.run(serve(options.host, options.port, counts, lambda port: print(f"port {port}", flush=True)))
    print(counts.line(), flush=True)


if __name__ == "__main__":
    main()
