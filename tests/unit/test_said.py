"""What an action had to say, in a cookie that browsers keep."""

from collections.abc import Sequence

import pytest

from workers.panel.pages import said

SECRET = "of the session"


@pytest.mark.parametrize(
    "lines",
    [
        ("a" * 100_000,),
        ('"' * 3_000,),
        ("\x1b\u2028\\" * 1_000,),
        ("Zoë 🙂" * 1_000,),
        ("",) * 5_000,
        ("x",) * 5_000,
    ],
)
def test_it_fits_whatever_is_said(lines: Sequence[str]) -> None:
    """Browsers throw away a cookie of more than 4,096 bytes; cut, the beginning is still read."""
    value = said.written("ok", lines, 7, SECRET)
    assert len(said.COOKIE) + len(value) < 4_096
    read = said.read(value, SECRET)
    assert read is not None
    assert ("ok", 7, lines[0][:3]) == (read.tone, read.version, read.lines[0][:3])


def test_what_is_short_is_whole() -> None:
    """And of no other session."""
    value = said.written("warn", ("one", "two"), 0, SECRET)
    assert said.Said("warn", ("one", "two")) == said.read(value, SECRET)
    assert None is said.read(value, "another")
