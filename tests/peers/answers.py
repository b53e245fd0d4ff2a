"""Answers of HTTP servers to POST /mxdeliv: what each known server sends, and what strangers send."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

HTML: Final = "text/html; charset=utf-8"
PAGE: Final = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body>Hello.</body></html>\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP answer.

    Attributes:
        status: HTTP status.
        body: The whole body; the unit that is repeated when the answer is `endless`.
        content_type: None sends no Content-Type.
        headers: Further headers.
        after: Seconds before the status line.
        pause: Seconds before each byte of the body: a slow peer.
        endless: Repeat the body until the client hangs up.
        hang_up: Close without any answer.
    """

    status: int = 200
    body: bytes = b""
    content_type: str | None = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0
    pause: float = 0
    endless: bool = False
    hang_up: bool = False

    @property
    def accepts(self) -> bool:
        """Whether an mxdeliv server that answers so has taken the message."""
        html = (self.content_type or "").startswith("text/html")
        refusal = self.body[:1] in {b"4", b"5"}
        return self.status // 100 == 2 and not (html or refusal or self.endless or self.hang_up)


MADMAIL_OK: Final = Answer(body=b"OK")
MADMAIL_BAD_REQUEST: Final = Answer(status=400, body=b"bad request")
MADMAIL_FORBIDDEN: Final = Answer(status=403, body=b"Forbidden")
MADMAIL_NOT_ENCRYPTED: Final = Answer(status=403, body=b"Encryption Needed: Invalid Unencrypted Mail")
MADMAIL_TOO_LARGE: Final = Answer(status=413, body=b"message too large")
MADMAIL_QUOTA: Final = Answer(status=507, body=b"quota")
MADMAIL_ERROR: Final = Answer(status=500, body=b"error")

FILTERMAIL_OK: Final = Answer(body=b"250 OK")
FILTERMAIL_GREYLISTED: Final = Answer(status=400, body=b"450 4.2.1 try again later")
FILTERMAIL_BUSY: Final = Answer(status=400, body=b"451 4.3.0 local error")
FILTERMAIL_NOT_ENCRYPTED: Final = Answer(status=400, body=b"523 Encryption Needed: Invalid Unencrypted Mail")
FILTERMAIL_REFUSED: Final = Answer(status=400, body=b"554 5.7.1 refused")
FILTERMAIL_TOO_LARGE: Final = Answer(status=413, body=b"552 Message exceeds maximum size")
FILTERMAIL_WRONG_METHOD: Final = Answer(status=405, body=b"")

EXCHANGER_OK: Final = Answer(body=b"", content_type=None)
EXCHANGER_FAILED: Final = Answer(status=502, body=b"Forwarding failed for all recipients")

NGINX_TOO_LARGE: Final = Answer(
    status=413, body=b"<html><h1>413 Request Entity Too Large</h1></html>", content_type=HTML
)
TOO_MANY_REQUESTS: Final = Answer(status=429, body=b"slow down", headers={"Retry-After": "7"})
UNAVAILABLE: Final = Answer(status=503, body=b"unavailable", headers={"Retry-After": "30"})

WEBSITE: Final = Answer(body=PAGE, content_type=HTML)
WEBSITE_NOT_FOUND: Final = Answer(status=404, body=PAGE, content_type=HTML)
WEBSITE_FORBIDDEN: Final = Answer(status=403, body=PAGE, content_type=HTML)
WEBSITE_MOVED: Final = Answer(
    status=301, body=PAGE, content_type=HTML, headers={"Location": "https://www.peer.example/mxdeliv"}
)

ENDLESS: Final = Answer(body=b"x" * 65536, content_type="application/octet-stream", endless=True)
SLOW: Final = Answer(body=b"OK", pause=3600)
STALLED: Final = Answer(body=b"OK", after=3600)
HANGS_UP: Final = Answer(hang_up=True)
