"""The Received field that every hop puts on top, and counting those of others."""

from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.envelope import Delivery, Envelope
from shared.mail.route import Route
from shared.mail.trace import header_of, hops, received
from tests.unit.strategies import deliveries, domains

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = "0123456789abcdef0123456789abcdef"


def delivery(*recipients: str) -> Delivery:
    """Return a delivery to some recipients."""
    return Delivery(
        envelope=Envelope(id=ID, mail_from="alice@a.example", rcpt_to=recipients, accepted_at=NOW),
        domain="b.example",
        route=Route(version=3, key="b.example", targets=("secret.internal",)),
    )


def test_the_field_names_us_the_id_the_recipient_and_the_time() -> None:
    """RFC 5321 4.4; and no rule, target or earlier hop of ours."""
    expected = (
        b"Received: by mx.example.org (pushpush)\r\n"
        b"\tid 0123456789abcdef0123456789abcdef\r\n"
        b"\tfor <bob@b.example>;\r\n"
        b"\tFri, 02 Jan 2026 03:04:05 +0000\r\n"
    )
    assert expected == received(delivery("bob@b.example"), "mx.example.org")


@pytest.mark.parametrize("recipients", [("bob@b.example", "carol@b.example"), ("j\u00f6rg@b.example",)])
def test_recipients_are_not_told_of_each_other(recipients: tuple[str, ...]) -> None:
    """RFC 5321 7.2: a blind copy stays blind; and a header field stays ASCII."""
    expected = (
        b"Received: by mx.example.org (pushpush)\r\n"
        b"\tid 0123456789abcdef0123456789abcdef;\r\n"
        b"\tFri, 02 Jan 2026 03:04:05 +0000\r\n"
    )
    assert expected == received(delivery(*recipients), "mx.example.org")


@given(deliveries, domains, st.integers(1, 50))
def test_the_field_is_the_same_on_every_retry(one: Delivery, hostname: str, attempts: int) -> None:
    """A doubled delivery is byte for byte the same message, so that a receiver can see that it is."""
    later = one.but(attempts=one.attempts + attempts, retry_at=one.envelope.accepted_at + timedelta(days=1))
    assert received(one, hostname) == received(later, hostname)


@given(deliveries, domains)
def test_the_field_is_one_well_formed_field(one: Delivery, hostname: str) -> None:
    """Folded below 998 octets, ASCII, and a stranger's address adds no field and no line to it."""
    field = received(one, hostname)
    lines = field.split(b"\r\n")
    assert field.isascii()
    assert lines[-1] == b""
    assert lines[0].startswith(b"Received: by ")
    assert all(line.startswith(b"\t") for line in lines[1:-1])
    assert all(len(line) <= 998 for line in lines)
    assert message_from_bytes(field + b"Subject: x\r\n\r\n", policy=policy.SMTP).keys() == ["Received", "Subject"]
    assert hops(field + b"Subject: x\r\n\r\n") == 1


def test_usual_lines_are_no_longer_than_78() -> None:
    """RFC 5322 2.1.1, with a host name and an id as they are in life."""
    field = received(
        delivery("a-rather-long-local-part@mail.department.b.example"), "mx-outbound-17.region.example.org"
    )
    assert max(len(line) for line in field.split(b"\r\n")) <= 78


def test_the_longest_of_everything_stays_below_998() -> None:
    """RFC 5322 2.1.1: longer lines are cut or refused, and the signature breaks."""
    one = delivery(f"{'a' * 64}@{'.'.join(['b' * 63, 'b' * 63, 'b' * 57, 'com'])}")
    longest = one.but(envelope=Envelope(id="i" * 200, mail_from="", rcpt_to=one.envelope.rcpt_to, accepted_at=NOW))
    field = received(longest, ".".join(["h" * 63, "h" * 63, "h" * 63, "h" * 61]))
    assert max(len(line) for line in field.split(b"\r\n")) <= 998


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"", 0),
        (b"Subject: x\r\n\r\n", 0),
        (b"Received: a\r\n\r\n", 1),
        (b"Received: a\r\nRECEIVED : b\r\nreceived:c\r\nSubject: x\r\n\r\n", 3),
        (b"Received: a\nReceived: b\n\nReceived: c\n", 2),
        (b"Received: a\r\n\tReceived: folded\r\n\r\n", 1),
        (b"X-Received: a\r\nReceived-SPF: pass\r\nARC: Received: x\r\n\r\n", 0),
        (b"Subject: x\r\n\r\nReceived: in the body\r\n", 0),
        (b"\r\nReceived: in the body\r\n\r\n", 0),
        (b"\nReceived: in the body\n\n", 0),
        (b"Received: a\r\n" * 51 + b"\r\n", 51),
        (b"Received: a\r\n" * 51, 51),
        (b"\xff: x\r\nReceived: \xff\r\n\r\n", 1),
    ],
)
def test_only_received_fields_of_the_header_are_hops(message: bytes, expected: int) -> None:
    """Fifty of them mean a loop (RFC 5321 6.3); quoted mail in a body must not stop a message."""
    assert expected == hops(message)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"A: b\r\nC: d\r\n\r\nbody\r\n\r\nmore", b"A: b\r\nC: d"),
        (b"A: b\n\nbody", b"A: b"),
        (b"A: b\r\n\nbody", b"A: b"),
        (b"A: b\r\n", b"A: b\r\n"),
        (b"\r\nbody\r\n\r\nmore", b""),
        (b"\nbody", b""),
        (b"", b""),
    ],
)
def test_the_header_ends_at_the_first_empty_line(message: bytes, expected: bytes) -> None:
    """A report gives back the header only; not a word of the body may slip along."""
    assert expected == header_of(message)
