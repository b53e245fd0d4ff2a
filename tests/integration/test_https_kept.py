"""Kept HTTPS connections: used again, never believed for a message they did not carry, and none left at the end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from shared.delivery.posting import Patience
from shared.mail.outcome import Deferred, Delivered, Failed, Unsuited
from tests.integration.conftest import MESSAGE, until
from tests.integration.test_https_transport import Room, open_room
from tests.peers.mxdeliv import MxdelivPeer
from tests.peers.raw_http import OK, RawHttpPeer, Script, Then, http
from tests.peers.tls import tls_context
from workers.https.transport import Known, origin_of

pytestmark = pytest.mark.anyio

REFUSAL = Script(say=http(b"554 5.7.1 no", status=b"400 Bad Request"), then="keep")
LARGE = MESSAGE + b"x" * 30_000_000  # more than the buffers of the kernel


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the peers' certificates."""
    return trustme.CA()


@pytest.fixture
async def room(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Room]:
    """The transport, with little patience."""
    async with open_room(authority, tmp_path, Patience(connect=3, whole=1)) as room:
        yield room


class TestCutOff:
    """A server may close a kept connection just as it is used again; that says nothing of mxdeliv."""

    @pytest.mark.parametrize("then", ["close", "abort"])
    @pytest.mark.parametrize("tls", [False, True])
    async def test_one_more_post_on_a_new_connection(
        self, room: Room, authority: trustme.CA, then: Then, tls: bool
    ) -> None:
        """It hung up only after the second message had come on the kept connection, with nothing said."""
        async with RawHttpPeer(OK, Script(then=then), OK, tls=tls_context(authority) if tls else None) as peer:
            assert isinstance(await room.deliver(peer.url), Delivered)
            assert isinstance(await room.deliver(peer.url), Delivered)
            assert (3, 2) == (len(peer.requests), peer.connections)

    async def test_no_third_post(self, room: Room) -> None:
        """The new connection broke as well, with the whole message sent."""
        async with RawHttpPeer(OK, Script()) as peer:
            assert isinstance(await room.deliver(peer.url), Delivered)
            assert isinstance(await room.deliver(peer.url, transport="https"), Deferred)
            assert (3, 2) == (len(peer.requests), peer.connections)

    async def test_the_second_post_is_not_on_another_kept_connection(self, room: Room) -> None:
        """That one may end so too; three copies were made. The new one is kept for nobody."""
        async with RawHttpPeer(Script(say=http(), pause=0.001, then="keep")) as peer:
            await asyncio.gather(*(room.deliver(peer.url) for _ in range(3)))
            peer.scripts = [Script()]
            outcome = await room.deliver(peer.url, transport="https")
            assert (Deferred, 3 + 2, 3 + 1) == (type(outcome), len(peer.requests), peer.connections)
            peer.scripts = [Script(), OK]
            assert isinstance(await room.deliver(peer.url), Delivered)
            await until(lambda: peer.open == 1)

    async def test_what_was_sent_the_first_time_counts(self, room: Room) -> None:
        """It may have been taken then, though nobody listens any more: no other host gets it in this attempt."""
        async with MxdelivPeer() as other, RawHttpPeer(OK) as peer:
            assert isinstance(await room.deliver(peer.url), Delivered)
            peer.scripts = [Script()]
            assert peer._server is not None
            peer._server.close()
            assert isinstance(await room.deliver(peer.url, other.url, transport="https"), Deferred)
            assert (2, 0) == (len(peer.requests), other.connections)

    @pytest.mark.parametrize(
        "script",
        [
            Script(say=b"HTTP/1.1 2"),
            Script(say=b"HTTP/1.1 2", pause=0.01, then="abort"),
            Script(say=http()[:-1]),
            Script(say=b"gibberish\r\n"),
            Script(then="hold"),
        ],
    )
    async def test_no_second_post_once_an_answer_had_begun_or_time_was_up(self, room: Room, script: Script) -> None:
        """The host has read the message: it may have taken it."""
        async with RawHttpPeer(OK, script) as peer:
            assert isinstance(await room.deliver(peer.url), Delivered)
            assert isinstance(await room.deliver(peer.url, transport="https"), Deferred)
            assert (2, 1) == (len(peer.requests), peer.connections)

    async def test_a_connection_that_ended_while_idle_is_not_used(self, room: Room) -> None:
        """It is seen at once, and nothing is posted into it."""
        async with RawHttpPeer(Script(say=http())) as peer:
            for count in (1, 2, 3):
                assert isinstance(await room.deliver(peer.url), Delivered)
                await until(lambda: peer.open == 0)
                assert (count, count) == (len(peer.requests), peer.connections)


