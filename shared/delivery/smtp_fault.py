"""What can go wrong with an SMTP connection, as one exception; a refusal of the host is none."""

import ssl

from aiosmtplib import SMTPException, SMTPResponseException

from shared.delivery.resolver import IF_WE_ARE_NOT
from shared.mail.reply import Reply

# What aiosmtplib and the loop raise when a connection breaks, or what is on it is no SMTP.
FAULTS = (SMTPException, OSError, TimeoutError, ssl.SSLError, ValueError, RuntimeError)


class ConnectionFault(Exception):  # noqa: N818 - a fault, not a mistake
    """The host cannot be talked to; another one may.

    Attributes:
        reply: What to say of it.
        sent: The message was on its way: the host may have taken it.
    """

    def __init__(self, reply: Reply, *, sent: bool = False) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.sent = sent


class LoopFault(ConnectionFault):
    """The host is this fleet itself: it calls itself by our name (RFC 5321 5.1)."""

    def __init__(self, host: str) -> None:
        super().__init__(own(451, f"4.4.6 {host} has our own name, so mail would loop: {IF_WE_ARE_NOT}"))


class OutOfStep(SMTPResponseException):
    """The host sent a reply that no command asked for: which reply is for which command is not known any more."""

    def __init__(self, what: str = "it sent a reply that no command asked for") -> None:
        super().__init__(-1, f"the host is out of step: {what}")


def own(code: int, text: str) -> Reply:
    """Return words of our own. They may quote what a host sent, so they are cleaned like a host's."""
    return Reply.of(code, text[:500], mta=None)
