"""The way of one delivery through a delivery room: decode, deliver, decide, settle; then it is acked."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, Protocol, get_args

import msgspec
import structlog
from prometheus_client import Counter, Histogram

from shared.broker.dramatiq_broker import Job
from shared.broker.settle import Settler
from shared.delivery.large import Large, NoRoomError
from shared.delivery.uses import BodyGoneError, end, still_due
from shared.mail import codec, event, trace
from shared.mail.disposition import Bounce, Disposition, Done, Drop, FallBack, NextTarget, RetryAt, Wait, decide
from shared.mail.envelope import Delivery
from shared.mail.event import Emit, to_nobody
from shared.mail.outcome import Busy, Deferred, Delivered, Outcome
from shared.mail.reply import Reply
from shared.mail.retry import Schedule
from shared.runtime import tracing
from shared.runtime.chance import Dice, spread
from shared.runtime.clock import Clock, now
from shared.runtime.errors import BrokerUnavailable, StoreUnavailable
from shared.store.bodies import Bodies, Head

log = structlog.get_logger()

_STORE_WAIT = 60.0  # seconds before a delivery whose body could not be read is tried again
_AWAY = Reply(code=451, enhanced="4.3.0", text="the store of large messages is away")
_UNREAD = Reply(code=451, enhanced="4.3.0", text="the stored message could not be read; see the log of the worker")
# Seconds for one attempt over all hosts and addresses. RabbitMQ takes a message back from whoever holds it for 30
# minutes, and with it all others of that worker.
ATTEMPT = 900.0
_ANY_REPLY = Reply(code=0)
_PAUSE = 1.0  # seconds between two tries to settle
_OUTCOMES = Counter("pushpush_outcomes_total", "What became of recipients", ["transport", "outcome"])
_SECONDS = Histogram(
    "pushpush_delivery_seconds",
    "From the start of an attempt to its outcome",
    ["transport"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, ATTEMPT),
)
_AGE = Histogram(
    "pushpush_delivered_age_seconds",
    "From the moment that the fleet took a message to its delivery to a recipient",
    ["transport"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 900, 3_600, 14_400, 86_400, 432_000),
)

Transport = Literal["https", "smtp"]


class Deliver(Protocol):
    """A transport. A refusal is a value; nothing is raised for one."""

    async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """Try once, and return one outcome for each recipient.

        Args:
            delivery: To whom, and where.
            message: The whole message, our Received field on top.
        """


class Actor:
    """Takes jobs of one queue through one transport."""

    def __init__(
        self,
        by: Transport,
        transport: Deliver,
        settler: Settler,
        bodies: Bodies,
        *,
        hostname: str,
        schedule: Schedule,
        log_addresses: bool = False,
        clock: Clock = now,
        dice: Dice = spread,
        large: Large | None = None,
        emit: Emit = to_nobody,
    ) -> None:
        """Deliver by a transport; `hostname` signs the Received field, `large` bounds the stored bodies in hand."""
        self._by = by
        self._span = f"deliver {by}"
        self._transport = transport
        self._settler = settler
        self._bodies = bodies
        self._large = large or Large(bodies)
        self._hostname = hostname
        self._schedule = schedule
        self._log_addresses = log_addresses
        # Looked up once: finding a metric by its labels costs more than counting.
        self._seconds = _SECONDS.labels(by)
        self._age = _AGE.labels(by)
        self._counts = {kind: _OUTCOMES.labels(by, kind.__name__.lower()) for kind in get_args(Outcome)}
        self._now = clock
        self._dice = dice
        self._emit = emit

    async def __call__(self, job: Job) -> None:
        """Take one job all the way; when this returns, the job may be acked.

        Raises:
            BrokerUnavailable: It could not be settled and its connection is gone: the broker hands it out again.
        """
        try:
            delivery, inline = codec.decode(job.body)
        except codec.DecodeError as error:
            await self._settler.set_aside(error.data, str(error), {}, job.message_id or None)
            return
        if delivery.envelope.body_ref is None:
            await self._through(job, delivery, inline)
        else:
            await self._stored(job, delivery, delivery.envelope.body_ref)

    async def _through(self, job: Job, delivery: Delivery, message: bytes) -> None:
        outcomes, ms = await self._attempt(delivery, message)
        await self._settle(job, delivery, message, self._decide(delivery, outcomes), ms=ms, size=len(message))

    async def _stored(self, job: Job, delivery: Delivery, reference: str) -> None:
        """Take a delivery whose message did not travel along."""
        try:
            head = await self._bodies.head(reference, delivery.id, delivery.envelope.rcpt_to)
        except StoreUnavailable as error:
            await self._wait_for_store(job, delivery, error)
            return
        left = await self._left(delivery, head)
        if head is None or left is None:
            return
        async with contextlib.AsyncExitStack() as hand:
            try:
                message = await hand.enter_async_context(self._large.hold(reference, head.size))
            except StoreUnavailable as error:
                await self._unread(job, left, reference, error)
                return
            except NoRoomError as error:
                reply = Reply(code=451, enhanced="4.3.2", text=str(error))
                await self._not_tried(job, left, reference, Busy(reply, error.seconds))
                return
            if isinstance(message, bytes):
                await self._through(job, left, message)
                return
        # It went between the two questions. What the store says of it now is its last word.
        await self._stored(job, delivery, reference)

    async def _wait_for_store(self, job: Job, delivery: Delivery, error: StoreUnavailable) -> None:
        """Put it back as long as the store is away, however old it grows: nobody can say who has it already."""
        log.warning("store away, a large message waits", id=delivery.id, error=str(error))
        await self._settle(job, delivery, b"", self._wait(delivery, _AWAY))

    async def _unread(self, job: Job, delivery: Delivery, reference: str, error: StoreUnavailable) -> None:
        """Put back a delivery whose body could not be read.

        It is given up when its time is over, but only if the store answers everything else, and did so the last time
        that this body could not be read. With damaged bytes it would wait for ever.
        """
        try:
            await self._bodies.head(reference, delivery.id, delivery.envelope.rcpt_to)
        except StoreUnavailable:
            await self._wait_for_store(job, delivery, error)
            return
        log.error("a large message could not be read", id=delivery.id, body=reference, error=str(error))
        if delivery.reply == _UNREAD:
            await self._not_tried(job, delivery, reference, Busy(_UNREAD, _STORE_WAIT))
        else:
            await self._settle(job, delivery, b"", self._wait(delivery, _UNREAD))

    def _wait(self, delivery: Delivery, reply: Reply) -> dict[str, Disposition]:
        wait = Wait(self._now() + timedelta(seconds=_STORE_WAIT), reply, self._by)
        return dict.fromkeys(delivery.envelope.rcpt_to, wait)

    async def _left(self, delivery: Delivery, head: Head | None) -> Delivery | None:
        """Return the delivery for those who have not ended yet; None when nobody is left to deliver to."""
        try:
            left = still_due(delivery.envelope, head).rcpt_to
        except BodyGoneError as gone:
            data = codec.encode(delivery.only(gone.recipients), b"")
            await self._settler.set_aside(data, str(gone), {}, delivery.id)
            self._emit(event.set_aside(delivery, gone.recipients, room=self._by, reason=str(gone), at=self._now()))
            return None
        return delivery.only(left) if left else None

    async def _not_tried(self, job: Job, delivery: Delivery, reference: str, busy: Busy) -> None:
        """Put back a delivery that could not be tried, or report it when its time is over; no attempt is counted."""
        for recipient in delivery.envelope.rcpt_to:
            self._tell(delivery, recipient, busy, 0.0)
        verdicts = self._decide(delivery, dict.fromkeys(delivery.envelope.rcpt_to, busy))
        start = b""
        if any(
            isinstance(each, Bounce) or (isinstance(each, RetryAt | Wait) and each.warn) for each in verdicts.values()
        ):
            try:
                start = await self._bodies.reported(reference)
            except StoreUnavailable as error:
                if busy.reply != _UNREAD:
                    await self._unread(job, delivery, reference, error)
                    return
                log.warning("a report cannot give back the message", id=delivery.id, body=reference, error=str(error))
        await self._settle(job, delivery, start, verdicts)

    async def _attempt(self, delivery: Delivery, message: bytes) -> tuple[Mapping[str, Outcome], int]:
        """Try once; return what became of each recipient, and the milliseconds that it took."""
        with tracing.span(
            self._span,
            delivery.envelope.trace,
            kind="CLIENT",
            id=delivery.id,
            transport=self._by,
            domain=delivery.domain,
            attempt=delivery.attempts + 1,
        ) as span:
            outcomes, ms = await self._try(delivery, message)
            kinds = sorted({type(each).__name__.lower() for each in outcomes.values()})
            span.end(",".join(kinds), well="delivered" in kinds)
        return outcomes, ms

    async def _try(self, delivery: Delivery, message: bytes) -> tuple[Mapping[str, Outcome], int]:
        began = time.monotonic()
        try:
            stamped = trace.received(delivery, self._hostname) + message
            async with asyncio.timeout(ATTEMPT):
                outcomes = await self._transport.deliver(delivery, stamped)
        except TimeoutError:
            late = Reply(code=451, enhanced="4.4.2", text=f"the attempt was ended after {ATTEMPT:.0f} s")
            outcomes = dict.fromkeys(delivery.envelope.rcpt_to, Deferred(late))
        except Exception:
            # A fault of our own must not bounce someone's mail: what is unknown is temporary.
            log.exception("delivery broke", id=delivery.id, domain=delivery.domain)
            fault = Deferred(Reply(code=451, enhanced="4.3.0", text="an internal fault; see the log of the worker"))
            outcomes = dict.fromkeys(delivery.envelope.rcpt_to, fault)
        seconds = time.monotonic() - began
        self._seconds.observe(seconds)
        for recipient, outcome in outcomes.items():
            self._tell(delivery, recipient, outcome, seconds)
        return outcomes, round(seconds * 1000)

    def _decide(self, delivery: Delivery, outcomes: Mapping[str, Outcome]) -> dict[str, Disposition]:
        # One time and one throw for all: recipients with the same outcome stay one delivery, not one for each.
        now, spread = self._now(), self._dice()
        return {
            recipient: decide(delivery, outcome, by=self._by, schedule=self._schedule, now=now, spread=spread)
            for recipient, outcome in outcomes.items()
        }

    async def _settle(
        self,
        job: Job,
        delivery: Delivery,
        message: bytes,
        verdicts: Mapping[str, Disposition],
        *,
        ms: int = 0,
        size: int = 0,
    ) -> None:
        """Settle, and keep trying while the job is still ours: delivering it anew would deliver it twice.

        Verdict by verdict, so that what was done is not done again when the next one cannot be: each try would store
        one more copy for a recipient that is to wait. All who failed are settled as one, for they are one report;
        courtesies come last, for all at once.
        """
        left = _together(verdicts)
        settled: dict[str, Disposition] = {}
        while left:
            verdict = next(iter(left.values()))
            alike = {recipient: each for recipient, each in left.items() if _alike(each, verdict)}
            at = self._now()  # noted before: the next worker may be done with it before we know
            try:
                done = await self._settle_alike(delivery, message, alike)
            except BrokerUnavailable as error:
                if job.stale():
                    raise
                log.warning("cannot settle now, keeps trying", id=delivery.id, error=str(error))
                await asyncio.sleep(_PAUSE)
            else:
                settled |= done
                told = {each: verdicts[each] for each in done}
                self._emit(event.settled(delivery, told, at=at, room=self._by, ms=ms, size=size))
                left = {recipient: each for recipient, each in left.items() if recipient not in alike}
        await self._settler.tell(delivery, message, {each: verdicts[each] for each in settled})

    async def _settle_alike(
        self, delivery: Delivery, message: bytes, alike: Mapping[str, Disposition]
    ) -> Mapping[str, Disposition]:
        """Settle verdicts that are alike, and return those of which the sender may be told.

        What cannot be settled for a fault of our own is set aside, these recipients only, and nobody is told.
        To let it raise would put the whole delivery back, and those who have the message would get it again.
        """
        try:
            ended = await self._settler.carry_out(delivery, message, alike)
        except BrokerUnavailable:
            raise
        except Exception as error:
            log.exception("settling broke", id=delivery.id, domain=delivery.domain)
            data = codec.encode(delivery.only(tuple(alike)), message)
            reason = f"it could not be settled: {error!r}"[:500]
            await self._settler.set_aside(data, reason, {}, delivery.id)
            self._emit(event.set_aside(delivery, list(alike), room=self._by, reason=reason, at=self._now()))
            return {}
        await end(self._bodies, delivery.envelope, ended)
        return alike

    def _tell(self, delivery: Delivery, recipient: str, outcome: Outcome, seconds: float) -> None:
        kind = type(outcome)
        self._counts[kind].inc()
        if kind is Delivered:
            self._age.observe(max(0.0, (self._now() - delivery.envelope.accepted_at).total_seconds()))
        reply, route = outcome.reply, delivery.route
        log.info(
            kind.__name__.lower(),
            id=delivery.id,
            recipient=recipient if self._log_addresses else delivery.domain,
            transport=self._by,
            rule=route.key or None,
            version=route.version,
            attempt=delivery.attempts + 1,
            code=reply.code,
            enhanced=reply.enhanced or None,
            reply=reply.text,
            mta=reply.mta,
            ms=round(seconds * 1000),
        )


def _together(verdicts: Mapping[str, Disposition]) -> dict[str, Disposition]:
    """Return the verdicts with one reply for all that wait or go on alike, so that they stay one delivery.

    Hosts name the recipient in their words. What is kept of them shows operators why the mail waits.
    """
    first: dict[Disposition, Disposition] = {}
    return {
        recipient: first.setdefault(msgspec.structs.replace(verdict, reply=_ANY_REPLY), verdict)
        if isinstance(verdict, RetryAt | Wait | FallBack | NextTarget)
        else verdict
        for recipient, verdict in verdicts.items()
    }


def _alike(one: Disposition, other: Disposition) -> bool:
    """Say whether two verdicts are settled as one: those who failed are one report, whatever was said of each."""
    return one == other or (isinstance(one, Bounce | Done | Drop) and type(one) is type(other))
