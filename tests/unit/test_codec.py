"""The codec: what travels comes back whole, and what cannot be read is kept whole.

The files in tests/golden/envelope/ are bytes that wire version 1 put on queues. Queues outlive deploys, so these files
are never rewritten: a change of the wire format adds new ones beside them, and the old ones still decode to the same
values.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail import codec
from shared.mail.codec import DecodeError, decode, encode, from_ingress
from shared.mail.envelope import Delivery, Envelope
from shared.mail.reply import Reply
from shared.mail.route import Route
from tests.unit.strategies import addresses, amqp_values, deliveries, hostile_text

GOLDEN = Path(__file__).parent.parent / "golden" / "envelope"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
BODY = b"Subject: hello\r\n\r\n\x00\xff\r\n.\r\n"

PLAIN = Delivery(
    envelope=Envelope(id="q1", mail_from="alice@a.example", rcpt_to=("bob@b.example",), accepted_at=NOW),
    domain="b.example",
    route=Route(version=1),
)
FULL = Delivery(
    envelope=Envelope(
        id="0123456789abcdef0123456789abcdef",
        mail_from="alice@a.example",
        rcpt_to=('"b @ b"@b.example', "j\u00f6rg@b.example", "carol@b.example"),
        accepted_at=NOW,
        smtputf8=True,
        envid="QQ314159+2B",
        ret="FULL",
        notify="FAILURE,DELAY",
    ),
    domain="b.example",
    route=Route(
        version=41,
        key="*.example",
        targets=("https://relay.example:8443/mxdeliv", "[2001:db8::1]:2525", "192.0.2.1"),
        transport="https",
        tls="encrypt",
    ),
    attempts=7,
    quick=2,
    warned=True,
    retry_at=NOW + timedelta(minutes=5),
    reply=Reply(code=451, enhanced="4.7.1", text='try "later" \u2709', mta="mx.b.example"),
)
STORED = Delivery(
    envelope=Envelope(
        id="q3",
        mail_from="",
        rcpt_to=("bob@[IPv6:2001:db8::1]",),
        accepted_at=NOW.replace(microsecond=0),
        body_ref="body-9",
    ),
    domain="[IPv6:2001:db8::1]",
    route=Route(version=2, key="*", targets=("b.com",), transport="smtp", tls="verify"),
)


def wire(header: bytes, body: bytes = b"", version: int = 1) -> bytes:
    """Return wire bytes put together by hand, without the encoder."""
    return bytes([version]) + len(header).to_bytes(4, "big") + header + body


def header_with(**changes: object) -> bytes:
    """Return the JSON header of a plain delivery, with some members changed; a dot leads into the envelope or route."""
    header: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(PLAIN))
    for path, value in changes.items():
        *parents, name = path.split("__")
        member = header
        for parent in parents:
            member = member[parent]
        member[name] = value
    return msgspec.json.encode(header)


def read_or_refused(data: bytes) -> Delivery | DecodeError:
    """Decode, with a refusal as a value."""
    try:
        return decode(data)[0]
    except DecodeError as error:
        return error


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v1-plain.bin", (PLAIN, BODY)),
        ("v1-full.bin", (FULL, BODY)),
        ("v1-stored.bin", (STORED, b"")),
        ("v1-unknown-member.bin", (PLAIN, BODY)),
    ],
)
def test_old_wire_bytes_decode_for_ever(name: str, expected: tuple[Delivery, bytes]) -> None:
    """A worker of today reads what a router of release 1 published; these files are never rewritten, only added to."""
    assert expected == decode((GOLDEN / name).read_bytes())


def test_every_golden_file_is_expected() -> None:
    """A file nobody compares protects nothing."""
    expected = {"v1-plain.bin", "v1-full.bin", "v1-stored.bin", "v1-unknown-member.bin"}
    assert expected == {path.name for path in GOLDEN.iterdir()}


@given(deliveries, st.binary())
def test_a_delivery_and_its_body_come_back_whole(delivery: Delivery, body: bytes) -> None:
    """Not one byte of a message may change, or its DKIM signature breaks."""
    assert (delivery, body) == decode(encode(delivery, body))


@given(st.binary())
def test_a_stored_body_does_not_travel_along(body: bytes) -> None:
    """A large body is in the store once; the reference alone goes from room to room."""
    assert decode(encode(STORED, body)) == (STORED, b"")


@given(st.binary() | st.binary().map(lambda junk: b"\x01" + junk) | st.binary().map(wire))
def test_any_bytes_are_a_delivery_or_kept(data: bytes) -> None:
    """What cannot be read is put aside whole; another exception would make the message come back for ever."""
    read = read_or_refused(data)
    assert not isinstance(read, DecodeError) or data == read.data


@given(st.integers(0, 10_000))
def test_a_truncated_header_is_refused(length: int) -> None:
    """Half an envelope must never be delivered to half of its recipients."""
    data = encode(FULL, b"")
    cut = data[: length % len(data)]
    with pytest.raises(DecodeError) as refusal:
        decode(cut)
    assert cut == refusal.value.data


@given(deliveries, st.data())
def test_a_flipped_bit_gives_a_sane_delivery_or_is_kept(delivery: Delivery, data: st.DataObject) -> None:
    """What still decodes after damage keeps the invariants that the transports rely on."""
    valid = encode(delivery, BODY)
    at = data.draw(st.integers(0, len(valid) * 8 - 1))
    damaged = bytearray(valid)
    damaged[at // 8] ^= 1 << at % 8
    read = read_or_refused(bytes(damaged))
    if isinstance(read, DecodeError):
        assert bytes(damaged) == read.data
        return
    assert read.envelope.rcpt_to
    assert read.attempts >= 0
    assert read.quick >= 0
    assert not any(set(each) & set("\r\n\x00") for each in (read.envelope.mail_from, *read.envelope.rcpt_to))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        header_with(envelope=None),
        header_with(attempts="1"),
        header_with(attempts=1.5),
        header_with(attempts=-1),
        header_with(quick=-1),
        header_with(retry_at="2026-01-02T03:04:05"),
        header_with(retry_at="soon"),
        header_with(envelope__accepted_at="2026-01-02T03:04:05"),
        header_with(envelope__rcpt_to=[]),
        header_with(envelope__rcpt_to="bob@b.example"),
        header_with(envelope__rcpt_to=[None]),
        header_with(envelope__rcpt_to=["bob"]),
        header_with(envelope__rcpt_to=["bob@b.example\r\nDATA"]),
        header_with(envelope__mail_from="alice@a.example>\r\nRSET"),
        header_with(envelope__mail_from=None),
        header_with(envelope__ret="ALL"),
        header_with(route__transport="http"),
        header_with(route__tls="maybe"),
        header_with(route__targets=["a b"]),
        header_with(route__targets=["ftp://b.com"]),
        header_with(route__version="x"),
        b'{"x":' + b"[" * 200_000,
        b'{"x":' * 200_000,
    ],
)
def test_a_header_that_no_router_wrote_is_refused(header: bytes) -> None:
    """Wrong types, times without a zone, addresses that break out, targets that cannot be read, bottomless nesting."""
    data = wire(header, BODY)
    with pytest.raises(DecodeError) as refusal:
        decode(data)
    assert data == refusal.value.data


@pytest.mark.parametrize("version", [0, 2, 3, 0x7B, 255])
def test_an_unknown_wire_version_is_refused_by_name(version: int) -> None:
    """A worker of the previous release must put aside what a later one wrote, not guess at it."""
    with pytest.raises(DecodeError, match=f"version {version} is not known"):
        decode(wire(header_with(), BODY, version))


@pytest.mark.parametrize("length", [2**31, 2**32 - 1])
def test_a_length_beyond_the_end_is_refused(length: int) -> None:
    """A damaged length must neither take memory nor read into the body."""
    with pytest.raises(DecodeError, match="inside its header"):
        decode(b"\x01" + length.to_bytes(4, "big") + header_with())


def test_a_time_of_another_zone_is_the_same_time() -> None:
    """What a router in another zone wrote is the same instant."""
    there = PLAIN.envelope.accepted_at.astimezone(timezone(timedelta(hours=5, minutes=30)))
    delivery, _ = decode(wire(header_with(envelope__accepted_at=there.isoformat())))
    assert delivery == PLAIN


# ---- mail.outbound -------------------------------------------------------------------------------------------------

HEADERS: Mapping[str, object] = {"mail_from": "alice@a.example", "rcpt_to": ["bob@b.example"]}


def ingress(
    headers: Mapping[str, object],
    *,
    body: bytes = BODY,
    content_type: str | None = "message/rfc822",
    message_id: str | None = None,
) -> Envelope:
    """Read an ingress message at NOW; a new id would be `new`."""
    return from_ingress(body, headers, content_type=content_type, message_id=message_id, new_id="new", now=NOW)


def test_the_least_an_ingress_message_needs() -> None:
    """Sender and recipients are enough; everything else has its default."""
    expected = Envelope(id="new", mail_from="alice@a.example", rcpt_to=("bob@b.example",), accepted_at=NOW)
    assert expected == ingress(HEADERS)


def test_all_that_an_ingress_message_can_say() -> None:
    """Every header of the contract arrives in the envelope; headers of others are let be."""
    headers = {
        **HEADERS,
        "rcpt_to": ["bob@b.example", "carol@c.example"],
        "smtputf8": True,
        "envid": "QQ+2B1",
        "ret": "HDRS",
        "notify": "SUCCESS,FAILURE",
        "x-death": [{"queue": "q", "count": 1}],
        "traceparent": b"\xff",
    }
    expected = Envelope(
        id="job-1",
        mail_from="alice@a.example",
        rcpt_to=("bob@b.example", "carol@c.example"),
        accepted_at=NOW,
        smtputf8=True,
        envid="QQ+2B1",
        ret="HDRS",
        notify="SUCCESS,FAILURE",
    )
    assert expected == ingress(headers, message_id="job-1")


def test_an_empty_body_with_a_reference_is_a_stored_body() -> None:
    """A large message is stored first and named in `body_ref`."""
    assert ingress({**HEADERS, "body_ref": "b1"}, body=b"").body_ref == "b1"


def test_the_null_reverse_path_is_taken() -> None:
    """Reports have the empty sender (RFC 5321 4.5.5)."""
    assert ingress({**HEADERS, "mail_from": ""}).is_report


def test_a_recipient_named_twice_gets_one_copy() -> None:
    """The first place counts; `A@b` and `a@b` may be two mailboxes and stay two."""
    read = ingress({**HEADERS, "rcpt_to": ["b@b.example", "a@b.example", "b@b.example", "A@b.example"]})
    assert read.rcpt_to == ("b@b.example", "a@b.example", "A@b.example")


@pytest.mark.parametrize("count", [1, 1_000])
def test_up_to_a_thousand_recipients_are_taken(count: int) -> None:
    """The limits of the contract are inside it."""
    assert len(ingress({**HEADERS, "rcpt_to": [f"u{n}@b.example" for n in range(count)]}).rcpt_to) == count


@pytest.mark.parametrize("name", ["smtputf8", "envid", "ret", "notify", "body_ref"])
def test_an_optional_header_without_a_value_is_absent(name: str) -> None:
    """AMQP clients write a void for what they leave out."""
    assert ingress(HEADERS) == ingress({**HEADERS, name: None})


@pytest.mark.parametrize("content_type", [None, "", "message/rfc822"])
def test_the_content_type_may_be_left_out(content_type: str | None) -> None:
    """A publisher that names no type means a message."""
    assert ingress(HEADERS) == ingress(HEADERS, content_type=content_type)


@pytest.mark.parametrize(
    "changes",
    [
        {"mail_from": None},
        {"mail_from": b"alice@a.example"},
        {"mail_from": 1},
        {"mail_from": ["alice@a.example"]},
        {"mail_from": "alice"},
        {"mail_from": "<>"},
        {"mail_from": "<alice@a.example>"},
        {"mail_from": "alice@a.example\r\nRCPT TO:<x@y.example>"},
        {"mail_from": "alice@a.example\n"},
        {"rcpt_to": None},
        {"rcpt_to": "bob@b.example"},
        {"rcpt_to": ("bob@b.example",)},
        {"rcpt_to": {"bob@b.example": True}},
        {"rcpt_to": []},
        {"rcpt_to": [f"u{n}@b.example" for n in range(1_001)]},
        {"rcpt_to": ["bob@b.example"] * 1_001},
        {"rcpt_to": ["bob@b.example", None]},
        {"rcpt_to": ["bob@b.example", b"carol@c.example"]},
        {"rcpt_to": [["bob@b.example"]]},
        {"rcpt_to": ["bob"]},
        {"rcpt_to": ["bob@"]},
        {"rcpt_to": [""]},
        {"rcpt_to": ["bob@b.example", "carol@c.example\r"]},
        {"rcpt_to": ["bob@b.example\nDATA"]},
        {"rcpt_to": ["bob@b.example\x00"]},
        {"smtputf8": 1},
        {"smtputf8": "true"},
        {"envid": 7},
        {"envid": "a b"},
        {"envid": "a\r\nX: y"},
        {"envid": "a" * 101},
        {"envid": b"a"},
        {"ret": "full"},
        {"ret": ""},
        {"ret": True},
        {"ret": ["FULL"]},
        {"notify": "never"},
        {"notify": "NEVER,FAILURE"},
        {"notify": "FAILURE,"},
        {"notify": "FAILURE DELAY"},
        {"notify": ["FAILURE"]},
        {"body_ref": "b1"},  # beside a body
        {"body_ref": "../x y"},
        {"body_ref": 5},
    ],
    ids=lambda changes: f"{changes}"[:60],
)
def test_an_ingress_message_off_the_contract_is_refused_whole(changes: Mapping[str, object]) -> None:
    """The whole message goes to the undecodable, whatever part of it is wrong: half a delivery would be a lost one."""
    with pytest.raises(DecodeError) as refusal:
        ingress({**HEADERS, **changes})
    assert refusal.value.data == BODY


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "message/rfc822; x=y"])
def test_another_content_type_is_refused(content_type: str) -> None:
    """Something else was put on the queue by mistake; it must not be mailed to anyone."""
    with pytest.raises(DecodeError, match="content_type"):
        ingress(HEADERS, content_type=content_type)


def test_an_empty_body_is_refused() -> None:
    """An empty message is a publisher's fault, not mail."""
    with pytest.raises(DecodeError, match="empty"):
        ingress(HEADERS, body=b"")


