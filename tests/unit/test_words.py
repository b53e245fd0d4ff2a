"""Values as people read them, and text that fools nobody."""

import html
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from workers.panel import words

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
ODD = "\x00\x07\x1b\x7f\x85\u00ad\u061c\u200b\u200e\u202a\u202e\u2028\u2066\u2069\ufeff\ud800\U000e0041"


class TestVisible:
    """What a browser would obey is written out."""

    @pytest.mark.parametrize("odd", list(ODD))
    def test_each_odd_character(self, odd: str) -> None:
        """As Python would write it; nothing of it is left."""
        shown = words.visible(f"a{odd}b")
        assert isinstance(shown, str)
        assert (ascii(f"a{odd}b")[1:-1], False) == (shown, odd in shown)

    def test_what_people_write_stays(self) -> None:
        """In any script; markup of our own too, and what is no text."""
        for text in ("Zoë schrieb „hallo“", "мир", "こんにちは", "שלום", "🙂", "a<b>&"):
            assert text == words.visible(text)
        assert Markup("<b>\u202e</b>") == words.visible(Markup("<b>\u202e</b>"))
        assert 7 == words.visible(7)

    @given(st.text())
    def test_what_is_sent_back_is_exact(self, text: str) -> None:
        """Only escaped: a field that nobody touched must send what was saved."""
        assert text == html.unescape(words.exact(text))
        assert not set("<>\"'") & set(words.exact(text))

    def test_every_field_of_a_form_is_exact(self) -> None:
        """What is printed without it has its unseen characters written out."""
        folder = Path(words.__file__).with_name("templates")
        printed = [each for file in folder.glob("*.html") for each in re.findall(r'value="{{.*?}}"', file.read_text())]
        assert len(printed) > 10
        assert [] == [each for each in printed if not each.endswith('| exact }}"')]

    @given(st.text())
    def test_lines_have_no_markup_and_nothing_unseen(self, text: str) -> None:
        """Line ends and tabs are kept."""
        shown = words.lines(text)
        assert not set("<>") & set(shown)
        assert all(each.isprintable() or each in "\n\t\xa0" or not each.isascii() for each in shown)
        assert text.replace("\r\n", "\n").count("\n") == shown.count("\n")

    def test_a_host_may_be_broken_after_its_dots(self) -> None:
        """And is escaped."""
        assert "https://<wbr>b.<wbr>com/<wbr>&lt;x&gt;" == words.host("https://b.com/<x>")


class TestNumbers:
    """Short, and not wrong."""

    @pytest.mark.parametrize(
        ("number", "text"),
        [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10_240, "10 KiB"),
            (3_400_000, "3.2 MiB"),
            (2**50, "1024.0 TiB"),
        ],
    )
    def test_size(self, number: int, text: str) -> None:
        """In units of 1024."""
        assert text == words.size(number)

    def test_counts(self) -> None:
        """One is no plural; what was counted to a limit says so."""
        assert ("1 rule", "2,000 rules", "2 deliveries") == (
            words.plural(1, "rule"),
            words.plural(2000, "rule"),
            words.plural(2, "delivery", "deliveries"),
        )
        assert ("9,999", "10,000+") == (words.capped(9_999, 10_000), words.capped(10_000, 10_000))

    @pytest.mark.parametrize(
        ("passed", "text"),
        [
            (timedelta(seconds=0.4), "now"),
            (timedelta(seconds=59), "59 s ago"),
            (timedelta(minutes=61), "1 h ago"),
            (timedelta(days=-2), "in 2 d"),
        ],
    )
    def test_ago(self, passed: timedelta, text: str) -> None:
        """In the largest unit."""
        assert text == words.ago(NOON - passed, NOON)
        assert f">{text}</time>" in words.when(NOON - passed, NOON)
