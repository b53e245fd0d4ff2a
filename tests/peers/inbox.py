"""What a peer has taken in, and how a test waits for it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One whole message as it came over the wire."""

    mail_from: str  # "" is the null reverse-path
    rcpt_to: tuple[str, ...]
    body: bytes  # byte for byte, after dot-unstuffing where the protocol stuffs
    at: datetime
    connection: int  # 1 is the peer's first connection
    tls: bool
    helo: str = ""  # the name given with EHLO or HELO; "" on HTTP


class Inbox:
    """Counters and messages of one peer; every change wakes whoever waits.

    Attributes:
        received: Messages the peer has accepted, in the order of their last byte.
        refused: Messages that came in whole but were not accepted: refused, or left without a reply.
        commands: Protocol lines seen, over all connections.
        connections: Connections accepted since the start.
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.refused: list[Received] = []
        self.commands: list[str] = []
        self.connections = 0
        self._changed = asyncio.Event()

    def connected(self) -> int:
        """Count a connection and return its number."""
        self.connections += 1
        self._changed.set()
        return self.connections

    def saw(self, line: str) -> None:
        """Record one protocol line."""
        self.commands.append(line)
        self._changed.set()

    def record(self, message: Received, *, accepted: bool = True) -> None:
        """Record one whole message."""
        (self.received if accepted else self.refused).append(message)
        self._changed.set()

    async def wait_for(self, count: int, *, within: float = 10) -> list[Received]:
        """Return the accepted messages as soon as there are `count`; raise TimeoutError saying what came instead."""
        await self.wait_until(lambda: len(self.received) >= count, within=within, wanted=f"{count} messages")
        return self.received

    async def wait_until(self, condition: Callable[[], bool], *, within: float = 10, wanted: str = "condition") -> None:
        """Return as soon as `condition()` holds; it is asked after every connection, command and message."""
        try:
            async with asyncio.timeout(within):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"wanted {wanted} within {within} s, but saw {self.describe()}") from None

    def describe(self) -> str:
        """Return what has arrived, in a few lines."""
        lines = [f"{self.connections} connections, {len(self.received)} accepted, {len(self.refused)} refused"]
        lines += [f"  accepted {_summary(message)}" for message in self.received]
        lines += [f"  refused {_summary(message)}" for message in self.refused]
        lines += [f"  command {line}" for line in self.commands[-10:]]
        return "\n".join(lines)


def now() -> datetime:
    """Return the moment, for `Received.at`."""
    return datetime.now(UTC)


def _summary(message: Received) -> str:
    return f"<{message.mail_from}> -> {', '.join(message.rcpt_to)}: {len(message.body)} bytes at {message.at:%X}"
