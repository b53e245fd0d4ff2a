"""How a recipient stands, by what is known of it."""

from datetime import UTC, datetime, timedelta

import pytest

from shared.mail.event import Event, Kind
from shared.mail.standing import State, standings

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def told(kind: Kind, recipient: str = "b@a.example", minute: int = 0, report: str = "") -> Event:
    """Return an event."""
    at = NOON + timedelta(minutes=minute)
    return Event(at=at, kind=kind, id="m1", recipient=recipient, domain="a.example", room="smtp", report=report)


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("routed", "on its way"),
        ("rerouted", "on its way"),
        ("delivered", "delivered"),
        ("deferred", "on its way"),
        ("postponed", "on its way"),
        ("fallback", "on its way"),
        ("failed", "set aside"),
        ("bounced", "given up"),
        ("dropped", "given up"),
        ("removed", "removed"),
        ("reported", "on its way"),
    ],
)
def test_by_what_happened_last(kind: Kind, state: State) -> None:
    """What is deferred but waits no longer is being tried."""
    assert [state] == [each.state for each in standings([told(kind)], {})]


def test_what_waits_has_the_last_word() -> None:
    """A recipient of whom there is no event, and one whom the journal calls delivered: the mail itself is there."""
    found = standings(
        [told("delivered"), told("routed", "c@a.example")], dict.fromkeys(("b@a.example", "d@a.example"), NOON)
    )
    assert [("b@a.example", "waits"), ("c@a.example", "on its way"), ("d@a.example", "waits")] == [
        (each.recipient, each.state) for each in found
    ]
    assert [NOON, None, NOON] == [each.until for each in found]
    assert [True, True, False] == [each.last is not None for each in found]


def test_a_report_is_no_state() -> None:
    """A warning that the mail is late, and then it arrives; the newest report is named."""
    (found,) = standings(
        [told("deferred"), told("reported", report="r1"), told("reported", minute=1, report="r2"), told("delivered")],
        {},
    )
    assert ("delivered", "r2") == (found.state, found.report)
