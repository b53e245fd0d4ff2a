"""TLS of HTTPS deliveries: a connection that is not what the rule wants carries not one byte of the message."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from shared.delivery.posting import Patience
from shared.mail.outcome import Delivered, Unsuited
from shared.mail.route import Tls
from tests.integration.test_https_transport import Room, open_room, url
from tests.peers.mxdeliv import MxdelivPeer
from tests.peers.raw_http import OK, RawHttpPeer, Script, http
from tests.peers.tls import tls_context

pytestmark = pytest.mark.anyio

SETTINGS = Script(say=b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64")  # a frame of HTTP/2


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the peers' certificates."""
    return trustme.CA()


@pytest.fixture
async def room(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Room]:
    """The transport, with little patience."""
    async with open_room(authority, tmp_path, Patience(connect=1, whole=5)) as room:
        yield room


async def test_plain_http_where_tls_is_expected(room: Room) -> None:
    """Nothing falls back to plain HTTP."""
    async with RawHttpPeer(Script(say=http(b"", status=b"400 Bad"), at="connect", then="hold")) as peer:
        outcome = await room.deliver(peer.url.replace("http:", "https:"))
        assert (Unsuited, []) == (type(outcome), peer.requests)


async def test_a_peer_that_says_nothing_to_the_handshake(room: Room) -> None:
    """The time to connect covers the handshake."""
    async with RawHttpPeer(Script(at="connect", then="deaf")) as peer:
        assert isinstance(await room.deliver(peer.url.replace("http:", "https:")), Unsuited)


async def test_tls_where_plain_http_is_expected(room: Room, authority: trustme.CA) -> None:
    """The rule says http:// and the port speaks TLS."""
    async with RawHttpPeer(OK, tls=tls_context(authority)) as peer:
        outcome = await room.deliver(peer.url.replace("https:", "http:"))
        assert (Unsuited, []) == (type(outcome), peer.requests)


async def test_an_expired_certificate(room: Room, authority: trustme.CA) -> None:
    """A name is verified; an address is encrypted only, unless the rule says more."""
    context = tls_context(authority, ("b.example", "127.0.0.1"), not_after=datetime(2020, 1, 1, tzinfo=UTC))
    async with RawHttpPeer(OK, tls=context) as peer:
        by_name = peer.url.replace("127.0.0.1", "b.example")
        assert isinstance(await room.deliver(by_name), Unsuited)
        assert isinstance(await room.deliver(peer.url, tls="verify"), Unsuited)
        assert [] == peer.requests
        assert isinstance(await room.deliver(by_name, tls="encrypt"), Delivered)
        assert isinstance(await room.deliver(peer.url), Delivered)


async def test_http_1_is_spoken_where_http_2_is_offered_too(room: Room, authority: trustme.CA) -> None:
    """By ALPN (RFC 7301): the peer would rather speak HTTP/2."""
    context = tls_context(authority, ("b.example",))
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with RawHttpPeer(OK, tls=context) as peer:
        assert isinstance(await room.deliver(peer.url.replace("127.0.0.1", "b.example")), Delivered)
        assert ["http/1.1"] == peer.spoken


async def test_http_2_alone_is_not_spoken(room: Room, authority: trustme.CA) -> None:
    """Most such servers end the handshake; this one, of Python's TLS, goes on and says what only HTTP/2 reads."""
    context = tls_context(authority)
    context.set_alpn_protocols(["h2"])
    async with RawHttpPeer(SETTINGS, tls=context) as peer, MxdelivPeer() as other:
        outcome = await room.deliver(peer.url)
        assert (Unsuited, peer.url) == (type(outcome), getattr(outcome, "lacking", ""))
        assert isinstance(await room.deliver(peer.url, other.url, transport="https"), Delivered)
        assert [None, None] == peer.spoken


@pytest.mark.parametrize(
    ("host", "names", "known", "tls", "taken"),
    [
        ("b.example", ("b.example",), True, None, True),
        ("b.example", ("b.example",), False, None, False),
        ("b.example", ("other.example",), True, None, False),
        ("b.example", ("other.example",), False, "encrypt", True),
        ("b.example", ("other.example",), False, "none", True),
        ("127.0.0.1", ("other.example",), False, None, True),
        ("127.0.0.1", ("other.example",), False, "verify", False),
        ("127.0.0.1", ("127.0.0.1",), True, "verify", True),
    ],
)
async def test_certificates(  # noqa: PLR0917 - the columns of the table
    room: Room, authority: trustme.CA, host: str, names: tuple[str, ...], known: bool, tls: Tls, taken: bool
) -> None:
    """Verified for names, encrypted only for IP addresses; a rule may say otherwise. Where it fails: no mxdeliv."""
    async with MxdelivPeer(authority=authority if known else trustme.CA(), names=names) as peer:
        outcome = await room.deliver(url(peer, host), tls=tls)
        assert (Delivered if taken else Unsuited) is type(outcome)
        assert (taken, taken) == (bool(peer.received), bool(peer.commands))
