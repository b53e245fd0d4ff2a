"""Answers that may be some seconds old: counts of a whole table, which every look at a page would else make anew."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

_T = TypeVar("_T")
_MOST = 500  # answers kept


class Recent:
    """Keeps answers for a while. Whoever asks while one is being made gets the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty."""
        self._clock = clock
        self._kept: dict[Hashable, tuple[float, asyncio.Future[Any]]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[_T]], *, seconds: float) -> _T:
        """Return the answer under this key, made anew when it is older than that; one that failed is not kept."""
        until, answer = self._kept.get(key, (0.0, None))
        if answer is None or until < self._clock():
            if len(self._kept) >= _MOST:
                self._kept.clear()
            answer = asyncio.ensure_future(make())
            answer.add_done_callback(lambda ended: self._drop_failed(key, ended))
            self._kept[key] = (self._clock() + seconds, answer)
        # One who goes away must not take the answer from the others.
        return cast("_T", await asyncio.shield(answer))

    def forget(self, key: Hashable) -> None:
        """Make the answer under this key anew when it is asked for next."""
        self._kept.pop(key, None)

    def forget_all(self, kind: str) -> None:
        """Make every answer anew whose key is a tuple that begins with this word."""
        for key in [each for each in self._kept if isinstance(each, tuple) and each[:1] == (kind,)]:
            self.forget(key)

    def _drop_failed(self, key: Hashable, ended: asyncio.Future[Any]) -> None:
        if ended.cancelled() or ended.exception() is not None:
            self._kept.pop(key, None)
