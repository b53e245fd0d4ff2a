"""What is done about an outcome: every branch, and that no branch loses mail or tells a stranger what it must not."""

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.disposition import Bounce, Disposition, Done, Drop, FallBack, NextTarget, RetryAt, Wait, decide
from shared.mail.envelope import Delivery, Envelope
from shared.mail.outcome import Busy, Deferred, Delivered, Failed, Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.retry import Schedule
from shared.mail.route import Route, Transport
from tests.unit.strategies import deliveries, replies

By = Literal["https", "smtp"]

ACCEPTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SOON = ACCEPTED + timedelta(minutes=1)
LATE = ACCEPTED + timedelta(hours=4)
TOO_LATE = ACCEPTED + timedelta(days=5)
WAIT = timedelta(minutes=10)
SCHEDULE = Schedule(waits=(WAIT, 2 * WAIT), quick=(timedelta(seconds=2), timedelta(seconds=10)))
YES = Reply(code=250, text="OK", mta="h")
LATER = Reply(code=450, enhanced="4.2.1", text="later", mta="h")
NEVER = Reply(code=550, enhanced="5.1.1", text="no", mta="h")
NOT_THERE = Reply(code=450, enhanced="4.4.0", text="no mxdeliv")


def delivery(
    *,
    transport: Transport = "auto",
    mail_from: str = "alice@a.example",
    notify: str | None = None,
    attempts: int = 0,
    targets: tuple[str, ...] = ("c.example",),
    quick: int = 0,
    warned: bool = False,
) -> Delivery:
    """Return a delivery on a rule."""
    return Delivery(
        envelope=Envelope(
            id="q1", mail_from=mail_from, rcpt_to=("bob@b.example",), accepted_at=ACCEPTED, notify=notify
        ),
        domain="b.example",
        route=Route(version=1, key="b.example", targets=targets, transport=transport),
        attempts=attempts,
        quick=quick,
        warned=warned,
    )


def decided(delivery: Delivery, outcome: Outcome, *, by: By = "smtp", now: datetime = SOON) -> Disposition:
    """Decide without jitter."""
    return decide(delivery, outcome, by=by, schedule=SCHEDULE, now=now, spread=0)


@pytest.mark.parametrize("by", ["https", "smtp"])
@pytest.mark.parametrize("now", [SOON, TOO_LATE])
def test_delivered_is_done(by: By, now: datetime) -> None:
    """Also when it took longer than max_age."""
    assert decided(delivery(), Delivered(YES), by=by, now=now) == Done(YES)


@pytest.mark.parametrize("by", ["https", "smtp"])
@pytest.mark.parametrize("transport", ["auto", "https", "smtp"])
def test_a_final_refusal_bounces_at_once(by: By, transport: Transport) -> None:
    """A server that speaks mxdeliv is believed; SMTP would only ask the same server again."""
    assert decided(delivery(transport=transport), Failed(NEVER), by=by) == Bounce(NEVER)


@pytest.mark.parametrize(("quick", "seconds"), [(0, 2), (1, 10)])
def test_https_is_tried_again_quickly_when_the_peer_says_later(quick: int, seconds: int) -> None:
    """A few seconds often do, and the attempt stays the same one."""
    expected = RetryAt(SOON + timedelta(seconds=seconds), LATER, quick=True)
    assert expected == decided(delivery(quick=quick), Deferred(LATER), by="https")


@pytest.mark.parametrize("quick", [2, 3, 100])
def test_after_the_quick_tries_https_falls_back(quick: int) -> None:
    """SMTP may still get through, and has the long patience."""
    assert decided(delivery(quick=quick), Deferred(LATER), by="https") == FallBack(LATER)


def test_without_quick_tries_https_falls_back_at_once() -> None:
    """An operator may set none."""
    schedule = Schedule(waits=(WAIT,), quick=())
    verdict = decide(delivery(), Deferred(LATER), by="https", schedule=schedule, now=SOON, spread=0)
    assert verdict == FallBack(LATER)


def test_where_there_is_no_mxdeliv_https_falls_back_at_once() -> None:
    """Waiting does not make a web site a mail server."""
    assert decided(delivery(), Unsuited(NOT_THERE), by="https") == FallBack(NOT_THERE)