class TestOneAnswerTooMany:
    """An answer that nobody asked for must not speak for the next message: it would be lost, or bounced."""

    @pytest.mark.parametrize(
        "script",
        [
            Script(say=http() + http(b"250 by the way"), then="keep"),
            Script(say=http(), late=http(b"250 by the way"), then="keep"),
            Script(say=http(), late=b"HTTP/1.1 200", then="keep"),
            Script(say=http(), late=b"HTTP/1.1 100 Continue\r\n\r\n", then="keep"),
            Script(say=http(), late=b"\r\n\r\n", then="keep"),
        ],
    )
    async def test_it_is_not_believed(self, room: Room, script: Script) -> None:
        """Whether it came with the first answer or later; the next message is refused, and nothing else is its fate."""
        async with RawHttpPeer(script, REFUSAL) as peer:
            assert isinstance(await room.deliver(peer.url), Delivered)
            await until(lambda: peer.idle)
            await asyncio.sleep(0.05)  # it has been said, and must arrive
            assert isinstance(await room.deliver(peer.url), Failed)
            assert 2 == len(peer.requests)

    async def test_an_answer_before_the_request(self, room: Room) -> None:
        """It is no answer to the message, which may not even have gone."""
        async with RawHttpPeer(Script(say=http(), at="connect", then="hold")) as peer:
            assert isinstance(await room.deliver(peer.url, message=LARGE), Unsuited)
            peer.scripts = [OK]
            assert isinstance(await room.deliver(peer.url), Delivered)


async def test_the_rest_of_a_long_message_does_not_run_into_the_next(room: Room) -> None:
    """Refused before it had all been sent: that connection is not used again."""
    async with RawHttpPeer(Script(say=http(b"552 5.3.4 no"), at="header", then="hold"), OK) as peer:
        assert isinstance(await room.deliver(peer.url, message=LARGE), Failed)
        assert isinstance(await room.deliver(peer.url), Delivered)
        assert (2, 2) == (len(peer.requests), peer.connections)
        assert peer.requests[1].endswith(b"\r\n\r\n" + MESSAGE)


async def test_no_connection_is_left_at_the_end(authority: trustme.CA, tmp_path: Path) -> None:
    """Kept ones are closed with the transport."""
    async with (
        RawHttpPeer(OK) as plain,
        RawHttpPeer(OK, tls=tls_context(authority)) as tls,
        RawHttpPeer(Script(then="hold"), tls=tls_context(authority)) as late,
        RawHttpPeer(Script(repeat=b"x" * 65_536), tls=tls_context(authority)) as endless,
    ):
        peers = (plain, tls, late, endless)
        async with open_room(authority, tmp_path, Patience(whole=0.2)) as room:
            for peer in peers:
                await room.deliver(peer.url)
            await until(lambda: [1, 1, 0, 0] == [peer.open for peer in peers])
        await until(lambda: not any(peer.open for peer in peers))


async def test_what_is_known_of_a_host_is_of_its_port_and_scheme(room: Room, authority: trustme.CA) -> None:
    """A web server on the other port of a mail server is a web server."""
    forbidden = Script(say=http(b"Forbidden", status=b"403 Forbidden"), then="keep")
    async with MxdelivPeer(authority=authority) as mail, RawHttpPeer(forbidden) as web:
        assert isinstance(await room.deliver(f"https://127.0.0.1:{mail.port}"), Delivered)
        assert isinstance(await room.deliver(web.url), Unsuited)


def test_the_oldest_is_forgotten() -> None:
    """Strangers cannot fill the memory; who is seen again stays."""
    known = Known(2)
    for origin in ("a", "b", "a", "c"):
        known.add(origin)
    assert [True, False, True] == [each in known for each in ("a", "b", "c")]


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://b.com/mxdeliv", "https://b.com"),
        ("http://b/x/y", "http://b"),
        ("https://[2001:db8::1]:8443/mxdeliv", "https://[2001:db8::1]:8443"),
    ],
)
def test_the_origin_of_a_url(url: str, origin: str) -> None:
    """Scheme, host and port."""
    assert origin == origin_of(url)
