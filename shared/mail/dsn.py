"""Reports to the sender: what failed, is late, or was passed on (RFC 3464, in the multipart/report of RFC 6522).

What a peer said goes into the report. Words of our own name no internal host, rule or setting: they are read by
strangers. Where a rule sent the mail stays our business too, so a host is named on routes without a rule only.

One report tells of all recipients of a delivery that had the same fate, however many things their hosts said: a block
for each in the part for machines, and in the part for people a paragraph for all of whom the same can be told.
"""

import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import format_datetime
from typing import Final, Literal

import msgspec

from shared.mail.address import needs_smtputf8, to_ascii_domain
from shared.mail.advice import WITHDRAWN, advice, happened
from shared.mail.envelope import Delivery
from shared.mail.mime import LONGEST, WIDTH, ascii_only, fields, is_utf8, multipart, part, shown, text
from shared.mail.reply import Reply
from shared.mail.trace import header_of

# Bytes of a message that RET=FULL gives back, enough for a letter with a picture; beyond, only its header. The sender
# may take less mail than she sends, and a report refused for its size is lost; or her address was forged, and then the
# whole goes to somebody who never wrote it.
MAX_RETURNED = 1_048_576
MAX_HEADER = 65_536  # bytes of the header that a report gives back; no real one is larger
_MAX_GROUPS = 20  # told in words, two or three pages; nobody reads more, and the part for machines has all
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
        delivery: The delivery to which they belong.
        action: Whether they failed, are late, or were passed on to a server that will not confirm (RFC 3464 2.3.3).
        replies: What was answered for each recipient last.
        expired: Those for whom the fleet's patience ended; there was no final refusal.
        hostname: The name of this fleet.
        id: A unique id for the report's Message-ID and boundary.
        now: The time, UTC.
        retry_until: Until when a late message is tried, UTC.
        withdrawn: Those who run the fleet ended it while it waited, and the replies are the last ones. One with code 0
            stands for none: it was never tried.
        tried_at: When it was tried last, UTC, where that is not `now`; None when it is not known.
    """

    delivery: Delivery
    action: Action
    replies: Mapping[str, Reply]
    hostname: str
    id: str
    now: datetime
    expired: frozenset[str] = frozenset()
    retry_until: datetime | None = None
    withdrawn: bool = False
    tried_at: datetime | None = None

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

    def status(self, recipient: str) -> str:
        """Return a recipient's status code, of the class that belongs to the action (RFC 3464 2.3.4).

        A message that was given up failed with 4.4.7: class 4 is also for a temporary condition that "has caused
        abandonment", and tells that sending in the future may be successful (RFC 3463 2, 3.5). The last answer stands
        in the diagnostic code. One that was withdrawn is of the same class, and what it waited for tells the rest.
        """
        if recipient in self.expired:
            return "4.4.7"
        detail = _STATUS.fullmatch(self.replies[recipient].status)
        return ("4" if self.withdrawn else _CLASSES[self.action]) + (".0.0" if detail is None else detail[1])


def compose(report: Report, message: bytes) -> bytes:
    """Return the report as an RFC 5322 message to the sender of `message`."""
    return multipart(
        "multipart/report; report-type=delivery-status",
        f"report-{report.id}",
        (_words(report, message), _status(report), _returned(report, message)),
        ("From", f"Mail Delivery System <MAILER-DAEMON@{report.hostname}>"),
        ("To", to_ascii_domain(report.delivery.envelope.mail_from)),
        ("Subject", _SUBJECTS[report.action]),
        ("Date", format_datetime(report.now)),
        ("Message-ID", f"<{report.id}@{report.hostname}>"),
        ("Auto-Submitted", "auto-replied"),  # RFC 3834 5: vacation programs must not answer
    )


def _words(report: Report, message: bytes) -> bytes:
    """Return the part for people. Whatever a stranger wrote is indented, so that it cannot begin a line."""
    groups = _groups(report)
    more = sum(len(group) for group in groups[_MAX_GROUPS:])
    whole_is_missing = report.gives_back_all and len(message) > MAX_RETURNED
    paragraphs = (
        f"This is the mail system at {report.hostname}.",
        *(paragraph for group in groups[:_MAX_GROUPS] for paragraph in _explained(report, group)),
        *([f"And {more} more: see the details below."] if more else []),
        *(["Your message is too large to be attached whole: only its header is."] if whole_is_missing else []),
    )
    return text("What happened", "\n\n".join(paragraphs) + "\n")


def _groups(report: Report) -> list[list[str]]:
    """Return the recipients, those together of whom the same can be told.

    Hosts name the recipient in words that are the same for each: `<x@a.example>: no such user`.
    """
    names = sorted(
        (recipient.casefold() for recipient in report.replies), key=len, reverse=True
    )  # `joan@` before `an@`
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for recipient in report.replies:
        who, words = _said(report, recipient)
        words = words.casefold()
        for name in names:
            words = words.replace(name, "")
        groups[_opening(report, recipient), who, words, _to_do(report, recipient)].append(recipient)
    return list(groups.values())


def _explained(report: Report, group: Sequence[str]) -> list[str]:
    """Return the paragraphs about recipients of whom the same can be told."""
    first = group[0]
    who, words = _said(report, first)
    whom = "" if all(_said(report, each)[1] == words for each in group) else " of the first"
    return [
        textwrap.fill(_opening(report, first), WIDTH),
        "\n".join(f"    {shown(each)}" for each in group),
        *([f"{who}{whom}:", _quoted(words)] if who else []),
        "What you can do:",
        _quoted(_to_do(report, first)),
    ]


def _opening(report: Report, recipient: str) -> str:
    if report.action == "delayed":
        return "Your message is late. It could not be delivered yet to:"
    if report.action == "relayed":
        return "Your message was passed on to a mail server that sends no confirmations, for:"
    if report.withdrawn:
        return f"Those who run this mail service gave your message up after {_age(report)}. It was not delivered to:"
    if recipient not in report.expired:
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


def _said(report: Report, recipient: str) -> tuple[str, str]:
    """Return who spoke of a recipient, and the words; or what happened. Both are empty when nothing needs words.

    A name of a host that is none could say anything, and stays out of our own sentence.
    """
    reply = report.replies[recipient]
    if reply.mta is not None:
        named = not report.delivery.route.key and _HOST.fullmatch(reply.mta)
        return f"The mail server {reply.mta} said" if named else "The recipient's mail server said", str(reply)
    return ("", "") if report.action == "relayed" or not reply.code else ("What happened", happened(reply))


def _to_do(report: Report, recipient: str) -> str:
    if report.withdrawn:
        return WITHDRAWN
    if report.action == "failed":
        return advice(report.replies[recipient], expired=recipient in report.expired)
    if report.action == "relayed":
        return "Nothing. If it cannot be delivered there, that server should tell you."
    at = report.retry_until
    until = "" if at is None else f" until {at:%A}, {at.day} {at:%B} {at.year}, {at:%H:%M} UTC"
    return f"Nothing. It will be tried again{until}. You do not need to send it again."


def _quoted(words: str) -> str:
    lines = textwrap.wrap(shown(words)[:LONGEST], WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), "    ")


def _status(report: Report) -> bytes:
    """Return the part for machines. It is in UTF-8 only when the report needs SMTPUTF8 anyway (RFC 6533 4)."""
    envelope = report.delivery.envelope
    about_message = fields(
        ("Reporting-MTA", f"dns; {report.hostname}"),
        ("Original-Envelope-Id", _decoded(envelope.envid)),
        ("Arrival-Date", format_datetime(envelope.accepted_at)),
    )
    content = b"\r\n".join((about_message, *(_recipient(report, each) for each in report.replies)))
    kind = "message/delivery-status" if content.isascii() else "message/global-delivery-status"
    return part(kind, "Delivery report", content)


def _recipient(report: Report, recipient: str) -> bytes:
    reply = report.replies[recipient]
    peer = reply.mta if reply.mta is not None and not report.delivery.route.key else None
    said = str(reply) if report.smtputf8 else ascii_only(str(reply))
    retried = report.retry_until if report.action == "delayed" else None  # RFC 3464 2.3.9: for no other action
    tried = report.tried_at if report.withdrawn else report.now
    return fields(
        ("Final-Recipient", _typed(recipient, utf8=report.smtputf8)),
        ("Action", report.action),
        ("Status", report.status(recipient)),
        ("Remote-MTA", None if peer is None else f"dns; {ascii_only(peer)}"),
        ("Diagnostic-Code", None if reply.mta is None else f"smtp; {said}"),
        ("Last-Attempt-Date", None if tried is None else format_datetime(tried)),
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
    utf8 = report.smtputf8 and not header.isascii() and is_utf8(header)
    if report.gives_back_all and len(message) <= MAX_RETURNED:
        kind = "message/global" if utf8 else "message/rfc822"
        return part(kind, "Your message", message)
    if len(header) > MAX_HEADER:
        header = header[: header.rfind(b"\n", 0, MAX_HEADER) + 1] or header[:MAX_HEADER]
    kind = "message/global-headers" if utf8 else "text/rfc822-headers"
    return part(kind, "Header of your message", header.rstrip(b"\r\n") + b"\n")
