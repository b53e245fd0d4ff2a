"""One message through the router: read, look up, publish a delivery per next hop, confirmed; then ack."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import structlog
from prometheus_client import Counter, Histogram

from shared.broker import topology
from shared.broker.consumer import Incoming
from shared.broker.link import FAULTS
from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.delivery.large import TRAVELS
from shared.delivery.uses import BodyGoneError, end, still_due, without
from shared.mail import codec, trace
from shared.mail.disposition import Disposition, decide, give_up
from shared.mail.envelope import Delivery, Envelope
from shared.mail.event import Emit, routed, settled, to_nobody, unrouted
from shared.mail.outcome import Busy
from shared.mail.reply import Reply
from shared.mail.retry import Schedule
from shared.mail.route import Route
from shared.runtime import tracing
from shared.runtime.chance import new_id
from shared.runtime.clock import now
from shared.runtime.errors import BrokerUnavailable, FleetError, StoreUnavailable
from shared.runtime.tracing import Span
from shared.store.bodies import Bodies
from workers.router.plan import plan, refusal
from workers.router.rules import Rules

log = structlog.get_logger()

_MENDING = 300.0  # seconds before mail under a malformed rule is looked at again
_PAUSE = 1.0  # seconds before a message that could not be routed is tried again
_ROUTED = Counter("pushpush_routed_total", "Messages routed", ["queue"])
_SECONDS = Histogram(
    "pushpush_routing_seconds",
    "From taking a message to its acknowledgement, with all tries while a queue or the store is away",
    ["queue"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600),
)
_REFUSED = Counter("pushpush_refused_total", "Messages that go back to their sender unrouted, with a report")
_OUTBOUND, _REROUTE = _ROUTED.labels(topology.OUTBOUND), _ROUTED.labels(topology.REROUTE)
_OUTBOUND_SECONDS, _REROUTE_SECONDS = _SECONDS.labels(topology.OUTBOUND), _SECONDS.labels(topology.REROUTE)


class _Taken:
    """What was done with a message, in all tries while it is in hand.

    Attributes:
        own_id: One id for all tries: a broker that refuses for an hour must not fill the store with copies of one body.
        done: The recipients whose deliveries were confirmed.
        stored: Who needs the body that was stored for it; it may be that it was not.
        offered: A delivery of it may be in a queue: it was published, confirmed or not.
        again: It has been routed before.
        size: Of the message, in bytes; 0 when that is not known here.
        header_id: Its Message-ID field.
        span: Of its trace, once it could be read.
    """

    def __init__(self, *, again: bool = False) -> None:
        self.own_id = new_id()
        self.again = again
        self.done: set[str] = set()
        self.stored: Envelope | None = None
        self.offered = False
        self.size = 0
        self.header_id = ""
        self.span: Span | None = None

    def traced(self, envelope: Envelope) -> Envelope:
        """Begin the span of all tries, below the sender's or that of the first time; return what belongs to it."""
        if self.span is None:
            self.span = tracing.span("route", envelope.trace, id=envelope.id, again=self.again)
        carrier = self.span.carrier
        # All attempts are below the span of the first routing: a trace of five days is broad, not deep.
        return envelope if self.again or carrier == envelope.trace else msgspec.structs.replace(envelope, **carrier)

    def end(self) -> None:
        """End what was begun for it."""
        if self.span is not None:
            self.span.end()


