"""Batches of events, off the queue and into the store: several in one transaction, and only then acknowledged.

While the store is away they stay with the broker, which has them on disk. What cannot be read, or be held by the store,
is dropped and counted: it is no mail, and would only come again.
"""

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec
import structlog
from prometheus_client import Counter

from shared.broker.consumer import Incoming
from shared.broker.link import FAULTS
from shared.mail import event
from shared.mail.event import Batch, BatchError
from shared.runtime.clock import now
from shared.runtime.errors import StoreUnavailable
from shared.runtime.health import Health
from shared.store.journal import Journal, UnrecordableError

log = structlog.get_logger()

MOST = 5_000  # events in one transaction, or one batch more
ENOUGH = 20  # batches that wait for no others; the broker hands out twice as many at once
WINDOW = 0.2  # seconds that a batch waits for others
RETRY = 1.0  # seconds between two tries while the store is away
_EVENTS = Counter("pushpush_journal_events_total", "Events recorded")
_DOUBLES = Counter("pushpush_journal_double_batches_total", "Batches that came again, and were not counted again")
_LATE = Counter("pushpush_journal_late_events_total", "Events left out, since they were older than the retention")
_DROPPED = Counter("pushpush_journal_dropped_batches_total", "Batches that could not be read or held, and were dropped")


class _InHand(msgspec.Struct, frozen=True, eq=False):
    """One batch, and the promise that it is done with: true when the broker may forget it."""

    incoming: Incoming
    batch: Batch
    done: "asyncio.Future[bool]"

    def end(self, *, forget: bool) -> None:
        """Say that it is done with. When a connection ends, aiormq cancels those who wait for that."""
        if not self.done.done():
            self.done.set_result(forget)


class Recorder:
    """Collects what comes off the queue, and records it."""

    def __init__(self, journal: Journal, *, health: Health) -> None:
        """Record in a journal; the health is told when that cannot be done, as `recording`."""
        self._journal = journal
        self._health = health
        self._waiting: list[_InHand] = []
        self._come = asyncio.Event()
        self._enough = asyncio.Event()
        self._finishing = False

    async def handle(self, incoming: Incoming) -> None:
        """Take a batch; returns when it is recorded and acknowledged, or belongs to the broker again."""
        try:
            batch = event.decode(incoming.body)
        except BatchError as error:
            _DROPPED.inc()
            log.error("a batch of events cannot be read, and is dropped", error=str(error), size=len(incoming.body))  # noqa: TRY400 - the sentence says it all
            finished = True
        else:
            finished = await self._recorded(_InHand(incoming, batch, asyncio.get_running_loop().create_future()))
        if finished:
            with contextlib.suppress(*FAULTS):  # the broker hands it out again, and it counts once
                await incoming.ack()

    def finish(self) -> None:
        """Record at once what is in hand, and try no longer than that."""
        self._finishing = True
        self._enough.set()

    async def run(self) -> None:
        """Record what comes; never ends."""
        while True:
            await self._come.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WINDOW):
                    await self._enough.wait()
            while some := self._next():
                await self._record_patiently(some)

    async def _recorded(self, in_hand: _InHand) -> bool:
        self._waiting.append(in_hand)
        self._come.set()
        if len(self._waiting) >= ENOUGH or sum(len(each.batch.events) for each in self._waiting) >= MOST:
            self._enough.set()
        return await in_hand.done

    def _next(self) -> list[_InHand]:
        """Take what goes into the next transaction, the oldest first."""
        some, events = [], 0
        while self._waiting and events < MOST:
            some.append(self._waiting.pop(0))
            events += len(some[-1].batch.events)
        if not some:
            self._come.clear()
            if not self._finishing:
                self._enough.clear()
        return some

    async def _record_patiently(self, some: Sequence[_InHand]) -> None:
        """Record some, however long the store is away; while it is, what the broker has taken back is let go."""
        while some := _settled(some):
            try:
                await self._record(some)
            except StoreUnavailable as error:
                self._health.ill("recording", str(error))
                log.warning("cannot record, trying on; the broker keeps the events", error=str(error))
            else:
                self._health.well("recording")
                return
            if self._finishing:
                for each in some:
                    each.end(forget=False)
                return
            await asyncio.sleep(RETRY)

    async def _record(self, some: Sequence[_InHand]) -> None:
        """Record some in one transaction; when it is refused, each by itself, so that the others are not lost with one.

        Raises:
            StoreUnavailable: Those that are not done with may or may not be recorded.
        """
        try:
            recorded = await self._journal.record([each.batch for each in some], now=now())
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - it is told, by whoever drops the batch
            if len(some) > 1:
                for each in some:
                    await self._record([each])
                return
            _drop(some[0].batch, error)
        else:
            _EVENTS.inc(recorded.events)
            _DOUBLES.inc(recorded.doubles)
            _LATE.inc(recorded.late)
        for each in some:
            each.end(forget=True)


def _drop(batch: Batch, error: Exception) -> None:
    """Tell of a batch that is dropped. Also for a fault of our own: it would come again, and fail again, for ever."""
    _DROPPED.inc()
    ours = None if isinstance(error, UnrecordableError) else error
    log.error(
        "a batch of events is dropped", error=str(error), source=batch.source, events=len(batch.events), exc_info=ours
    )


def _settled(some: Sequence[_InHand]) -> list[_InHand]:
    """Return those that are still to be recorded; what the broker has taken back comes again."""
    for each in some:
        if each.incoming.lost:
            each.end(forget=False)
    return [each for each in some if not each.done.done()]