@pytest.mark.parametrize("outcome", [Deferred(LATER), Unsuited(LATER)])
def test_https_falls_back_even_when_it_is_too_late_to_wait(outcome: Outcome) -> None:
    """Falling back takes no time: the last chance is used."""
    assert decided(delivery(quick=2), outcome, by="https", now=TOO_LATE) == FallBack(LATER)


@pytest.mark.parametrize("outcome", [Deferred(LATER), Unsuited(LATER)])
@pytest.mark.parametrize(("transport", "by"), [("https", "https"), ("smtp", "smtp"), ("auto", "smtp")])
def test_without_another_transport_it_waits(outcome: Outcome, transport: Transport, by: By) -> None:
    """A rule that says https means https: it never falls back to what the operator ruled out."""
    expected = RetryAt(SOON + WAIT, LATER)
    assert expected == decided(delivery(transport=transport), outcome, by=by)


@pytest.mark.parametrize(("targets", "moves"), [(3, True), (2, True), (1, False), (0, False)])
@pytest.mark.parametrize("now", [SOON, TOO_LATE])
def test_the_next_target_has_its_turn_when_smtp_cannot_be_spoken_at_this_one(
    targets: int, moves: bool, now: datetime
) -> None:
    """At once, also as the last chance; after the last target it waits."""
    hosts = tuple(f"c{number}.example" for number in range(targets))
    one = delivery(targets=hosts)
    verdict = decided(one, Unsuited(NOT_THERE), now=now)
    waits = Bounce(NOT_THERE, expired=True) if now == TOO_LATE else RetryAt(now + WAIT, NOT_THERE)
    assert verdict == (NextTarget(NOT_THERE) if moves else waits)


def test_what_a_host_says_is_never_asked_of_the_next_target() -> None:
    """Refused or put off by SMTP: the operator's first target is there, and has decided."""
    one = delivery(targets=("b.example", "c.example"))
    assert decided(one, Failed(NEVER)) == Bounce(NEVER)
    assert decided(one, Deferred(LATER)) == RetryAt(SOON + WAIT, LATER)


@pytest.mark.parametrize("outcome", [Deferred(LATER), Unsuited(LATER)])
def test_smtp_has_its_turn_at_a_target_before_the_next_one_has(outcome: Outcome) -> None:
    """A first target that speaks only SMTP gets the mail, though the second one speaks mxdeliv."""
    one = delivery(targets=("b.example", "c.example"), quick=2)
    assert decided(one, outcome, by="https") == FallBack(LATER)


@pytest.mark.parametrize("by", ["https", "smtp"])
def test_with_one_transport_its_worker_goes_through_all_targets(by: By) -> None:
    """So there is no next one to hand it to."""
    one = delivery(targets=("b.example", "c.example"), transport=by)
    assert decided(one, Unsuited(LATER), by=by) == RetryAt(SOON + WAIT, LATER)


@pytest.mark.parametrize(
    ("transport", "left", "aims", "has_next"),
    [
        ("auto", ("b.example", "c.example"), ("b.example",), True),
        ("auto", ("c.example",), ("c.example",), False),
        ("https", ("b.example", "c.example"), ("b.example", "c.example"), False),
        ("https", ("c.example",), ("c.example",), False),
        ("smtp", ("b.example", "c.example"), ("b.example", "c.example"), False),
        ("auto", (), (), False),
        ("smtp", (), (), False),
    ],
)
def test_which_targets_have_their_turn(
    transport: Transport, left: tuple[str, ...], aims: tuple[str, ...], has_next: bool
) -> None:
    """There is always one while the route has any."""
    one = delivery(targets=left, transport=transport)
    assert (aims, has_next) == (one.aims, one.has_next)


def test_the_next_target_has_its_turn_with_all_quick_tries() -> None:
    """It is the same attempt, on what is left of the same route."""
    one = delivery(targets=("b.example", "c.example", "d.example"), attempts=2, quick=2, warned=True)
    left = delivery(targets=("c.example", "d.example"), attempts=2, warned=True)
    assert left == one.at_next_target()
    assert ("d.example",) == left.at_next_target().route.targets


ALL = ("b.example", "c.example", "d.example")


