"""What to do about an outcome. Decided here and nowhere else; done by `shared.broker.settle`."""

from datetime import datetime, timedelta
from typing import Literal, assert_never

import msgspec

from shared.mail.envelope import Delivery, Envelope
from shared.mail.outcome import Busy, Deferred, Delivered, Failed, Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.retry import JITTER, Schedule

_QUICK = 30.0  # seconds: who wants to be left alone for longer gets no quick try, and SMTP has its turn
_LONGEST = 86_400.0  # seconds: nobody is left alone for longer, whatever they ask


class Done(msgspec.Struct, frozen=True, tag=True):
    """It is delivered. `relayed`: the sender wanted to know, and the next hop will not tell (RFC 3461 5.2.2)."""

    reply: Reply
    relayed: bool = False


class RetryAt(msgspec.Struct, frozen=True, tag=True):
    """Store it until then. `quick` keeps the attempt open; `warn` tells the sender that it is late."""

    at: datetime
    reply: Reply
    quick: bool = False
    warn: bool = False


class Wait(msgspec.Struct, frozen=True, tag=True):
    """Store it until then as it is: this transport had no room for it, so no attempt is counted, and none begins anew.

    `warn` tells the sender that it is late.
    """

    at: datetime
    reply: Reply
    by: Literal["https", "smtp"]
    warn: bool = False


class FallBack(msgspec.Struct, frozen=True, tag=True):
    """Hand it to the SMTP workers. `lacking`: the URL that has no mxdeliv, should SMTP succeed there."""

    reply: Reply
    lacking: str = ""


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


Disposition = Done | RetryAt | Wait | FallBack | NextTarget | Bounce | Drop


def decide(  # noqa: PLR0911 - one a case
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
        case Delivered(reply, reports=reports):
            return Done(reply, relayed=not reports and _wants(delivery.envelope, "SUCCESS"))
        case Failed(reply):
            return give_up(delivery.envelope, reply, expired=False)
        case Deferred(reply, after=after) if may_fall_back and delivery.quick < len(schedule.quick) and after <= _QUICK:
            wait = max(schedule.quick[delivery.quick], timedelta(seconds=after))
            return RetryAt(now + wait, reply, quick=True)
        case Deferred(reply) if may_fall_back:
            return FallBack(reply)
        case Unsuited(reply, lacking=lacking) if may_fall_back:
            return FallBack(reply, lacking)
        case Unsuited(reply) if by == "smtp" and delivery.has_next:
            return NextTarget(reply)
        case Busy(reply, seconds=seconds) if (at := _room(seconds, now, spread)) <= _end(delivery, schedule):
            return Wait(at, reply, by, warn=_is_late(delivery, schedule, now))
        case Deferred(reply, after=after):
            return _later(delivery, reply, after, schedule=schedule, now=now, spread=spread)
        case Unsuited(reply) | Busy(reply):
            return _later(delivery, reply, 0.0, schedule=schedule, now=now, spread=spread)
        case _:
            assert_never(outcome)


def _room(seconds: float, now: datetime, spread: float) -> datetime:
    return now + timedelta(seconds=seconds * (1 + JITTER * spread))


def _end(delivery: Delivery, schedule: Schedule) -> datetime:
    return delivery.envelope.accepted_at + schedule.max_age


def _later(
    delivery: Delivery, reply: Reply, after: float, *, schedule: Schedule, now: datetime, spread: float
) -> RetryAt | Bounce | Drop:
    envelope = delivery.envelope
    at = schedule.next_attempt(attempts=delivery.attempts + 1, accepted_at=envelope.accepted_at, now=now, spread=spread)
    if at is not None and after:
        # Who asks for more time than is left is tried a last time before it ends, rather than not at all.
        at = max(at, min(now + timedelta(seconds=min(after, _LONGEST)), _end(delivery, schedule)))
    if at is None:
        return give_up(envelope, reply, expired=True)
    return RetryAt(at, reply, warn=_is_late(delivery, schedule, now))


def _is_late(delivery: Delivery, schedule: Schedule, now: datetime) -> bool:
    """Say whether it is time to warn the sender, for the first time."""
    late = now - delivery.envelope.accepted_at >= schedule.warn_after
    return late and not delivery.warned and _wants(delivery.envelope, "DELAY")


def give_up(envelope: Envelope, reply: Reply, *, expired: bool) -> Bounce | Drop:
    """Return how to end it for good: with a report, unless nobody wants one."""
    return Bounce(reply, expired) if _wants(envelope, "FAILURE") else Drop(reply, expired)


def _wants(envelope: Envelope, event: Literal["DELAY", "FAILURE", "SUCCESS"]) -> bool:
    """Say whether the sender is to be told (RFC 3461 4.1); a report is never reported on (RFC 3461 6.1)."""
    if envelope.is_report:
        return False
    # Who says nothing wants to hear of failures; a warning of a delay is ours to give (RFC 3461 4.1, 6.3).
    return event != "SUCCESS" if envelope.notify is None else event in envelope.notify.split(",")
