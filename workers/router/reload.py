"""Keep the router's rules as they were released, and tell the fleet which version is applied.

Reloads come from the event, from every (re)connect to the broker, from SIGHUP, and from a poll that finds a newer
release. A router that cannot reach PostgreSQL keeps the last good rules and says so in its health.
"""

import asyncio
import contextlib
import time

import msgspec
import structlog
from aio_pika.abc import AbstractIncomingMessage
from prometheus_client import Gauge, Histogram

from shared.mail.rulebook import Rulebook
from shared.runtime.errors import StoreUnavailable
from shared.runtime.health import Health
from shared.store.overrides import Overrides
from shared.store.routers import HEARTBEAT, Routers
from shared.store.rulebooks import OtherHistoryError, Rulebooks
from workers.router.rules import Rules

log = structlog.get_logger()

_RECONNECT = 5.0  # seconds to read the rules anew before routing goes on after a reconnect; the poll sees to the rest
POLL = 30.0  # seconds between two looks at the released version
_APPLIED = Gauge("pushpush_rules_version", "Version of the rules that this router has applied")
_RELEASED = Gauge("pushpush_rules_released_version", "Version of the rules that was released, as this router knows it")
_LAG = Gauge("pushpush_rules_lag_versions", "Released versions that this router has not applied")
_LAG_SECONDS = Gauge("pushpush_rules_lag_seconds", "Since this router has known of a version that it has not applied")
_COUNT = Gauge("pushpush_rules", "Rules in use")
_RELOAD = Histogram("pushpush_reload_seconds", "From the reload's cause to the version written as applied")


class _Event(msgspec.Struct):
    version: int


class Reloader:
    """Loads rules, swaps them in and reports the version."""

    def __init__(
        self,
        rules: Rules,
        rulebooks: Rulebooks,
        overrides: Overrides,
        routers: Routers,
        *,
        name: str,
        health: Health,
    ) -> None:
        """Keep `rules` fresh; sign in as `name`."""
        self._rules = rules
        self._rulebooks = rulebooks
        self._overrides = overrides
        self._routers = routers
        self._name = name
        self._health = health
        self._lock = asyncio.Lock()
        self._reporting = asyncio.Lock()
        self._applied: tuple[int, object] = (0, None)  # version and mark
        self._histories = 0  # how often the database turned out to have another history
        self._released = 0
        self._behind_since: float | None = None
        _LAG_SECONDS.set_function(self._lag)

    async def start(self) -> None:
        """Sign in and load the rules for the first time; try until it works.

        Signing in comes first: whoever changes a rule after it waits for this router, and whoever changed one before
        it finds the change loaded here.
        """
        while True:
            try:
                await self._routers.register(self._name)
                await self.reload("start")
            except StoreUnavailable as error:
                self._health.ill("rules", f"never loaded: {error}")
                await asyncio.sleep(1)
            else:
                return

    async def on_event(self, message: AbstractIncomingMessage) -> None:
        """Reload because the event came (CONTRACT, design 4.3)."""
        try:
            msgspec.json.decode(message.body, type=_Event)
        except (msgspec.DecodeError, RecursionError):
            await self._try("release and reload", release=True)
        else:
            await self._try("event")

    def on_signal(self) -> None:
        """Reload because of SIGHUP."""
        self._soon = asyncio.ensure_future(self._try("SIGHUP"))

    async def on_connect(self) -> None:
        """Reload because events may have been missed while the broker was away."""
        if self._rules.loaded:
            # Bounded: a database that is frozen must not keep a router with good rules from routing.
            self._reading = asyncio.ensure_future(self._try("broker connected"))
            await asyncio.wait({self._reading}, timeout=_RECONNECT)

    async def keep(self) -> None:
        """Look for releases whose event was lost; never ends."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(HEARTBEAT)
            if time.monotonic() - looked >= POLL or "rules" in self._health.faults():
                looked = time.monotonic()
                await self._try("poll")

    async def beat(self) -> None:
        """Give signs of life, also while a reload waits for messages under older rules; never ends."""
        while True:
            await asyncio.sleep(HEARTBEAT)
            try:
                await self._report()
            except StoreUnavailable as error:
                self._stale(error)

    async def leave(self) -> None:
        """Sign out."""
        try:
            await self._routers.leave(self._name)
        except StoreUnavailable as error:
            log.warning("could not sign out", error=str(error))

    async def reload(self, cause: str) -> None:
        """Apply the released rules and write the version once nothing is in flight under older ones.

        Raises:
            StoreUnavailable: The rules could not be read, or the version not written.
        """
        began = time.monotonic()
        async with self._lock:
            before = self._rules.book if self._rules.loaded else None
            after = await self._newest(before)
            self._compare(after.version)
            if after is not before:
                self._rules.swap(after)
            histories = self._histories
        # Outside the lock: a slow publish must not keep the next change from being swapped in.
        settled = await self._rules.settled()
        if histories != self._histories:
            return  # it waited for rules of a history that is no more
        self._health.well("rules")
        if settled.version > self._applied[0] or before is None:
            self._applied = (settled.version, settled.mark)
            _APPLIED.set(settled.version)
            self._compare(self._released)
            _COUNT.set(settled.size)
            await self._report()
            milliseconds = (time.monotonic() - began) * 1000
            _RELOAD.observe(milliseconds / 1000)
            log.info(
                "rules applied", version=settled.version, rules=settled.size, cause=cause, ms=round(milliseconds, 1)
            )

    def _compare(self, released: int) -> None:
        """Note how far the version that is applied is behind the released one."""
        behind = max(0, released - self._applied[0])
        if not behind:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()
        self._released = released
        _RELEASED.set(released)
        _LAG.set(behind)

    def _lag(self) -> float:
        since = self._behind_since
        return 0.0 if since is None else time.monotonic() - since

    async def _report(self) -> None:
        async with self._reporting:  # one after the other, or an older report could land last
            await self._routers.seen(self._name, *self._applied)

    async def _newest(self, before: Rulebook | None) -> Rulebook:
        if before is not None:
            with contextlib.suppress(OtherHistoryError):
                return await self._rulebooks.changed_since(before)
            # A restore, or a failover that lost commits: what was said to be applied counts no more.
            self._applied = (0, None)
            self._histories += 1
            log.error("the database has another history of the rules, reading it anew", had=before.version)
        return await self._rulebooks.rulebook()

    async def _try(self, cause: str, *, release: bool = False) -> None:
        try:
            if release:
                await self._overrides.release()
            await self.reload(cause)
        except StoreUnavailable as error:
            self._stale(error)
        except Exception as error:
            # A router that reloads no more would route by old rules for ever, and look well.
            log.exception("reload broke", cause=cause)
            self._stale(error)

    def _stale(self, error: Exception) -> None:
        if "rules" not in self._health.faults():
            log.warning("keeping the last good rules", version=self._applied[0], error=str(error))
        self._health.ill(
            "rules", f"version {self._applied[0]} is kept; it cannot be known whether it is current: {error}"
        )
