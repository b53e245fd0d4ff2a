"""The Received header field that every hop puts on top (RFC 5321 4.4), and counting those of others."""

import re
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache

from shared.mail.envelope import Delivery

_RECEIVED = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)
_MESSAGE_ID = re.compile(
    rb"^message-id:[ \t]*(?:\r?\n[ \t]+)?<([^<>\x00-\x20\x7f]{1,900})>", re.IGNORECASE | re.MULTILINE
)
_END_OF_HEADER = re.compile(rb"\r?\n\r?\n")


def received(delivery: Delivery, hostname: str) -> bytes:
    """Return our header field, with its CRLF. The same delivery always gives the same bytes, on every retry.

    The recipient is named only when there is one: others must not learn of each other (RFC 5321 7.2).
    """
    envelope = delivery.envelope
    recipient = envelope.rcpt_to[0] if len(envelope.rcpt_to) == 1 else ""
    named = f"\r\n\tfor <{recipient}>" if recipient and recipient.isascii() else ""
    date = _date(envelope.accepted_at.replace(microsecond=0))
    return f"Received: by {hostname} (pushpush)\r\n\tid {envelope.id}{named};\r\n\t{date}\r\n".encode("ascii")


def header_of(message: bytes) -> bytes:
    """Return the header section of a message, without the empty line that ends it."""
    if message.startswith((b"\r\n", b"\n")):
        return b""
    end = _END_OF_HEADER.search(message)
    return message if end is None else message[: end.start()]


def hops(message: bytes) -> int:
    """Return how many hosts the message has been through: its Received fields (RFC 5321 6.3)."""
    return len(_RECEIVED.findall(header_of(message)))


def message_id(message: bytes) -> str:
    """Return the Message-ID of a message (RFC 5322 3.6.4) without its brackets; "" when it has none that is usable."""
    found = _MESSAGE_ID.search(header_of(message))
    return found[1].decode("utf-8", "replace") if found else ""


@lru_cache(maxsize=1_024)
def _date(second: datetime) -> str:
    return format_datetime(second)