class Handler:
    """Routes messages from `mail.outbound` and `mail.reroute`."""

    def __init__(
        self,
        rules: Rules,
        publisher: Publisher,
        settler: Settler,
        bodies: Bodies,
        *,
        inline_limit: int,
        max_size: int,
        schedule: Schedule,
        emit: Emit = to_nobody,
    ) -> None:
        """Route by `rules`; bodies over `inline_limit` bytes are stored once, those over `max_size` go back.

        Whatever the limit says, no body travels along that a queue may refuse.
        """
        self._rules = rules
        self._publisher = publisher
        self._settler = settler
        self._bodies = bodies
        self._inline_limit = min(inline_limit, TRAVELS)
        self._max_size = max_size
        self._schedule = schedule
        self._emit = emit
        self._ending: set[asyncio.Task[None]] = set()

    async def outbound(self, message: Incoming) -> None:
        """Take a message as it came in (CONTRACT, design 4.1)."""
        taken, began = _Taken(), time.monotonic()
        try:
            await self._settled(message, partial(self._route_new, taken=taken))
        finally:  # it is cancelled when its channel ends
            if taken.stored is not None and not taken.offered:
                # It comes back under a new id, and its body is stored again: nobody will ever ask for this copy. Not
                # here, where the connection waits for us before it is made anew.
                ending = asyncio.create_task(end(self._bodies, taken.stored, taken.stored.rcpt_to))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)
            taken.end()
        _OUTBOUND.inc()
        _OUTBOUND_SECONDS.observe(time.monotonic() - began)

    async def reroute(self, message: Incoming) -> None:
        """Take a delivery that is due again; the rules of this moment apply."""
        taken, began = _Taken(again=True), time.monotonic()
        try:
            await self._settled(message, partial(self._route_again, taken=taken))
        finally:
            taken.end()
        _REROUTE.inc()
        _REROUTE_SECONDS.observe(time.monotonic() - began)

    async def _route_new(self, message: Incoming, *, taken: _Taken) -> None:
        envelope, body, reply = await self._read(message, taken)
        envelope = taken.traced(without(envelope, taken.done))
        if reply is not None:
            await self._refuse(envelope, body, reply, taken)
            return
        if message.lost:
            raise BrokerUnavailable("the message is the broker's again, which hands it out anew")
        with self._rules.reading() as rules:
            await self._publish(plan(envelope, rules), body, taken)

    async def _read(self, message: Incoming, taken: _Taken) -> tuple[Envelope, bytes, Reply | None]:
        """Return the envelope, its body stored or as it travels along, and why the message is not delivered."""
        envelope = codec.from_ingress(
            message.body,
            message.headers,
            content_type=message.content_type,
            message_id=message.message_id,
            new_id=taken.own_id,
            now=now(),
        )
        if envelope.body_ref is not None:
            return await self._referred(envelope, envelope.body_ref, taken)
        taken.size, taken.header_id = len(message.body), trace.message_id(message.body)
        reply = refusal(message.body, len(message.body), max_size=self._max_size)
        if reply is None:
            envelope = await self._with_body_stored(envelope, message.body, taken)
        return envelope, message.body, reply

    async def _referred(
        self, envelope: Envelope, reference: str, taken: _Taken
    ) -> tuple[Envelope, bytes, Reply | None]:
        """Note who needs a body that somebody stored before; return as much of it as a report takes, if one is due.

        While the store is away nothing is noted or looked at: the worker waits for the body, and small mail must not
        wait behind it here. Whoever was named when it was stored stays named; without names it is not freed.
        """
        try:
            head = await self._bodies.use(reference, envelope.id, envelope.rcpt_to)
            left = still_due(envelope, head)
            reply = None
            if head is not None:
                taken.size, taken.header_id = head.size, trace.message_id(head.start)
                reply = refusal(head.start, head.size, max_size=self._max_size)
            return left, b"" if reply is None else await self._bodies.reported(reference), reply
        except StoreUnavailable as error:
            log.debug("store away, a stored body is not looked at", id=envelope.id, body=reference, error=str(error))
            return envelope, b"", None

    async def _route_again(self, message: Incoming, *, taken: _Taken) -> None:
        delivery, body = codec.decode(message.body)
        taken.traced(delivery.envelope)
        if delivery.retry_at is not None and delivery.retry_at > now():
            # It comes from limbo, where it waited because the store was away.
            await self._settler.park(delivery, body, delivery.retry_at)
            return
        with self._rules.reading() as rules:
            again = delivery.rerouted(rules.route(delivery.domain, delivery.id)).but(retry_at=None)
            await self._publish([again], body, taken)

    async def _with_body_stored(self, envelope: Envelope, body: bytes, taken: _Taken) -> Envelope:
        """Store a body that is too large to travel, and who needs it, before anything refers to it."""
        if len(body) <= self._inline_limit:
            return envelope
        taken.stored = msgspec.structs.replace(envelope, body_ref=taken.own_id)
        try:
            head = await self._bodies.put(taken.own_id, body, message_id=envelope.id, recipients=envelope.rcpt_to)
        except StoreUnavailable:
            if len(body) > TRAVELS:
                raise
            return envelope  # dear, but it does not keep small mail waiting while the store is away
        # In a later try some have ended already: a publish whose confirm was lost had been taken all the same.
        return still_due(taken.stored, head)

    async def _publish(self, deliveries: list[Delivery], body: bytes, taken: _Taken) -> None:
        """Publish each delivery; when this returns or raises, none is under way any more.

        Those that were confirmed are done: one queue that refuses must not make the others take theirs again and again.
        """
        taken.offered = True
        if len(deliveries) == 1:
            await self._publish_one(deliveries[0], body, taken)
            return
        publishing = (self._publish_one(each, body, taken) for each in deliveries)
        results = await asyncio.gather(*publishing, return_exceptions=True)
        for each, result in zip(deliveries, results, strict=True):
            if result is None:
                taken.done.update(each.envelope.rcpt_to)
        for result in results:
            if result is not None:
                raise result

    async def _publish_one(self, delivery: Delivery, body: bytes, taken: _Taken) -> None:
        # Noted before it is published, told when it is confirmed: a worker may be done with it before we know.
        at = now()
        await self._publish_or_park(delivery, body)
        self._emit(routed(delivery, at=at, again=taken.again, size=taken.size, header_id=taken.header_id))

    async def _publish_or_park(self, delivery: Delivery, body: bytes) -> None:
        if (fault := delivery.route.fault()) is not None:
            waiting = delivery.but(route=Route(version=delivery.route.version))
            busy = Busy(Reply(code=451, enhanced="4.3.5", text=fault), _MENDING)
            log.error("mail waits for a rule to be mended", **_told(delivery, busy.reply))
            verdict = decide(waiting, busy, by="smtp", schedule=self._schedule, now=now(), spread=0)
            await self._settle(waiting, body, verdict)
            return
        queue = topology.HTTPS if delivery.by_https else topology.SMTP
        await self._publisher.delivery(queue, delivery, body)

    async def _refuse(self, envelope: Envelope, body: bytes, reply: Reply, taken: _Taken) -> None:
        verdict = give_up(envelope, reply, expired=False)
        for each in plan(envelope, self._rules.book):
            at = now()
            await self._settle(each, body, verdict)
            self._emit(routed(each, at=at, again=False, size=taken.size, header_id=taken.header_id))
            taken.done.update(each.envelope.rcpt_to)
            log.warning("refused", **_told(each, reply))
        if taken.span is not None:
            taken.span.end("refused", well=False)
        _REFUSED.inc()

    async def _settle(self, delivery: Delivery, body: bytes, verdict: Disposition) -> None:
        """Settle what goes to no worker, for all its recipients."""
        verdicts = dict.fromkeys(delivery.envelope.rcpt_to, verdict)
        ended = await self._settler.settle(delivery, body, verdicts)
        self._emit(settled(delivery, verdicts, at=now(), room="router", ms=0, size=len(body)))
        await end(self._bodies, delivery.envelope, ended)

    async def _settled(self, message: Incoming, route: Callable[[Incoming], Awaitable[None]]) -> None:
        """Ack once everything is confirmed. What cannot be read is set aside.

        While the store or the broker is away the message is kept in hand and tried again: giving it back would count
        towards its delivery limit. Once its channel is gone it is the broker's again.
        """
        while not message.lost:
            try:
                await self._route_or_set_aside(message, route)
                await message.ack()
            except FleetError as error:
                # Not a warning for each message in hand: that the broker or the store is away is told once, elsewhere.
                log.debug("cannot route now, keeps trying", id=message.message_id, error=str(error))
                await asyncio.sleep(_PAUSE)
            except FAULTS as error:
                log.debug("acknowledgement lost with the connection", id=message.message_id, error=repr(error))
                return
            else:
                return

    async def _route_or_set_aside(self, message: Incoming, route: Callable[[Incoming], Awaitable[None]]) -> None:
        try:
            await route(message)
        except (codec.DecodeError, BodyGoneError) as error:
            await self._settler.set_aside(
                message.body, str(error), message.headers, message.message_id, message.content_type
            )
            if isinstance(error, BodyGoneError):
                self._emit(unrouted(error.envelope, error.recipients, reason=str(error), at=now(), size=0))


def _told(delivery: Delivery, reply: Reply) -> dict[str, object]:
    """Return the fields of a line about a delivery that goes to no worker, by the names that workers use."""
    return {
        "id": delivery.id,
        "recipient": delivery.domain,
        "transport": None,
        "rule": delivery.route.key or None,
        "version": delivery.route.version,
        "attempt": delivery.attempts,
        "code": reply.code,
        "enhanced": reply.enhanced or None,
        "reply": reply.text,
    }
