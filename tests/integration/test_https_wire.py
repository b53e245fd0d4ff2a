"""What a delivery by POST /mxdeliv looks like on the wire: the envelope in the header, the message byte for byte."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from shared.mail.address import AddressError, domain_of
from shared.mail.outcome import Delivered, Unsuited
from tests.integration.conftest import MESSAGE
from tests.integration.test_https_transport import Room, open_room, url
from tests.peers.answers import Answer
from tests.peers.mxdeliv import MxdelivPeer
from tests.peers.raw_http import OK, RawHttpPeer

pytestmark = pytest.mark.anyio

HEADER = b"From: a@from.example\r\nSubject: hello\r\n"
LONGEST = "l" * 64 + "@" + ".".join(["d" * 63] * 2 + ["e" * 53, "example"])

MESSAGES = {
    "dots": HEADER + b"\r\n.\r\n..\r\n.one\r\n.\r\n",
    "bare LF": b"Subject: a\nX: b\n\nbody\n.\nmore\n",
    "bare CR": HEADER + b"\r\none\rtwo\r\r\n",
    "NUL": HEADER + b"\r\n\x00\x00\r\n",
    "8-bit": HEADER + b"\r\n" + bytes(range(256)) * 3,
    "long lines": HEADER + b"\r\n" + b"x" * 100_000 + b"\r\n" + b"y" * 999,
    "no line end at the end": HEADER + b"\r\nlast",
    "header only": HEADER,
    "header and an empty body": HEADER + b"\r\n",
    "one byte": b".",
    "empty": b"",
    "one piece": b"x" * 65_536,
    "a piece and a byte": b"x" * 65_537,
    "many pieces": HEADER + b"\r\n" + b".\r\n" * 1_500_000,
    "an HTTP request": b"POST /mxdeliv HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the peers' certificates."""
    return trustme.CA()


@pytest.fixture
async def room(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Room]:
    """The transport."""
    async with open_room(authority, tmp_path) as room:
        yield room


@pytest.fixture
async def peer(authority: trustme.CA) -> AsyncIterator[MxdelivPeer]:
    """An mxdeliv server for b.example."""
    async with MxdelivPeer(authority=authority, names=("b.example",)) as peer:
        yield peer


class TestMessage:
    """Not one byte may change: a signature (DKIM, OpenPGP) would break."""

    @pytest.mark.parametrize("tls", [True, False])
    @pytest.mark.parametrize("name", MESSAGES)
    async def test_byte_for_byte(self, room: Room, authority: trustme.CA, name: str, tls: bool) -> None:
        """Nothing is stuffed, completed or normalised; the next message on the connection is as whole."""
        async with MxdelivPeer(authority=authority if tls else None) as peer:
            for _ in range(2):
                assert isinstance(await room.deliver(peer.url, message=MESSAGES[name]), Delivered)
            assert [MESSAGES[name]] * 2 == [each.body for each in peer.received]
            assert 1 == peer.connections

    @pytest.mark.parametrize("name", ["empty", "dots", "many pieces"])
    async def test_its_length_is_told(self, room: Room, name: str) -> None:
        """The known servers expect a length, and not chunks; all that came belongs to the one request."""
        async with RawHttpPeer(OK) as peer:
            await room.deliver(peer.url, message=MESSAGES[name])
            [request] = peer.requests
        header, _, body = request.partition(b"\r\n\r\n")
        assert b"content-length: %d" % len(MESSAGES[name]) in header.lower().split(b"\r\n")
        assert b"chunked" not in header.lower()
        assert MESSAGES[name] == body


