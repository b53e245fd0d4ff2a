"""What happened to a recipient: one event for each attempt, and for what else operators want to see in a trace.

Rooms emit events as they settle mail, and the journal keeps them. Mail never waits for an event.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Literal, assert_never

import msgspec

from shared.mail.address import domain_of
from shared.mail.disposition import Bounce, Disposition, Done, Drop, FallBack, NextTarget, RetryAt, Wait
from shared.mail.envelope import Delivery, Envelope

Kind = Literal[
    "routed",  # a new message was given its route
    "rerouted",  # waiting mail was given the route of the rules of that moment
    "delivered",
    "deferred",  # an attempt failed, another follows
    "postponed",  # it was not tried: there was no room for it, or the next hop is suspended
    "fallback",  # the other transport, or the next target, has its turn
    "failed",  # it could not be settled, and was set aside for people to see
    "bounced",  # given up; the sender is told
    "dropped",  # given up; nobody is told
    "reported",  # the sender was told
    "removed",  # taken out by an operator, and nobody is told
]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened to one recipient.

    Attributes:
        at: When, UTC.
        kind: What.
        id: The queue id of the message.
        recipient: The forward-path, as the sender wrote it.
        domain: Its domain, normalised.
        room: Who says so: `router`, `https`, `smtp`, or `operator`.
        attempt: The number of the attempt, from 1; 0 for what was none.
        rule: The lookup key of the rule; "" for direct federation.
        version: Of the rules that routed it.
        target: Where it was to go, as the rule has it; "" for the domain's MX hosts.
        mta: The host that spoke; "" when the words are our own.
        code: The reply code, 0 without a reply.
        enhanced: The enhanced code.
        reply: The words.
        ms: Milliseconds that the attempt took.
        size: Of the message, in bytes, as it came in.
        until: When it is tried next, UTC.
        accepted_at: When the fleet took the message, UTC; of `routed` only.
        sender: The reverse-path; of `routed` only.
        header_id: The Message-ID field; of `routed` only, "" when there is none.
        report: The id of the report; of `reported` only.
        actor: The person who did it.
    """

    at: datetime
    kind: Kind
    id: str
    recipient: str
    domain: str
    room: str
    attempt: int = 0
    rule: str = ""
    version: int = 0
    target: str = ""
    mta: str = ""
    code: int = 0
    enhanced: str = ""
    reply: str = ""
    ms: int = 0
    size: int = 0
    until: datetime | None = None
    accepted_at: datetime | None = None
    sender: str | None = None
    header_id: str | None = None
    report: str = ""
    actor: str = ""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Events as they travel on `mail.events`.

    Attributes:
        source: The process that emitted them; unique for its life.
        number: Of the batch, from 1; one that comes twice is known by it.
        emitted: How many events the source has emitted up to the last of these, those lost on the way included.
        events: The events, the oldest first.
    """

    source: str
    number: int
    emitted: int
    events: tuple[Event, ...]


class _Loose(msgspec.Struct, frozen=True, kw_only=True):
    """A batch whose events are not looked at."""

    source: str
    number: int
    emitted: int
    events: tuple[msgspec.Raw, ...]


Emit = Callable[[Sequence[Event]], None]  # takes events on; never waits and never raises


def to_nobody(events: Sequence[Event]) -> None:
    """Emit to nobody."""
    del events


class BatchError(ValueError):
    """The bytes are no batch."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Batch).decode
_decode_event = msgspec.json.Decoder(Event).decode
_decode_loosely = msgspec.json.Decoder(_Loose).decode


def encode(batch: Batch) -> bytes:
    """Return the wire form of a batch, JSON."""
    return _encode(batch)


