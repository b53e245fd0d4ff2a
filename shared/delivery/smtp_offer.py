"""What a host offers in its reply to EHLO, and the commands that make use of it. Nothing here touches the network."""

import re
from typing import Self

import msgspec
from aiosmtplib.esmtp import parse_esmtp_extensions

from shared.mail.address import needs_smtputf8, to_ascii_domain
from shared.mail.envelope import Envelope

MAX_ORCPT = 500  # octets, RFC 3461 4.2

_NOT_XTEXT = re.compile(r"[^!-*,-<>-~]")  # RFC 3461 4: all but printable ASCII without + and =


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """The extensions of one host.

    Attributes:
        name: What it calls itself.
        pipelining: RFC 2920.
        sized: It takes SIZE= with MAIL (RFC 1870).
        limit: The octets of the largest message it takes; 0 when it names no limit.
        eightbit: 8BITMIME (RFC 6152).
        smtputf8: RFC 6531.
        dsn: RFC 3461.
        starttls: RFC 3207.
    """

    name: str = ""
    pipelining: bool = False
    sized: bool = False
    limit: int = 0
    eightbit: bool = False
    smtputf8: bool = False
    dsn: bool = False
    starttls: bool = False

    @classmethod
    def of(cls, text: str) -> Self:
        """Read the text of a 250 to EHLO or HELO, without the codes; the latter is one line and offers nothing."""
        words, _ = parse_esmtp_extensions(text)
        limit = words.get("size", "").strip()
        return cls(
            name=next(iter(text.split()), ""),
            pipelining="pipelining" in words,
            sized="size" in words,
            limit=int(limit) if limit.isascii() and limit.isdigit() and len(limit) < 20 else 0,  # noqa: PLR2004 - RFC 1870 3
            eightbit="8bitmime" in words,
            smtputf8="smtputf8" in words,
            dsn="dsn" in words,
            starttls="starttls" in words,
        )

    def lacks_utf8(self, mail_from: str, recipient: str) -> bool:
        """Say whether a pair of addresses cannot be named to this host (RFC 6531 3.2)."""
        return not self.smtputf8 and (needs_smtputf8(mail_from) or needs_smtputf8(recipient))

    def mail(self, envelope: Envelope, *, size: int, ascii_only: bool, utf8: bool) -> bytes:
        """Return the MAIL command.

        A message of 8 bits is announced where the host knows 8BITMIME. Where it does not, the bytes are sent as they
        are: rewriting them as quoted-printable would break the signatures on them, and practically every host takes
        them.
        """
        sender = envelope.mail_from
        words = [f"MAIL FROM:<{to_ascii_domain(sender) if sender else ''}>"]
        if self.sized:
            words.append(f"SIZE={size}")
        if self.eightbit and not ascii_only:
            words.append("BODY=8BITMIME")
        if utf8 and self.smtputf8:
            words.append("SMTPUTF8")
        if self.dsn and envelope.ret is not None:
            words.append(f"RET={envelope.ret}")
        if self.dsn and envelope.envid is not None:
            words.append(f"ENVID={envelope.envid}")  # xtext already, as the sender wrote it
        return " ".join(words).encode()

    def rcpt(self, recipient: str, *, notify: str | None) -> bytes:
        """Return the RCPT command. ORCPT is for ASCII addresses; others need the form of RFC 6533, which few know."""
        words = [f"RCPT TO:<{to_ascii_domain(recipient)}>"]
        if self.dsn and notify is not None:
            words.append(f"NOTIFY={notify}")
        if self.dsn and recipient.isascii() and len(original := f"rfc822;{xtext(recipient)}") <= MAX_ORCPT:
            words.append(f"ORCPT={original}")
        return " ".join(words).encode()


def xtext(text: str) -> str:
    """Return ASCII text in the form that a parameter can hold (RFC 3461 4)."""
    return _NOT_XTEXT.sub(lambda found: f"+{ord(found[0]):02X}", text)