class TestEnvelope:
    """Bare addresses, a field for each recipient."""

    async def test_addresses(self, room: Room, peer: MxdelivPeer) -> None:
        """Quotes, commas, backslashes and letters of every alphabet stay what they are."""
        recipients = ("b@a.example", '"x, y"@a.example', '"a\\"b <c>"@a.example', LONGEST)
        await room.deliver(url(peer), rcpt_to=recipients)
        [received] = peer.received
        assert ("a@from.example", recipients) == (received.mail_from, received.rcpt_to)
        assert ["POST /mxdeliv"] == peer.commands

    async def test_who_is_not_ascii_is_asked_for_alone(self, room: Room, peer: MxdelivPeer) -> None:
        """Beside others, filtermail leaves out without a word what it cannot read. A domain of A-labels is ASCII."""
        recipients = ("jürgen@a.example", "b@a.example", "用户@a.example", "c@bücher.example")
        assert isinstance(await room.deliver(url(peer), rcpt_to=recipients), Delivered)
        alone = [("jürgen@a.example",), ("用户@a.example",)]
        assert [("b@a.example", "c@xn--bcher-kva.example"), *alone] == [each.rcpt_to for each in peer.received]

    async def test_a_hundred_of_the_longest_recipients_are_two_requests(self, room: Room) -> None:
        """As many as a delivery has; hyper and Python's http.server take at most 100 fields in a header."""
        recipients = tuple(f"{number:02}{LONGEST[2:]}" for number in range(100))
        async with RawHttpPeer(OK) as peer:
            await room.deliver(peer.url, rcpt_to=recipients)
            requests = peer.requests
        lines = [request.split(b"\r\n\r\n")[0].split(b"\r\n") for request in requests]
        sent = [[each for each in fields if each.lower().startswith(b"x-mail-to: ")] for fields in lines]
        assert [f"X-Mail-To: {each}".encode() for each in recipients] == sent[0] + sent[1]
        assert ([50, 50], {254}) == ([len(each) for each in sent], {len(each) for each in recipients})

    @pytest.mark.parametrize("mail_from", ["", "jürgen@from.example"])
    async def test_the_raw_header(self, room: Room, mail_from: str) -> None:
        """No X-Mail-From for the null reverse-path; what is not ASCII travels as UTF-8; answers are not compressed."""
        async with RawHttpPeer(OK) as peer:
            await room.deliver(peer.url, mail_from=mail_from, rcpt_to=("用户@bücher.example",))
        fields = [line.partition(b": ")[::2] for line in peer.requests[0].split(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
        found = {name.lower(): value for name, value in fields}
        assert "用户@xn--bcher-kva.example".encode() == found[b"x-mail-to"]
        assert (mail_from.encode() or None) == found.get(b"x-mail-from")
        assert (b"application/octet-stream", b"identity") == (found[b"content-type"], found[b"accept-encoding"])
        assert (str(len(MESSAGE)).encode(), len(fields)) == (found[b"content-length"], len(found))
        assert found.keys() - {b"x-mail-from"} == {
            b"host", b"user-agent", b"content-type", b"content-length", b"accept-encoding", b"x-mail-to",
        }  # fmt: skip

    @pytest.mark.parametrize("bad", ["\r\nX-Mail-To: c@d.example", "\n", "\r", "\x00", "\ud800"])
    @pytest.mark.parametrize("place", ["{0}a@b.example", "a{0}@b.example", "a@b{0}.example", "a@b.example{0}"])
    async def test_no_field_can_be_smuggled_in(self, room: Room, bad: str, place: str) -> None:
        """Such an address is refused at the door; one that got past it does not get onto the wire."""
        address = place.format(bad)
        with pytest.raises(AddressError):
            domain_of(address)
        async with RawHttpPeer(OK) as peer:
            assert isinstance(await room.deliver(peer.url, rcpt_to=(address,)), Unsuited)
            assert isinstance(await room.deliver(peer.url, mail_from=address), Unsuited)
            assert [] == peer.requests
            assert isinstance(await room.deliver(peer.url), Delivered)


async def test_a_connection_is_used_again_and_carries_nothing_over(room: Room, peer: MxdelivPeer) -> None:
    """One connection for messages one after the other; no cookie of one is sent with the next."""
    peer.answer = Answer(body=b"OK", headers={"Set-Cookie": "who=a; Path=/"})
    async with RawHttpPeer(OK) as raw:
        for _ in range(3):
            await room.deliver(url(peer))
            await room.deliver(raw.url)
        assert ([1, 1, 1], 1) == ([each.connection for each in peer.received], raw.connections)
        assert not [each for each in raw.requests if b"ookie" in each]


async def test_a_path_of_its_own(room: Room) -> None:
    """The rule's URL is used as it is."""
    async with MxdelivPeer(path="/in/mail") as peer:
        assert isinstance(await room.deliver(f"http://127.0.0.1:{peer.port}/in/mail"), Delivered)
