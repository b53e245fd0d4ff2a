"""What this worker knows of next hops, shared with the fleet through the store.

A delivery never waits for the store: it asks what is cached here, and what is learned is written in the background.
While the store is away each worker knows what it has learned itself. Nothing here can lose mail: to have forgotten
costs one attempt, and to remember too long delays HTTPS by half an hour while SMTP works.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime

import structlog

from shared.runtime.errors import StoreUnavailable
from shared.store.hops import NextHops, State

log = structlog.get_logger()

WITHOUT_MXDELIV = 1_800.0  # seconds that a URL is remembered for having no mxdeliv
_POLL = 2.0  # seconds between two looks at what other workers have learned
_MOST = 100_000  # URLs, and changes that wait to be written


class Memory:
    """The URLs found without mxdeliv; and a way to tell the fleet of suspensions."""

    def __init__(self, store: NextHops | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Remember; without a store, for this process alone."""
        self._store = store
        self._clock = clock
        self._lacking: dict[str, float] = {}  # until when
        self._unwritten: dict[tuple[str, State], tuple[float, str]] = {}  # the last word on each
        self._mark: datetime | None = None

    def lacks_mxdeliv(self, url: str) -> bool:
        """Say whether the URL was found to have no mxdeliv, less than half an hour ago."""
        until = self._lacking.get(url)
        if until is None:
            return False
        if until > self._clock():
            return True
        del self._lacking[url]
        return False

    def found_without_mxdeliv(self, url: str, reason: str) -> None:
        """Remember that HTTPS failed at a URL and SMTP succeeded at the same host, for half an hour.

        Only after SMTP succeeded: one fault of HTTPS would else lock out a host whose port 25 is blocked.
        """
        if not self.lacks_mxdeliv(url):
            log.info("without mxdeliv, SMTP only for a while", url=url, reason=reason)
            self._learn(url, "without mxdeliv", WITHOUT_MXDELIV, reason)

    def may_have_mxdeliv(self, url: str) -> None:
        """Forget: SMTP fails to connect there now, so HTTPS is to be tried again."""
        if self.lacks_mxdeliv(url):
            log.info("HTTPS is tried again", url=url)
            self._learn(url, "without mxdeliv", 0, "SMTP failed to connect")

    def suspended(self, hop: str, seconds: float, reason: str) -> None:
        """Tell the fleet's operators that this worker leaves a hop alone; the other workers judge for themselves."""
        self._write(hop, "suspended", seconds, reason)

    def answers(self, hop: str) -> None:
        """Tell that a hop answers again."""
        self._write(hop, "suspended", 0, "it answers")

    async def follow(self) -> None:
        """Write what was learned here and read what was learned elsewhere, again and again; never ends."""
        while True:
            try:
                await self.exchange()
            except StoreUnavailable as error:
                log.debug("what is known of next hops is not shared now", error=str(error))
            await asyncio.sleep(_POLL)

    async def exchange(self) -> None:
        """Write and read once.

        Raises:
            StoreUnavailable: The store is away; what was not written is known here all the same.
        """
        if self._store is None:
            return
        while self._unwritten:
            hop, state = next(iter(self._unwritten))
            seconds, reason = learned = self._unwritten[hop, state]
            await self._store.remember(hop, state, seconds, reason)
            if self._unwritten.get((hop, state)) is learned:
                del self._unwritten[hop, state]
        changed, self._mark = await self._store.changed_since(self._mark)
        for each in changed:
            if each.state == "without mxdeliv" and (each.hop, each.state) not in self._unwritten:
                self._set(each.hop, each.seconds)

    def _learn(self, url: str, state: State, seconds: float, reason: str) -> None:
        self._set(url, seconds)
        self._write(url, state, seconds, reason)

    def _set(self, url: str, seconds: float) -> None:
        self._lacking.pop(url, None)
        if seconds > 0:
            while len(self._lacking) >= _MOST:
                del self._lacking[next(iter(self._lacking))]
            self._lacking[url] = self._clock() + seconds

    def _write(self, hop: str, state: State, seconds: float, reason: str) -> None:
        if self._store is not None and len(self._unwritten) < _MOST:
            self._unwritten[hop, state] = (seconds, reason)
