"""SMTP replies: the code, the enhanced code (RFC 3463) and the text; and the words we use when no peer spoke."""

import re
from functools import lru_cache
from typing import Self

import msgspec

_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s+|$)")
# What would end a header field, or what JSON and PostgreSQL cannot hold (NUL, lone surrogates from undecodable bytes).
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SMTP = re.compile(r"([2-5][0-9]{2})(?:[ \-]|$)")

MAX_TEXT = 1_000  # characters kept of what a peer says


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was answered to one recipient of one attempt.

    Attributes:
        code: The three-digit reply code (RFC 5321 4.2); one of our own choosing when no peer spoke.
        enhanced: The enhanced code, for example `4.2.1`; "" when the peer gave none.
        text: The words, lines joined by a space, without the codes.
        mta: The host that said it; None when the words are our own. Ours never reach a stranger.
    """

    code: int
    enhanced: str = ""
    text: str = ""
    mta: str | None = None

    @classmethod
    @lru_cache(maxsize=4_096)  # servers say the same few things again and again
    def of(cls, code: int, text: str, *, mta: str | None) -> Self:
        """Build a reply from a code and the text after it, taking the enhanced code out of the text (RFC 2034)."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        enhanced = ""
        if lines and (found := _ENHANCED.match(lines[0])) and found[1][0] == str(code)[0]:
            enhanced = found[1]
            lines = [line.removeprefix(enhanced).strip() for line in lines]
        words = _UNPRINTABLE.sub("?", " ".join(filter(None, lines)).replace("\t", " "))
        return cls(code=code, enhanced=enhanced, text=words[:MAX_TEXT], mta=mta)

    @classmethod
    def parse(cls, text: str, *, mta: str | None) -> Self | None:
        """Read a whole SMTP reply such as `450 4.2.1 Try later`, of one line or several; None when it is none."""
        lines = text.strip().splitlines()
        if not lines or not (found := _SMTP.match(lines[0])):
            return None
        words = "\n".join(line[4:] if line.startswith(found[1]) else line for line in lines)
        return cls.of(int(found[1]), words, mta=mta)

    @property
    def status(self) -> str:
        """The enhanced code, or the class of the code alone (`5.0.0`); RFC 3463 knows the classes 2, 4 and 5 only."""
        return self.enhanced or (f"{self.code // 100}.0.0" if self.code // 100 in (2, 4, 5) else "4.0.0")

    def __str__(self) -> str:
        """Return the reply as one line of SMTP."""
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)
