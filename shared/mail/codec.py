"""Bytes to values, once, at the edge; and bytes that cannot be read are kept.

Two forms exist. The ingress message has its envelope in AMQP headers (CONTRACT, `from_ingress`). Between the rooms a
delivery travels as one byte, the version; four bytes, big-endian, the length of a JSON header; the header; and the body
as it is, never base64 (docs/adr/0003-wire-format.md).
"""

import re
from collections.abc import Mapping
from datetime import datetime

import msgspec

from shared.mail.address import AddressError, domain_of
from shared.mail.envelope import MAX_RECIPIENTS, Delivery, Envelope, Ret
from shared.mail.route import Target, TargetError

VERSION = 1
CONTENT_TYPE = "message/rfc822"
_PREFIX = 5  # bytes: the version and the header's length
_MAX_REASON = 500  # characters; it travels in an AMQP header, beside the ones that were there (frame_max is 128 KiB)
_ID = re.compile(r"[!-'*-;=?-~]{1,200}")  # it stands in a header field, so no blanks, brackets or control characters
_XTEXT = re.compile(r"[!-~]{1,100}")  # RFC 3461 4.4, already encoded
_NOTIFY = re.compile(r"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*")
# W3C Trace Context 3.2.2 and 3.3.1.3; an id of zeros only is none.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[ -~]{1,512}")
_RET: Mapping[str, Ret] = {"FULL": "FULL", "HDRS": "HDRS"}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Delivery).decode


class DecodeError(ValueError):
    """The bytes are no message.

    Attributes:
        data: The bytes, whole and untouched.
    """

    def __init__(self, reason: str, data: bytes) -> None:
        super().__init__(reason[:_MAX_REASON])
        self.data = data


def encode(delivery: Delivery, body: bytes) -> bytes:
    """Return the wire form of a delivery and its message; a stored body (`body_ref`) does not travel along."""
    header = _encode(delivery)
    travels = b"" if delivery.envelope.body_ref else body
    return b"".join((VERSION.to_bytes(1), len(header).to_bytes(4), header, travels))


def decode(data: bytes) -> tuple[Delivery, bytes]:
    """Return the delivery and the body of a wire form; the body is empty when the envelope has a `body_ref`.

    Raises:
        DecodeError: The bytes are none, or of a version that is not known here.
    """
    if not data:
        raise DecodeError("the message is empty", data)
    if data[0] != VERSION:
        raise DecodeError(f"wire version {data[0]} is not known, {VERSION} is", data)
    end = _PREFIX + int.from_bytes(data[1:_PREFIX])
    if len(data) < max(end, _PREFIX):
        raise DecodeError(f"the message ends after {len(data)} bytes, inside its header", data)
    try:
        delivery = _decode(data[_PREFIX:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"the header cannot be read: {error}", data) from error
    _check(delivery, data)
    return delivery, data[end:]


def from_ingress(
    body: bytes,
    headers: Mapping[str, object],
    *,
    content_type: str | None,
    message_id: str | None,
    new_id: str,
    now: datetime,
) -> Envelope:
    """Return the envelope of a message on `mail.outbound`.

    Args:
        body: The RFC 5322 message.
        headers: The AMQP headers.
        content_type: The AMQP property; absent counts as `message/rfc822`.
        message_id: The AMQP property: the queue id the sender chose, if any.
        new_id: The queue id to use otherwise.
        now: The time, UTC.

    Raises:
        DecodeError: The message does not keep the contract; the reason says where.
    """
    try:
        envelope = Envelope(
            id=_id(message_id, new_id),
            mail_from=_mail_from(headers),
            rcpt_to=_rcpt_to(headers),
            accepted_at=now,
            smtputf8=_flag(headers, "smtputf8"),
            envid=_matching(headers, "envid", _XTEXT),
            ret=_ret(headers),
            notify=_matching(headers, "notify", _NOTIFY),
            body_ref=_matching(headers, "body_ref", _ID),
            **_trace(headers),
        )
    except ValueError as error:
        raise DecodeError(str(error), body) from error
    if content_type not in (None, "", CONTENT_TYPE):
        raise DecodeError(f"content_type is {content_type!r}, not {CONTENT_TYPE}", body)
    if not body and envelope.body_ref is None:
        raise DecodeError("the body is empty and there is no body_ref", body)
    if body and envelope.body_ref is not None:
        raise DecodeError("there are both a body and a body_ref", body)
    return envelope


def _check(delivery: Delivery, data: bytes) -> None:
    """Refuse what JSON cannot rule out, and a transport would stumble over each time it is delivered again."""
    times = (delivery.envelope.accepted_at, delivery.retry_at)
    if any(time is not None and time.tzinfo is None for time in times):
        raise DecodeError("a time has no zone", data)
    if not delivery.envelope.rcpt_to:
        raise DecodeError("rcpt_to is empty", data)
    if delivery.attempts < 0 or delivery.quick < 0:
        raise DecodeError("a count is below zero", data)
    try:
        for target in delivery.route.targets:
            Target.parse(target)
        for address in (*delivery.envelope.rcpt_to, *filter(None, [delivery.envelope.mail_from])):
            domain_of(address)
    except (AddressError, TargetError) as error:
        raise DecodeError(str(error), data) from error


def _id(message_id: str | None, new_id: str) -> str:
    if not message_id:
        return new_id
    if not _ID.fullmatch(message_id):
        raise ValueError(f"message_id {message_id[:80]!r} is not 1 to 200 printable ASCII characters without blanks")
    return message_id


def _mail_from(headers: Mapping[str, object]) -> str:
    value = headers.get("mail_from")
    if not isinstance(value, str):
        raise ValueError(f"mail_from is {_kind(value)}, not a string")  # noqa: TRY004 - one kind of refusal
    if value:
        domain_of(value)
    return value


def _rcpt_to(headers: Mapping[str, object]) -> tuple[str, ...]:
    value = headers.get("rcpt_to")
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"rcpt_to is {_kind(value)}, not a list of strings")
    if not 1 <= len(value) <= MAX_RECIPIENTS:
        raise ValueError(f"rcpt_to has {len(value)} recipients, not 1 to {MAX_RECIPIENTS}")
    for each in value:
        domain_of(each)
    return tuple(dict.fromkeys(value))


def _flag(headers: Mapping[str, object], name: str) -> bool:
    value = headers.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {_kind(value)}, not a bool")  # noqa: TRY004
    return value


def _matching(headers: Mapping[str, object], name: str, form: re.Pattern[str]) -> str | None:
    value = headers.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_kind(value)}, not a string")  # noqa: TRY004
    if not form.fullmatch(value):
        raise ValueError(f"{name} is malformed: {value[:80]!r}")
    return value


def _trace(headers: Mapping[str, object]) -> dict[str, str]:
    """Return the trace context of the sender; one that cannot be read is none, and the mail goes on."""
    parent, state = headers.get("traceparent"), headers.get("tracestate")
    if not isinstance(parent, str) or not _TRACEPARENT.fullmatch(parent):
        return {}
    known = isinstance(state, str) and _TRACESTATE.fullmatch(state) is not None
    return {"traceparent": parent} | ({"tracestate": str(state)} if known else {})


def _ret(headers: Mapping[str, object]) -> Ret | None:
    value = headers.get("ret")
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"ret is {_kind(value)}, not FULL or HDRS")  # noqa: TRY004
    if value not in _RET:
        raise ValueError(f"ret is {value[:80]!r}, not FULL or HDRS")
    return _RET[value]


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
