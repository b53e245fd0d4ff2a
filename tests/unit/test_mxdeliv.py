"""What answers to POST /mxdeliv mean, server by server. A 200 is not proof, and only a mail server may bounce mail."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.mxdeliv import MAX_ANSWER, Answer, interpret, proves, retry_after, speaks, subject
from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, Unsuited
from shared.mail.reply import Reply
from tests.unit.strategies import hostile_text

Kind = type[Delivered] | type[Deferred] | type[Failed] | type[Unsuited]

PLAIN = "text/plain; charset=utf-8"
HTML = "text/html; charset=UTF-8"
PAGE = b"<html><head><title>413 Request Entity Too Large</title></head><body>nginx</body></html>"


NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)  # a Monday
URL = "https://h.example/mxdeliv"


def reply_of(outcome: Outcome) -> Reply:
    """Return the reply in an outcome."""
    return outcome.reply


def meaning(status: int, content_type: str, body: bytes, *, known: bool = False, **fields: object) -> Outcome:
    """Interpret an answer of h.example at noon."""
    answer = Answer(status=status, content_type=content_type, body=body, **fields)  # type: ignore[arg-type] # by name
    return interpret(answer, url=URL, host="h.example", known=known, now=NOON)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "kind", "said"),
    [
        # madmail
        (200, PLAIN, b"OK", Delivered, "250 OK"),
        (400, PLAIN, b"bad request", Unsuited, None),
        (403, PLAIN, b"Forbidden", Unsuited, None),
        (403, PLAIN, b"Encryption Needed: Invalid Unencrypted Mail\n", Failed,
         "550 5.7.1 Encryption Needed: Invalid Unencrypted Mail"),
        (413, PLAIN, b"message too large", Failed, "552 5.3.4 message too large"),
        (507, PLAIN, b"quota", Deferred, "452 4.2.2 quota"),
        (500, PLAIN, b"error", Deferred, "451 4.3.0 error"),
        # filtermail: the SMTP reply in the body decides
        (200, PLAIN, b"250 OK", Delivered, "250 OK"),
        (200, PLAIN, b"250 2.0.0 Ok: queued as 4Xy\r\n", Delivered, "250 2.0.0 Ok: queued as 4Xy"),
        (200, PLAIN, b"250-2.0.0 one\r\n250 2.0.0 two\r\n", Delivered, "250 2.0.0 one two"),
        (400, PLAIN, b"450 4.2.1 mailbox busy", Deferred, "450 4.2.1 mailbox busy"),
        (400, PLAIN, b"451 try later", Deferred, "451 try later"),
        (400, PLAIN, b"523 Encryption Needed: Invalid Unencrypted Mail", Failed,
         "523 Encryption Needed: Invalid Unencrypted Mail"),
        (400, PLAIN, b"554 5.7.1 no", Failed, "554 5.7.1 no"),
        (400, PLAIN, b"550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three", Failed, "550 5.7.1 one two three"),
        (413, PLAIN, b"552 Message exceeds maximum size", Failed, "552 Message exceeds maximum size"),
        (405, PLAIN, b"", Unsuited, None),
        # a server that says with 200 what it means in the body
        (200, PLAIN, b"550 5.1.1 no such user", Failed, "550 5.1.1 no such user"),
        (200, PLAIN, b"450 later", Deferred, "450 later"),
        (200, PLAIN, b"354 go on", Deferred, "354 go on"),
        (503, PLAIN, b"503 5.5.1 bad sequence", Failed, "503 5.5.1 bad sequence"),
        # a success in an HTTP error is a contradiction
        (500, PLAIN, b"250 OK", Deferred, "451 4.5.0 HTTP 500 with 250 OK"),
        (404, PLAIN, b"250 OK", Deferred, "451 4.5.0 HTTP 404 with 250 OK"),
        # madexchanger
        (200, "", b"", Delivered, "250"),
        (202, "", b"", Delivered, "250"),
        (204, "", b"", Delivered, "250"),
        (400, "", b"", Unsuited, None),
        (403, "", b"", Unsuited, None),
        (413, "", b"", Unsuited, None),
        (500, "", b"", Deferred, "451 4.3.0 HTTP 500"),
        (502, PLAIN, b"Forwarding failed for all recipients", Deferred,
         "451 4.3.0 Forwarding failed for all recipients"),
        # "later" in plain text
        (429, PLAIN, b"slow down", Deferred, "450 4.7.0 slow down"),
        (429, "", b"", Deferred, "450 4.7.0 HTTP 429"),
        (503, "", b"", Deferred, "450 4.3.2 HTTP 503"),
        (504, "", b"", Deferred, "451 4.3.0 HTTP 504"),
        # web servers and proxies in front
        (413, HTML, PAGE, Unsuited, None),
        (413, "", PAGE, Unsuited, None),
        (502, HTML, b"<html>Bad Gateway</html>", Unsuited, None),
        (403, HTML, b"Forbidden", Unsuited, None),
        (403, PLAIN, b"x" * 257, Unsuited, None),
        (413, PLAIN, b"x" * 257, Unsuited, None),
        # web sites
        (200, HTML, b"OK", Unsuited, None),
        (200, "application/xhtml+xml", b"OK", Unsuited, None),
        (200, "TEXT/HTML", b"", Unsuited, None),
        (200, "", b"<!doctype html><p>Hello", Unsuited, None),
        (200, "", b"\r\n\t <html>", Unsuited, None),
        (200, "", b"\xef\xbb\xbf<html>", Unsuited, None),
        (200, "", b"\x00<html>", Unsuited, None),
        (200, PLAIN, b"x" * 257, Unsuited, None),
        (200, PLAIN, b"\xff" * 300, Unsuited, None),
        (200, PLAIN, b"x" * 256, Delivered, "250 " + "x" * 256),
        (301, HTML, b"", Unsuited, None),
        (302, "", b"", Unsuited, None),
        (307, PLAIN, b"OK", Unsuited, None),
        (404, HTML, b"<h1>Not Found</h1>", Unsuited, None),
        (404, PLAIN, b"Not Found", Unsuited, None),
        (401, PLAIN, b"Unauthorized", Unsuited, None),
        (418, PLAIN, b"teapot", Unsuited, None),
        (100, "", b"", Unsuited, None),
        (0, "", b"", Unsuited, None),
        (600, "", b"", Deferred, "451 4.3.0 HTTP 600"),
        # HTTP's own status line in the body is no SMTP reply
        (500, PLAIN, b"500 Internal Server Error\n\nServer got itself in trouble", Deferred, "451 4.3.0 HTTP 500"),
        (502, PLAIN, b"502 Bad Gateway", Deferred, "451 4.3.0 HTTP 502"),
        (503, PLAIN, b"503 Service Unavailable", Deferred, "450 4.3.2 HTTP 503"),
        (504, PLAIN, b"504 Gateway Timeout", Deferred, "451 4.3.0 HTTP 504"),
        (507, PLAIN, b"507 Insufficient Storage", Deferred, "452 4.2.2 HTTP 507"),
        (404, PLAIN, b"404 page not found\n", Unsuited, None),
        (403, PLAIN, b"403 Forbidden", Unsuited, None),
        (413, PLAIN, b"413 Payload Too Large", Unsuited, None),
        (200, PLAIN, b"200 OK", Delivered, "250 200 OK"),
        # also that of another proxy, or of one that says success itself
        (502, PLAIN, b"504 Gateway Timeout", Deferred, "451 4.3.0 HTTP 502"),
        (503, PLAIN, b"502 Bad Gateway", Deferred, "450 4.3.2 HTTP 503"),
        (500, PLAIN, b"511 whatever", Deferred, "451 4.3.0 HTTP 500"),
        (400, PLAIN, b"503 service unavailable\n", Unsuited, None),
        (200, PLAIN, b"503 Service Unavailable", Deferred, "450 4.3.2 HTTP 503"),
        (200, PLAIN, b"504 Gateway Timeout: upstream", Deferred, "451 4.3.0 HTTP 504"),
        (200, PLAIN, b"404 Not Found", Unsuited, None),
        (500, PLAIN, b"512 no HTTP", Failed, "512 no HTTP"),
        (400, PLAIN, b"503 bad sequence of commands", Failed, "503 bad sequence of commands"),
        # what would break out of a log line, a report or a row
        (400, PLAIN, b"554 no\r\nX-Injected: yes", Failed, "554 no X-Injected: yes"),
        (507, PLAIN, b"a\x00b\x1bc", Deferred, "452 4.2.2 a?b?c"),
        (200, PLAIN, b"OK\r\n\r\nmore", Delivered, "250 OK more"),
        (500, PLAIN, b"\xff\xfe", Deferred, "451 4.3.0 \ufffd\ufffd"),
    ],
)  # fmt: skip
def test_an_answer_means(status: int, content_type: str, body: bytes, kind: Kind, said: str | None) -> None:
    """The table of known servers. Unsuited sends the mail on by SMTP; Failed bounces it: only a mail server may say so.

    What the peer said bears its name; words of our own bear none, and so never reach a stranger.
    """
    outcome = meaning(status, content_type, body)
    assert kind is type(outcome)
    reply = reply_of(outcome)
    assert (said is None) == (reply.mta is None)
    if said is not None:
        assert said == str(reply)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "kind", "said"),
    [
        (403, PLAIN, b"Forbidden", Failed, "550 5.7.1 Forbidden"),
        (403, PLAIN, b"no\r\nX-Injected: yes", Failed, "550 5.7.1 no X-Injected: yes"),
        (413, PLAIN, b"request too large", Failed, "552 5.3.4 request too large"),
        (403, HTML, b"Forbidden", Unsuited, None),
        (413, HTML, PAGE, Unsuited, None),
        (403, PLAIN, b"403 Forbidden", Unsuited, None),
        (403, "", b"", Unsuited, None),
        (413, PLAIN, b"x" * 257, Unsuited, None),
        (400, PLAIN, b"bad request", Unsuited, None),
        (404, PLAIN, b"not found", Unsuited, None),
        (405, "", b"", Unsuited, None),
    ],
)
def test_a_known_server_is_believed(status: int, content_type: str, body: bytes, kind: Kind, said: str | None) -> None:
    """Its refusal in plain text is final; what is ambiguous, or not its own word, is for SMTP to say."""
    outcome = meaning(status, content_type, body, known=True)
    assert (kind, said) == (type(outcome), None if said is None else str(reply_of(outcome)))


@pytest.mark.parametrize("body", [b"Forbidden", b"request too large", b"message too large!", b"MESSAGE TOO LARGE"])
@pytest.mark.parametrize("status", [403, 413])
def test_a_stranger_cannot_bounce_mail_in_plain_text(status: int, body: bytes) -> None:
    """A CDN says so too, of every POST."""
    assert isinstance(meaning(status, PLAIN, body), Unsuited)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "lacking"),
    [
        # it shows that there is no mxdeliv
        (200, HTML, b"Welcome", True),
        (200, PLAIN, b"x" * 257, True),
        (301, "", b"", True),
        (401, PLAIN, b"Unauthorized", True),
        (403, HTML, PAGE, True),
        (404, PLAIN, b"404 page not found", True),
        (405, "", b"", True),
        (400, "", b"", True),
        # it does not: that one request was too large or too slow; an mxdeliv may say that; nobody is well there
        (413, HTML, PAGE, False),
        (413, "", b"", False),
        (400, HTML, b"<html>Request Header Or Cookie Too Large", False),
        (408, PLAIN, b"Request Timeout", False),
        (414, HTML, PAGE, False),
        (431, "", b"", False),
        (431, HTML, PAGE, False),
        (400, PLAIN, b"bad request", False),
        (403, PLAIN, b"Forbidden", False),
        (502, HTML, PAGE, False),
        (429, HTML, PAGE, False),
    ],
)
def test_where_there_is_no_mxdeliv(status: int, content_type: str, body: bytes, lacking: bool) -> None:
    """The outcome names the URL, so that it is not asked for a while."""
    outcome = meaning(status, content_type, body)
    assert isinstance(outcome, Unsuited)
    assert (URL if lacking else "") == outcome.lacking


def test_nobody_has_taken_what_had_not_been_sent() -> None:
    """A success before the whole message had gone is none; a refusal counts, as of the size in the header."""
    assert isinstance(meaning(200, PLAIN, b"250 OK", early=True), Unsuited)
    assert isinstance(meaning(413, PLAIN, b"552 5.3.4 too large", early=True), Failed)
    assert isinstance(meaning(503, PLAIN, b"later", early=True), Deferred)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "proof"),
    [
        (200, PLAIN, b"OK", True),
        (204, "", b"", True),
        (400, PLAIN, b"450 4.2.1 later", True),
        (400, PLAIN, b"554 5.7.1 no", True),
        (404, PLAIN, b"250 OK", True),
        (200, HTML, b"250 OK", False),
        (400, PLAIN, b"bad request", False),
        (403, PLAIN, b"Forbidden", False),
        (503, PLAIN, b"503 Service Unavailable", False),
        (503, PLAIN, b"later", False),
        (404, HTML, PAGE, False),
    ],
)
def test_who_has_shown_to_speak_mxdeliv(status: int, content_type: str, body: bytes, proof: bool) -> None:
    """It took the mail, or it replied as SMTP does."""
    answer = Answer(status=status, content_type=content_type, body=body)
    assert proof is proves(answer, meaning(status, content_type, body))


@pytest.mark.parametrize(
    ("status", "content_type", "body", "about"),
    [
        # a mail server's word on the mail
        (400, PLAIN, b"550 5.1.1 no such user", "recipients"),
        (400, PLAIN, b"450 4.2.1 mailbox busy", "recipients"),
        (400, PLAIN, b"451 4.3.0 local error", "host"),
        (400, PLAIN, b"450 4.2.1 try again later", "recipients"),
        (200, PLAIN, b"550 5.1.1 no such user", "recipients"),
        (500, PLAIN, b"554 5.7.1 no", "recipients"),
        (507, PLAIN, b"quota", "recipients"),
        (403, PLAIN, b"Encryption Needed: Invalid Unencrypted Mail", "recipients"),
        # on itself
        (400, PLAIN, b"421 4.3.2 going down", "host"),
        (429, PLAIN, b"slow down", "host"),
        (500, PLAIN, b"error", "recipients"),
        (502, PLAIN, b"Forwarding failed for all recipients", "host"),
        (503, "", b"", "host"),
        (200, PLAIN, b"503 Service Unavailable", "host"),
        (500, PLAIN, b"250 OK", "host"),
        (502, HTML, PAGE, "host"),
        (404, HTML, PAGE, "host"),
        (405, "", b"", "host"),
        # on this request: taken, or too large for everybody, or what SMTP has to clear up
        (200, PLAIN, b"OK", "request"),
        (413, PLAIN, b"552 Message exceeds maximum size", "request"),
        (413, PLAIN, b"message too large", "request"),
        (413, HTML, PAGE, "request"),
        (400, PLAIN, b"bad request", "request"),
        (431, "", b"", "request"),
    ],
)
def test_what_an_answer_is_about(status: int, content_type: str, body: bytes, about: str) -> None:
    """Another recipient may fare better alone where a mail server refused the mail, and where nobody has it."""
    answer = Answer(status=status, content_type=content_type, body=body)
    assert about == subject(answer, meaning(status, content_type, body))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 120 ", 120),
        ("9999999999", 9_999_999_999),
        ("Mon, 01 Jun 2026 12:00:30 GMT", 30),
        ("Mon, 01 Jun 2026 14:01:00 +0200", 60),
        ("Monday, 01-Jun-26 12:02:00 GMT", 120),
        ("Mon Jun  1 12:00:45 2026", 45),
        # past, negative
        ("Mon, 01 Jun 2026 11:59:59 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("-5", 0),
        # malformed
        ("", 0),
        ("soon", 0),
        ("1.5", 0),
        ("1e3", 0),
        ("+5", 0),
        ("5 s", 0),
        ("\u0665", 0),
        ("9" * 5_000, 0),
        ("Mon, 32 Jun 2026 12:00:30 GMT", 0),
        ("Mon, 01 Jun 99999 12:00:30 GMT", 0),
        ("Mon, 01 Jun 2026", 0),
        (",", 0),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    """Seconds or a date in each of the three forms (RFC 9110 10.2.3, 5.6.7); whatever is neither is none."""
    assert seconds == retry_after(value, NOON)


@given(hostile_text | st.datetimes().map(str), st.datetimes(timezones=st.just(UTC)))
def test_no_retry_after_raises(value: str, now: datetime) -> None:
    """Whatever a stranger writes, it is a wait."""
    assert 0 <= retry_after(value, now) <= timedelta.max.total_seconds()


@pytest.mark.parametrize(
    ("status", "body", "after"),
    [
        (429, b"slow down", 30),
        (503, b"", 30),
        (507, b"quota", 30),
        (500, b"error", 30),
        (502, b"Bad Gateway", 30),
        (400, b"450 4.2.1 later", 30),
        (400, b"554 5.7.1 no", None),
        (200, b"OK", None),
        (404, b"", None),
    ],
)
def test_only_who_says_later_says_when(status: int, body: bytes, after: float | None) -> None:
    """Retry-After goes with "later" alone."""
    assert after == getattr(meaning(status, PLAIN, body, retry_after="30"), "after", None)


@given(
    st.booleans(),
    st.integers(-1, 1_000) | st.sampled_from([200, 400, 403, 413, 429, 500, 502, 503, 507]),
    hostile_text | st.sampled_from(["", PLAIN, HTML]),
    st.binary(max_size=MAX_ANSWER)
    | st.builds(
        lambda code, sep, rest: f"{code}{sep}{rest}".encode("utf-8", "replace"),
        st.integers(0, 999),
        st.sampled_from([" ", "-", ""]),
        hostile_text,
    ),
)
def test_any_answer_has_a_meaning(known: bool, status: int, content_type: str, body: bytes) -> None:
    """No answer raises; what comes out can be stored and sent, and delivered is only what came with a 2xx."""
    outcome = meaning(status, content_type, body, known=known)
    reply = reply_of(outcome)
    assert msgspec.json.encode(reply)
    assert len(f"x{reply}x".splitlines()) == 1
    if isinstance(outcome, Delivered):
        assert 200 <= status < 300
    if isinstance(outcome, Failed):
        assert reply.status.startswith("5.")
        assert body.strip()


@given(st.booleans(), st.integers(0, 1_000), st.binary(max_size=300))
def test_html_is_never_a_mail_server(known: bool, status: int, body: bytes) -> None:
    """Whatever a web page says and with whatever status, it neither takes mail nor bounces it."""
    assert isinstance(meaning(status, HTML, body, known=known), Unsuited)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "speaking"),
    [
        # the known servers, asked without a recipient
        (400, PLAIN, b"bad request", True),
        (400, PLAIN, b"Missing X-Mail-To header\n", True),
        (400, PLAIN, b"554 5.7.1 no valid recipients", True),
        (200, PLAIN, b"250 OK", True),
        (200, PLAIN, b"OK", True),
        (200, "", b"", True),
        (204, "", b"", True),
        (403, PLAIN, b"Forbidden", True),
        (413, PLAIN, b"message too large", True),
        (400, PLAIN, b"400 Bad Request", True),
        # an SMTP reply, whatever the status
        (500, PLAIN, b"451 4.3.0 local error", True),
        (503, PLAIN, b"503 5.5.1 bad sequence", True),
        (404, PLAIN, b"550 5.1.1 no such user", True),
        # unwell, or not to be asked now
        (500, PLAIN, b"error", None),
        (500, PLAIN, b"500 Internal Server Error", None),
        (502, HTML, PAGE, None),
        (503, "", b"", None),
        (507, PLAIN, b"quota", None),
        (200, PLAIN, b"503 Service Unavailable", None),
        (502, PLAIN, b"504 Gateway Timeout", None),
        (429, PLAIN, b"slow down", None),
        (429, HTML, PAGE, None),
        # web sites
        (200, HTML, b"250 OK", False),
        (200, "", b"\xef\xbb\xbf<html>", False),
        (200, "application/json", b"[]", False),
        (200, PLAIN, b"x" * 257, False),
        (400, HTML, PAGE, False),
        (400, PLAIN, b"x" * 257, False),
        (400, "", b"", False),
        (403, "", b"", False),
        (413, HTML, PAGE, False),
        (404, PLAIN, b"404 page not found\n", False),
        (404, "", b"", False),
        (405, PLAIN, b"", False),
        (405, PLAIN, b"Method not allowed", False),
        (401, PLAIN, b"Unauthorized", False),
        (301, "", b"", False),
        (308, PLAIN, b"OK", False),
        (100, "", b"", False),
    ],
)
def test_an_mxdeliv_speaks(status: int, content_type: str, body: bytes, speaking: bool | None) -> None:
    """An empty request tells a mail server from a web site; one that is unwell is neither."""
    assert speaking is speaks(status, content_type, body)


@given(
    st.booleans(), st.integers(-1, 1_000), hostile_text | st.sampled_from(["", PLAIN, HTML]), st.binary(max_size=300)
)
def test_what_does_not_speak_takes_no_mail(known: bool, status: int, content_type: str, body: bytes) -> None:
    """A probe and a delivery agree: what would take a message or bounce it speaks mxdeliv."""
    if isinstance(meaning(status, content_type, body, known=known), Delivered | Failed):
        assert speaks(status, content_type, body)
