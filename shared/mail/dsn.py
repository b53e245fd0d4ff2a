"""Reports to the sender: what failed, is late, or was passed on (RFC 3464, in the multipart/report of RFC 6522).

What a peer said goes into the report. Words of our own name no internal host, rule or setting: they are read by
strangers. Where a rule sent the mail stays our business too, so a host is named on routes without a rule only.

The message is put together here, byte by byte: the standard library's generator decodes and folds anew what it is
given, so that an encoded-word in a peer's reply could begin a header field, and a long address came out encoded.
"""

import re
import textwrap
from binascii import b2a_qp
from collections.abc import Mapping
from datetime import datetime
from email.utils import format_datetime
from typing import Final, Literal

import msgspec

from shared.mail.address import needs_smtputf8, to_ascii_domain
from shared.mail.advice import advice, happened
from shared.mail.envelope import Delivery
from shared.mail.reply import Reply
from shared.mail.trace import header_of

# Bytes of a message that RET=FULL gives back, enough for a letter with a picture; beyond, only its header. The sender
# may take less mail than she sends, and a report refused for its size is lost; or her address was forged, and then the
# whole goes to somebody who never wrote it.
MAX_RETURNED = 1_048_576
MAX_HEADER = 65_536  # bytes of the header that a report gives back; no real one is larger
_WIDTH = 76  # characters of a line, RFC 5322 2.1.1; a word that is longer stands alone in its line
_LONGEST = 900  # octets of a value; a line must not reach 998 (RFC 5322 2.1.1)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BIDI = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # with them, words are read in another order
_CHUNK = re.compile(r" *[^ ]+(?: +$)?")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_HOST = re.compile(r"[a-zA-Z0-9\[\]._:-]{1,255}")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_NOT_PRINTABLE = re.compile(r"[^ -~]")
# RFC 6533 3: what stands for itself in an address, but + and = and the backslash; in ASCII, and in UTF-8.
_NOT_QCHAR = re.compile(r"[^!-*,-<>-\[\]-~]")
_NOT_QUCHAR = re.compile(r"[\x00- +=\\\x7f]")
_STATUS = re.compile(r"[245]((?:\.[0-9]{1,3}){2})")

Action = Literal["failed", "delayed", "relayed"]

_SUBJECTS: Final[Mapping[Action, str]] = {
    "failed": "Undelivered mail returned to sender",
    "delayed": "Delivery of your mail is delayed",
    "relayed": "Your mail was passed on",
}
_CLASSES: Final[Mapping[Action, str]] = {"failed": "5", "delayed": "4", "relayed": "2"}
_HOURS_OF_TWO_DAYS = 48


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says, before it is written as a message.

    Attributes:
        delivery: The delivery whose recipients it is about.
        action: Whether they failed, are late, or were passed on to a server that will not confirm (RFC 3464 2.3.3).
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
        """Say whether the report itself needs SMTPUTF8: the sender's local part is not ASCII.

        Who has such an address reads UTF-8, so that the parts may have it too (RFC 6533).
        """
        return needs_smtputf8(self.delivery.envelope.mail_from)

    @property
    def gives_back_all(self) -> bool:
        """Say whether the sender is to have the whole message back: RET is for failures only (RFC 3461 4.3)."""
        return self.delivery.envelope.ret == "FULL" and self.action == "failed"

    @property
    def status(self) -> str:
        """The status code, of the class that belongs to the action (RFC 3464 2.3.4).

        A message that was given up failed with 4.4.7: class 4 is also for a temporary condition that "has caused
        abandonment", and tells that sending in the future may be successful (RFC 3463 2, 3.5). The last answer stands
        in the diagnostic code.
        """
        if self.expired:
            return "4.4.7"
        detail = _STATUS.fullmatch(self.reply.status)
        return _CLASSES[self.action] + (".0.0" if detail is None else detail[1])


