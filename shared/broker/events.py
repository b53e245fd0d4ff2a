"""Emit events to `mail.events`, in batches and beside the mail, which never waits for them.

They have a channel of their own, so that nothing which is wrong with them closes the one that mail is published on.
While they cannot be published they wait here, and the oldest make room: each batch says how many its source has
emitted, so whoever records them can tell how many are missing.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import cast

import structlog
from aiormq import Channel
from pamqp.commands import Basic
from prometheus_client import Counter

from shared.broker import topology
from shared.broker.link import FAULTS, Link
from shared.broker.publisher import lost
from shared.mail import event
from shared.mail.event import Batch, Event
from shared.runtime.chance import new_id
from shared.runtime.errors import BrokerUnavailable

log = structlog.get_logger()

MOST = 10_000  # events that wait here at most: a few MB
BATCH = 500  # events in one batch
INTERVAL = 0.25  # seconds that an event waits for others
_PAUSE = 1.0  # seconds between two tries
_CLOSE = 1.0  # seconds
_LAST = 2.0  # seconds for what is left at the end
_PERSISTENT = 2
_EMITTED = Counter("pushpush_events_emitted_total", "Events emitted to the journal")
_DROPPED = Counter("pushpush_events_dropped_total", "Events dropped, since they could not be published in time")


class Events:
    """Emits the events of one process."""

    def __init__(self, link: Link, *, room: str) -> None:
        """Publish on the connection of a link; `room` is the routing key."""
        self._link = link
        self._room = room
        self._source = f"{room}-{new_id()}"
        self._waiting: deque[Event] = deque(maxlen=MOST)
        self._emitted = 0
        self._number = 0
        # A batch that may or may not be published, and how many events it has; it keeps its number.
        self._pending: tuple[bytes, int] | None = None
        self._full = asyncio.Event()
        self._channel: Channel | None = None
        self._told = False

    def __call__(self, events: Sequence[Event]) -> None:
        """Take events on; returns at once, whatever the broker does."""
        self._emitted += len(events)
        if (over := len(self._waiting) + len(events) - MOST) > 0:
            _DROPPED.inc(over)
        self._waiting.extend(events)
        if len(self._waiting) >= BATCH:
            self._full.set()

    async def run(self) -> None:
        """Publish again and again; never ends, and no fault of the broker ends it."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await self._full.wait()
            self._full.clear()
            if not await self._published(all_=False):
                await asyncio.sleep(_PAUSE)

    async def close(self) -> int:
        """Publish what is left, if that can be done soon; return how many events are not known to be published."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST):
                await self._published(all_=True)
        left = len(self._waiting) + (0 if self._pending is None else self._pending[1])
        if left:
            _DROPPED.inc(left)
            log.warning("the last events could not be published", events=left)
        return left

    async def _published(self, *, all_: bool) -> bool:
        """Publish what waits, of much only full batches unless all is meant; say whether that went well."""
        try:
            once = True
            while self._pending is not None or len(self._waiting) >= (1 if once or all_ else BATCH):
                once = False
                if self._pending is None:
                    self._pending = self._next()
                await self._publish(self._pending[0])
                self._pending = None
        except BrokerUnavailable as error:
            # That the broker is away is told by the link; here only what else may be wrong.
            if self._link.is_up and not self._told:
                log.warning("events cannot be published, trying on; mail is not concerned", error=str(error))
                self._told = True
            return False
        except Exception:
            # A fault of our own must not end the room: the mail does not need these.
            log.exception("events could not be published, and are dropped")
            _DROPPED.inc(0 if self._pending is None else self._pending[1])
            self._pending = None
            return False
        self._told = False
        return True

    def _next(self) -> tuple[bytes, int]:
        events = tuple(self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting))))
        self._number += 1
        _EMITTED.inc(len(events))
        emitted = self._emitted - len(self._waiting)
        batch = Batch(source=self._source, number=self._number, emitted=emitted, events=events)
        return event.encode(batch), len(events)

    async def _publish(self, batch: bytes) -> None:
        """Publish a batch, and wait for the broker's word as long as the channel lives.

        A broker that is short of memory or disk keeps everybody waiting. Whoever gave up and came again on a channel of
        their own would use up those that the connection has, and the mail its connection.
        """
        channel = await self._opened()
        try:
            # Not mandatory: without a queue nobody wants to know.
            await channel.basic_publish(
                batch,
                exchange=topology.EVENTS,
                routing_key=self._room,
                properties=Basic.Properties(delivery_mode=_PERSISTENT, content_type="application/json"),
            )
        except BaseException as error:
            if not lost(error, channel):
                raise
            raise BrokerUnavailable(f"RabbitMQ did not take events: {error!r}") from error

    async def _opened(self) -> Channel:
        """Return our channel; open it on the link's connection of this moment, if need be."""
        ours = self._link.publishing
        if ours is None:
            raise BrokerUnavailable("RabbitMQ is away")
        if self._channel is not None and not self._channel.is_closed and self._channel.connection is ours.connection:
            return self._channel
        try:
            self._channel = None
            channel = cast("Channel", await ours.connection.channel())
            try:
                await topology.declare_events(channel)
            except BaseException:
                await _close(channel)
                raise
        except BaseException as error:
            if not lost(error, ours):
                raise
            raise BrokerUnavailable(f"RabbitMQ has no place for events: {error!r}") from error
        self._channel = channel
        return channel


async def _close(channel: Channel) -> None:
    """Close a channel that is of no use, unless the broker has done so, so that they do not grow in number."""
    with contextlib.suppress(*FAULTS):
        async with asyncio.timeout(_CLOSE):
            await channel.close()
