"""Delivery by POST /mxdeliv against a peer that answers as each known server does, and as strangers do."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, Unsuited
from shared.mail.route import Route, Tls, Transport
from shared.runtime.settings import Settings
from tests.integration.conftest import MESSAGE, delivery
from tests.peers import answers
from tests.peers.answers import Answer
from tests.peers.dns import DnsPeer
from tests.peers.mxdeliv import MxdelivPeer, ca_file, free_port
from workers.https import transport as module
from workers.https.transport import HttpsTransport, open_transport

pytestmark = pytest.mark.anyio

TABLE: list[tuple[Answer, type[Outcome], str]] = [
    (answers.MADMAIL_OK, Delivered, "250 OK"),
    (answers.MADMAIL_BAD_REQUEST, Unsuited, ""),
    (answers.MADMAIL_FORBIDDEN, Failed, "550 5.7.1 Forbidden"),
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
    (answers.HANGS_UP, Unsuited, "450 4.4.1"),
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
        rcpt_to = fields.pop("rcpt_to", ("b@a.example",))
        route = Route(version=1, key="a.example", targets=targets, tls=tls, transport=transport)
        part = delivery(*rcpt_to, route=route, **fields)  # type: ignore[misc] # a tuple of strings
        outcomes = await self.transport.deliver(part, message)
        assert part.envelope.rcpt_to == tuple(outcomes)
        [outcome] = set(outcomes.values())
        return outcome


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the peers' certificates."""
    return trustme.CA()


@pytest.fixture
async def room(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Room]:
    """The transport, trusting that authority."""
    async with DnsPeer() as dns:
        dns.add("b.example", "A", "127.0.0.1")
        settings = Settings(
            amqp_url="amqp://unused",
            database_url="postgresql://unused",
            dns_servers=((dns.host, dns.port),),
            ca_file=ca_file(authority, tmp_path / "ca.pem"),
        )
        async with open_transport(settings) as transport:
            yield Room(transport, dns)


@pytest.fixture
async def peer(authority: trustme.CA) -> AsyncIterator[MxdelivPeer]:
    """An mxdeliv server for b.example."""
    async with MxdelivPeer(authority=authority, names=("b.example",)) as peer:
        yield peer


def url(peer: MxdelivPeer, host: str = "b.example") -> str:
    """Return the URL of the peer, by name."""
    return f"https://{host}:{peer.port}/mxdeliv"


class TestRequest:
    """What is on the wire."""

    async def test_envelope_and_body(self, room: Room, peer: MxdelivPeer) -> None:
        """The addresses bare, a field for each recipient, and the message byte for byte: dots are not stuffed."""
        body = MESSAGE + b".\r\n..\r\nbare\nlf\r" + bytes(range(256)) * 300
        recipients = ("b@a.example", '"x, y"@a.example', "c@a.example")
        outcome = await room.deliver(url(peer), message=body, rcpt_to=recipients)
        [received] = peer.received
        assert isinstance(outcome, Delivered)
        assert ("a@from.example", recipients, body) == (received.mail_from, received.rcpt_to, received.body)
        assert ["POST /mxdeliv"] == peer.commands

    async def test_a_hundred_recipients_are_one_request(self, room: Room, peer: MxdelivPeer) -> None:
        """As many as a delivery has."""
        recipients = tuple(f"recipient-with-a-long-name-{number}@a.example" for number in range(100))
        await room.deliver(url(peer), rcpt_to=recipients)
        assert [recipients] == [each.rcpt_to for each in peer.received]

    @pytest.mark.parametrize("mail_from", ["", "jürgen@from.example"])
    async def test_the_raw_header(self, room: Room, mail_from: str) -> None:
        """No X-Mail-From for the null reverse-path; what is not ASCII travels as UTF-8; answers are not compressed."""
        async with raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK") as (port, requests):
            await room.deliver(f"http://127.0.0.1:{port}", mail_from=mail_from, rcpt_to=("用户@bücher.example",))
        fields = [line.partition(b": ")[::2] for line in requests[0].split(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
        found = {name.lower(): value for name, value in fields}
        assert "用户@xn--bcher-kva.example".encode() == found[b"x-mail-to"]
        assert (mail_from.encode() or None) == found.get(b"x-mail-from")
        assert (b"application/octet-stream", b"identity") == (found[b"content-type"], found[b"accept-encoding"])
        assert str(len(MESSAGE)).encode() == found[b"content-length"]

    async def test_a_connection_is_used_again_and_carries_nothing_over(self, room: Room, peer: MxdelivPeer) -> None:
        """One connection for messages one after the other; no cookie of one is sent with the next."""
        seen: list[str] = []
        peer.answer = Answer(body=b"OK", headers={"Set-Cookie": "who=a; Path=/"})
        for _ in range(3):
            await room.deliver(url(peer))
            seen += [line for line in peer.commands if "ookie" in line]
        assert ([1, 1, 1], []) == ([each.connection for each in peer.received], seen)


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

    @pytest.mark.parametrize("answer", [answers.SLOW, answers.STALLED])
    async def test_a_slow_answer_is_not_waited_for(
        self, room: Room, peer: MxdelivPeer, answer: Answer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The whole request has an end, however slowly the peer drips."""
        monkeypatch.setattr(module, "WHOLE", 0.3)
        peer.answer = answer
        assert isinstance(await room.deliver(url(peer)), Unsuited)

    @pytest.mark.parametrize(
        "garbage",
        [
            b"",
            b"220 mx.example ESMTP\r\n",
            b"\xff\xfe\x00\r\n\r\n",
            b"HTTP/1.1 200 \xff\xfe\r\nContent-Length: 2\r\n\r\nOK",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut",
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
            b"HTTP/1.1 999 What\r\n\r\n",
        ],
    )
    async def test_what_is_not_http_is_no_mxdeliv(self, room: Room, garbage: bytes) -> None:
        """Nothing is raised; the words can be stored and logged."""
        async with raw(garbage) as (port, _):
            outcome = await room.deliver(f"http://127.0.0.1:{port}")
        assert not isinstance(outcome, Failed)
        assert "\x00" not in outcome.reply.text.encode().decode()


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

    async def test_a_path_of_its_own(self, room: Room) -> None:
        """The rule's URL is used as it is."""
        async with MxdelivPeer(path="/in/mail") as peer:
            assert isinstance(await room.deliver(f"http://127.0.0.1:{peer.port}/in/mail"), Delivered)

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
        self, room: Room, authority: trustme.CA, host: str, names: tuple[str, ...], known: bool, tls: Tls, taken: bool
    ) -> None:
        """Verified for names, encrypted only for IP addresses; a rule may say otherwise. Where it fails: no mxdeliv."""
        async with MxdelivPeer(authority=authority if known else trustme.CA(), names=names) as peer:
            outcome = await room.deliver(url(peer, host), tls=tls)
            assert (Delivered if taken else Unsuited) is type(outcome)
            assert (taken, taken) == (bool(peer.received), bool(peer.commands))


@contextlib.asynccontextmanager
async def raw(answer: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Serve bytes as they are to every connection, after its request; give the port and the requests."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await _request(reader))
        writer.write(answer)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], requests


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(len(MESSAGE))
