"""Replies are the same in whatever pieces they come, and what is none never ends as one."""

import itertools

import pytest
from aiosmtplib import SMTPResponse, SMTPResponseException
from hypothesis import given
from hypothesis import strategies as st

from shared.delivery.smtp_protocol import LONGEST, Replies

TEXT = st.binary(max_size=12).map(lambda text: text.replace(b"\n", b""))
LINES = st.lists(TEXT, min_size=1, max_size=4)
REPLIES = st.lists(st.tuples(st.integers(200, 599), LINES, st.sampled_from([b"\r\n", b"\n"])), max_size=5)
CUTS = st.lists(st.integers(1, 9), min_size=1, max_size=50)


def on_the_wire(code: int, lines: list[bytes], end: bytes) -> bytes:
    """Return one reply as a server sends it."""
    *before, last = lines
    return b"".join([*(b"%d-%s%s" % (code, line, end) for line in before), b"%d %s%s" % (code, last, end)])


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut data into pieces of these sizes, again and again."""
    sizes, found = itertools.cycle(cuts), []
    while data:
        size = next(sizes)
        found.append(data[:size])
        data = data[size:]
    return found


@given(REPLIES, CUTS)
def test_pieces_do_not_matter(replies: list[tuple[int, list[bytes], bytes]], cuts: list[int]) -> None:
    """TCP knows no lines."""
    data = b"".join(on_the_wire(*each) for each in replies)
    parser = Replies()
    found = [reply for piece in pieces(data, cuts) for reply in parser.feed(piece)]
    assert found == list(Replies().feed(data))
    assert [code for code, _, _ in replies] == [reply.code for reply in found]
    assert not parser.begun


@given(st.binary(max_size=60), CUTS)
def test_any_bytes_are_replies_or_a_fault(data: bytes, cuts: list[int]) -> None:
    """Nothing else is raised, and no code is made up."""
    parser = Replies()
    found: list[SMTPResponse] = []
    try:
        for piece in pieces(data, cuts):
            found.extend(parser.feed(piece))
    except SMTPResponseException:
        pass
    assert all(b"%d" % reply.code in data and 200 <= reply.code <= 599 for reply in found)


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"250 2.0.0 OK\r\n", SMTPResponse(250, "2.0.0 OK")),
        (b"250\r\n", SMTPResponse(250, "")),
        (b"250-a\r\n250-b\r\n250 c\r\n", SMTPResponse(250, "a\nb\nc")),
        (b"550-a\r\n554 b\r\n", SMTPResponse(554, "a\nb")),  # the last code counts, of the same class
        (b"250 \xff\r\n", SMTPResponse(250, "\udcff")),
    ],
)
def test_what_is_a_reply(data: bytes, reply: SMTPResponse) -> None:
    """RFC 5321 4.2.1, read leniently."""
    assert [reply] == list(Replies().feed(data))


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"25\r\n",
        b"2500 x\r\n",
        b"+25 x\r\n",
        b"2_5 x\r\n",
        b"150 x\r\n",
        b"650 x\r\n",
        b"250-half\r\n354 go on\r\n",  # of another class: half a reply, and another command's
        b"250 " + b"x" * LONGEST,
        b"250-x\r\n" * (LONGEST // 7 + 1),
    ],
)
def test_what_is_none(data: bytes) -> None:
    """It is a fault, not a guess; also what never ends."""
    with pytest.raises(SMTPResponseException):
        list(Replies().feed(data))
