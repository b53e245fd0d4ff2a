"""How a dead letter is sent again: where to, with which envelope, and whether it would come back at once."""

from collections.abc import Sequence
from typing import Final

import msgspec
from pamqp import encode

from shared.broker import topology
from shared.broker.publisher import writable
from shared.broker.tolerant import UNREADABLE
from shared.mail import codec
from shared.mail.envelope import Envelope
from shared.runtime.chance import new_id
from shared.runtime.clock import now
from shared.store.bodies import Bodies
from shared.store.dead import Stored

QUEUES: Final = (topology.OUTBOUND, topology.REROUTE)  # where a letter can be sent again
# What the broker, or whoever set it aside, wrote on it: with these it would not be the message that once came.
_ADDED = frozenset({"reason", "message_id", "x-death", UNREADABLE})
_ADDED_OF_A_KIND = ("x-first-death-", "x-last-death-")
_WIRE = frozenset(version.to_bytes(1) for version in range(1, 9))  # a delivery begins with its version; no mail does
_LONGEST_NAME = 128  # bytes; pamqp would write less of it (AMQP 0-9-1 4.2.5.5)


class StaysDeadError(ValueError):
    """It would come back at once, or cannot be sent like this; the message is a sentence for the person who asked."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How a letter is sent again.

    Attributes:
        queue: Where to.
        envelope: As it will be read there; None when it will not.
        fault: Why it would come back; "" when it should not.
        headers: AMQP headers; None for none.
        content_type: The AMQP property.
        dropped: Names of headers that cannot be written as they came.
    """

    queue: str
    envelope: Envelope | None
    fault: str = ""
    headers: dict[str, object] | None = None
    content_type: str | None = None
    dropped: tuple[str, ...] = ()


async def plan_for(
    letter: Stored, bodies: Bodies, *, queue: str | None, mail_from: str | None, rcpt_to: Sequence[str] | None
) -> Plan:
    """Return how to send a letter again.

    Args:
        letter: As it came.
        bodies: Asked whether the stored body is there, when the letter names one.
        queue: One of `QUEUES`; None for the one that takes it.
        mail_from: The reverse-path, in place of the header that cannot be read.
        rcpt_to: The recipients, in place of the header that cannot be read.

    Raises:
        StaysDeadError: It cannot be sent like this at all.
        StoreUnavailable: It is not known whether its body is there.
    """
    plan = _planned(letter, queue, mail_from, rcpt_to)
    envelope = plan.envelope
    if plan.fault or envelope is None or envelope.body_ref is None:
        return plan
    head = await bodies.head(envelope.body_ref, envelope.id, envelope.rcpt_to)
    if head is not None and not (head.freed and set(envelope.rcpt_to) - set(head.ended)):
        return plan
    return msgspec.structs.replace(plan, fault=f"its stored body {envelope.body_ref} is gone")


def _planned(letter: Stored, queue: str | None, mail_from: str | None, rcpt_to: Sequence[str] | None) -> Plan:
    if queue not in (None, *QUEUES):
        raise StaysDeadError(f"{queue} is none of {', '.join(QUEUES)}")
    try:
        delivery, _ = codec.decode(letter.data)
        fault = ""
    except codec.DecodeError as error:
        delivery, fault = None, str(error)
    if queue == topology.REROUTE or (queue is None and delivery is not None):
        if mail_from is not None or rcpt_to is not None:
            raise StaysDeadError("sender and recipients of a delivery stand in it, and cannot be given anew")
        return Plan(queue=topology.REROUTE, envelope=None if delivery is None else delivery.envelope, fault=fault)
    if delivery is not None or letter.data[:1] in _WIRE:
        # Its bytes begin with a header of our own, which names hosts and answers: nobody is sent that as mail.
        why = f"; it cannot be read: {fault}" if fault else ""
        raise StaysDeadError(f"it is a delivery on its way between the rooms: {topology.REROUTE} alone takes it{why}")
    return _as_message(letter, mail_from, rcpt_to)


def _as_message(letter: Stored, mail_from: str | None, rcpt_to: Sequence[str] | None) -> Plan:
    """Plan to send it to `mail.outbound`, where what an operator says goes before what it said itself."""
    given: dict[str, object] = {} if mail_from is None else {"mail_from": mail_from}
    given |= {} if rcpt_to is None else {"rcpt_to": list(rcpt_to)}
    came = {name: value for name, value in letter.headers.items() if not _is_added(name)}
    headers = {name: value for name, value in came.items() if _can_be_written(name, value)} | given
    # Who says who sends it to whom says that it is a message.
    content_type = codec.CONTENT_TYPE if given else letter.content_type
    plan = Plan(
        queue=topology.OUTBOUND,
        envelope=None,
        headers=headers,
        content_type=content_type,
        dropped=tuple(name for name in came if name not in headers),
    )
    try:
        envelope = codec.from_ingress(
            letter.data,
            headers,
            content_type=content_type,
            message_id=letter.message_id or None,
            new_id=new_id(),
            now=now(),
        )
    except codec.DecodeError as error:
        return msgspec.structs.replace(plan, fault=str(error))
    return msgspec.structs.replace(plan, envelope=envelope)


def _is_added(name: str) -> bool:
    return name in _ADDED or name.startswith(_ADDED_OF_A_KIND)


def _can_be_written(name: str, value: object) -> bool:
    """Say whether a header that could be read can be written, too; pamqp reads numbers that it would not write."""
    if len(name.encode()) > _LONGEST_NAME:
        return False
    try:
        encode.field_table({name: writable(value)})
    except (TypeError, ValueError, OverflowError):
        return False
    return True
