"""SMTP replies and what they mean: what is not known is temporary, and a peer's words stay one harmless line."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, classify
from shared.mail.reply import MAX_TEXT, Reply
from tests.unit.strategies import hostile_text


@pytest.mark.parametrize(
    ("text", "code", "enhanced", "words"),
    [
        ("250 OK", 250, "", "OK"),
        ("250", 250, "", ""),
        ("250 ", 250, "", ""),
        ("250 2.0.0 Ok: queued as 1", 250, "2.0.0", "Ok: queued as 1"),
        ("550 5.1.1 <a@b.com>: no such user", 550, "5.1.1", "<a@b.com>: no such user"),
        ("550 5.1.1", 550, "5.1.1", ""),
        ("450 4.2.1 later\r\n", 450, "4.2.1", "later"),
        ("550-5.7.1 first\r\n550-5.7.1\r\n550 5.7.1 last", 550, "5.7.1", "first last"),
        ("550-first\n550 last", 550, "", "first last"),
        ("550-5.7.1 first\n550 last", 550, "5.7.1", "first last"),
        ("451 see https://x.example/?a=550", 451, "", "see https://x.example/?a=550"),
        ("550 4.2.1 of another class", 550, "", "4.2.1 of another class"),
        ("550 5.7.1x", 550, "", "5.7.1x"),
        ("550 5.7.1234 x", 550, "", "5.7.1234 x"),
        ("354 go on", 354, "", "go on"),
        ("  554 x  ", 554, "", "x"),
        ("550 a\tb\x1b[2Jc\x00d", 550, "", "a b?[2Jc?d"),
        ("550 \ud8ff", 550, "", "?"),
    ],
)
def test_a_reply_is_read(text: str, code: int, enhanced: str, words: str) -> None:
    """Code, enhanced code (RFC 2034: of the same class, in front) and the words of all lines."""
    expected = Reply(code=code, enhanced=enhanced, text=words, mta="h")
    assert expected == Reply.parse(text, mta="h")


@pytest.mark.parametrize(
    "text",
    ["", "OK", "quota", "25 x", "2500 x", "250x", "150 x", "650 x", "099 x", "x 250 OK", "\u0662\u0665\u0660 OK"],
)
def test_what_is_no_reply_is_none(text: str) -> None:
    """Only three digits from 200 to 599, then a blank, a hyphen or the end (RFC 5321 4.2)."""
    assert Reply.parse(text, mta="h") is None


@given(st.integers(0, 9_999), hostile_text | st.text(st.characters(), max_size=2_000))
def test_the_words_of_a_peer_are_one_line_that_can_be_kept(code: int, text: str) -> None:
    """They go into JSON, PostgreSQL, logs and report headers: no line end, no NUL, no half character, no end to it."""
    reply = Reply.of(code, text, mta="h")
    assert len(reply.text) <= MAX_TEXT
    assert len(f"x{reply.text}x".splitlines()) == 1
    assert msgspec.json.decode(msgspec.json.encode(reply), type=Reply) == reply
    assert "\x00" not in str(reply)


def test_endless_words_are_cut() -> None:
    """A peer must not fill the store; a thousand characters say enough."""
    assert Reply.of(450, "x" * 100_000, mta="h").text == "x" * 1_000


def test_undecodable_bytes_of_a_peer_can_be_stored() -> None:
    """SMTP clients hand bytes that are no UTF-8 as lone surrogates, which neither JSON nor PostgreSQL takes."""
    text = b"caf\xe9 ferm\xe9".decode("utf-8", "surrogateescape")
    assert Reply.of(450, text, mta="h").text == "caf? ferm?"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(code=550, enhanced="5.1.1"), "5.1.1"),
        (Reply(code=550), "5.0.0"),
        (Reply(code=450), "4.0.0"),
        (Reply(code=250), "2.0.0"),
        (Reply(code=354), "4.0.0"),
        (Reply(code=0), "4.0.0"),
        (Reply(code=999), "4.0.0"),
    ],
)
def test_the_status_is_one_that_a_report_may_carry(reply: Reply, expected: str) -> None:
    """RFC 3463 has the classes 2, 4 and 5 only; for anything else we have no final word."""
    assert expected == reply.status


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(code=550, enhanced="5.1.1", text="no"), "550 5.1.1 no"),
        (Reply(code=550, text="no"), "550 no"),
        (Reply(code=550), "550"),
    ],
)
def test_a_reply_is_written_as_one_line_of_smtp(reply: Reply, expected: str) -> None:
    """Logs and reports show what the peer sent."""
    assert expected == str(reply)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (250, Delivered), (251, Delivered), (200, Delivered), (299, Delivered), (500, Failed), (550, Failed),
        (599, Failed), (421, Deferred), (450, Deferred), (499, Deferred), (354, Deferred), (334, Deferred),
        (0, Deferred), (99, Deferred), (600, Deferred), (999, Deferred), (-1, Deferred), (-250, Deferred),
    ],
)  # fmt: skip
def test_only_2yz_delivers_and_only_5yz_fails(code: int, kind: type[Delivered | Failed | Deferred]) -> None:
    """A surprise must not bounce someone's mail, nor count as delivered."""
    reply = Reply(code=code)
    expected: Outcome = kind(reply)
    assert expected == classify(reply)
