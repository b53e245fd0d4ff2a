"""What became of one recipient in one attempt.

A refusal is a value, never an exception; what is unknown is temporary.
"""

import msgspec

from shared.mail.reply import Reply


class Delivered(msgspec.Struct, frozen=True, tag=True):
    """The next hop took responsibility for the message.

    `reports`: and for the reports that the sender asked for, since it offered DSN (RFC 3461 5.2.1).
    """

    reply: Reply
    reports: bool = False


class Deferred(msgspec.Struct, frozen=True, tag=True):
    """Not now: a temporary refusal, a fault on the way, or anything we do not understand.

    `after`: the seconds for which the peer wants to be left alone (Retry-After, RFC 9110 10.2.3), 0 when it says none.
    """

    reply: Reply
    after: float = 0.0


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Never: the next hop refused for good."""

    reply: Reply


class Unsuited(msgspec.Struct, frozen=True, tag=True):
    """This transport does not work there; another one may.

    `lacking`: the URL that was just found to have no mxdeliv; "" when nothing was learned of it.
    """

    reply: Reply
    lacking: str = ""


class Busy(msgspec.Struct, frozen=True, tag=True):
    """It was not tried: the next hop has its share of this worker already. There is room for it in `seconds`."""

    reply: Reply
    seconds: float


Outcome = Delivered | Deferred | Failed | Unsuited | Busy


def classify(reply: Reply) -> Delivered | Deferred | Failed:
    """Return what an SMTP reply means (RFC 5321 4.2.1). Anything but 2yz and 5yz is temporary."""
    match reply.code // 100:
        case 2:
            return Delivered(reply)
        case 5:
            return Failed(reply)
        case _:
            return Deferred(reply)