@pytest.mark.parametrize("rest", [ALL[1:], ALL[2:], ALL])
def test_a_quick_try_goes_on_at_its_target(rest: tuple[str, ...]) -> None:
    """On the rule of this moment, of which it has the rest still to do."""
    now = Route(version=2, key="b.example", targets=ALL)
    one = delivery(targets=rest, quick=1)
    assert one.but(route=Route(version=2, key="b.example", targets=rest)) == one.rerouted(now)


@pytest.mark.parametrize(
    "changed",
    [
        Route(version=2),
        Route(version=2, key="b.example", targets=("d.example", "c.example")),
        Route(version=2, key="b.example", targets=("b.example", "c.example", "d.example", "e.example")),
        Route(version=2, key="b.example", targets=("d.example",)),
        Route(version=2, key="*", targets=ALL),
        Route(version=2, key="b.example", targets=ALL, transport="https"),
        Route(version=2, key="b.example", targets=ALL, tls="none"),
    ],
)
def test_a_quick_try_begins_at_the_first_target_of_a_rule_that_changed(changed: Route) -> None:
    """What is left of the old rule says nothing of the new one."""
    one = delivery(targets=ALL[1:], quick=1)
    assert one.but(route=changed) == one.rerouted(changed)


def test_only_a_quick_try_keeps_the_rest() -> None:
    """A new attempt begins at the first target; so does mail that had no target, as a malformed rule leaves it."""
    now = Route(version=2, key="b.example", targets=ALL)
    for one in (delivery(targets=ALL[1:], attempts=1), delivery(targets=ALL[1:])):
        assert one.but(route=now) == one.rerouted(now)
    for key in ("", "b.example"):
        one = delivery(quick=1).but(route=Route(version=1, key=key))
        assert one.but(route=now) == one.rerouted(now)


@given(st.lists(st.sampled_from([Deferred(LATER), Unsuited(NOT_THERE)]), min_size=16, max_size=16), st.integers(1, 4))
def test_an_attempt_ends_after_each_target_had_its_turn(answers: list[Outcome], targets: int) -> None:
    """However the hosts answer: nothing goes round, a target that was left is left, and SMTP follows HTTPS."""
    one, by, way = delivery(targets=tuple(f"c{number}.example" for number in range(targets))), "https", []
    rule = one.route
    for outcome in answers:
        way.append((one.aims, by))
        verdict = decided(one, outcome, by="https" if by == "https" else "smtp")
        match verdict:
            case FallBack():
                by, one = "smtp", one.but(quick=0)
            case NextTarget():
                by, one = "https", one.at_next_target()
            case RetryAt(quick=True):
                one = one.but(quick=one.quick + 1).rerouted(rule)
            case _:
                assert isinstance(verdict, RetryAt)
                assert way == sorted(way)
                assert rule == one.but(attempts=1, quick=0).rerouted(rule).route
                return
    raise AssertionError(f"it goes round: {way}")


@pytest.mark.parametrize(("attempts", "wait"), [(0, WAIT), (1, 2 * WAIT), (2, 2 * WAIT), (99, 2 * WAIT)])
def test_the_attempt_that_just_ended_counts(attempts: int, wait: timedelta) -> None:
    """The first failure waits the first wait."""
    expected = RetryAt(SOON + wait, LATER)
    assert expected == decided(delivery(attempts=attempts), Deferred(LATER))


@pytest.mark.parametrize("outcome", [Deferred(LATER), Unsuited(LATER)])
def test_when_patience_ends_it_bounces_as_expired(outcome: Outcome) -> None:
    """The sender reads that time ran out, with the last answer."""
    assert decided(delivery(), outcome, now=TOO_LATE) == Bounce(LATER, expired=True)


@pytest.mark.parametrize(
    ("age", "expired"),
    [(timedelta(days=5) - WAIT, False), (timedelta(days=5) - WAIT + timedelta(microseconds=1), True)],
)
def test_patience_ends_where_the_next_attempt_would_be_too_late(age: timedelta, expired: bool) -> None:
    """The very moment of max_age is still tried."""
    verdict = decided(delivery(warned=True), Deferred(LATER), now=ACCEPTED + age)
    assert expired == (verdict == Bounce(LATER, expired=True))


