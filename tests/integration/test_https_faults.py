"""HTTPS peers that break: nothing is raised, no mail is lost, and what a host may have taken goes to no other host."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from shared.delivery.posting import Patience
from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, Unsuited
from tests.integration.conftest import MESSAGE, until
from tests.integration.test_https_transport import Room, open_room
from tests.peers import answers
from tests.peers.answers import Answer
from tests.peers.mxdeliv import MxdelivPeer, free_port
from tests.peers.raw_http import OK, RawHttpPeer, Script, http
from tests.peers.tls import tls_context

pytestmark = pytest.mark.anyio

HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKED = HEADER + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = b"Subject: large\r\n\r\n" + b"x" * 30_000_000

# After the whole message: the host may have taken it.
UNSURE = {
    "late": Script(then="hold"),
    "one byte at a time": Script(say=http(b"x" * 1_000), pause=0.01),
    "hang-up": Script(),
    "reset": Script(then="abort"),
    "half a status line": Script(say=b"HTTP/1.1 2"),
    "half a header": Script(say=HEADER),
    "header, then silence": Script(say=HEADER + b"Content-Length: 6\r\n\r\n", then="hold"),
    "half a body": Script(say=HEADER + b"Content-Length: 60\r\n\r\n250 OK"),
    "slow body": Script(say=HEADER + b"Content-Length: 1000\r\n\r\n", repeat=b"x", pause=0.01),
    "no chunk": Script(say=CHUNKED + b"gibberish\r\n"),
    "half a chunk": Script(say=CHUNKED + b"ff\r\n250 OK\r\n"),
    "chunk of no size": Script(say=CHUNKED + b"fffffffffffffffffffff\r\n250 OK\r\n"),
    "chunked and a length": Script(say=CHUNKED[:-2] + b"Content-Length: 6\r\n\r\n6\r\n250 OK\r\n0\r\n\r\n"),
    "two lengths": Script(say=HEADER + b"Content-Length: 6\r\nContent-Length: 7\r\n\r\n250 OK"),
    "not a length": Script(say=HEADER + b"Content-Length: six\r\n\r\n250 OK"),
    "endless field": Script(say=HEADER + b"X: ", repeat=b"x" * 65_536),
    "endless fields": Script(say=HEADER, repeat=b"X: y\r\n" * 10_000),
    "huge header": Script(say=HEADER + b"X: y\r\n" * 10_000 + b"Content-Length: 6\r\n\r\n250 OK"),
    "100 and no more": Script(say=b"HTTP/1.1 100 Continue\r\n\r\n", then="hold"),
    "100, then hang-up": Script(say=b"HTTP/1.1 100 Continue\r\n\r\n"),
    "flood of 1xx": Script(repeat=b"HTTP/1.1 102 Processing\r\n\r\n" * 100),
    "compressed": Script(say=http(b"\x1f\x8b\x08\x00", b"Content-Encoding: gzip"), then="keep"),
    "bytes beyond ASCII": Script(say=b"HTTP/1.1 2\xff\xfe0\r\n\r\n"),
}  # fmt: skip

# Not the whole message went, or it was not understood: no mxdeliv, and the next target has its turn.
NOT_THERE = {
    "hang-up at once, and a long message": Script(at="connect", then="abort"),
    "hang-up after the header, and a long message": Script(at="header", then="abort"),
    "reads the header only": Script(at="header", then="deaf"),
    "SMTP": Script(say=b"220 mx.example ESMTP\r\n", at="connect", then="hold"),
    "SMTP that is slow": Script(say=b"500 5.5.2 what?\r\n", then="hold"),
    "gibberish": Script(say=b"\xff\xfe\x00\r\n\r\n"),
    "HTTP/2": Script(say=b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"),
    "page": Script(say=http(b"<html>", status=b"404 Not Found"), then="keep"),
    "page with a length it has not": Script(say=http(b"<html>", b"X: y", status=b"200 OK") + b"more", then="keep"),
    "page that never ends": Script(say=HEADER + b"\r\n", repeat=b"x" * 65_536),
    "long text": Script(say=http(b"x" * 257), then="keep"),
    "takes a long message before it is there": Script(say=http(), at="header", then="hold"),
}  # fmt: skip


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the peers' certificates."""
    return trustme.CA()


@pytest.fixture
async def room(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Room]:
    """The transport, with little patience."""
    async with open_room(authority, tmp_path, Patience(connect=3, whole=0.9, rate=100_000_000)) as room:
        yield room


def message_for(name: str) -> bytes:
    """Return a message of many megabytes, more than the kernel's buffers hold, where the case depends on it."""
    return LARGE if "long message" in name or name == "reads the header only" else MESSAGE


@contextlib.asynccontextmanager
async def left_in_order(room: Room, peer: RawHttpPeer) -> AsyncIterator[None]:
    """Check at the end that no connection is left open, and that the next message arrives."""
    yield
    if peer.scripts[-1].then != "deaf":
        await until(lambda: peer.open == 0 or peer.scripts[-1].then == "keep")
    peer.scripts = [OK]
    assert isinstance(await room.deliver(peer.url), Delivered)


