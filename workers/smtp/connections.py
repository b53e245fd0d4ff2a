"""SMTP connections kept open between messages, by next hop and TLS identity."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

import msgspec

from shared.delivery.smtp import Session
from shared.mail.route import Tls

IDLE = 10.0  # seconds a connection is kept for the next message; servers close theirs after a while, too
MAX_MESSAGES = 200  # on one connection; then another machine behind the same name gets its turn
MAX_IDLE = 64  # kept per next hop: as many as one worker delivers at once, or connections open and close all the time
_SWEEP = 2.0  # seconds between two looks for connections that have been idle too long


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """One way to a host. Two rules that demand different TLS never share a connection.

    `ruled`: a rule names the host, so it may be ourselves, or another program on our machine under the same name.
    """

    host: str
    address: str
    port: int
    tls: Tls | None
    ruled: bool


class Connections:
    """Idle connections, the one used last first."""

    def __init__(
        self,
        open_: Callable[[Hop], Awaitable[Session]],
        *,
        idle: float = IDLE,
        messages: int = MAX_MESSAGES,
        most: int = MAX_IDLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe what is kept.

        Args:
            open_: Used where no idle connection is at hand.
            idle: Seconds for which a connection is kept.
            messages: On one connection.
            most: Kept per next hop.
            clock: Seconds that never go back.
        """
        self._open = open_
        self._seconds = idle
        self._messages = messages
        self._most = most
        self._clock = clock
        self._idle: dict[Hop, list[tuple[float, Session]]] = defaultdict(list)
        self._closing: set[asyncio.Task[None]] = set()

    async def take(self, hop: Hop, *, fresh: bool = False) -> Session:
        """Return a connection that nobody else uses; with `fresh`, a new one in any case.

        Raises:
            ConnectionFault: None was idle and a new one could not be opened.
        """
        idle = self._idle.get(hop, [])
        while idle and not fresh:
            since, session = idle.pop()
            if session.usable and self._clock() - since < self._seconds:
                return session
            self._end(session)
        return await self._open(hop)

    def give(self, hop: Hop, session: Session) -> None:
        """Keep a connection for the next message, or end it."""
        idle = self._idle[hop]
        if session.usable and session.messages < self._messages and len(idle) < self._most:
            idle.append((self._clock(), session))
        else:
            self._end(session)

    async def sweep(self, every: float = _SWEEP) -> None:
        """End connections that have been idle too long, again and again, with so many seconds between; never ends."""
        while True:
            await asyncio.sleep(every)
            oldest = self._clock() - self._seconds
            for hop, idle in list(self._idle.items()):
                for _, session in [each for each in idle if each[0] < oldest]:
                    self._end(session)
                self._idle[hop] = [each for each in idle if each[0] >= oldest]
                if not self._idle[hop]:
                    del self._idle[hop]

    async def close(self) -> None:
        """End every idle connection."""
        for idle in self._idle.values():
            for _, session in idle:
                self._end(session)
        self._idle.clear()
        await asyncio.gather(*self._closing)

    def _end(self, session: Session) -> None:
        task = asyncio.ensure_future(session.quit())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
