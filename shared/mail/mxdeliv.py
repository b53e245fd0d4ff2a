"""What an answer to `POST /mxdeliv` means.

There is no specification; the known servers are madmail, filtermail and madexchanger. A body that begins with an SMTP
reply decides. A 200 alone is no proof: a web site that answers every path with 200 and a page would swallow mail, so
without a reply in the body only a short answer that is not HTML counts. Nor is a 403 in plain text the last word: any
web server says it, so it bounces mail only where mxdeliv is known to be spoken; elsewhere SMTP says who is right.
"""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Literal

import msgspec

from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, Unsuited, classify
from shared.mail.reply import Reply

PATH = "/mxdeliv"
MAX_ANSWER = 4_096  # bytes read of an answer; a mail server says what it has to say in less
_SHORT = 256  # characters: the longest plain answer that is believed to come from a mail server

# HTTP status -> (SMTP code, enhanced code) where a mail server says "later" in plain text.
_LATER = {429: (450, "4.7.0"), 503: (450, "4.3.2"), 507: (452, "4.2.2")}
# HTTP status -> (SMTP code, enhanced code) where a mail server says "never" in plain text.
_NEVER = {403: (550, "5.7.1"), 413: (552, "5.3.4")}
# What madmail says and no web server does: final, also from a host that has not delivered anything yet.
_OURS = frozenset({"Encryption Needed: Invalid Unencrypted Mail", "message too large"})
_SECONDS = re.compile(r"[0-9]{1,10}")
# What HTTP says after its codes for errors: `502 Bad Gateway` in a body is the error page of a proxy.
_PHRASES = {each.value: each.phrase.lower() for each in HTTPStatus if each >= 400}  # noqa: PLR2004 - the first error
_HTTP_5YZ = range(500, 512)  # the codes for server errors that HTTP has given out
# Of this request: it came too slowly, is too large, or its URL or header is too long (RFC 9110 15.5, RFC 6585 5).
_OF_REQUEST = frozenset({408, 413, 414, 431})

