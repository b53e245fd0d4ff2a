"""The form of a message on the wire."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.wire import framed, normalised

# Of the pieces that matter, so that every mixture of them comes up.
PIECES = st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a", b"\x00", b"\xff", b"..", b"\r\n.\r\n", b"\n.\n", b"MAIL"])
MESSAGES = st.lists(PIECES, max_size=30).map(b"".join) | st.binary(max_size=200)
LINES = st.lists(st.binary(max_size=20).map(lambda line: re.sub(rb"[\r\n]", b"", line)), min_size=1, max_size=20)


def to_smtp(message: bytes) -> bytes:
    """Return what the transport sends after DATA."""
    return framed(normalised(message))


def unstuffed(data: bytes) -> bytes:
    """Return what a server reads (RFC 5321 4.5.2): lines up to the one with the dot, each without its first dot."""
    lines: list[bytes] = []
    for line in data.split(b"\r\n"):
        if line == b".":
            return b"".join(lines)
        lines.append(line.removeprefix(b".") + b"\r\n")
    raise AssertionError("there is no final dot")


@given(MESSAGES)
def test_unstuffing_gives_the_normal_form(message: bytes) -> None:
    """Each dot is stuffed once."""
    assert normalised(message) == unstuffed(to_smtp(message))


@given(MESSAGES)
def test_the_end_is_only_at_the_end(message: bytes) -> None:
    """No message ends itself early, whatever a server takes for the end of a line."""
    data = b"\r\n" + to_smtp(message)  # what comes after the CRLF of DATA
    assert data.endswith(b"\r\n.\r\n")
    assert len(data) - 5 == data.find(b"\r\n.\r\n")
    assert len(re.findall(rb"(?:\r\n|\r|\n)\.(?=[\r\n])", data)) == 1


@given(MESSAGES)
def test_only_crlf_ends_a_line(message: bytes) -> None:
    """RFC 5321 2.3.8: no bare CR, no bare LF; and nothing but those was changed."""
    data = to_smtp(message)
    assert data.count(b"\r\n") == data.count(b"\r") == data.count(b"\n")
    bare_cr = re.compile(rb"\r(?!\n)")
    assert bare_cr.sub(b" ", message).replace(b"\r\n", b"\n").rstrip(b"\n") == normalised(message).replace(
        b"\r\n", b"\n"
    ).rstrip(b"\n")


@given(MESSAGES)
def test_the_normal_form_is_a_fixed_point(message: bytes) -> None:
    """Done twice is done once."""
    assert normalised(message) == normalised(normalised(message))


@given(LINES)
def test_a_well_formed_message_is_not_changed(lines: list[bytes]) -> None:
    """Not by one byte, and not copied either: DKIM holds, and it costs nothing."""
    message = b"".join(line + b"\r\n" for line in lines)
    assert message is normalised(message)


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (b"", b".\r\n"),
        (b"S: x\r\n\r\nx\r\n", b"S: x\r\n\r\nx\r\n.\r\n"),
        (b"S: x\r\n", b"S: x\r\n.\r\n"),
        (b"S: x", b"S: x\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b".a\r\n..b\r\n.", b"..a\r\n...b\r\n..\r\n.\r\n"),
        (b"a\rb\nc\n\rd\r\r\ne\r", b"a b\r\nc\r\n d \r\ne \r\n.\r\n"),
        (b"a\n.\nb\r.\rc", b"a\r\n..\r\nb . c\r\n.\r\n"),
        (b"A: b\r\r\nC: d\r\n\r\n", b"A: b \r\nC: d\r\n\r\n.\r\n"),  # the header ends where it ended
        (b"\x00\xff" + b"x" * 5_000 + b"\r\n", b"\x00\xff" + b"x" * 5_000 + b"\r\n.\r\n"),
    ],
)
def test_examples(message: bytes, data: bytes) -> None:
    """What each becomes."""
    assert data == to_smtp(message)
