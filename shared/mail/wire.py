"""A message as it follows DATA on the wire (RFC 5321 4.5.2): CRLF at every line end, dots stuffed, the final dot.

Only CRLF is ever sent as a line end. A host that takes a bare LF or CR for one would read a dot between two of them as
the end of the message, and what follows as commands: a sender could smuggle mail through us. A bare LF was meant as a
line end and becomes one; a bare CR becomes a blank, so that it ends no header that did not end there before. A message
that is well-formed stays as it is, byte for byte, and with it every DKIM signature.
"""

import re

_END = b".\r\n"

# Each begins with one byte that is searched for in C, and looks around only where it finds one.
_BARE_CR = re.compile(rb"\r(?!\n)")
_BARE_LF = re.compile(rb"\n(?<!\r\n)")
_DOT = re.compile(rb"\r\n\.")


def normalised(message: bytes) -> bytes:
    """Return the message with CRLF for every bare LF, a blank for every bare CR, and CRLF at its end.

    It is the very same one where nothing is to be done.

    This is what counts for SIZE (RFC 1870 5). NUL, bytes of 8 bits, lines over 998 octets and headers without a body
    stay as they are: whoever wrote them has signed them.
    """
    if _BARE_CR.search(message) or _BARE_LF.search(message):
        message = message.replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\n", b"\r\n")
    return message if message.endswith(b"\r\n") or not message else message + b"\r\n"


def framed(body: bytes) -> bytes:
    """Return what follows DATA for a message in normal form: its leading dots doubled once, and the final dot."""
    first = b"." if body.startswith(b".") else b""
    if _DOT.search(body):
        body = body.replace(b"\r\n.", b"\r\n..")
    return b"".join((first, body, _END))