@pytest.mark.parametrize("name", UNSURE)
class TestNoAnswer:
    """The whole message was sent, and nothing readable came back."""

    async def test_smtp_has_its_turn_where_it_may(self, room: Room, name: str) -> None:
        """With `auto`, and it learns the URL: so the host gets at most one message twice. It was posted once."""
        async with RawHttpPeer(UNSURE[name]) as peer, left_in_order(room, peer):
            outcome = await room.deliver(peer.url)
            assert ("450 4.4.2", peer.url, 1) == (said(outcome), getattr(outcome, "lacking", ""), len(peer.requests))

    async def test_no_other_host_gets_it_in_the_same_attempt(self, room: Room, name: str) -> None:
        """With HTTPS alone it is tried again later, from the first target on."""
        async with RawHttpPeer(UNSURE[name]) as peer, MxdelivPeer() as other, left_in_order(room, peer):
            outcome = await room.deliver(peer.url, other.url, transport="https")
            assert (Deferred, "451 4.4.2") == (type(outcome), said(outcome))
            assert (1, 0) == (len(peer.requests), other.connections)


@pytest.mark.parametrize("name", NOT_THERE)
async def test_no_mxdeliv_there(room: Room, name: str) -> None:
    """Another transport, or the next target, may do."""
    async with RawHttpPeer(NOT_THERE[name]) as peer, MxdelivPeer() as other, left_in_order(room, peer):
        outcome = await room.deliver(peer.url, message=message_for(name))
        assert (Unsuited, peer.url) == (type(outcome), getattr(outcome, "lacking", ""))
        outcome = await room.deliver(peer.url, other.url, transport="https", message=message_for(name))
        assert (Delivered, 1) == (type(outcome), len(other.received))


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (Script(say=b"HTTP/1.1 100 Continue\r\n\r\n" + http(), then="keep"), Delivered),
        (Script(say=b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 50 + http(), then="keep"), Delivered),
        (Script(say=b"HTTP/1.1 100 Continue\r\n\r\n", at="header", late=http(), then="keep"), Delivered),
        (Script(say=http(b"", status=b"101 Switching Protocols")), Unsuited),
        (Script(say=b"HTTP/1.1 204 No Content\r\n\r\n", then="keep"), Delivered),
        (Script(say=http(b"OK", status=b"201 Created"), then="keep"), Delivered),
        (Script(say=http(b"OK", status=b"206 Partial Content"), then="keep"), Delivered),
        (Script(say=b"HTTP/1.0 200 OK\r\n\r\n250 OK"), Delivered),
        (Script(say=CHUNKED + b"3\r\n450\r\n4\r\n no\n\r\n0\r\n\r\n", then="keep"), Deferred),
        (Script(say=http(b"554 5.7.1 no", status=b"400 "), pause=0.001), Failed),
        (Script(say=http(b"message too large", status=b"413 Large"), at="header"), Failed),
    ],
)
async def test_odd_and_yet_readable(room: Room, script: Script, kind: type[Outcome]) -> None:
    """What HTTP/1.1 allows is understood."""
    async with RawHttpPeer(script) as peer, left_in_order(room, peer):
        assert kind is type(await room.deliver(peer.url))


async def test_a_refusal_of_the_size_counts_before_all_is_sent(room: Room) -> None:
    """A server that knows from the header that it is too large does not read the rest; the rest is not sent."""
    refusal = Script(say=http(b"552 5.3.4 too large", status=b"413 Large"), at="header", then="hold")
    async with RawHttpPeer(refusal) as peer, left_in_order(room, peer):
        assert isinstance(await room.deliver(peer.url, message=LARGE), Failed)


@pytest.mark.parametrize("seed", range(4))
async def test_no_bytes_raise(room: Room, seed: int) -> None:
    """A good answer with a few bytes broken: whatever it means, it has a meaning, and the next message arrives."""
    dice = random.Random(seed)
    good = (http(), http(b"450 4.2.1 no", b"Retry-After: 5"), CHUNKED + b"6\r\n250 OK\r\n0\r\n\r\n")
    for _ in range(25):
        broken = bytearray(dice.choice(good))
        for _ in range(dice.randint(1, 4)):
            broken[dice.randrange(len(broken))] = dice.choice(b"\x00\r\n :;0H\xff")
        async with RawHttpPeer(Script(say=bytes(broken))) as peer, left_in_order(room, peer):
            (await room.deliver(peer.url)).reply.text.encode()


@pytest.mark.parametrize("tls", [False, True])
async def test_a_flood_is_cut_off(authority: trustme.CA, tmp_path: Path, tls: bool) -> None:
    """At the speed of a network, interim answers without end would leave this process no time for anything else."""
    flood = Script(repeat=b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000)
    async with (
        open_room(authority, tmp_path) as patient,
        RawHttpPeer(flood, tls=tls_context(authority) if tls else None) as peer,
        left_in_order(patient, peer),
    ):
        outcome = await patient.deliver(peer.url)
        assert ("450 4.4.2", True) == (said(outcome), "does not end" in outcome.reply.text)


async def test_nothing_listens(room: Room) -> None:
    """Refused: SMTP may do."""
    target = f"https://127.0.0.1:{free_port()}/mxdeliv"
    outcome = await room.deliver(target)
    assert ("450 4.4.1", target) == (said(outcome), getattr(outcome, "lacking", ""))


async def test_a_200_that_comes_too_late(room: Room) -> None:
    """It is not waited for, and it does not speak for the next message."""
    async with MxdelivPeer(answer=Answer(body=b"250 OK", after=1.2)) as slow:
        assert isinstance(await room.deliver(slow.url, transport="https"), Deferred)
        slow.answer = answers.FILTERMAIL_REFUSED
        await asyncio.sleep(0.5)
        assert isinstance(await room.deliver(slow.url, transport="https"), Failed)


def said(outcome: Outcome) -> str:
    """Return the codes of the reply, which is our own."""
    assert outcome.reply.mta is None
    return f"{outcome.reply.code} {outcome.reply.enhanced}"
