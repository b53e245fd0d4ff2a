"""What an answer to `POST /mxdeliv` means.

There is no specification; the known servers are madmail, filtermail and madexchanger. A body that begins with an SMTP
reply decides. A 200 alone is no proof: a web site that answers every path with 200 and a page would swallow mail, so
without a reply in the body only a short answer that is not HTML counts.
"""

from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, Unsuited, classify
from shared.mail.reply import Reply

PATH = "/mxdeliv"
MAX_ANSWER = 4_096  # bytes read of an answer; a mail server says what it has to say in less
_SHORT = 256  # characters: the longest plain answer that is believed to come from a mail server

# HTTP status -> (SMTP code, enhanced code) where a mail server says "later" in plain text.
_LATER = {429: (450, "4.7.0"), 503: (450, "4.3.2"), 507: (452, "4.2.2")}
# HTTP status -> (SMTP code, enhanced code) where a mail server says "never" in plain text.
_NEVER = {403: (550, "5.7.1"), 413: (552, "5.3.4")}


def interpret(*, status: int, content_type: str, body: bytes, host: str) -> Outcome:
    """Return the outcome that an HTTP answer means for the recipients of the request.

    Args:
        status: The HTTP status code.
        content_type: The header field's value, "" when absent.
        body: The first `MAX_ANSWER` bytes of the answer.
        host: The host that answered, named in the reply.
    """
    text = _text(body)
    if _is_page(content_type, text):
        return _unsuited(status, host, "answered with a page or data of a web site")
    reply = Reply.parse(text, mta=host)
    # aiohttp, proxies and others repeat the HTTP status in the body (`502 Bad Gateway`); as a reply it would bounce.
    of_http = reply is not None and reply.code == status and not reply.enhanced
    if reply is not None and not of_http:
        return _of_reply(status, reply)
    if 200 <= status < 300:  # noqa: PLR2004 - the class of success
        if len(text) > _SHORT:
            return _unsuited(status, host, "answered at a length no mail server does")
        return Delivered(Reply.of(250, text, mta=host))
    return _of_status(status, "" if of_http else text, host)


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
    page = _is_page(content_type, text)
    reply = None if page else Reply.parse(text, mta=None)
    if reply is not None and (reply.code != status or reply.enhanced):
        return True
    if status == 429 or status >= 500:  # noqa: PLR2004 - too many requests, and the class of server errors
        return None
    if page or len(text) > _SHORT:
        return False
    # Without a recipient madmail says 400 `bad request`, madexchanger 400 `Missing X-Mail-To header`.
    return 200 <= status < 300 or ((status == 400 or status in _NEVER) and bool(text))  # noqa: PLR2004


def _of_reply(status: int, reply: Reply) -> Outcome:
    outcome = classify(reply)
    # A success in the body of an HTTP error is a contradiction, and what is unknown is temporary.
    if isinstance(outcome, Delivered) and not 200 <= status < 300:  # noqa: PLR2004
        return Deferred(Reply(code=451, enhanced="4.5.0", text=f"HTTP {status} with {reply}", mta=reply.mta))
    return outcome


def _of_status(status: int, text: str, host: str) -> Outcome:
    if status in _LATER:
        code, enhanced = _LATER[status]
        return Deferred(Reply.of(code, f"{enhanced} {text[:_SHORT] or f'HTTP {status}'}", mta=host))
    if status in _NEVER and 0 < len(text) <= _SHORT:
        code, enhanced = _NEVER[status]
        return Failed(Reply.of(code, f"{enhanced} {text}", mta=host))
    if status >= 500:  # noqa: PLR2004 - the class of server errors
        return Deferred(Reply.of(451, f"4.3.0 {text[:_SHORT] or f'HTTP {status}'}", mta=host))
    # 400, 404, 405, redirects and the rest: either no mxdeliv or an ambiguous word; SMTP gives the authoritative one.
    return _unsuited(status, host, "gave no mail server's answer")


def _text(body: bytes) -> str:
    return body.decode("utf-8", errors="replace").strip("\x00\ufeff \t\r\n")


def _is_page(content_type: str, text: str) -> bool:
    kind = content_type.lower()
    return "html" in kind or "json" in kind or text[:1] in ("<", "{", "[")


def _unsuited(status: int, host: str, why: str) -> Unsuited:
    return Unsuited(Reply(code=450, enhanced="4.4.0", text=f"{host} {why} (HTTP {status})"))
