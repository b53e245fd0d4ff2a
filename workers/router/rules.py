"""The rules a router works with: swapped in one step, and "applied" only when nothing is in flight under older ones."""

import asyncio
import contextlib
from collections.abc import Iterator

from shared.mail.rulebook import Rulebook


class _Generation:
    """One rulebook and the messages being routed under it."""

    def __init__(self, book: Rulebook) -> None:
        self.book = book
        self.readers = 0
        self.idle = asyncio.Event()
        self.idle.set()


class Rules:
    """The current rulebook, and those that some message still uses."""

    def __init__(self) -> None:
        """Start without rules: a router that has never loaded any does not consume."""
        self._current: _Generation | None = None
        self._older: list[_Generation] = []

    @property
    def loaded(self) -> bool:
        """Say whether there are rules at all."""
        return self._current is not None

    @property
    def book(self) -> Rulebook:
        """The current rulebook.

        Raises:
            RuntimeError: None was ever loaded.
        """
        if self._current is None:
            raise RuntimeError("no rules were loaded yet")
        return self._current.book

    @contextlib.contextmanager
    def reading(self) -> Iterator[Rulebook]:
        """Give the current rulebook for the routing of one message, until its deliveries are confirmed."""
        generation = self._current
        if generation is None:
            raise RuntimeError("no rules were loaded yet")
        generation.readers += 1
        generation.idle.clear()
        try:
            yield generation.book
        finally:
            generation.readers -= 1
            if generation.readers == 0:
                generation.idle.set()

    def swap(self, book: Rulebook) -> None:
        """Make this the current rulebook for every message that begins from now on."""
        if self._current is not None:
            self._older.append(self._current)
        self._current = _Generation(book)

    async def settled(self) -> Rulebook:
        """Return the current rulebook once nothing is being routed under an older one."""
        book = self.book
        for generation in tuple(self._older):
            await generation.idle.wait()
        self._older = [each for each in self._older if each.readers]
        return book
