"""How a recipient stands, by what is known of it."""

from datetime import UTC, datetime, timedelta

import pytest

from shared.mail.event import Event, Kind
from shared.mail.standing import State, standings

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def told(kind: Kind, recipient: str = "b@a.example", minute: float = 0, report: str = "") -> Event:
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


@pytest.mark.parametrize("first", ["routed", "rerouted", "fallback", "deferred"])
@pytest.mark.parametrize("end", ["delivered", "bounced", "dropped", "failed", "removed"])
def test_clocks_of_two_hosts_differ(first: Kind, end: Kind) -> None:
    """What one host did is not undone by what another did before, and whose clock is ahead."""
    (found,) = standings([told(end), told(first, minute=0.1)], {})
    assert (end, False) == (found.last.kind if found.last else None, found.state == "on its way")


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        (("delivered", "routed"), "delivered"),  # the router routed it twice, and one copy is slow
        (("delivered", "rerouted"), "delivered"),
        (("removed", "rerouted"), "removed"),
        (("delivered", "deferred"), "on its way"),  # it was there twice
        (("delivered", "rerouted", "deferred"), "on its way"),
        (("delivered", "deferred", "bounced"), "given up"),
        (("bounced", "delivered"), "delivered"),
        (("failed", "rerouted"), "on its way"),  # an operator sent it on
        (("failed", "rerouted", "delivered"), "delivered"),
        (("routed", "deferred", "rerouted"), "on its way"),
    ],
)
def test_what_happens_after_an_end(kinds: tuple[Kind, ...], state: State) -> None:
    """Only an attempt tells that there is more; for what was set aside a new route does."""
    (found,) = standings([told(kind, minute=minute) for minute, kind in enumerate(kinds)], {})
    assert state == found.state


def test_recipients_that_are_kept_alike_are_counted_and_not_called_the_same() -> None:
    """One was given up, another got the mail: which one is not known."""
    alike = "@a.example"
    events = [
        *(told("routed", alike) for _ in range(4)),
        told("bounced", alike, 1),
        told("reported", alike, 1, report="r1"),
        *(told("delivered", alike, 2) for _ in range(2)),
    ]
    (found,) = standings(events, {alike: NOON})
    assert ("not told apart", {"routed": 4, "bounced": 1, "delivered": 2}, NOON, "r1") == (
        found.state,
        found.tally,
        found.until,
        found.report,
    )


def test_a_single_recipient_of_a_domain_is_told_as_ever() -> None:
    """Also where the beginning is lost; two events of one attempt tell that there are two."""
    alike = "@a.example"
    life = [told("routed", alike), *(told("deferred", alike, n) for n in range(1, 4)), told("delivered", alike, 9)]
    assert [("delivered", {})] == [(each.state, each.tally) for each in standings(life, {})]
    assert [("delivered", {})] == [(each.state, each.tally) for each in standings(life[-1:], {})]
    assert ["not told apart"] == [each.state for each in standings([*life, life[-1]], {})]
    whole = [told("routed"), told("routed"), told("delivered", minute=1)]
    assert ["delivered"] == [each.state for each in standings(whole, {})]