def decode(data: bytes) -> Batch:
    """Read a batch, but for events of kinds that only a later release knows: they count as lost.

    Raises:
        BatchError: The bytes are none, or none of the events can be read.
    """
    try:
        try:
            batch = _decode(data)
        except msgspec.ValidationError:
            batch = _what_is_known(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BatchError(f"no batch of events: {error}") from error
    if any(each.at.tzinfo is None for each in batch.events):
        raise BatchError("a time has no zone")
    return batch


def _what_is_known(data: bytes) -> Batch:
    loose, known = _decode_loosely(data), []
    for each in loose.events:
        try:
            known.append(_decode_event(each))
        except msgspec.ValidationError:
            continue  # rooms are upgraded one after the other
    if not known:
        raise msgspec.ValidationError("none of the events is known here")
    return Batch(source=loose.source, number=loose.number, emitted=loose.emitted, events=tuple(known))


def routed(
    delivery: Delivery, *, at: datetime, again: bool, size: int = 0, header_id: str | None = None
) -> list[Event]:
    """Return what is told of a delivery that was given its route: what becomes of each recipient begins here."""
    envelope, route = delivery.envelope, delivery.route
    return [
        Event(
            at=at,
            kind="rerouted" if again else "routed",
            id=envelope.id,
            recipient=recipient,
            domain=delivery.domain,
            room="router",
            rule=route.key,
            version=route.version,
            target=",".join(route.targets),
            size=size,
            accepted_at=None if again else envelope.accepted_at,
            sender=None if again else envelope.mail_from,
            header_id=None if again else header_id,
        )
        for recipient in envelope.rcpt_to
    ]


def settled(
    delivery: Delivery, verdicts: Mapping[str, Disposition], *, at: datetime, room: str, ms: int, size: int
) -> list[Event]:
    """Return what is told of recipients whose verdicts were made true."""
    route = delivery.route
    target = ",".join(delivery.aims)
    events = []
    for recipient, verdict in verdicts.items():
        reply = verdict.reply
        events.append(
            Event(
                at=at,
                kind=_kind(verdict),
                id=delivery.envelope.id,
                recipient=recipient,
                domain=delivery.domain,
                room=room,
                attempt=0 if isinstance(verdict, Wait) else delivery.attempts + 1,
                rule=route.key,
                version=route.version,
                target=target,
                mta=reply.mta or "",
                code=reply.code,
                enhanced=reply.enhanced,
                reply=reply.text,
                ms=ms,
                size=size,
                until=verdict.at if isinstance(verdict, RetryAt | Wait) else None,
            )
        )
    return events


def reported(
    delivery: Delivery, recipients: Sequence[str], *, room: str, action: str, report: str, at: datetime
) -> list[Event]:
    """Return what is told of recipients of whom the sender was told; `reply` says that they failed, are late, ..."""
    return [_about(delivery, each, "reported", at=at, room=room, reply=action, report=report) for each in recipients]


def set_aside(delivery: Delivery, recipients: Sequence[str], *, room: str, reason: str, at: datetime) -> list[Event]:
    """Return what is told of recipients whose mail was set aside for people to see."""
    return [_about(delivery, each, "failed", at=at, room=room, reply=reason) for each in recipients]


def unrouted(envelope: Envelope, recipients: Sequence[str], *, reason: str, at: datetime, size: int) -> list[Event]:
    """Return what is told of recipients whose message was set aside before it had a route."""
    return [
        Event(
            at=at,
            kind="failed",
            id=envelope.id,
            recipient=each,
            domain=domain_of(each),
            room="router",
            reply=reason,
            size=size,
            accepted_at=envelope.accepted_at,
            sender=envelope.mail_from,
        )
        for each in recipients
    ]


def _about(
    delivery: Delivery, recipient: str, kind: Kind, *, at: datetime, room: str, reply: str, report: str = ""
) -> Event:
    route = delivery.route
    return Event(
        at=at,
        kind=kind,
        id=delivery.envelope.id,
        recipient=recipient,
        domain=delivery.domain,
        room=room,
        rule=route.key,
        version=route.version,
        reply=reply,
        report=report,
    )


def _kind(verdict: Disposition) -> Kind:
    match verdict:
        case Done():
            return "delivered"
        case RetryAt():
            return "deferred"
        case Wait():
            return "postponed"
        case FallBack() | NextTarget():
            return "fallback"
        case Bounce():
            return "bounced"
        case Drop():
            return "dropped"
        case _:
            assert_never(verdict)
