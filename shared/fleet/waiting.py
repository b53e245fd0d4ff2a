"""End waiting mail by hand: bounce it, so that its sender is told, or remove it, so that nobody is.

In small batches, each one transaction: the rows are held, the reports published and confirmed, the rows deleted, and
then it is committed. A crash between the two reports once more, and the mail waits on; the other order would lose it
without a word. What a scheduler has in hand is passed over, since it is being tried.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime

import msgspec
import structlog

from shared.broker.settle import Settler
from shared.fleet.ended import events_of, without_ended
from shared.fleet.turns import turn, unbroken
from shared.mail import codec
from shared.mail.envelope import Delivery
from shared.mail.event import Emit, Event, Kind
from shared.mail.privacy import Privacy
from shared.runtime.clock import now
from shared.runtime.errors import FleetError, StoreUnavailable
from shared.store.audit import Audit
from shared.store.bodies import Bodies
from shared.store.deferred import Deferred
from shared.store.pool import Pool
from shared.store.selection import Selection
from shared.store.waiting import Held, WaitingMail

log = structlog.get_logger()

BATCH = 100  # deliveries ended in one transaction: at most so many are reported twice when this process dies

_WHOLE = Privacy()
_AT_ONCE = 8  # reports being made at once: a stored body is read for each
Progress = Callable[["Ended"], None]


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """Who ends it, and by which means: `cli`, `panel` or `api`."""

    actor: str
    via: str


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the mail that was to be ended.

    Attributes:
        deliveries: Those that are ended.
        recipients: Of these.
        reports: Sent to their senders.
        silent: Deliveries of which nobody was told, since they were reports themselves or their senders want none; of a
            removal all.
        doubles: Deliveries of which there was nothing to tell: a crash had left them, and their recipients had ended.
        left: Deliveries that match and wait on: a scheduler had them in hand.
        unreadable: Of those that are left: they cannot be read here, or no report can be made of them.
    """

    deliveries: int = 0
    recipients: int = 0
    reports: int = 0
    silent: int = 0
    doubles: int = 0
    left: int = 0
    unreadable: int = 0


class _One(msgspec.Struct, frozen=True):
    """One delivery that is to end.

    Attributes:
        row: As it waits.
        delivery: For those recipients who have not ended otherwise; None when its wire form cannot be read.
        report: The id of the report that told the sender; "" when nobody was told.
    """

    row: Held
    delivery: Delivery | None
    report: str = ""


async def bounce(
    selection: Selection,
    pool: Pool,
    settler: Settler,
    *,
    who: Who,
    emit: Emit,
    progress: Progress | None = None,
    privacy: Privacy = _WHOLE,
) -> Ended:
    """Give up what matches, and tell the senders, unless the mail is a report itself or they want to hear nothing.

    Args:
        selection: Which deliveries.
        pool: The store.
        settler: Makes and publishes the reports.
        who: Stands in the audit log and in the events.
        emit: Takes on the events of what was ended.
        progress: Told how far it came, after each batch.
        privacy: How the audit log keeps the addresses that the selection may name.

    Raises:
        BrokerUnavailable: A report was not confirmed; the message says how far it came.
        StoreUnavailable: It is not known whether the last batch is ended; the message says how far it came.
    """
    return await _Run(pool, settler, who, emit).through(selection, progress, privacy)


async def remove(
    selection: Selection,
    pool: Pool,
    *,
    who: Who,
    emit: Emit,
    progress: Progress | None = None,
    privacy: Privacy = _WHOLE,
) -> Ended:
    """Take out what matches, and tell nobody.

    Args:
        selection: Which deliveries.
        pool: The store.
        who: Stands in the audit log and in the events.
        emit: Takes on the events of what was removed.
        progress: Told how far it came, after each batch.
        privacy: How the audit log keeps the addresses that the selection may name.

    Raises:
        StoreUnavailable: It is not known whether the last batch is removed; the message says how far it came.
    """
    return await _Run(pool, None, who, emit).through(selection, progress, privacy)


