"""Advice to people: an entry for every code that has one, something sensible for all others, and nothing internal."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.advice import BY_CODE, BY_STATUS, BY_SUBJECT, OWN_WORDS, advice, happened
from shared.mail.reply import Reply
from tests.unit.strategies import hostile_text, replies

# A word of each advice by which a reader tells it from the others.
WORDS = {
    "1.0": "typing errors",
    "1.1": "no longer be in use",
    "1.2": "after the @ for typing errors",
    "1.3": "typing errors",
    "1.6": "another address",
    "1.7": "your own address",
    "1.8": "your own address",
    "1.10": "cannot receive mail",
    "2.1": "cannot receive mail",
    "2.2": "mailbox is full",
    "2.3": "smaller message",
    "3.4": "smaller message",
    "4.6": "without end",
    "4.7": "again later",
    "5.3": "fewer recipients",
    "6.7": "from A to Z",
    "7.1": "against spam",
    "7.4": "secure connection",
    "7.5": "secure connection",
    "7.10": "secure connection",
    "7.11": "secure connection",
}
WORDS_BY_CODE = {
    521: "cannot receive mail",
    523: "secure connection",
    551: "typing errors",
    552: "too large, or the recipient's mailbox full",
    553: "typing errors",
    556: "cannot receive mail",
}


def said(code: int, enhanced: str = "") -> Reply:
    """Return a peer's reply."""
    return Reply(code=code, enhanced=enhanced, text="no", mta="mx1.b.example")


def test_every_entry_is_looked_at_here() -> None:
    """An entry without a test may say the wrong thing for years: nobody who runs the fleet reads reports."""
    assert set(WORDS) == set(BY_STATUS)
    assert set(WORDS_BY_CODE) == set(BY_CODE)


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("detail", WORDS)
def test_a_known_detail_decides(detail: str, expired: bool) -> None:
    """Of whatever class, and also at the end of patience: a mailbox that was full for days is still full."""
    for first, code in (("5", 550), ("4", 450)):
        assert WORDS[detail] in advice(said(code, f"{first}.{detail}"), expired=expired)


@pytest.mark.parametrize("code", WORDS_BY_CODE)
def test_a_bare_code_decides_when_there_is_no_detail(code: int) -> None:
    """Some servers give no enhanced code, or one that says nothing; a detail says more than the code."""
    for enhanced in ("", "5.0.0"):
        assert WORDS_BY_CODE[code] in advice(said(code, enhanced), expired=False)
    assert "no longer be in use" in advice(said(code, "5.1.1"), expired=False)
    assert "against spam" in advice(said(code, "5.7.0"), expired=False)


@pytest.mark.parametrize(("enhanced", "words"), [("5.7.99", "against spam"), ("5.4.4", "above all the part after")])
def test_an_unknown_detail_has_the_advice_of_its_subject(enhanced: str, words: str) -> None:
    """RFC 3463 2: who does not know the detail must go by the subject."""
    assert words in advice(said(550, enhanced), expired=False)
    assert set(BY_SUBJECT) == {"4", "7"}


@pytest.mark.parametrize("enhanced", ["", "4.4.1", "4.7.99", "4.3.2", "5.0.0"])
def test_patience_that_ended_goes_before_a_subject(enhanced: str) -> None:
    """Nobody refused it, so that there is hope."""
    assert "again later" in advice(said(int(f"{enhanced[:1] or 4}50"), enhanced), expired=True)


@pytest.mark.parametrize(
    ("code", "enhanced", "words"),
    [
        (550, "", "why the message was refused"),
        (554, "5.0.0", "why the message was refused"),
        (550, "5.999.999", "why the message was refused"),
        (451, "", "again later"),
        (451, "4.9.9", "again later"),
        (250, "2.0.0", "Nothing."),
        (250, "", "Nothing."),
        (0, "", "again later"),
        (999, "", "again later"),
        (550, "5", "why the message was refused"),
        (550, "nonsense", "again later"),
    ],
)
def test_an_unknown_code_has_the_advice_of_its_class(code: int, enhanced: str, words: str) -> None:
    """There is always something that a person can do."""
    assert words in advice(said(code, enhanced), expired=False)


@given(replies | st.builds(Reply, code=st.integers(0, 999), enhanced=hostile_text, text=hostile_text), st.booleans())
def test_every_reply_has_words_that_nobody_else_chose(reply: Reply, expired: bool) -> None:
    """A peer writes its text and code; what we say about it is ours alone."""
    wordless = Reply(code=reply.code, enhanced=reply.enhanced)
    assert advice(reply, expired=expired) == advice(wordless, expired=expired)
    assert happened(reply) == happened(wordless)
    for words in (advice(reply, expired=expired), happened(reply)):
        assert words.endswith(".")
        assert words.isascii()


@pytest.mark.parametrize("detail", OWN_WORDS)
def test_what_happened_is_told_by_the_code(detail: str) -> None:
    """Our own text is for operators: it names hosts, ports and rules."""
    reply = Reply(code=450, enhanced=f"4.{detail}", text="relay.internal:2525")
    assert happened(reply) == OWN_WORDS[detail]
    assert happened(Reply(code=450, enhanced="4.9.9", text="x")) == "The recipient's mail server could not be reached."


@pytest.mark.parametrize(
    "words", sorted({*BY_STATUS.values(), *BY_SUBJECT.values(), *BY_CODE.values(), *OWN_WORDS.values()})
)
def test_the_words_are_plain(words: str) -> None:
    """For a person who knows nothing of mail servers: short, and without our trade's words."""
    assert len(words) <= 300
    assert not re.search(r"\b(MX|MTA|SMTP|DNS|TLS|relay|route|rule|queue|RFC|bounce|UTF-8|null)\b", words)