@pytest.mark.parametrize("by", ["https", "smtp"])
@pytest.mark.parametrize("notify", [None, "FAILURE", "FAILURE,DELAY"])
def test_a_report_is_never_reported_on(by: By, notify: str | None) -> None:
    """Two systems that bounce each other's bounces never end (RFC 5321 6.1), whatever NOTIFY says."""
    report = delivery(mail_from="", notify=notify, transport="https" if by == "https" else "smtp")
    assert decided(report, Failed(NEVER), by=by) == Drop(NEVER)
    assert decided(report, Deferred(LATER), by=by, now=TOO_LATE) == Drop(LATER, expired=True)
    assert decided(report, Deferred(LATER), by=by, now=LATE) == RetryAt(LATE + WAIT, LATER)


@pytest.mark.parametrize(
    ("notify", "told"),
    [
        (None, True), ("FAILURE", True), ("FAILURE,DELAY", True), ("DELAY,FAILURE", True), ("SUCCESS,FAILURE", True),
        ("NEVER", False), ("DELAY", False), ("SUCCESS", False),
    ],
)  # fmt: skip
def test_a_failure_is_told_to_those_who_want_to_know(notify: str | None, told: bool) -> None:
    """RFC 3461 4.1: by default and with FAILURE, else in silence."""
    kind = Bounce if told else Drop
    assert kind(NEVER) == decided(delivery(notify=notify), Failed(NEVER))
    assert kind(LATER, expired=True) == decided(delivery(notify=notify), Deferred(LATER), now=TOO_LATE)


@pytest.mark.parametrize(
    ("notify", "told"),
    [(None, True), ("DELAY", True), ("FAILURE,DELAY", True), ("FAILURE", False), ("SUCCESS", False), ("NEVER", False)],
)
def test_a_delay_is_told_to_those_who_want_to_know(notify: str | None, told: bool) -> None:
    """RFC 3461 4.1; the mail waits all the same."""
    expected = RetryAt(LATE + WAIT, LATER, warn=told)
    assert expected == decided(delivery(notify=notify), Deferred(LATER), now=LATE)


@pytest.mark.parametrize(
    ("now", "warned", "warn"),
    [
        (LATE - timedelta(microseconds=1), False, False),
        (LATE, False, True),
        (LATE + timedelta(days=1), False, True),
        (LATE, True, False),
        (LATE + timedelta(days=1), True, False),
    ],
)
def test_a_delay_is_told_once(now: datetime, warned: bool, warn: bool) -> None:
    """From warn_after on, at the first attempt that fails, and never again."""
    expected = RetryAt(now + WAIT, LATER, warn=warn)
    assert expected == decided(delivery(warned=warned), Deferred(LATER), now=now)


def test_a_quick_try_warns_nobody() -> None:
    """It is over in seconds; the warning belongs to the wait that follows."""
    expected = RetryAt(LATE + timedelta(seconds=2), LATER, quick=True, warn=False)
    assert expected == decided(delivery(), Deferred(LATER), by="https", now=LATE)


def test_a_message_is_warned_of_once_in_its_life() -> None:
    """The whole life of a message to a dead host: many attempts, one warning, one bounce."""
    now, one, verdicts = SOON, delivery(), list[Disposition]()
    while not verdicts or isinstance(verdicts[-1], RetryAt):
        verdicts.append(verdict := decided(one, Deferred(LATER), now=now))
        if isinstance(verdict, RetryAt):
            now, one = verdict.at, one.but(attempts=one.attempts + 1, warned=one.warned or verdict.warn)
    assert verdicts[-1] == Bounce(LATER, expired=True)
    assert [each.warn for each in verdicts if isinstance(each, RetryAt)].count(True) == 1
    assert len(verdicts) > 5 * 24 * 3 - 5


outcomes = st.one_of(*(replies.map(kind) for kind in (Delivered, Deferred, Failed, Unsuited)))


