"""Delivery by POST /mxdeliv against a peer that answers as each known server does, and as strangers do."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import trustme

from shared.delivery.posting import Patience
from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, Unsuited
from shared.mail.route import Route, Tls, Transport
from shared.runtime.settings import Settings
from tests.integration.conftest import MESSAGE, delivery
from tests.peers import answers
from tests.peers.answers import Answer
from tests.peers.dns import DnsPeer
from tests.peers.mxdeliv import MxdelivPeer, ca_file, free_port
from workers.https.transport import HttpsTransport, open_transport

pytestmark = pytest.mark.anyio

TABLE: list[tuple[Answer, type[Outcome], str]] = [
    (answers.MADMAIL_OK, Delivered, "250 OK"),
    (answers.MADMAIL_BAD_REQUEST, Unsuited, ""),
    (answers.MADMAIL_FORBIDDEN, Unsuited, ""),
    (answers.MADMAIL_NOT_ENCRYPTED, Failed, "550 5.7.1 Encryption Needed: Invalid Unencrypted Mail"),
    (answers.MADMAIL_TOO_LARGE, Failed, "552 5.3.4 message too large"),
    (answers.MADMAIL_QUOTA, Deferred, "452 4.2.2 quota"),
    (answers.MADMAIL_ERROR, Deferred, "451 4.3.0 error"),
    (answers.FILTERMAIL_OK, Delivered, "250"),
    (answers.FILTERMAIL_GREYLISTED, Deferred, "450 4.2.1 try again later"),
    (answers.FILTERMAIL_BUSY, Deferred, "451 4.3.0 local error"),
    (answers.FILTERMAIL_NOT_ENCRYPTED, Failed, "523 Encryption Needed: Invalid Unencrypted Mail"),
    (answers.FILTERMAIL_REFUSED, Failed, "554 5.7.1 refused"),
    (answers.FILTERMAIL_TOO_LARGE, Failed, "552 Message exceeds maximum size"),
    (answers.FILTERMAIL_WRONG_METHOD, Unsuited, ""),
    (answers.EXCHANGER_OK, Delivered, "250"),
    (answers.EXCHANGER_FAILED, Deferred, "451 4.3.0 Forwarding failed for all recipients"),
    (answers.NGINX_TOO_LARGE, Unsuited, ""),
    (answers.TOO_MANY_REQUESTS, Deferred, "450 4.7.0 slow down"),
    (answers.UNAVAILABLE, Deferred, "450 4.3.2 unavailable"),
    (answers.WEBSITE, Unsuited, ""),
    (answers.WEBSITE_NOT_FOUND, Unsuited, ""),
    (answers.WEBSITE_FORBIDDEN, Unsuited, ""),
    (answers.WEBSITE_MOVED, Unsuited, ""),
    (Answer(body=b"450 4.2.1 later"), Deferred, "450 4.2.1 later"),
    (Answer(body=b"554 5.7.1 never"), Failed, "554 5.7.1 never"),
    (Answer(body=b"\xff\x00\xfe"), Delivered, "250"),
    (answers.HANGS_UP, Unsuited, "450 4.4.2"),
]


class Room:
    """The transport, and a DNS server of our own."""

    def __init__(self, transport: HttpsTransport, dns: DnsPeer) -> None:
        self.transport = transport
        self.dns = dns

    async def deliver(
        self,
        *targets: str,
        tls: Tls | None = None,
        transport: Transport = "auto",
        message: bytes = MESSAGE,
        **fields: object,
    ) -> Outcome:
        """Deliver by a rule with these targets; return the outcome, which is the same for all recipients."""
        outcomes = await self.outcomes(*targets, tls=tls, transport=transport, message=message, **fields)
        [outcome] = set(outcomes.values())
        return outcome

    async def outcomes(
        self,
        *targets: str,
        tls: Tls | None = None,
        transport: Transport = "auto",
        message: bytes = MESSAGE,
        **fields: object,
    ) -> Mapping[str, Outcome]:
        """Deliver by a rule with these targets; return the outcomes, one a recipient, in their order."""
        rcpt_to = fields.pop("rcpt_to", ("b@a.example",))
        route = Route(version=1, key="a.example", targets=targets, tls=tls, transport=transport)
        part = delivery(*rcpt_to, route=route, **fields)  # type: ignore[misc] # a tuple of strings
        outcomes = await self.transport.deliver(part, message)
        assert part.envelope.rcpt_to == tuple(outcomes)
        return outcomes


@contextlib.asynccontextmanager
async def open_room(authority: trustme.CA, folder: Path, patience: Patience | None = None) -> AsyncIterator[Room]:
    """Open the transport, trusting that authority; `b.example` is this machine."""
    async with DnsPeer() as dns:
        dns.add("b.example", "A", "127.0.0.1")
        settings = Settings(
            amqp_url="amqp://unused",
            database_url="postgresql://unused",
            dns_servers=((dns.host, dns.port),),
            ca_file=ca_file(authority, folder / "ca.pem"),
        )
        async with open_transport(settings, patience=patience) as transport:
            yield Room(transport, dns)


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


def url(peer: MxdelivPeer, host: str = "b.example") -> str:
    """Return the URL of the peer, by name."""
    return f"https://{host}:{peer.port}/mxdeliv"


class TestAnswers:
    """The table of known answers, end to end."""

    @pytest.mark.parametrize(("answer", "kind", "reply"), TABLE)
    async def test_the_table(
        self, room: Room, peer: MxdelivPeer, answer: Answer, kind: type[Outcome], reply: str
    ) -> None:
        """Every known server's answer means what it means there; a web site's means that there is no mxdeliv."""
        peer.answer = answer
        outcome = await room.deliver(url(peer))
        assert kind is type(outcome)
        assert str(outcome.reply).startswith(reply)
        outcome.reply.text.encode()

    async def test_a_redirect_is_not_followed(self, room: Room, peer: MxdelivPeer) -> None:
        """Mail goes where the rule says, or nowhere."""
        async with MxdelivPeer() as other:
            for status in (301, 302, 303, 307, 308):
                peer.answer = Answer(status=status, headers={"Location": f"http://127.0.0.1:{other.port}/mxdeliv"})
                assert isinstance(await room.deliver(url(peer)), Unsuited)
            assert 0 == other.connections

    async def test_an_endless_answer_is_not_read_to_its_end(self, room: Room, peer: MxdelivPeer) -> None:
        """A few kilobytes are enough to know that it is no mail server, and the next message is not disturbed."""
        peer.answer = answers.ENDLESS
        began = time.monotonic()
        assert isinstance(await room.deliver(url(peer)), Unsuited)
        assert time.monotonic() - began < 5
        peer.answer = answers.MADMAIL_OK
        assert isinstance(await room.deliver(url(peer)), Delivered)

    async def test_a_bare_403_is_final_only_where_mxdeliv_is_known_to_be_spoken(
        self, room: Room, peer: MxdelivPeer
    ) -> None:
        """Any CDN says `Forbidden`; a mail server that has taken mail before means it. Each port is a host."""
        peer.answer = answers.MADMAIL_FORBIDDEN
        assert isinstance(await room.deliver(url(peer)), Unsuited)
        peer.answer = answers.FILTERMAIL_GREYLISTED
        assert isinstance(await room.deliver(url(peer)), Deferred)
        peer.answer = answers.MADMAIL_FORBIDDEN
        assert isinstance(await room.deliver(url(peer)), Failed)
        async with MxdelivPeer(answer=answers.MADMAIL_FORBIDDEN) as other:
            assert isinstance(await room.deliver(other.url), Unsuited)

    @pytest.mark.parametrize(("answer", "after"), [(answers.TOO_MANY_REQUESTS, 7), (answers.UNAVAILABLE, 30)])
    async def test_who_asks_to_be_left_alone_says_for_how_long(
        self, room: Room, peer: MxdelivPeer, answer: Answer, after: float
    ) -> None:
        """Retry-After (RFC 9110 10.2.3) comes out in the outcome."""
        peer.answer = answer
        outcome = await room.deliver(url(peer))
        assert (Deferred, after) == (type(outcome), getattr(outcome, "after", None))

    @pytest.mark.parametrize(
        ("answer", "lacking"),
        [(answers.WEBSITE, True), (answers.FILTERMAIL_WRONG_METHOD, True), (answers.NGINX_TOO_LARGE, False)],
    )
    async def test_where_there_is_no_mxdeliv_the_url_is_named(
        self, room: Room, peer: MxdelivPeer, answer: Answer, lacking: bool
    ) -> None:
        """So that it is not asked for a while; that one message is too large says nothing of the next one."""
        peer.answer = answer
        outcome = await room.deliver(url(peer))
        assert Unsuited(outcome.reply, url(peer) if lacking else "") == outcome


class TestTargets:
    """Which host is asked, and under which TLS."""

    async def test_the_next_target_where_the_first_has_no_mxdeliv(self, room: Room, peer: MxdelivPeer) -> None:
        """By HTTPS alone: refused, or a web site: the next one. A mail server's word, good or bad, is final."""
        async with MxdelivPeer(answer=answers.WEBSITE) as website:
            nowhere = f"https://127.0.0.1:{free_port()}"
            outcome = await room.deliver(nowhere, website.url, url(peer), transport="https")
            assert (Delivered, 1, 1) == (type(outcome), len(website.refused), len(peer.received))
        peer.answer = answers.MADMAIL_QUOTA
        async with MxdelivPeer() as other:
            assert isinstance(await room.deliver(url(peer), other.url, transport="https"), Deferred)
            assert 0 == other.connections

    async def test_where_smtp_may_follow_only_the_target_whose_turn_it_is(self, room: Room) -> None:
        """Also when it does not speak mxdeliv: perhaps it speaks SMTP. It is the first of those that are left."""
        async with MxdelivPeer(answer=answers.WEBSITE) as first, MxdelivPeer(answer=answers.WEBSITE) as second:
            assert isinstance(await room.deliver(first.url, second.url), Unsuited)
            assert (1, 0) == (len(first.refused), len(second.refused))
            assert isinstance(await room.deliver(second.url), Unsuited)
            assert (1, 1) == (len(first.refused), len(second.refused))

    async def test_nobody_there(self, room: Room) -> None:
        """Connection refused, or a name without an address: another transport may do."""
        for target in (f"https://127.0.0.1:{free_port()}", "https://nowhere.example"):
            outcome = await room.deliver(target)
            assert (Unsuited, None) == (type(outcome), outcome.reply.mta)
            assert target == str(getattr(outcome, "lacking", "")).removesuffix("/mxdeliv").removesuffix(":443")

    async def test_a_path_of_its_own(self, room: Room) -> None:
        """The rule's URL is used as it is."""
        async with MxdelivPeer(path="/in/mail") as peer:
            assert isinstance(await room.deliver(f"http://127.0.0.1:{peer.port}/in/mail"), Delivered)