def compose(report: Report, message: bytes) -> bytes:
    """Return the report as an RFC 5322 message to the sender of `message`."""
    boundary = f"report-{report.id}"
    parts = (_words(report, message), _status(report), _returned(report, message))
    header = _fields(
        ("MIME-Version", "1.0"),
        ("Content-Type", f'multipart/report; report-type=delivery-status; boundary="{boundary}"'),
        ("Content-Transfer-Encoding", _encoding(b"".join(parts))),  # the widest of its parts, RFC 2045 6.4
        ("From", f"Mail Delivery System <MAILER-DAEMON@{report.hostname}>"),
        ("To", to_ascii_domain(report.delivery.envelope.mail_from)),
        ("Subject", _SUBJECTS[report.action]),
        ("Date", format_datetime(report.now)),
        ("Message-ID", f"<{report.id}@{report.hostname}>"),
        ("Auto-Submitted", "auto-replied"),  # RFC 3834 5: vacation programs must not answer
    )
    line = b"\r\n--" + boundary.encode()
    return b"".join((header, *(line + b"\r\n" + part for part in parts), line, b"--\r\n"))


def _words(report: Report, message: bytes) -> bytes:
    """Return the part for people. Whatever a stranger wrote is indented, so that it cannot begin a line."""
    reply = report.reply
    recipients = "\n".join(f"    {_shown(each)}" for each in report.delivery.envelope.rcpt_to)
    said = [] if reply.mta is None else [f"{_speaker(report)} said:", _quoted(str(reply))]
    own = [] if reply.mta is not None or report.action == "relayed" else ["What happened:", _quoted(happened(reply))]
    whole_is_missing = report.gives_back_all and len(message) > MAX_RETURNED
    paragraphs = (
        f"This is the mail system at {report.hostname}.",
        textwrap.fill(_opening(report), _WIDTH),
        recipients,
        *said,
        *own,
        "What you can do:",
        _quoted(_to_do(report)),
        *(["Your message is too large to be attached whole: only its header is."] if whole_is_missing else []),
    )
    text = "\n\n".join(paragraphs) + "\n"
    if text.isascii():
        return _part('text/plain; charset="us-ascii"', "What happened", text.encode())
    # For eyes only, so that every server takes it: 8bit is for what must come back byte for byte. A soft line break
    # loses the indentation, and a stranger's words could begin the next line with our boundary.
    coded = b2a_qp(text.encode()).replace(b"\n-", b"\n=2D")
    return _part('text/plain; charset="utf-8"', "What happened", coded, encoding="quoted-printable")


def _opening(report: Report) -> str:
    if report.action == "delayed":
        return "Your message is late. It could not be delivered yet to:"
    if report.action == "relayed":
        return "Your message was passed on to a mail server that sends no confirmations, for:"
    if not report.expired:
        return "Your message could not be delivered to:"
    return f"Your message was given up after {_age(report)}. It could not be delivered to:"


def _age(report: Report) -> str:
    """Return for how long the fleet had the message, as people say it."""
    hours = round((report.now - report.delivery.envelope.accepted_at).total_seconds() / 3_600)
    if hours < 1:
        return "less than an hour"
    if hours < _HOURS_OF_TWO_DAYS:
        return "an hour" if hours == 1 else f"{hours} hours"
    return f"{round(hours / 24)} days"


def _speaker(report: Report) -> str:
    """Return who spoke; a name that is none could say anything, and stays out of our own sentence."""
    host = report.reply.mta
    named = host is not None and not report.delivery.route.key and _HOST.fullmatch(host)
    return f"The mail server {host}" if named else "The recipient's mail server"


def _to_do(report: Report) -> str:
    if report.action == "failed":
        return advice(report.reply, expired=report.expired)
    if report.action == "relayed":
        return "Nothing. If it cannot be delivered there, that server should tell you."
    at = report.retry_until
    until = "" if at is None else f" until {at:%A}, {at.day} {at:%B} {at.year}, {at:%H:%M} UTC"
    return f"Nothing. It will be tried again{until}. You do not need to send it again."


def _quoted(text: str) -> str:
    lines = textwrap.wrap(_shown(text)[:_LONGEST], _WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), "    ")