@given(
    deliveries,
    outcomes,
    st.sampled_from(["https", "smtp"]),
    st.timedeltas(-timedelta(1), timedelta(9)),
    st.floats(-1, 1),
)
def test_every_outcome_is_decided(one: Delivery, outcome: Outcome, by: By, age: timedelta, spread: float) -> None:
    """Nothing vanishes: only Delivered is Done, what is not final waits or moves on until it is expired."""
    now = one.envelope.accepted_at + age
    verdict = decide(one, outcome, by=by, schedule=SCHEDULE, now=now, spread=spread)
    assert verdict.reply == outcome.reply
    assert isinstance(verdict, Done) == isinstance(outcome, Delivered)
    if isinstance(verdict, Bounce | Drop):
        assert verdict.expired != isinstance(outcome, Failed)
        assert isinstance(verdict, Drop) or not one.envelope.is_report
    if isinstance(verdict, RetryAt):
        assert now < verdict.at
    if isinstance(verdict, FallBack):
        assert (by, one.route.transport) == ("https", "auto")
    if isinstance(verdict, NextTarget):
        assert (by, one.route.transport, type(outcome)) == ("smtp", "auto", Unsuited)
        assert len(one.route.targets) > 1
    assert msgspec.json.encode(verdict)


@pytest.mark.parametrize(("after", "seconds"), [(0, 2), (7, 7), (30, 30)])
def test_a_peer_that_says_how_long_is_left_alone_for_so_long(after: float, seconds: int) -> None:
    """Retry-After, where it is short enough to wait for (RFC 9110 10.2.3)."""
    expected = RetryAt(SOON + timedelta(seconds=seconds), LATER, quick=True)
    assert expected == decided(delivery(), Deferred(LATER, after), by="https")


def test_who_wants_to_be_left_alone_for_long_is_not_waited_for() -> None:
    """SMTP at the same target has its turn at once."""
    assert FallBack(LATER) == decided(delivery(), Deferred(LATER, 31), by="https")


def test_the_next_attempt_is_not_before_the_peer_wants_it() -> None:
    """The schedule's own wait holds when it is the longer one; a day is the most, and max_age the end."""
    alone = delivery(transport="https")
    assert RetryAt(SOON + timedelta(hours=1), LATER) == decided(alone, Deferred(LATER, 3_600), by="https")
    assert RetryAt(SOON + WAIT, LATER) == decided(alone, Deferred(LATER, 60), by="https")
    assert RetryAt(SOON + timedelta(days=1), LATER) == decided(alone, Deferred(LATER, 1e12), by="https")
    late = ACCEPTED + timedelta(days=4, hours=12)
    assert RetryAt(ACCEPTED + SCHEDULE.max_age, LATER, warn=True) == decided(
        alone, Deferred(LATER, 86_400), by="https", now=late
    )


@pytest.mark.parametrize("by", ["https", "smtp"])
def test_what_was_not_tried_waits_and_counts_as_no_attempt(by: By) -> None:
    """A next hop that has its share of the worker; SMTP is no way around the limit of HTTPS."""
    assert Wait(SOON + timedelta(seconds=9), LATER, by) == decided(delivery(quick=1), Busy(LATER, 9), by=by)


def test_who_waits_for_room_for_hours_is_told_once() -> None:
    """Like anybody whose mail is late."""
    for warned in (False, True):
        verdict = decided(delivery(warned=warned), Busy(LATER, 9), now=LATE)
        assert Wait(LATE + timedelta(seconds=9), LATER, "smtp", warn=not warned) == verdict


def test_what_finds_no_room_until_its_patience_ends_is_given_up() -> None:
    """A destination so busy for five days is no different from one that is down."""
    assert Bounce(LATER, expired=True) == decided(delivery(), Busy(LATER, 9), now=TOO_LATE)


def test_smtp_learns_where_https_found_no_mxdeliv() -> None:
    """It remembers the URL, should it succeed there; what HTTPS learned nothing of is not named."""
    assert FallBack(NOT_THERE, "u") == decided(delivery(), Unsuited(NOT_THERE, "u"), by="https")
    assert FallBack(LATER) == decided(delivery(quick=2), Deferred(LATER), by="https")


@pytest.mark.parametrize(
    ("notify", "reports", "relayed"),
    [("SUCCESS", False, True), ("SUCCESS,DELAY", False, True), ("SUCCESS", True, False), (None, False, False)],
)
def test_who_asked_for_a_confirmation_hears_that_the_mail_was_relayed(
    notify: str | None, reports: bool, relayed: bool
) -> None:
    """Unless the next hop took over the reports (RFC 3461 5.2.1, 5.2.2); nobody is told without asking."""
    assert Done(YES, relayed) == decided(delivery(notify=notify), Delivered(YES, reports))
    assert Done(YES) == decided(delivery(notify=notify, mail_from=""), Delivered(YES, reports))