@pytest.mark.parametrize("message_id", ["a b", "a\r\nX: y", "<a@b>", "a(b)", "a" * 201, "\u00e4", "a\x00"])
def test_a_message_id_that_could_break_a_header_is_refused(message_id: str) -> None:
    """The queue id stands in Received and in Message-ID of reports."""
    with pytest.raises(DecodeError, match="message_id"):
        ingress(HEADERS, message_id=message_id)


@pytest.mark.parametrize("message_id", [None, ""])
def test_without_a_message_id_a_new_one_is_taken(message_id: str | None) -> None:
    """`message_id` is optional."""
    assert ingress(HEADERS, message_id=message_id).id == "new"


def test_a_reason_is_short_and_can_be_sent() -> None:
    """The reason travels in an AMQP header; beyond frame_max the broker closes the connection, and again, and again."""
    with pytest.raises(DecodeError) as refusal:
        ingress({**HEADERS, "rcpt_to": ["\ud800\r\n" * 30_000]})
    assert len(str(refusal.value).encode()) < 4_096
    assert refusal.value.data == BODY


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "mail_from": amqp_values | addresses,
            "rcpt_to": amqp_values | st.lists(hostile_text | addresses, max_size=4),
            "smtputf8": amqp_values | st.booleans(),
            "envid": amqp_values,
            "ret": amqp_values | st.sampled_from(["FULL", "HDRS"]),
            "notify": amqp_values,
            "body_ref": amqp_values,
            "x": amqp_values,
        },
    ),
    st.none() | hostile_text,
    st.none() | st.sampled_from(["message/rfc822"]) | hostile_text,
    st.binary(max_size=20),
)
def test_any_headers_give_an_envelope_that_travels_or_a_refusal(
    headers: Mapping[str, object], message_id: str | None, content_type: str | None, body: bytes
) -> None:
    """A stranger's headers never raise anything else, and what is taken is read again at the other end of the queue."""
    envelope: Envelope | DecodeError
    try:
        envelope = ingress(headers, body=body, content_type=content_type, message_id=message_id)
    except DecodeError as error:
        envelope = error
    if isinstance(envelope, DecodeError):
        assert body == envelope.data
        assert str(envelope).encode()
        assert str(envelope).isprintable()
        return
    assert 1 <= len(envelope.rcpt_to) <= 1_000
    delivery = PLAIN.but(envelope=envelope)
    assert decode(encode(delivery, body))[0] == delivery


def test_the_wire_form_is_the_version_the_length_the_header_and_the_body() -> None:
    """docs/adr/0003-wire-format.md: bodies are never base64, and the version stands first."""
    data = encode(PLAIN, BODY)
    length = int.from_bytes(data[1:5], "big")
    assert data[0] == codec.VERSION
    assert msgspec.json.decode(data[5 : 5 + length])["domain"] == "b.example"
    assert data[5 + length :] == BODY
