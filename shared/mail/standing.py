"""How each recipient of a message stands, by the events of the message and by what waits. Pure.

The store of waiting mail has the last word: it is the mail itself, and events may be lost or on their way. The clocks
of two hosts differ, so what happened last is not always what has the newest time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, assert_never

import msgspec

from shared.mail.event import Event, Kind

CLOCKS: Final = timedelta(seconds=10)  # by which two hosts may differ
# After these there is an attempt only where the mail is there twice, or a person had what was set aside tried again.
FINAL: Final[frozenset[Kind]] = frozenset(("delivered", "bounced", "dropped", "removed"))
ENDS: Final[frozenset[Kind]] = FINAL | {"failed"}

State = Literal[
    "on its way",  # in a queue of the broker, or being tried
    "waits",  # in the store, for its next attempt
    "delivered",
    "given up",
    "set aside",  # in mail.undecodable, for people to see
    "removed",
    "not told apart",  # several recipients that the journal keeps alike
]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How one recipient stands.

    Attributes:
        recipient: As the journal keeps it.
        state: How.
        last: What happened last, reports left out; None when nothing is known but that it waits.
        until: When it is tried next, while it waits; when it is not told apart, the first of those that wait.
        report: The newest report that told the sender; "" when there is none.
        tally: How often what happened, reports left out; only of recipients that are not told apart.
    """

    recipient: str
    state: State
    last: Event | None
    until: datetime | None = None
    report: str = ""
    tally: dict[Kind, int] = {}


def standings(events: Iterable[Event], waiting: Mapping[str, datetime]) -> list[Standing]:
    """Return how each recipient stands, in the order in which they were first heard of.

    Args:
        events: Of one message, the oldest first.
        waiting: When the recipients in the store are tried next.
    """
    told: dict[str, list[Event]] = {}
    for each in events:
        told.setdefault(each.recipient, []).append(each)
    told |= {each: [] for each in waiting if each not in told}
    return [_standing(each, told[each], waiting.get(each)) for each in told]


def _standing(recipient: str, events: Sequence[Event], until: datetime | None) -> Standing:
    steps = [each for each in events if each.kind != "reported"]
    last = _last(steps)
    reports = [each.report for each in events if each.kind == "reported"]
    alike = recipient.startswith("@") and _several(steps)
    return Standing(
        recipient=recipient,
        state="not told apart" if alike else "waits" if until is not None else _state(last),
        last=last,
        until=until,
        report=reports[-1] if reports else "",
        tally=Counter(each.kind for each in steps) if alike else {},
    )


def _last(steps: Sequence[Event]) -> Event | None:
    """Return what happened last. A route comes before all else, and an end after what another host did just then.

    Waiting mail that was given a new route after its end is there twice, and that is told when it was tried; what was
    set aside, a person may have sent on.
    """
    over = any(each.kind in FINAL for each in steps)

    def order(step: Event) -> tuple[bool, bool, datetime]:
        routed, again = step.kind == "routed", step.kind == "rerouted" and over
        return not routed, not again, step.at + CLOCKS if step.kind in ENDS else step.at

    # The last of those of the same time, as the journal puts them in order.
    return max(reversed(steps), key=order, default=None)


def _several(steps: Sequence[Event]) -> bool:
    """Say whether events are of more than one recipient: each has one route, and one event of each attempt."""
    once = Counter("routed" if each.kind == "routed" else (each.kind, each.at) for each in steps)
    return any(count > 1 for count in once.values())


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
