"""Reports to the sender: what could not be delivered, or is late (RFC 3464, in the multipart/report of RFC 6522).

What a peer said goes into the report. Words of our own name no internal host, rule or setting: they are read by
strangers. Where a rule sent the mail stays our business too, so `Remote-MTA` appears on routes without a rule only.

The message is put together here, byte by byte: the standard library's generator decodes and folds anew what it is
given, so that an encoded-word in a peer's reply could begin a header field, and a long address came out encoded.
"""

import re
import textwrap
from collections.abc import Mapping
from datetime import datetime
from email.utils import format_datetime
from typing import Final, Literal

import msgspec

from shared.mail.address import needs_smtputf8, to_ascii_domain
from shared.mail.envelope import Delivery
from shared.mail.reply import Reply
from shared.mail.trace import header_of

MAX_RETURNED = 65_536  # bytes of the message that a report gives back; beyond, only its header
_WIDTH = 76  # characters of a line, RFC 5322 2.1.1; a word that is longer stands alone in its line
_LONGEST = 900  # characters of a value; a line must not reach 998 octets (RFC 5322 2.1.1)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CHUNK = re.compile(r" *[^ ]+(?: +$)?")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_NOT_QCHAR = re.compile(r"[^!-*,-<>-\[\]-~]")  # RFC 6533 3: beside what is not ASCII also + = and the backslash

Action = Literal["failed", "delayed", "relayed"]

# What strangers read when no peer spoke, by enhanced code (RFC 3463).
_OWN_WORDS: Final[Mapping[str, str]] = {
    "1.2": "The recipient's domain does not exist.",
    "1.10": "The recipient's domain does not accept mail.",
    "3.4": "The message is too large.",
    "4.1": "The destination did not answer.",
    "4.2": "The connection to the destination was lost.",
    "4.3": "The destination's address could not be looked up.",
    "4.4": "The destination could not be found.",
    "4.6": "The message went round in a circle.",
    "6.7": "The destination does not take internationalised addresses.",
    "7.5": "The destination offers no sufficient encryption.",
}
_SUBJECTS: Final[Mapping[Action, str]] = {
    "failed": "Undelivered mail returned to sender",
    "delayed": "Delivery of your mail is delayed",
    "relayed": "Your mail was passed on",
}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says, before it is written as a message.

    Attributes:
        delivery: The delivery whose recipients it is about.
        action: Whether they failed or are late.
        reply: What was answered for them last.
        expired: The fleet's patience ended; there was no final refusal.
        hostname: The name of this fleet.
        id: A unique id for the report's Message-ID and boundary.
        now: The time, UTC.
        retry_until: Until when a late message is tried, UTC.
    """

    delivery: Delivery
    action: Action
    reply: Reply
    hostname: str
    id: str
    now: datetime
    expired: bool = False
    retry_until: datetime | None = None

    @property
    def smtputf8(self) -> bool:
        """Say whether the report itself needs SMTPUTF8: the sender's local part is not ASCII."""
        return needs_smtputf8(self.delivery.envelope.mail_from)


def compose(report: Report, message: bytes) -> bytes:
    """Return the report as an RFC 5322 message to the sender of `message`."""
    boundary = f"report-{report.id}"
    header = _fields(
        ("MIME-Version", "1.0"),
        ("Content-Type", f'multipart/report; report-type=delivery-status; boundary="{boundary}"'),
        ("From", f"Mail Delivery System <MAILER-DAEMON@{report.hostname}>"),
        ("To", to_ascii_domain(report.delivery.envelope.mail_from)),
        ("Subject", _SUBJECTS[report.action]),
        ("Date", format_datetime(report.now)),
        ("Message-ID", f"<{report.id}@{report.hostname}>"),
        ("Auto-Submitted", "auto-replied"),  # RFC 3834 5: vacation programs must not answer
    )
    parts = (_part('text/plain; charset="us-ascii"', _words(report)), _status(report), _returned(report, message))
    line = b"\r\n--" + boundary.encode()
    return b"".join((header, *(line + b"\r\n" + part for part in parts), line, b"--\r\n"))


