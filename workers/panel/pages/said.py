"""What an action had to say, on its way to the page that shows it.

Actions answer with a redirect, so that a reload repeats nothing. Their words travel in a cookie that is signed for the
session: words that somebody else planted are not shown.
"""

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

Tone = Literal["ok", "warn", "bad", "quiet"]

COOKIE: Final = "pushpush-said"
SECONDS: Final = 60  # for which it is shown at the next page
_MOST: Final = 2_400  # bytes of the lines
_BETWEEN: Final = 3  # of two lines: quotes and a comma
_LONGEST: Final = 3_900  # characters of the value; browsers keep cookies of 4,096 bytes with their name
_SIGNATURE: Final = 32  # bytes


class Said(msgspec.Struct, frozen=True):
    """What an action had to say.

    Attributes:
        tone: How it went.
        lines: Sentences.
        version: Of the rules, which the page is to follow through the routers; 0 for none.
    """

    tone: Tone
    lines: tuple[str, ...]
    version: int = 0


def written(tone: Tone, lines: Sequence[str], version: int, secret: str) -> str:
    """Return the value of the cookie; very long words are cut.

    Args:
        tone: How it went.
        lines: Sentences.
        version: Of the rules.
        secret: Of the session.
    """
    most = _MOST
    while len(value := _value(Said(tone, _short(lines, most), version), secret)) > _LONGEST:
        most //= 2  # quotes, and lines that are many and short, take more room than they have letters
    return value


def read(cookie: str | None, secret: str) -> Said | None:
    """Return what the cookie of this session says; None when there is none, or it is not ours."""
    if cookie is None or not secret:
        return None
    try:
        both = base64.urlsafe_b64decode(cookie.encode())
        signature, data = both[:_SIGNATURE], both[_SIGNATURE:]
        if hmac.compare_digest(signature, _signature(data, secret)):
            return msgspec.json.decode(data, type=Said)
    except (binascii.Error, ValueError):
        pass  # it is none of ours
    return None


def _value(said: Said, secret: str) -> str:
    data = msgspec.json.encode(said)
    return base64.urlsafe_b64encode(_signature(data, secret) + data).decode()


def _short(lines: Sequence[str], most: int) -> tuple[str, ...]:
    left, kept = most, []
    for line in lines:
        data = line.encode(errors="replace")
        if left <= 0:
            break
        kept.append(data.decode() if len(data) <= left else f"{data[:left].decode(errors='ignore')} ...")
        left -= len(data) + _BETWEEN
    return tuple(kept)


def _signature(data: bytes, secret: str) -> bytes:
    return hmac.digest(f"said {secret}".encode(), data, "sha256")
