"""Bytes that earlier releases left in queues and tables are read for ever: waiting mail, events, dead letters, ingress.

Each file was written by the code of the release that first had its form; it is never rewritten, only added to. The
deliveries in queues are in test_codec.py.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from pamqp import frame
from pamqp.header import ContentHeader

from shared.mail import codec, event
from shared.mail.envelope import Delivery, Envelope
from shared.mail.event import Batch, Event, Kind
from shared.mail.reply import Reply
from shared.mail.route import Route
from shared.store.dead import Stored, _stored

GOLDEN = Path(__file__).parent.parent / "golden"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
BODY = b"Subject: hello\r\n\r\n\x00\xff\r\n.\r\n"
TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=1"}
REQUESTS: dict[str, Any] = {"envid": "QQ314159+2B", "ret": "HDRS", "notify": "FAILURE,DELAY", "smtputf8": True}

WAITED = Delivery(
    envelope=Envelope(
        id="0123456789abcdef0123456789abcdef",
        mail_from="alice@a.example",
        rcpt_to=("bob@b.example", "j\u00f6rg@b.example"),
        accepted_at=NOW,
        **REQUESTS,
    ),
    domain="b.example",
    route=Route(version=41, key="*.example", targets=("relay.example", "192.0.2.1:2525"), tls="encrypt"),
    attempts=7,
    quick=2,
    warned=True,
    reply=Reply(code=451, enhanced="4.7.1", text='try "later" \u2709', mta="mx.b.example"),
)
LACKING = WAITED.but(lacking="https://relay.example/mxdeliv")
PUT_OFF = LACKING.but(put_off="smtp")
TRACED = PUT_OFF.but(envelope=msgspec.structs.replace(PUT_OFF.envelope, **TRACE))
DEFERRED = {"v1-first.bin": WAITED, "v1-lacking.bin": LACKING, "v1-put-off.bin": PUT_OFF, "v1-traced.bin": TRACED}

EVERY_KIND = Batch(
    source="router-r1",
    number=1,
    emitted=11,
    events=tuple(
        Event(at=NOW, kind=kind, id="q1", recipient="bob@b.example", domain="b.example", room="router")
        for kind in get_args(Kind)[:11]
    ),
)
EVERY_FIELD = Batch(
    source="smtp-s1",
    number=2,
    emitted=40,
    events=(
        Event(
            at=NOW,
            kind="deferred",
            id="q2",
            recipient="j\u00f6rg@b.example",
            domain="b.example",
            room="smtp",
            attempt=7,
            rule="*.example",
            version=41,
            target="relay.example,192.0.2.1:2525",
            mta="mx.b.example",
            code=451,
            enhanced="4.7.1",
            reply='try "later" \u2709',
            ms=812,
            size=4096,
            until=NOW + timedelta(minutes=5),
            accepted_at=NOW - timedelta(hours=1),
            sender="alice@a.example",
            header_id="<1@a.example>",
            report="r1",
            actor="ops",
        ),
    ),
)
EVENTS = {"v1-every-kind.json": EVERY_KIND, "v1-every-field.json": EVERY_FIELD}

HEADERS = {
    "mail_from": "alice@a.example",
    "rcpt_to": ["bob@b.example", 7, None],
    "reason": "rcpt_to is not a list of strings",
    "x-death": [
        {
            "count": 3,
            "exchange": "",
            "queue": "mail.outbound",
            "time": NOW.replace(microsecond=0),
            "routing-keys": ["mail.outbound"],
        }
    ],
    "bytes": b"\x00\xff",
    "price": Decimal("12.50"),
    "yes": True,
    "half": 0.5,
    "big": 2**62,
    "deep": {"a": {"b": []}},
}


def ingress(identity: str, *rcpt_to: str, mail_from: str = "alice@a.example", **fields: Any) -> Envelope:
    """Return the envelope of a message that came in now."""
    recipients = rcpt_to or ("bob@b.example",)
    return Envelope(id=identity, mail_from=mail_from, rcpt_to=recipients, accepted_at=NOW, **fields)


FULL = ingress("q1", "bob@b.example", "j\u00f6rg@c.example", **REQUESTS)
INGRESS = {
    "v1-full-pamqp.bin": FULL,
    "v1-full-pika.bin": FULL,
    "v1-plain-pika.bin": ingress("given"),
    "v1-stored.bin": ingress("q3", body_ref="body-9"),
    "v1-report.bin": ingress("q4", "alice@a.example", mail_from=""),
    "v1-traced.bin": ingress("q5", **TRACE),
}


@pytest.mark.parametrize(("name", "expected"), DEFERRED.items())
def test_mail_that_waits_since_an_older_release_is_read(name: str, expected: Delivery) -> None:
    """Rows wait for days, and a release is rolled out in minutes; what it did not know yet has its default."""
    assert (expected, BODY) == codec.decode((GOLDEN / "deferred" / name).read_bytes())


@pytest.mark.parametrize(("name", "expected"), EVENTS.items())
def test_events_of_an_older_room_are_read(name: str, expected: Batch) -> None:
    """They wait in the journal's queue for as long as no journal runs."""
    assert expected == event.decode((GOLDEN / "event" / name).read_bytes())


def test_a_dead_letter_kept_by_an_older_release_is_whole() -> None:
    """Headers have values of every kind that AMQP knows, and are given back as they came when it is requeued."""
    headers = (GOLDEN / "dead" / "v1-headers.msgpack").read_bytes()
    row = (7, NOW, "no list", "mail.outbound", "q1", "message/rfc822", len(BODY), headers, BODY)
    expected = Stored(
        id=7,
        taken_at=NOW,
        reason="no list",
        queue="mail.outbound",
        message_id="q1",
        content_type="message/rfc822",
        size=len(BODY),
        headers=HEADERS,
        data=BODY,
    )
    assert expected == _stored(row)


@pytest.mark.parametrize(("name", "expected"), INGRESS.items())
def test_the_contract_of_ingress_messages_is_kept(name: str, expected: Envelope) -> None:
    """Frames as two client libraries write them, and reports as the fleet does: mail servers are not rolled with us."""
    header = frame.unmarshal((GOLDEN / "ingress" / name).read_bytes())[2]
    assert isinstance(header, ContentHeader)
    properties = header.properties
    found = codec.from_ingress(
        b"" if expected.body_ref else BODY,
        properties.headers or {},
        content_type=properties.content_type,
        message_id=properties.message_id,
        new_id="given",
        now=NOW,
    )
    assert expected == found


def test_every_golden_file_is_expected() -> None:
    """A file nobody compares protects nothing."""
    expected = {
        "deferred": set(DEFERRED),
        "event": set(EVENTS),
        "dead": {"v1-headers.msgpack"},
        "ingress": set(INGRESS),
    }
    assert expected == {folder: {path.name for path in (GOLDEN / folder).iterdir()} for folder in expected}