class _Run:
    """One bounce or, without a settler, one removal."""

    def __init__(self, pool: Pool, settler: Settler | None, who: Who, emit: Emit) -> None:
        self._pool = pool
        self._waiting = WaitingMail(pool)
        self._deferred = Deferred(pool)
        self._bodies = Bodies(pool)
        self._audit = Audit(pool)
        self._settler = settler
        self._who = who
        self._emit = emit
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._ended = Ended()
        self._fault: FleetError | None = None  # what keeps reports from being made
        self._above = 0  # the highest id that had its turn

    async def through(self, selection: Selection, progress: Progress | None, privacy: Privacy) -> Ended:
        """End batch after batch, until no more match."""
        chosen = selection.as_of(now(), await self._deferred.newest())
        await self._record(selection.told(privacy), counted := await self._deferred.count(chosen))
        more = counted > 0
        try:
            while more:
                async with turn(self._pool):
                    more = await unbroken(self._batch(chosen))
                if progress is not None:
                    progress(self._ended)
            self._ended = msgspec.structs.replace(self._ended, left=await self._deferred.count(chosen))
        except FleetError as error:
            raise type(error)(f"{error}; {self._so_far()}") from error
        log.info(self._action, actor=self._who.actor, **msgspec.structs.asdict(self._ended))
        return self._ended

    @property
    def _action(self) -> str:
        return "queue bounce" if self._settler else "queue remove"

    async def _record(self, selection: str, count: int) -> None:
        """Write down what is begun, before anything is done: a process that dies leaves a trace of it."""
        await self._audit.record(
            actor=self._who.actor,
            via=self._who.via,
            action=self._action,
            object=selection,
            detail=f"{count} waiting {'delivery' if count == 1 else 'deliveries'}",
        )

    async def _batch(self, chosen: Selection) -> bool:
        """End one batch; say whether more may follow.

        When some reports are not confirmed, those that are count: their rows go, and then the fault is told.
        """
        async with self._waiting.hold(chosen, limit=BATCH, above=self._above) as hold:
            results = await asyncio.gather(*map(self._one, hold.held), return_exceptions=True)
            done = [each for each in results if isinstance(each, _One)]
            await hold.delete([each.row.id for each in done])
        self._add(done, unreadable=sum(each is None for each in results))
        await self._after(done)
        if fault := next((each for each in results if isinstance(each, BaseException)), None):
            raise fault
        self._above = hold.held[-1].id if hold.held else self._above
        return len(hold.held) == BATCH

    async def _one(self, row: Held) -> _One | None:
        """Tell the sender of one delivery; None when that cannot be done for what it is, so that it must wait on."""
        try:
            delivery, body = codec.decode(row.wire)
        except codec.DecodeError as error:
            if self._settler is None:
                return _One(row, None)
            log.error("a waiting delivery cannot be read", id=row.message_id, row=row.id, error=str(error))  # noqa: TRY400
            return None
        try:
            async with self._turn:
                return await self._told(row, delivery, body)
        except FleetError as error:
            self._fault = error
            raise
        except Exception:
            # A fault of our own with one message keeps nothing else from being ended.
            log.exception("a report could not be made", id=row.message_id, row=row.id)
            return None

    async def _told(self, row: Held, delivery: Delivery, body: bytes) -> _One:
        """Report to the sender, but not on recipients who have a stored message already: then this is a double."""
        if self._fault is not None:
            raise self._fault  # the others of the batch would wait as long for nothing
        delivery = await without_ended(delivery, self._bodies)
        if self._settler is None or not delivery.envelope.rcpt_to:
            return _One(row, delivery)
        if delivery.envelope.body_ref is not None:
            body = await self._bodies.reported(delivery.envelope.body_ref)
        return _One(row, delivery, await self._settler.withdraw(delivery, body, tried_at=_tried_at(row)))

    async def _after(self, done: list[_One]) -> None:
        """Tell what was ended, and free the bodies; the mail is gone by now, so nothing is raised for these."""
        at = now()
        self._emit([event for each in done for event in self._events(each, at)])
        for each in done:
            envelope = each.delivery.envelope if each.delivery else None
            if envelope is None or envelope.body_ref is None or not envelope.rcpt_to:
                continue
            try:
                await self._bodies.end(envelope.body_ref, envelope.id, envelope.rcpt_to)
            except StoreUnavailable as error:
                # It is pruned by its age.
                log.warning("store away, a large body is not freed", id=envelope.id, error=str(error))

    def _add(self, done: list[_One], *, unreadable: int) -> None:
        told = sum(1 for each in done if each.report)
        doubles = sum(1 for each in done if not _recipients(each))
        before = self._ended
        self._ended = Ended(
            deliveries=before.deliveries + len(done),
            recipients=before.recipients + sum(len(_recipients(each)) for each in done),
            reports=before.reports + told,
            silent=before.silent + len(done) - told - doubles,
            doubles=before.doubles + doubles,
            unreadable=before.unreadable + unreadable,
        )

    def _so_far(self) -> str:
        done = f"{self._ended.deliveries} deliveries were ended before, the rest waits on"
        if self._settler is None:
            return done
        return f"{done}; of up to {BATCH} the senders may have been told all the same, so bounce them again"

    def _events(self, one: _One, at: datetime) -> list[Event]:
        kind: Kind = "removed" if self._settler is None else "bounced" if one.report else "dropped"
        if one.delivery is not None:
            return events_of(one.delivery, kind, at=at, actor=self._who.actor, report=one.report)
        row = one.row
        return [
            Event(
                at=at,
                kind=kind,
                id=row.message_id,
                recipient=recipient,
                domain=row.domain,
                room="operator",
                target=row.target,
                actor=self._who.actor,
            )
            for recipient in row.rcpt_to
        ]


def _recipients(one: _One) -> tuple[str, ...]:
    return tuple(one.row.rcpt_to) if one.delivery is None else one.delivery.envelope.rcpt_to


def _tried_at(row: Held) -> datetime | None:
    """Return when it was tried last; what was put off was not tried then, and when it was before is not known."""
    return None if row.put_off or row.attempts == 0 else row.deferred_at
