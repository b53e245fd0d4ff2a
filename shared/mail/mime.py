"""Mail of our own, written as bytes: header fields, parts, and the multipart around them (RFC 2045, 2046, 5322).

It is put together byte by byte: the standard library's generator decodes and folds anew what it is given, so that an
encoded-word in a peer's reply could begin a header field, and a long address came out encoded.
"""

import re
from binascii import b2a_qp
from collections.abc import Sequence

WIDTH = 76  # characters of a line, RFC 5322 2.1.1; a word that is longer stands alone in its line
LONGEST = 900  # octets of a value; a line must not reach 998 (RFC 5322 2.1.1)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BIDI = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # with them, words are read in another order
_CHUNK = re.compile(r" *[^ ]+(?: +$)?")
_LINE_END = re.compile(rb"\r\n|\r|\n")


def multipart(content_type: str, boundary: str, parts: Sequence[bytes], *header: tuple[str, str | None]) -> bytes:
    """Return a message of several parts.

    Args:
        content_type: Without the boundary, which is added.
        boundary: What no line of a part begins with, after two hyphens.
        parts: By `part` or `text`.
        header: The fields besides those of MIME, in their order.
    """
    head = fields(
        ("MIME-Version", "1.0"),
        ("Content-Type", f'{content_type}; boundary="{boundary}"'),
        ("Content-Transfer-Encoding", _encoding(b"".join(parts))),  # the widest of its parts, RFC 2045 6.4
        *header,
    )
    line = b"\r\n--" + boundary.encode()
    return b"".join((head, *(line + b"\r\n" + each for each in parts), line, b"--\r\n"))


def part(content_type: str, description: str, content: bytes, *, encoding: str | None = None) -> bytes:
    """Return a part as it is, but for line ends; without an `encoding` it is 7bit or 8bit."""
    header = fields(
        ("Content-Type", content_type),
        ("Content-Description", description),
        ("Content-Transfer-Encoding", encoding or _encoding(content)),
    )
    return header + b"\r\n" + _LINE_END.sub(b"\r\n", content)


def text(description: str, words: str) -> bytes:
    """Return a part that people read."""
    if words.isascii():
        return part('text/plain; charset="us-ascii"', description, words.encode())
    # For eyes only, so that every server takes it: 8bit is for what must come back byte for byte. A soft line break
    # loses the indentation, and a stranger's words could begin the next line with our boundary.
    coded = b2a_qp(words.encode()).replace(b"\n-", b"\n=2D")
    return part('text/plain; charset="utf-8"', description, coded, encoding="quoted-printable")


def fields(*named: tuple[str, str | None]) -> bytes:
    """Return header fields, each in one piece: no value can begin another. Those without a value are left out."""
    given = ((name, _CONTROL.sub("?", value)) for name, value in named if value is not None)
    cut = ((name, value.encode()[:LONGEST].decode(errors="ignore").rstrip(" ")) for name, value in given)
    return "".join(_folded(f"{name}: {value}") + "\r\n" for name, value in cut).encode()


def ascii_only(words: str) -> str:
    """Return words for a field that takes ASCII only; what is none is escaped as Python does it."""
    return _CONTROL.sub("?", words).encode("ascii", "backslashreplace").decode("ascii")


def shown(words: str) -> str:
    """Return a stranger's words as a person may see them: in one line, and read in the order they have."""
    return _BIDI.sub("?", _CONTROL.sub("?", words))


def is_utf8(data: bytes) -> bool:
    """Say whether bytes can be read as UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _encoding(content: bytes) -> str:
    return "7bit" if content.isascii() else "8bit"


def _folded(field: str) -> str:
    """Return the field in lines, broken before blanks, none of which is lost (RFC 5322 2.2.3)."""
    lines = [""]
    for chunk in _CHUNK.findall(field):
        if len(lines[-1]) + len(chunk) > WIDTH and lines[-1]:
            lines.append("")
        lines[-1] += chunk
    return "\r\n".join(lines)
