"""How each recipient of a message stands, by the events of the message and by what waits. Pure.

The store of waiting mail has the last word: it is the mail itself, and events may be lost or on their way.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal, assert_never

import msgspec

from shared.mail.event import Event

State = Literal[
    "on its way",  # in a queue of the broker, or being tried
    "waits",  # in the store, for its next attempt
    "delivered",
    "given up",
    "set aside",  # in mail.undecodable, for people to see
    "removed",
]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How one recipient stands.

    Attributes:
        recipient: As the journal keeps it.
        state: How.
        last: What happened last, reports left out; None when nothing is known but that it waits.
        until: When it is tried next, while it waits.
        report: The newest report that told the sender; "" when there is none.
    """

    recipient: str
    state: State
    last: Event | None
    until: datetime | None = None
    report: str = ""


def standings(events: Iterable[Event], waiting: Mapping[str, datetime]) -> list[Standing]:
    """Return how each recipient stands, in the order in which they were first heard of.

    Args:
        events: Of one message, the oldest first.
        waiting: When the recipients in the store are tried next.
    """
    last: dict[str, Event | None] = {}
    reports: dict[str, str] = {}
    for each in events:
        if each.kind == "reported":
            reports[each.recipient] = each.report
            last.setdefault(each.recipient, None)
        else:
            last[each.recipient] = each
    last |= {each: last.get(each) for each in waiting}
    return [
        Standing(
            recipient=recipient,
            state="waits" if recipient in waiting else _state(event),
            last=event,
            until=waiting.get(recipient),
            report=reports.get(recipient, ""),
        )
        for recipient, event in last.items()
    ]


def _state(event: Event | None) -> State:
    if event is None:
        return "on its way"
    match event.kind:
        case "delivered":
            return "delivered"
        case "bounced" | "dropped":
            return "given up"
        case "failed":
            return "set aside"
        case "removed":
            return "removed"
        case "routed" | "rerouted" | "deferred" | "postponed" | "fallback" | "reported":
            return "on its way"
        case _:
            assert_never(event.kind)
