"""Delivery by SMTP to a real Postfix, which passes everything on to a peer of ours, where it is read."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import pytest
import trustme

from shared.mail import trace
from shared.mail.outcome import Deferred, Delivered, Failed, Outcome
from shared.mail.route import Route, Tls
from tests.integration.conftest import MESSAGE, delivery, until
from tests.integration.rooms import SmtpRoom, open_smtp
from tests.peers.behaviour import EXTENSIONS, Behaviour
from tests.peers.inbox import Received
from tests.peers.postfix import HOST, PostfixPeer, unusable
from tests.peers.smtp import ScriptedSmtpPeer
from tests.peers.tls import ca_file

pytestmark = pytest.mark.anyio

US = "mail.pushpush.example"
LIMIT = 200_000
REFUSED = {"nobody@a.example": "550 5.1.1 no such user", "later@a.example": "450 4.2.0 greylisted"}

HEADER = b"From: a@from.example\r\nTo: b@a.example\r\nSubject: hello\r\n\r\n"
SHAPES = {
    "plain": HEADER + b"Hello.\r\n",
    "leading dots": HEADER + b".\r\n..\r\n.dot\r\n\r\n.\r\n...three\r\n.\r\n",
    "long lines": HEADER + b"x" * 1500 + b"\r\n." + b"y" * 1500 + b"\r\n" + b"z" * 9000 + b"\r\n",
    "8 bit": HEADER + "Grüße, мир, 世界.\r\n".encode() + bytes(range(128, 256)) + b"\r\n",
    "white space at the ends": HEADER + b"a \r\nb\t\r\n\r\n   \r\n\r\n\r\n",
    "odd header": b"Subject: one\r\n two\r\n\tthree  \r\nX-Odd:no space\r\nFROM: a@from.example\r\n\r\nHello.\r\n",
    "no body": HEADER,
}


class Tap:
    """Stands before a server, and records what goes through it.

    Attributes:
        said: Who spoke and what, in order; what one side said before the other said anything is one entry.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.said: list[tuple[Literal["client", "server"], bytes]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1")
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, away = await asyncio.open_connection("127.0.0.1", self._to)
        await asyncio.gather(self._pass("client", reader, away), self._pass("server", there, writer))

    async def _pass(
        self, who: Literal["client", "server"], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                before = self.said.pop()[1] if self.said and self.said[-1][0] == who else b""
                self.said.append((who, before + data))
                writer.write(data)
        writer.close()


class Way:
    """The way of a message: our transport, Postfix, and the far end behind that.

    Attributes:
        port: Where the transport finds Postfix; a tap may stand before it.
    """

    def __init__(self, room: SmtpRoom, postfix: PostfixPeer, far: ScriptedSmtpPeer) -> None:
        self.room = room
        self.far = far
        self.port = postfix.port
        self._postfix = postfix
        self._before = len(postfix.said())

    @staticmethod
    async def quiet(postfix: PostfixPeer) -> None:
        """Return when Postfix has said all about earlier connections, so that no test counts those of another."""
        wanted = "an end of every connection in Postfix' log"
        await until(lambda: postfix.said().count(": connect") == postfix.said().count(": disconnect"), wanted=wanted)

    @property
    def log(self) -> str:
        """What Postfix has said since the test began."""
        return self._postfix.said()[self._before :]

    async def deliver(
        self, *rcpt_to: str, message: bytes = MESSAGE, tls: Tls | None = "none", host: str = HOST, **fields: object
    ) -> list[Outcome]:
        """Deliver with our Received field on top, as the actor does."""
        route = Route(version=1, key="a.example", targets=(f"{host}:{self.port}",), transport="smtp", tls=tls)
        part = delivery(*rcpt_to, route=route, **fields)
        outcomes = await self.room.transport.deliver(part, trace.received(part, US) + message)
        return [outcomes[each] for each in part.envelope.rcpt_to]

    async def one(self, *rcpt_to: str, **fields: Any) -> Received:
        """Deliver a message that is taken, and return what came at the far end."""
        assert [Delivered] == [type(each) for each in await self.deliver(*rcpt_to, **fields)]
        [came] = await self.far.wait_for(1)
        return came

    async def commands(self) -> str:
        """End our connection; return Postfix' count of the commands on it, "ehlo=1 mail=1 ... commands=5"."""
        await self.room.close()
        await until(lambda: "disconnect from" in self.log, wanted="a line of Postfix about the end of our connection")
        [line] = re.findall(r"disconnect from \S+ (.*)", self.log)
        return str(line)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs Postfix' certificate."""
    return trustme.CA()


@pytest.fixture(scope="module")
def postfix(authority: trustme.CA) -> Iterator[PostfixPeer]:
    """A Postfix for all tests of this file."""
    if why := unusable():
        pytest.skip(why)
    with PostfixPeer(authority=authority, size_limit=LIMIT, refuse=REFUSED) as peer:
        yield peer


@pytest.fixture
async def way(postfix: PostfixPeer, authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Way]:
    """The whole way; where a test fails, Postfix' log is shown with it."""
    await Way.quiet(postfix)
    far = ScriptedSmtpPeer(Behaviour(extensions=(*EXTENSIONS, "DSN")), port=postfix.relay_port)
    async with open_smtp(ca=ca_file(authority, tmp_path / "ca.pem")) as room, far:
        room.dns.add(HOST, "A", "127.0.0.1")
        way = Way(room, postfix, far)
        yield way
        print(way.log)  # noqa: T201 - pytest keeps it for a failure


async def test_mail_arrives_with_its_envelope(way: Way) -> None:
    """The name we greet with, the reverse-path and the recipients are what the next hop sees."""
    [outcome] = await way.deliver("b@a.example")
    assert (250, "2.0.0", HOST) == (outcome.reply.code, outcome.reply.enhanced, outcome.reply.mta)
    [came] = await way.far.wait_for(1)
    assert ("a@from.example", ("b@a.example",)) == (came.mail_from, came.rcpt_to)
    assert came.body.startswith(b"Received: from mail.pushpush.example (unknown [127.0.0.1])\r\n\tby " + HOST.encode())


async def test_a_report_has_the_null_reverse_path(way: Way) -> None:
    """It is never answered by another one (RFC 5321 6.1)."""
    assert "" == (await way.one(mail_from="")).mail_from


@pytest.mark.parametrize("shape", SHAPES)
async def test_bytes_arrive_as_they_are(way: Way, shape: str) -> None:
    """Below Postfix' Received field is ours, and below that the message as it was sent, octet for octet."""
    came = await way.one(message=SHAPES[shape])
    ours = b"Received: by mail.pushpush.example (pushpush)\r\n"
    assert 1 == came.body.count(ours)
    assert SHAPES[shape] == came.body.partition(ours)[2].partition(b" +0000\r\n")[2]
    [mail] = [each for each in way.far.commands if each.startswith("MAIL")]
    assert (shape == "8 bit") == ("BODY=8BITMIME" in mail)


async def test_nothing_is_smuggled(way: Way) -> None:
    """This Postfix takes a bare LF for a line end: a dot between two of them would end the message, and more begin."""
    ends = (b"\r\n.\n", b"\n.\r\n", b"\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\n", b"\n.\r")
    trick = b"MAIL FROM:<a@from.example>\r\nRCPT TO:<c@a.example>\r\nDATA\r\nSubject: smuggled\r\n\r\nHi.\r\n.\r\n"
    await way.deliver(message=HEADER + b"".join(each + trick for each in ends))
    counted = await way.commands()
    assert counted.startswith("ehlo=1 mail=1 rcpt=1 data=1 quit=1 ")
    [came] = await way.far.wait_for(1)
    assert len(ends) == came.body.count(b"MAIL FROM:<a@from.example>\r\nRCPT TO")
    assert 3 == came.body.count(b"\r\n.\r\nMAIL FROM")  # of those without a bare CR, which becomes a blank
    assert 1 == len(way.far.received)


@pytest.mark.parametrize("tls", ["verify", "encrypt", None])
async def test_tls_is_used(way: Way, tls: Tls | None) -> None:
    """Demanded or only offered: Postfix notes in its Received field that the message came by ESMTPS."""
    top = (await way.one(tls=tls)).body.partition(b"Received: by")[0]
    assert re.search(rb"\(using TLSv1\.[23] with cipher .*\)", top)
    assert b"with ESMTPS id" in top
    assert "ehlo=2 starttls=1 mail=1 rcpt=1 data=1" in await way.commands()


async def test_a_certificate_for_another_name_is_not_taken(way: Way) -> None:
    """Trusted, but not for the host that the rule names: the message is not sent there."""
    way.room.dns.add("other.example", "A", "127.0.0.1")
    [outcome] = await way.deliver(tls="verify", host="other.example")
    assert isinstance(outcome, Deferred)
    assert "4.7.5" == outcome.reply.enhanced
    assert "mail=" not in await way.commands()


async def test_commands_go_together(way: Way) -> None:
    """Postfix offers PIPELINING (RFC 2920), so MAIL, every RCPT and DATA come in one piece."""
    async with Tap(way.port) as tap:
        way.port = tap.port
        await way.deliver("b@a.example", "c@a.example", "d@a.example")
        await way.room.close()
    assert any(who == "server" and b"250-PIPELINING\r\n" in data for who, data in tap.said)
    [group] = [data for who, data in tap.said if who == "client" and data.startswith(b"MAIL FROM:")]
    assert 3 == group.count(b"\r\nRCPT TO:")
    assert group.endswith(b"\r\nDATA\r\n")
    [came] = await way.far.wait_for(1)
    assert ("b@a.example", "c@a.example", "d@a.example") == came.rcpt_to


async def test_wishes_about_reports_are_passed_on(way: Way) -> None:
    """Postfix offers DSN (RFC 3461), takes our parameters, and has understood them: the far end gets them from it."""
    await way.one("b@a.example", envid="QQ314159", ret="HDRS", notify="FAILURE,DELAY")
    [mail] = [each for each in way.far.commands if each.startswith("MAIL")]
    [rcpt] = [each for each in way.far.commands if each.startswith("RCPT")]
    assert {"RET=HDRS", "ENVID=QQ314159"} <= set(mail.split())
    assert {"NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;b@a.example"} <= set(rcpt.split())


async def test_internationalised_mail(way: Way) -> None:
    """SMTPUTF8 (RFC 6531): local parts and header as they are, domains as A-labels."""
    message = "From: пётр@from.example\r\nTo: jürgen@bücher.example\r\nSubject: 世界\r\n\r\n世界\r\n".encode()
    came = await way.one("jürgen@bücher.example", mail_from="пётр@from.example", message=message, smtputf8=True)
    assert ("пётр@from.example", ("jürgen@xn--bcher-kva.example",)) == (came.mail_from, came.rcpt_to)
    assert came.body.endswith(message)
    assert b"with UTF8SMTP id" in came.body
    assert any(each.startswith("MAIL") and each.endswith("SMTPUTF8") for each in way.far.commands)


async def test_too_large_a_message_is_not_even_announced(way: Way) -> None:
    """Postfix says with EHLO how much it takes (RFC 1870), and counts no MAIL of ours."""
    [outcome] = await way.deliver(message=HEADER + b"x" * 70 + b"\r\n" + b"y" * LIMIT + b"\r\n")
    assert isinstance(outcome, Failed)
    assert (552, "5.3.4") == (outcome.reply.code, outcome.reply.enhanced)
    assert "mail=" not in await way.commands()


async def test_each_recipient_has_its_own_outcome(way: Way) -> None:
    """One unknown and one greylisted recipient cost the third nothing."""
    outcomes = await way.deliver("nobody@a.example", "b@a.example", "later@a.example")
    assert [Failed, Delivered, Deferred] == [type(each) for each in outcomes]
    assert [(550, "5.1.1"), (250, "2.0.0"), (450, "4.2.0")] == [(o.reply.code, o.reply.enhanced) for o in outcomes]
    [came] = await way.far.wait_for(1)
    assert ("b@a.example",) == came.rcpt_to


async def test_when_all_are_refused_the_connection_lives(way: Way) -> None:
    """No message goes, and the next one on the same connection is not taken for a part of it."""
    assert [Failed, Deferred] == [type(each) for each in await way.deliver("nobody@a.example", "later@a.example")]
    assert ("b@a.example",) == (await way.one("b@a.example")).rcpt_to
    assert 1 == way.log.count(": connect from")


async def test_fifty_messages_share_a_connection(way: Way) -> None:
    """One after the other; also the refused between them."""
    for number in range(50):
        rcpt_to = ("b@a.example", "nobody@a.example") if number % 10 == 0 else ("b@a.example",)
        outcomes = await way.deliver(*rcpt_to, message=HEADER + f"{number}\r\n".encode())
        assert isinstance(outcomes[0], Delivered)
    bodies = {each.body.rpartition(b"\r\n\r\n")[2] for each in await way.far.wait_for(50)}
    assert {f"{number}\r\n".encode() for number in range(50)} == bodies
    assert 1 == way.log.count(": connect from")
