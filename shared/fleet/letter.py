"""A dead letter opened for people: whose mail it is, as far as that can be read. Nothing of it is believed."""

import base64
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Literal

import msgspec

from shared.mail import codec
from shared.mail.trace import header_of
from shared.store.dead import Stored

_FIELDS = ("From", "To", "Subject", "Date", "Message-ID")
_LONGEST = 2_000  # characters of a field
_HEADER = 65_536  # bytes that are looked into for fields


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to see of a letter.

    Attributes:
        kind: `delivery`, on its way between the rooms; or `message`, as it came from outside.
        mail_from: The reverse-path; None when it cannot be told.
        rcpt_to: The recipients, as far as they are text.
        fields: Fields of the message's header.
        attempts: How often a delivery was tried; None of a message.
    """

    kind: Literal["delivery", "message"]
    mail_from: str | None
    rcpt_to: list[str]
    fields: dict[str, str]
    attempts: int | None = None


def opened(letter: Stored) -> Opened:
    """Open a letter. Whatever its bytes are, nothing is raised."""
    try:
        delivery, body = codec.decode(letter.data)
    except codec.DecodeError:
        sender, recipients = letter.headers.get("mail_from"), letter.headers.get("rcpt_to")
        return Opened(
            kind="message",
            mail_from=sender if isinstance(sender, str) else None,
            rcpt_to=[each for each in recipients if isinstance(each, str)] if isinstance(recipients, list) else [],
            fields=_fields(letter.data),
        )
    envelope = delivery.envelope
    return Opened(
        kind="delivery",
        mail_from=envelope.mail_from,
        rcpt_to=list(envelope.rcpt_to),
        fields=_fields(body),
        attempts=delivery.attempts,
    )


def plain(value: object) -> object:
    """Return an AMQP value as JSON has it: bytes in base64 as `{"base64": ...}`, times and decimals as text."""
    match value:
        case Mapping():
            return {str(name): plain(each) for name, each in value.items()}
        case list():
            return [plain(each) for each in value]
        case bytes() | bytearray():
            return {"base64": base64.b64encode(value).decode()}
        case datetime() | Decimal():
            return str(value)
        case _:
            return value


def _fields(message: bytes) -> dict[str, str]:
    parsed = BytesHeaderParser().parsebytes(header_of(message[:_HEADER]))
    return {name: text for name in _FIELDS if (text := _field(parsed, name)) is not None}


def _field(parsed: Message, name: str) -> str | None:
    value = parsed.get(name)
    if value is None:
        return None
    try:
        text = str(make_header(decode_header(value)))
    except (MessageError, LookupError, ValueError):
        text = str(value)  # an encoded word that is none
    return " ".join(text.encode("utf-8", "replace").decode().split())[:_LONGEST]
