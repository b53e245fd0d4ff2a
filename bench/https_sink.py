"""An mxdeliv sink for benchmarks: HTTPS with kept connections, takes every message and keeps none.

    python -m bench.https_sink --certificate FILE

It prints `port N` once it listens, and ends by SIGTERM. The certificate (PEM, with its key) is for 127.0.0.1.
"""

import argparse
import asyncio
import re
import signal
import ssl
from typing import cast

import uvloop

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nOK"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)", re.IGNORECASE)


class SinkProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.held = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclasses

    def data_received(self, data: bytes) -> None:
        """Answer each request whose body is whole."""
        self.held += data
        while (end := self.held.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self.held, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self.held) < whole:
                return
            del self.held[:whole]
            self.transport.write(OK)


async def serve(certificate: str) -> None:
    """Serve until SIGTERM."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = await loop.create_server(SinkProtocol, "127.0.0.1", 0, ssl=context, backlog=1024)
    print(f"port {server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    """Run the sink from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.https_sink", description="An mxdeliv sink.")
    parser.add_argument("--certificate", required=True, help="PEM file with certificate and key")
    uvloop.run(serve(parser.parse_args().certificate))


if __name__ == "__main__":
    main()