def _words(report: Report) -> bytes:
    recipients = "\n".join(f"    {_ascii(each)}" for each in report.delivery.envelope.rcpt_to)
    if report.action == "delayed":
        until = "" if report.retry_until is None else f" until {format_datetime(report.retry_until)}"
        opening = (
            f"Your message could not be delivered yet. You do not need to send it again:\nit will be tried{until}."
        )
    elif report.action == "relayed":
        opening = (
            "Your message was passed on to a mail server that sends no confirmations itself.\n"
            "You will hear of it again only if it cannot be delivered."
        )
    elif report.expired:
        opening = "Your message could not be delivered in time and has been given up."
    else:
        opening = "Your message could not be delivered."
    reason = textwrap.indent(
        "\n".join(textwrap.wrap(_reason(report.reply), break_long_words=False, break_on_hyphens=False)), "    "
    )
    text = (
        f"This is the mail system at {report.hostname}.\n\n{opening}\n\nRecipients:\n{recipients}\n\n"
        f"Reason:\n{reason}\n"
    )
    return _LINE_END.sub(b"\r\n", text.encode("ascii"))


def _reason(reply: Reply) -> str:
    if reply.mta is not None:
        return _ascii(str(reply))[:_LONGEST]
    return _OWN_WORDS.get(reply.status.partition(".")[2], "The destination could not be reached.")


def _status(report: Report) -> bytes:
    envelope = report.delivery.envelope
    about_message = _fields(
        ("Reporting-MTA", f"dns; {report.hostname}"),
        ("Original-Envelope-Id", envelope.envid),
        ("Arrival-Date", format_datetime(envelope.accepted_at)),
    )
    blocks = (about_message, *(_recipient(report, each) for each in envelope.rcpt_to))
    return _part("message/delivery-status", b"\r\n".join(blocks))


def _recipient(report: Report, recipient: str) -> bytes:
    reply = report.reply
    peer = reply.mta if reply.mta is not None and not report.delivery.route.key else None
    return _fields(
        ("Final-Recipient", _typed(recipient)),
        ("Action", report.action),
        # RFC 3463 X.4.7: the delivery time expired; the last answer stands in the diagnostic code.
        ("Status", "4.4.7" if report.expired else reply.status),
        ("Remote-MTA", None if peer is None else f"dns; {peer}"),
        ("Diagnostic-Code", None if reply.mta is None else f"smtp; {_ascii(str(reply))}"),
        ("Last-Attempt-Date", format_datetime(report.now)),
        ("Will-Retry-Until", None if report.retry_until is None else format_datetime(report.retry_until)),
    )


def _typed(address: str) -> str:
    """Return the address with its type; in ASCII also when it is not (RFC 6533 3, utf-8-addr-xtext)."""
    if address.isascii():
        return f"rfc822; {address}"
    return "utf-8; " + _NOT_QCHAR.sub(lambda found: f"\\x{{{ord(found[0]):X}}}", address)


def _returned(report: Report, message: bytes) -> bytes:
    """Return the message or its header as it was, but for line ends: a report crosses servers that mind them."""
    if report.delivery.envelope.ret == "FULL" and report.action == "failed" and len(message) <= MAX_RETURNED:
        return _part("message/rfc822", _LINE_END.sub(b"\r\n", message))
    return _part("text/rfc822-headers", _LINE_END.sub(b"\r\n", header_of(message)[:MAX_RETURNED] + b"\n"))


def _part(content_type: str, content: bytes) -> bytes:
    encoding = "7bit" if content.isascii() else "8bit"
    return _fields(("Content-Type", content_type), ("Content-Transfer-Encoding", encoding)) + b"\r\n" + content


def _fields(*fields: tuple[str, str | None]) -> bytes:
    """Return header fields, each in one piece: no value can begin another. Those without a value are left out."""
    given = ((name, _CONTROL.sub("?", value)[:_LONGEST].rstrip(" ")) for name, value in fields if value is not None)
    return "".join(_folded(f"{name}: {value}") + "\r\n" for name, value in given).encode()


def _folded(field: str) -> str:
    """Return the field in lines, broken before blanks, none of which is lost (RFC 5322 2.2.3)."""
    lines = [""]
    for chunk in _CHUNK.findall(field):
        if len(lines[-1]) + len(chunk) > _WIDTH and lines[-1]:
            lines.append("")
        lines[-1] += chunk
    return "\r\n".join(lines)


def _ascii(text: str) -> str:
    return _CONTROL.sub("?", text).encode("ascii", "backslashreplace").decode("ascii")
