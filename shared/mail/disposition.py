"""What to do about an outcome. Decided here and nowhere else; done by `shared.broker.settle`."""

from datetime import datetime
from typing import Literal, assert_never

import msgspec

from shared.mail.envelope import Delivery, Envelope
from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.retry import Schedule


class Done(msgspec.Struct, frozen=True, tag=True):
    """Nothing is left to do."""

    reply: Reply


class RetryAt(msgspec.Struct, frozen=True, tag=True):
    """Store it until then. `quick` keeps the attempt open; `warn` tells the sender that it is late."""

    at: datetime
    reply: Reply
    quick: bool = False
    warn: bool = False


class FallBack(msgspec.Struct, frozen=True, tag=True):
    """Hand it to the SMTP workers."""

    reply: Reply


class NextTarget(msgspec.Struct, frozen=True, tag=True):
    """Hand it to the HTTPS workers for the next target of its route: neither transport got through to this one."""

    reply: Reply


class Bounce(msgspec.Struct, frozen=True, tag=True):
    """Give up and report to the sender. `expired`: patience ended, there was no final refusal."""

    reply: Reply
    expired: bool = False


class Drop(msgspec.Struct, frozen=True, tag=True):
    """Give up and tell nobody: it is a report itself, or its sender asked for silence."""

    reply: Reply
    expired: bool = False


Disposition = Done | RetryAt | FallBack | NextTarget | Bounce | Drop


def decide(
    delivery: Delivery,
    outcome: Outcome,
    *,
    by: Literal["https", "smtp"],
    schedule: Schedule,
    now: datetime,
    spread: float,
) -> Disposition:
    """Return what to do about the outcome for one recipient.

    Args:
        delivery: As it was taken from the queue: `attempts` does not count the attempt that just ended.
        outcome: What became of it.
        by: The transport that tried.
        schedule: The fleet's patience.
        now: The time, UTC.
        spread: A throw of the dice from -1 to 1, for the jitter.
    """
    may_fall_back = by == "https" and delivery.route.transport == "auto"
    match outcome:
        case Delivered(reply):
            return Done(reply)
        case Failed(reply):
            return give_up(delivery.envelope, reply, expired=False)
        case Deferred(reply) if may_fall_back and delivery.quick < len(schedule.quick):
            return RetryAt(now + schedule.quick[delivery.quick], reply, quick=True)
        case Deferred(reply) | Unsuited(reply) if may_fall_back:
            return FallBack(reply)
        case Unsuited(reply) if by == "smtp" and delivery.has_next:
            return NextTarget(reply)
        case Deferred(reply) | Unsuited(reply):
            return _later(delivery, reply, schedule=schedule, now=now, spread=spread)
        case _:
            assert_never(outcome)


def _later(
    delivery: Delivery, reply: Reply, *, schedule: Schedule, now: datetime, spread: float
) -> RetryAt | Bounce | Drop:
    envelope = delivery.envelope
    at = schedule.next_attempt(attempts=delivery.attempts + 1, accepted_at=envelope.accepted_at, now=now, spread=spread)
    if at is None:
        return give_up(envelope, reply, expired=True)
    late = now - envelope.accepted_at >= schedule.warn_after
    return RetryAt(at, reply, warn=late and not delivery.warned and _wants(envelope, "DELAY"))


def give_up(envelope: Envelope, reply: Reply, *, expired: bool) -> Bounce | Drop:
    """Return how to end it for good: with a report, unless nobody wants one."""
    return Bounce(reply, expired) if _wants(envelope, "FAILURE") else Drop(reply, expired)


def _wants(envelope: Envelope, event: Literal["DELAY", "FAILURE"]) -> bool:
    """Say whether the sender is to be told (RFC 3461 4.1); a report is never reported on (RFC 3461 6.1)."""
    if envelope.is_report:
        return False
    return envelope.notify is None or event in envelope.notify.split(",")
