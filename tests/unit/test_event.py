"""Events: what is told of a delivery, and the form in which it travels."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.disposition import Bounce, Disposition, Done, Drop, FallBack, NextTarget, RetryAt, Wait
from shared.mail.envelope import Delivery, Envelope
from shared.mail.event import Batch, BatchError, Event, decode, encode, routed, settled
from shared.mail.reply import Reply
from shared.mail.route import Route
from tests.unit.strategies import deliveries, times

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
REPLY = Reply(code=451, enhanced="4.7.1", text="later", mta="mx.b.example")
ROUTE = Route(version=41, key="a.example", targets=("b.example:2525", "c.example"))

# What JSON can carry: a lone surrogate it cannot, and codec lets none in.
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_numbers = st.integers(0, 2**53)
events = st.builds(
    Event,
    at=times,
    kind=st.sampled_from(["routed", "delivered", "deferred", "reported", "removed"]),
    id=_texts,
    recipient=_texts,
    domain=_texts,
    room=_texts,
    attempt=_numbers,
    rule=_texts,
    version=_numbers,
    target=_texts,
    mta=_texts,
    code=_numbers,
    enhanced=_texts,
    reply=_texts,
    ms=_numbers,
    size=_numbers,
    until=st.none() | times,
    accepted_at=st.none() | times,
    sender=st.none() | _texts,
    header_id=st.none() | _texts,
    report=_texts,
    actor=_texts,
)
batches = st.builds(
    Batch, source=_texts, number=_numbers, emitted=_numbers, events=st.lists(events, max_size=3).map(tuple)
)


def _delivery(*rcpt_to: str, attempts: int = 0) -> Delivery:
    envelope = Envelope(id="m1", mail_from="", rcpt_to=rcpt_to or ("b@a.example",), accepted_at=NOON)
    return Delivery(envelope=envelope, domain="a.example", route=ROUTE, attempts=attempts)


class TestWireForm:
    """Batches as bytes."""

    @given(batches)
    def test_what_was_encoded_comes_back(self, batch: Batch) -> None:
        """Every field of every event."""
        assert batch == decode(encode(batch))

    @given(
        st.binary(max_size=200)
        | st.recursive(st.none() | st.integers() | _texts, st.lists).map(lambda x: str(x).encode())
    )
    def test_any_bytes_give_a_batch_or_an_error_of_ours(self, data: bytes) -> None:
        """The journal drops what it cannot read; whatever else were raised would come again for ever."""
        with pytest.raises(BatchError):
            decode(data)

    @pytest.mark.parametrize(
        "change",
        [
            (b"2026-06-01T12:00:00Z", b"2026-06-01T12:00:00"),
            (b"2026-06-01T12:00:00Z", b"yesterday"),
            (b'"delivered"', b'"eaten"'),
            (b'"number":1', b'"number":"1"'),
            (b'"source":"s"', b'"source":null'),
            (b'"events":[', b'"events":[{]'),
            (b"}", b""),
        ],
        ids=["no zone", "no time", "unknown kind", "number", "source", "no event", "cut"],
    )
    def test_what_is_no_batch(self, change: tuple[bytes, bytes]) -> None:
        """One wrong field is enough."""
        event = Event(at=NOON, kind="delivered", id="m1", recipient="b@a.example", domain="a.example", room="smtp")
        good = encode(Batch(source="s", number=1, emitted=1, events=(event,)))
        assert change[0] in good
        with pytest.raises(BatchError):
            decode(good.replace(*change))

    def test_a_field_of_a_later_release_is_passed_over(self) -> None:
        """Rooms are upgraded one after the other."""
        assert Batch(source="s", number=1, emitted=0, events=()) == decode(
            b'{"source":"s","number":1,"emitted":0,"events":[],"colour":"red"}'
        )

    @pytest.mark.parametrize("unknown", [b'{"kind":"eaten"}', b"null", b'{"kind":"delivered"}'])
    def test_an_event_of_a_later_release_is_left_out(self, unknown: bytes) -> None:
        """Those beside it are recorded; what is missing shows in the numbers of the batch."""
        event = Event(at=NOON, kind="delivered", id="m1", recipient="b@a.example", domain="a.example", room="smtp")
        batch = Batch(source="s", number=1, emitted=2, events=(event,))
        assert batch == decode(encode(batch).replace(b'"events":[', b'"events":[' + unknown + b","))

    def test_an_event_is_small(self) -> None:
        """What is not known is not sent: a thousand events are no burden to the broker."""
        event = Event(at=NOON, kind="postponed", id="m1", recipient="b@a.example", domain="a.example", room="smtp")
        assert len(encode(Batch(source="s", number=1, emitted=1, events=(event,)))) < 200


class TestRouted:
    """A delivery that was given its route."""

    def test_of_a_new_message_there_is_told_what_only_the_router_knows(self) -> None:
        """One event for each recipient; the null reverse-path is known, not unknown."""
        first, second = routed(_delivery("b@a.example", "c@a.example"), at=NOON, again=False, size=9, header_id="<1@x>")
        assert ("b@a.example", "c@a.example") == (first.recipient, second.recipient)
        assert ("routed", "a.example", 41, "b.example:2525,c.example") == (
            first.kind,
            first.rule,
            first.version,
            first.target,
        )
        assert ("", NOON, "<1@x>", 9) == (first.sender, first.accepted_at, first.header_id, first.size)

    def test_of_waiting_mail_only_the_route(self) -> None:
        """The rest was told when it came."""
        (event,) = routed(_delivery(attempts=2), at=NOON, again=True, header_id="<1@x>")
        assert ("rerouted", None, None, None) == (event.kind, event.sender, event.accepted_at, event.header_id)


class TestSettled:
    """Recipients whose verdicts were made true."""

    @pytest.mark.parametrize(
        ("verdict", "kind", "attempt", "until"),
        [
            (Done(REPLY), "delivered", 3, None),
            (RetryAt(NOON, REPLY), "deferred", 3, NOON),
            (Wait(NOON, REPLY, by="smtp"), "postponed", 0, NOON),
            (FallBack(REPLY), "fallback", 3, None),
            (NextTarget(REPLY), "fallback", 3, None),
            (Bounce(REPLY), "bounced", 3, None),
            (Drop(REPLY), "dropped", 3, None),
        ],
    )
    def test_each_verdict_has_its_kind(
        self, verdict: Disposition, kind: str, attempt: int, until: datetime | None
    ) -> None:
        """What was not tried is no attempt; what is tried again says when."""
        (event,) = settled(
            _delivery(attempts=2), {"b@a.example": verdict}, at=NOON + timedelta(seconds=1), room="smtp", ms=35, size=9
        )
        assert (kind, attempt, until) == (event.kind, event.attempt, event.until)
        assert ("mx.b.example", 451, "4.7.1", "later", 35, 9) == (
            event.mta,
            event.code,
            event.enhanced,
            event.reply,
            event.ms,
            event.size,
        )

    @given(deliveries)
    def test_nothing_is_told_of_nobody(self, delivery: Delivery) -> None:
        """A delivery with nothing settled is not an event."""
        assert [] == settled(delivery, {}, at=NOON, room="smtp", ms=0, size=0)
