"""Stored bodies in the hands of one process: read once for all deliveries of a message, and no more than fit.

Fifty deliveries of one message of 64 MiB would otherwise be fifty copies. Whoever finds no room in a moment is put back
(`NoRoomError`), to come again when there will be room: to wait longer would keep small mail from the worker. What fits
is let in at once, also past a larger one: that comes again by itself, and small ones would have to wait for it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from shared.delivery.row import Row
from shared.store.bodies import Bodies, Freed

TRAVELS = 12 * 1024**2  # bytes: a body that a queue takes in any case (RabbitMQ 4 stops at 16 MiB)
# Bytes, so that 300 KiB never wait and 64 MiB are delivered three at a time; counting bodies would do neither.
ROOM = 768 * 1024**2
# What a delivery takes beside the body: our field on top of it, its form on the wire, and what lies at the socket.
COPIES = 3
PATIENCE = 0.25  # seconds, at the cost of a place in the worker


class NoRoomError(Exception):
    """Others have all the room, and kept it for as long as we wait.

    Attributes:
        seconds: When to come back; each that is turned away takes a place in a row.
    """

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class _Body:
    """One body in hand."""

    def __init__(self, size: int, reading: asyncio.Task[bytes | Freed | None]) -> None:
        self.size = size
        self.users = 0
        self.reading = reading
        # Told to whoever waits for it; when they are gone, nobody wants to know.
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())


class Large:
    """Bodies in hand, by reference."""

    def __init__(
        self,
        bodies: Bodies,
        *,
        room: int = ROOM,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read from the store; use so many bytes at once, and wait so many seconds for them.

        The clock counts seconds, and never goes back.
        """
        self._bodies = bodies
        self._room = room
        self._patience = patience
        self._clock = clock
        self._used = 0
        self._held: dict[str, _Body] = {}
        self._left = asyncio.Event()
        self._running: dict[object, float] = {}  # since when; the oldest first
        self._row = Row()

    @contextlib.asynccontextmanager
    async def hold(self, reference: str, size: int) -> AsyncIterator[bytes | Freed | None]:
        """Give the body of so many bytes, or what is in its place.

        Raises:
            NoRoomError: There was no room for one more delivery of this size.
            StoreUnavailable: The store cannot be asked.
        """
        body = await self._take(reference, size)
        turn = object()
        self._running[turn] = self._clock()
        try:
            # The others want it, too, when this delivery is cancelled.
            yield await asyncio.shield(body.reading)
        finally:
            self._row.ended(self._clock() - self._running.pop(turn))
            self._give(reference, body)

    async def _take(self, reference: str, size: int) -> _Body:
        try:
            async with asyncio.timeout(self._patience):
                while self._used and self._used + self._needed(reference, size) > self._room:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError as error:
            raise NoRoomError(f"no room for {size} bytes now", self._turn_away(reference, size)) from error
        self._used += self._needed(reference, size)
        body = self._held.get(reference)
        if body is None:
            body = self._held[reference] = _Body(size, asyncio.ensure_future(self._bodies.get(reference)))
        body.users += 1
        return body

    def _needed(self, reference: str, size: int) -> int:
        return COPIES * size + (0 if reference in self._held else size)

    def _turn_away(self, reference: str, size: int) -> float:
        """Give out the next place in the row: as far behind the last one as this body fills the room."""
        now = self._clock()
        oldest = next(iter(self._running.values()), now)
        return self._row.place(now, now - oldest, min(self._needed(reference, size) / self._room, 1.0))

    def _give(self, reference: str, body: _Body) -> None:
        body.users -= 1
        self._used -= COPIES * body.size
        if body.users == 0:
            self._used -= body.size
            del self._held[reference]
            body.reading.cancel()
        self._left.set()