def _status(report: Report) -> bytes:
    """Return the part for machines. It is in UTF-8 only when the report needs SMTPUTF8 anyway (RFC 6533 4)."""
    envelope = report.delivery.envelope
    about_message = _fields(
        ("Reporting-MTA", f"dns; {report.hostname}"),
        ("Original-Envelope-Id", _decoded(envelope.envid)),
        ("Arrival-Date", format_datetime(envelope.accepted_at)),
    )
    content = b"\r\n".join((about_message, *(_recipient(report, each) for each in envelope.rcpt_to)))
    kind = "message/delivery-status" if content.isascii() else "message/global-delivery-status"
    return _part(kind, "Delivery report", content)


def _recipient(report: Report, recipient: str) -> bytes:
    reply = report.reply
    peer = reply.mta if reply.mta is not None and not report.delivery.route.key else None
    said = str(reply) if report.smtputf8 else _ascii(str(reply))
    retried = report.retry_until if report.action == "delayed" else None  # RFC 3464 2.3.9: for no other action
    return _fields(
        ("Final-Recipient", _typed(recipient, utf8=report.smtputf8)),
        ("Action", report.action),
        ("Status", report.status),
        ("Remote-MTA", None if peer is None else f"dns; {_ascii(peer)}"),
        ("Diagnostic-Code", None if reply.mta is None else f"smtp; {said}"),
        ("Last-Attempt-Date", format_datetime(report.now)),
        ("Will-Retry-Until", None if retried is None else format_datetime(retried)),
    )


def _decoded(envid: str | None) -> str | None:
    """Return the sender's id as she chose it: MAIL FROM had it in xtext (RFC 3461 4.2, 4.4, 6.3 a; RFC 3464 2.2.1).

    Only printable ASCII may be in it. What else somebody encoded, such as the end of a line, is replaced.
    """
    if envid is None:
        return None
    return _NOT_PRINTABLE.sub("?", _XTEXT.sub(lambda found: chr(int(found[1], 16)), envid)).strip() or None


def _typed(address: str, *, utf8: bool) -> str:
    """Return the address with its type, in UTF-8 or in ASCII (RFC 6533 3, utf-8-addr-unitext and -xtext)."""
    if address.isascii():
        return f"rfc822; {address}"
    special = _NOT_QUCHAR if utf8 else _NOT_QCHAR
    return "utf-8; " + special.sub(lambda found: f"\\x{{{ord(found[0]):X}}}", address)


def _returned(report: Report, message: bytes) -> bytes:
    """Return the message or its header as it was, but for line ends: a report crosses servers that mind them."""
    header = header_of(message)
    # RFC 6533 4, 6.3: what has UTF-8 in its header is no RFC 822 any more. Latin-1 and the like fit neither type.
    utf8 = report.smtputf8 and not header.isascii() and _is_utf8(header)
    if report.gives_back_all and len(message) <= MAX_RETURNED:
        kind = "message/global" if utf8 else "message/rfc822"
        return _part(kind, "Your message", message)
    if len(header) > MAX_HEADER:
        header = header[: header.rfind(b"\n", 0, MAX_HEADER) + 1] or header[:MAX_HEADER]
    kind = "message/global-headers" if utf8 else "text/rfc822-headers"
    return _part(kind, "Header of your message", header.rstrip(b"\r\n") + b"\n")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _part(content_type: str, description: str, content: bytes, *, encoding: str | None = None) -> bytes:
    header = _fields(
        ("Content-Type", content_type),
        ("Content-Description", description),
        ("Content-Transfer-Encoding", encoding or _encoding(content)),
    )
    return header + b"\r\n" + _LINE_END.sub(b"\r\n", content)


def _encoding(content: bytes) -> str:
    return "7bit" if content.isascii() else "8bit"


def _fields(*fields: tuple[str, str | None]) -> bytes:
    """Return header fields, each in one piece: no value can begin another. Those without a value are left out."""
    given = ((name, _CONTROL.sub("?", value)) for name, value in fields if value is not None)
    cut = ((name, value.encode()[:_LONGEST].decode(errors="ignore").rstrip(" ")) for name, value in given)
    return "".join(_folded(f"{name}: {value}") + "\r\n" for name, value in cut).encode()


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


def _shown(text: str) -> str:
    return _BIDI.sub("?", _CONTROL.sub("?", text))