Subject = Literal["recipients", "request", "host"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP answer, as far as it matters.

    Attributes:
        status: The HTTP status code.
        content_type: The header field's value, "" when absent.
        retry_after: The header field's value, "" when absent.
        body: The first `MAX_ANSWER` bytes.
        early: It came before the whole message had been sent, so nobody can have taken the message.
    """

    status: int
    content_type: str = ""
    retry_after: str = ""
    body: bytes = b""
    early: bool = False


def interpret(answer: Answer, *, url: str, host: str, known: bool, now: datetime) -> Outcome:
    """Return the outcome that an HTTP answer means for the recipients of the request.

    Args:
        answer: What was answered.
        url: What was asked; named in the outcome when the answer shows that there is no mxdeliv.
        host: The host that answered, named in the reply.
        known: The host has shown before that it speaks mxdeliv (`proves`).
        now: The time, for a `Retry-After` that is a date.
    """
    outcome = _meaning(answer, host, known=known)
    if answer.early and isinstance(outcome, Delivered):
        return Unsuited(_unsuited(answer.status, host, "took the message before it had been sent").reply, url)
    if isinstance(outcome, Deferred) and (after := retry_after(answer.retry_after, now)):
        return Deferred(outcome.reply, after)
    if isinstance(outcome, Unsuited) and _lacks(answer):
        return Unsuited(outcome.reply, url)
    return outcome


def proves(answer: Answer, outcome: Outcome) -> bool:
    """Say whether the host showed with this answer that it speaks mxdeliv: it took the mail or replied as SMTP does."""
    text = _text(answer.body)
    return isinstance(outcome, Delivered) or _of_smtp(answer.status, answer.content_type, text) is not None


_ALONE = (429, 503)  # the server says that it is asked too often, or has too much to do


def subject(answer: Answer, outcome: Outcome) -> Subject:
    """Say what an answer to a request for several recipients is about, which tells whether it holds for each of them.

    Args:
        answer: What was answered.
        outcome: What it means (`interpret`).

    Returns:
        `recipients` where a mail server refused the mail or put it off: one of them may be the cause, nobody has the
        mail (the known servers answer an error only then), and the others may fare better without that one. `host`
        where it would answer any request like that now; `request` where neither is the case.
    """
    if isinstance(outcome, Delivered) or answer.status == 413:  # noqa: PLR2004 - the message is too large for each
        return "request"
    if isinstance(outcome, Unsuited):
        return "host" if outcome.lacking or _unwell(answer.status) else "request"
    if isinstance(outcome, Failed) or answer.status == 507:  # noqa: PLR2004 - the mailbox is full
        return "recipients"
    if answer.status in _ALONE or (isinstance(outcome, Deferred) and outcome.after > 0):
        return "host"
    reply = _of_smtp(answer.status, answer.content_type, _text(answer.body))
    if reply is None:
        # madmail says 500 `error` to whatever it stumbles over, which may be one recipient.
        return "recipients" if answer.status == 500 else "host"  # noqa: PLR2004
    # 421: the server is going down (RFC 5321 4.2.3); X.3: the mail system is not well (RFC 3463 3.4). Less than 400 is
    # a contradiction: somebody may have the mail.
    itself = reply.code < 400 or reply.code == 421 or reply.enhanced.startswith("4.3.")  # noqa: PLR2004
    return "host" if itself else "recipients"


def speaks(status: int, content_type: str, body: bytes) -> bool | None:
    """Say whether the answer to an empty request, one that names no recipient, is that of an mxdeliv.

    Args:
        status: The HTTP status code.
        content_type: The header field's value, "" when absent.
        body: The first `MAX_ANSWER` bytes of the answer.

    Returns:
        None where it cannot be known: a server that is unwell or wants to be left alone.
    """
    text = _text(body)
    if _of_smtp(status, content_type, text) is not None:
        return True
    status = _told(status, None if _is_page(content_type, text) else Reply.parse(text, mta=None))
    if _unwell(status):
        return None
    if _is_page(content_type, text) or len(text) > _SHORT:
        return False
    # Without a recipient madmail says 400 `bad request`, madexchanger 400 `Missing X-Mail-To header`.
    return 200 <= status < 300 or ((status == 400 or status in _NEVER) and bool(text))  # noqa: PLR2004


def retry_after(value: str, now: datetime) -> float:
    """Return the seconds of a `Retry-After` field (RFC 9110 10.2.3); 0 for none, a malformed one and a past one."""
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
        # RFC 9110 5.6.7: a date of HTTP is in GMT, also in the old form that does not say so.
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0.0, (at - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


def _meaning(answer: Answer, host: str, *, known: bool) -> Outcome:
    status, text = answer.status, _text(answer.body)
    if _is_page(answer.content_type, text):
        return _unsuited(status, host, "answered with a page or data of a web site")
    reply = Reply.parse(text, mta=host)
    if reply is not None and not _of_http(status, reply):
        return _of_reply(status, reply)
    status = _told(status, reply)
    if 200 <= status < 300:  # noqa: PLR2004 - the class of success
        if len(text) > _SHORT:
            return _unsuited(status, host, "answered at a length no mail server does")
        return Delivered(Reply.of(250, text, mta=host))
    return _of_status(status, "" if reply is not None else text, host, known=known)


def _of_smtp(status: int, content_type: str, text: str) -> Reply | None:
    """Return the SMTP reply in an answer, None when there is none."""
    reply = None if _is_page(content_type, text) else Reply.parse(text, mta=None)
    return None if reply is None or _of_http(status, reply) else reply


def _of_http(status: int, reply: Reply) -> bool:
    """Say whether it is a status of HTTP in the body (`502 Bad Gateway`) rather than a reply; as one it would bounce.

    aiohttp, proxies and others say it there; a proxy in front of another one may repeat the status of that one, and
    answer with one of its own, or with 200.
    """
    if reply.enhanced:
        return False
    if reply.code == status or (status >= 500 and reply.code in _HTTP_5YZ):  # noqa: PLR2004 - class of server errors
        return True
    phrase = _PHRASES.get(reply.code)
    return phrase is not None and reply.text.lower().startswith(phrase)


def _told(status: int, line: Reply | None) -> int:
    """Return the HTTP status that counts: an error of HTTP in the body of a success is one, and nobody has the mail."""
    return line.code if line is not None and line.code >= 400 and 200 <= status < 300 else status  # noqa: PLR2004


def _unwell(status: int) -> bool:
    return status == 429 or status >= 500  # noqa: PLR2004 - too many requests, and the class of server errors


def _of_reply(status: int, reply: Reply) -> Outcome:
    outcome = classify(reply)
    # A success in the body of an HTTP error is a contradiction, and what is unknown is temporary.
    if isinstance(outcome, Delivered) and not 200 <= status < 300:  # noqa: PLR2004
        return Deferred(Reply(code=451, enhanced="4.5.0", text=f"HTTP {status} with {reply}", mta=reply.mta))
    return outcome


def _of_status(status: int, text: str, host: str, *, known: bool) -> Outcome:
    if status in _LATER:
        code, enhanced = _LATER[status]
        return Deferred(Reply.of(code, f"{enhanced} {text[:_SHORT] or f'HTTP {status}'}", mta=host))
    if status in _NEVER and 0 < len(text) <= _SHORT and (known or text in _OURS):
        code, enhanced = _NEVER[status]
        return Failed(Reply.of(code, f"{enhanced} {text}", mta=host))
    if status >= 500:  # noqa: PLR2004 - the class of server errors
        return Deferred(Reply.of(451, f"4.3.0 {text[:_SHORT] or f'HTTP {status}'}", mta=host))
    # 400, 404, 405, redirects and the rest: either no mxdeliv or an ambiguous word; SMTP gives the authoritative one.
    return _unsuited(status, host, "gave no mail server's answer")


def _lacks(answer: Answer) -> bool:
    # What is wrong with one request says nothing of the next: nginx answers 413 to a large message, and 400 with a page
    # to a long header, in front of a relay that is well.
    if answer.status in _OF_REQUEST or (answer.status == 400 and _text(answer.body)):  # noqa: PLR2004
        return False
    return speaks(answer.status, answer.content_type, answer.body) is False


def _text(body: bytes) -> str:
    return body.decode("utf-8", errors="replace").strip("\x00\ufeff \t\r\n")


def _is_page(content_type: str, text: str) -> bool:
    kind = content_type.lower()
    return "html" in kind or "json" in kind or text[:1] in ("<", "{", "[")


def _unsuited(status: int, host: str, why: str) -> Unsuited:
    return Unsuited(Reply(code=450, enhanced="4.4.0", text=f"{host} {why} (HTTP {status})"))
