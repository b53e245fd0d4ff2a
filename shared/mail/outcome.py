"""What became of one recipient in one attempt.

A refusal is a value, never an exception; what is unknown is temporary.
"""

import msgspec

from shared.mail.reply import Reply


class Delivered(msgspec.Struct, frozen=True, tag=True):
    """The next hop took responsibility for the message."""

    reply: Reply


class Deferred(msgspec.Struct, frozen=True, tag=True):
    """Not now: a temporary refusal, a fault on the way, or anything we do not understand."""

    reply: Reply


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Never: the next hop refused for good."""

    reply: Reply


class Unsuited(msgspec.Struct, frozen=True, tag=True):
    """This transport does not work there (no mxdeliv at the host); another one may."""

    reply: Reply


Outcome = Delivered | Deferred | Failed | Unsuited


def classify(reply: Reply) -> Delivered | Deferred | Failed:
    """Return what an SMTP reply means (RFC 5321 4.2.1). Anything but 2yz and 5yz is temporary."""
    match reply.code // 100:
        case 2:
            return Delivered(reply)
        case 5:
            return Failed(reply)
        case _:
            return Deferred(reply)
