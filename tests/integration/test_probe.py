"""Trying a rule's targets: what is found, what is warned of, and that no mail is ever sent by it."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from shared.delivery.probe import Found, probe
from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts
from shared.mail.route import Tls, Transport
from shared.mail.rule import make_rule
from tests.integration.conftest import until
from tests.peers import answers
from tests.peers.answers import Answer
from tests.peers.dns import DnsPeer, Fault
from tests.peers.inbox import Inbox
from tests.peers.mxdeliv import MxdelivPeer, ca_file, free_port
from tests.peers.smtp import Behaviour, ScriptedSmtpPeer, SmtpPeer
from tests.peers.tls import tls_context

pytestmark = pytest.mark.anyio

HOST = "b.example"
RELAYING = "550 5.7.1 relaying denied"
END = datetime(2031, 5, 6, 12, 0, tzinfo=UTC)


class Room:
    """A place to probe from; whatever peer was opened in it must end without a message."""

    def __init__(self, dns: DnsPeer, contexts: Contexts, authority: trustme.CA) -> None:
        self.dns = dns
        self.authority = authority
        self.smtp_port = free_port()
        self.https_port = free_port()
        self.inboxes: list[Inbox] = []
        self.stack = contextlib.AsyncExitStack()
        self._contexts = contexts

    async def https(self, answer: Answer, authority: trustme.CA | None = None, name: str = HOST) -> MxdelivPeer:
        """Listen on the port for HTTPS."""
        authority = authority or self.authority
        peer = MxdelivPeer(authority=authority, names=(name,), port=self.https_port, answer=answer)
        self.inboxes.append(peer)
        return await self.stack.enter_async_context(peer)

    async def smtp(self, *behaviours: Behaviour, tls: ssl.SSLContext | None = None) -> ScriptedSmtpPeer:
        """Listen on the port for SMTP."""
        peer = ScriptedSmtpPeer(*behaviours, port=self.smtp_port, tls=tls)
        self.inboxes.append(peer)
        return await self.stack.enter_async_context(peer)

    async def probe(
        self,
        target: str = HOST,
        *,
        key: str = "a.example",
        transport: Transport = "auto",
        tls: Tls | None = None,
        seconds: float = 8,
    ) -> list[Found]:
        """Probe the targets of a rule."""
        return await probe(
            make_rule(key, target, transport=transport, tls=tls),
            contexts=self._contexts,
            resolver=Resolver(((self.dns.host, self.dns.port),)),
            smtp_port=self.smtp_port,
            https_port=self.https_port,
            hostname="mail.pushpush.example",
            seconds=seconds,
        )

    async def one(self, target: str = HOST, **fields: object) -> Found:
        """Probe a rule of one target."""
        [found] = await self.probe(target, **fields)  # type: ignore[arg-type] # fields by name
        return found


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the certificates that verify."""
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    """Who signs those that do not."""
    return trustme.CA()


@pytest.fixture
async def room(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Room]:
    """b.example is here; at the end nobody was sent a message, or even asked to take one."""
    async with DnsPeer() as dns:
        dns.add(HOST, "A", "127.0.0.1")
        room = Room(dns, Contexts(ca_file(authority, tmp_path / "ca.pem")), authority)
        async with room.stack:
            yield room
        for inbox in room.inboxes:
            assert not [each for each in inbox.commands if each.upper().startswith(("DATA", "BDAT"))]
            messages = [*inbox.received, *inbox.refused]
            assert isinstance(inbox, MxdelivPeer) or not messages
            assert all(((), "", b"") == (each.rcpt_to, each.mail_from, each.body) for each in messages)


def smtp_of(found: Found) -> tuple[bool, bool | None, str]:
    """Return whether SMTP was reached, whether it takes the mail, and what was said."""
    assert found.smtp is not None
    return found.smtp.reachable, found.smtp.accepts, found.smtp.detail


def https_of(found: Found) -> tuple[bool | None, str]:
    """Return whether an mxdeliv answers, and what was said."""
    assert found.https is not None
    return found.https.speaks, found.https.detail


class TestHttps:
    """An empty request tells an mxdeliv from anything else."""

    @pytest.mark.parametrize(
        ("answer", "speaks", "detail"),
        [
            (answers.MADMAIL_BAD_REQUEST, True, "answers 400 bad request: an mxdeliv"),
            (answers.FILTERMAIL_REFUSED, True, "answers 400 554 5.7.1 refused: an mxdeliv"),
            (answers.EXCHANGER_OK, True, "answers 200: an mxdeliv"),
            (answers.WEBSITE, False, "answers 200 (text/html): no mxdeliv"),
            (answers.WEBSITE_NOT_FOUND, False, "answers 404 (text/html): no mxdeliv"),
            (answers.WEBSITE_MOVED, False, "answers 301 (text/html): no mxdeliv"),
            (answers.FILTERMAIL_WRONG_METHOD, False, "answers 405 (text/plain): no mxdeliv"),
            (answers.ENDLESS, False, "answers 200 (application/octet-stream): no mxdeliv"),
            (answers.UNAVAILABLE, None, "answers 503 unavailable: whether there is an mxdeliv cannot be known"),
            (Answer(status=400, body=b"\x1b[31m\x00no"), True, "answers 400 ?[31m?no: an mxdeliv"),
        ],
    )
    async def test_what_answers(self, room: Room, answer: Answer, speaks: bool | None, detail: str) -> None:
        """With the rule's transport https, only an mxdeliv (or one that may be there later) makes the target usable."""
        peer = await room.https(answer)
        found = await room.one(transport="https")
        assert (speaks, detail) == https_of(found)
        assert (speaks is not False, None) == (found.usable, found.smtp)
        assert ["POST /mxdeliv"] == peer.commands
        assert "a.example" in found.warnings[0]
        assert HOST in found.warnings[0]

    async def test_a_url_is_asked_as_it_is(self, room: Room) -> None:
        """Plain http, a port and a path of its own; there is no certificate."""
        async with MxdelivPeer(path="/in", answer=answers.MADMAIL_BAD_REQUEST) as peer:
            room.inboxes.append(peer)
            found = await room.one(f"http://{HOST}:{peer.port}/in", transport="https")
            assert found.https is not None
            assert (True, None) == (found.https.speaks, found.https.certificate)

    async def test_nothing_is_there(self, room: Room) -> None:
        """A phrase, and no exception."""
        assert (False, "connection refused") == https_of(await room.one(transport="https"))

    async def test_only_https_cannot_tell_whether_mail_is_forwarded(self, room: Room) -> None:
        """The black hole is named, though the rule may be set."""
        await room.https(answers.MADMAIL_BAD_REQUEST)
        found = await room.one()
        assert found.usable
        [warning] = found.warnings
        assert warning.startswith(f"it cannot be known whether {HOST} forwards mail for a.example or drops it without")
        assert warning.endswith(": by SMTP it could not be asked (connection refused)")

    async def test_transport_smtp_asks_nothing_over_https(self, room: Room) -> None:
        """Not even a connection."""
        https = await room.https(answers.MADMAIL_BAD_REQUEST)
        await room.smtp()
        found = await room.one(transport="smtp")
        assert (None, [], True) == (found.https, found.warnings, found.usable)
        assert not https.commands


class TestSmtp:
    """MAIL and RCPT, and no more."""

    @pytest.mark.parametrize(
        ("key", "recipient"),
        [
            ("a.example", "postmaster@a.example"),
            ("*.a.example", "postmaster@pushpush-probe.a.example"),
            ("*", "postmaster@example.org"),
            ("192.0.2.1", "postmaster@[192.0.2.1]"),
            ("[IPv6:2001:db8::1]", "postmaster@[IPv6:2001:db8::1]"),
        ],
    )
    async def test_a_host_that_takes_the_key(self, room: Room, key: str, recipient: str) -> None:
        """All is well: nothing to warn of. The whole dialogue, as the host sees it."""
        peer = await room.smtp()
        found = await room.one(key=key)
        assert (True, True, "250 2.1.5 OK") == smtp_of(found)
        assert ([], True) == (found.warnings, found.usable)
        assert found.smtp is not None
        assert (f"{HOST} (127.0.0.1) port {room.smtp_port}", None) == (found.smtp.where, found.smtp.certificate)
        hello = "EHLO mail.pushpush.example"
        assert [hello, "MAIL FROM:<>", f"RCPT TO:<{recipient}>", "RSET", "QUIT"] == peer.commands

    async def test_an_ordinary_server(self, room: Room) -> None:
        """Also aiosmtpd is content with that dialogue; the port is the target's own."""
        async with SmtpPeer() as peer:
            room.inboxes.append(peer)
            assert (True, True, "250 2.1.5 OK") == smtp_of(await room.one(f"127.0.0.1:{peer.port}"))

    @pytest.mark.parametrize("https", [False, True])
    async def test_a_host_that_refuses_the_key(self, room: Room, https: bool) -> None:
        """It takes mail for its own domains only: never usable, and worse with an mxdeliv that may say 200 and drop."""
        if https:
            await room.https(answers.MADMAIL_BAD_REQUEST)
        await room.smtp(Behaviour(refuse={"postmaster@a.example": RELAYING}))
        found = await room.one()
        assert (True, False, RELAYING) == smtp_of(found)
        [warning] = found.warnings
        assert warning.startswith(f"{HOST} refuses mail for a.example ({RELAYING}): it seems to take mail for its own")
        assert (https, False) == ("black hole" in warning, found.usable)

    @pytest.mark.parametrize(
        ("key", "asked", "usable"),
        [("*", "example.org", True), ("*.a.example", "pushpush-probe.a.example", False)],
    )
    async def test_a_refused_wildcard_names_the_address(self, room: Room, key: str, asked: str, usable: bool) -> None:
        """The refusal may be of the made-up name only; for `*` it says little of all other domains, and only warns."""
        await room.smtp(Behaviour(replies={"RCPT": RELAYING}))
        found = await room.one(key=key)
        [warning] = found.warnings
        assert f"refuses mail for {key} (postmaster@{asked}: {RELAYING})" in warning
        assert usable == found.usable

    @pytest.mark.parametrize(
        ("behaviour", "detail"),
        [
            (Behaviour(replies={"RCPT": "450 4.7.1 greylisted"}), "450 4.7.1 greylisted"),
            (Behaviour(replies={"MAIL": "451 4.3.0 later"}), "451 4.3.0 later"),
            (Behaviour(replies={"RCPT": "421 4.7.0 bye"}), "421 4.7.0 bye"),
            (Behaviour(greeting="421 4.7.0 too busy"), "421 4.7.0 too busy"),
            (Behaviour(hang_up_at="RCPT"), "SMTPServerDisconnected"),
        ],
    )
    async def test_later_is_a_warning(self, room: Room, behaviour: Behaviour, detail: str) -> None:
        """The host is there, and what is unknown is temporary."""
        await room.smtp(behaviour)
        found = await room.one(transport="smtp")
        reachable, accepts, said = smtp_of(found)
        assert (True, None, True) == (reachable, accepts, found.usable)
        assert detail in said
        [warning] = found.warnings
        assert f"{HOST} does not say yet whether it takes mail for a.example: {said}" == warning

    async def test_later_beside_an_mxdeliv(self, room: Room) -> None:
        """One warning, not two: what SMTP would have told is not known."""
        await room.https(answers.MADMAIL_BAD_REQUEST)
        await room.smtp(Behaviour(replies={"RCPT": "450 4.7.1 greylisted"}))
        found = await room.one()
        [warning] = found.warnings
        assert found.usable
        assert warning.endswith("by SMTP it could not be asked (450 4.7.1 greylisted)")

    async def test_unwell_over_https(self, room: Room) -> None:
        """It may be an mxdeliv again later, so the rule may be set; but mail may wait."""
        await room.https(answers.UNAVAILABLE)
        found = await room.one()
        [warning] = found.warnings
        assert found.usable
        assert warning.startswith(f"mail for a.example may have to wait, as {HOST} is not well over HTTPS: answers 503")

    async def test_refused_mail_from_is_the_reply(self, room: Room) -> None:
        """A host that takes nothing from us is not asked for a recipient."""
        peer = await room.smtp(Behaviour(replies={"MAIL": "550 5.7.1 go away"}))
        assert (True, False, "550 5.7.1 go away") == smtp_of(await room.one())
        assert not [each for each in peer.commands if each.startswith("RCPT")]

    async def test_a_greeting_that_takes_no_mail_at_all(self, room: Room) -> None:
        """There is no mail server for us."""
        await room.smtp(Behaviour(greeting="554 5.3.2 no service"))
        found = await room.one()
        assert (False, None, "554 5.3.2 no service") == smtp_of(found)
        assert not found.usable


class TestNothing:
    """Targets that are not there."""

    async def test_nothing_listens(self, room: Room) -> None:
        """Neither way."""
        found = await room.one()
        assert not found.usable
        ways = "over HTTPS: connection refused; over SMTP: connection refused"
        assert [f"nothing at {HOST} would take mail for a.example: {ways}"] == found.warnings

    async def test_a_website_is_no_way(self, room: Room) -> None:
        """As nothing is."""
        await room.https(answers.WEBSITE)
        found = await room.one()
        assert not found.usable
        assert "answers 200 (text/html): no mxdeliv" in found.warnings[0]

    async def test_a_name_without_address(self, room: Room) -> None:
        """The fault names the host."""
        found = await room.one("c.example")
        assert (False, "c.example has no address") == https_of(found)
        assert (False, None, "c.example has no address") == smtp_of(found)
        assert not found.usable

    async def test_silent_peers_are_bounded(self, room: Room) -> None:
        """They take the connection and never answer; so does the DNS server for another name. All at once."""
        holding = asyncio.Event()

        async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await holding.wait()
            writer.close()

        room.dns.fault("silent.example", Fault.SILENT)
        servers = [await asyncio.start_server(hold, "127.0.0.1", port) for port in (room.smtp_port, room.https_port)]
        began = time.monotonic()
        founds = await room.probe(f"{HOST},silent.example", seconds=0.5)
        took = time.monotonic() - began
        holding.set()
        for server in servers:
            server.close()
            await server.wait_closed()
        assert took < 3
        for found in founds:
            assert (False, "no answer in time") == https_of(found)
            assert (False, None, "no answer in time") == smtp_of(found)
            assert not found.usable

    @pytest.mark.parametrize(("verb", "reachable"), [("EHLO", False), ("RCPT", True)])
    async def test_a_stalled_command_is_bounded(self, room: Room, verb: str, reachable: bool) -> None:
        """Whatever it stalls at, the connection is not left open."""
        peer = await room.smtp(Behaviour(stall_at=verb))
        assert (reachable, None, "no answer in time") == smtp_of(await room.one(seconds=0.7))
        await until(lambda: peer.open_connections == 0)

    async def test_every_target_is_found_in_order(self, room: Room) -> None:
        """One that works does not hide one that does not."""
        await room.smtp()
        first, second = await room.probe(f"127.0.0.9,{HOST}")
        assert (("127.0.0.9", False), (HOST, True)) == ((first.target, first.usable), (second.target, second.usable))

    async def test_a_dead_address_does_not_hide_the_next(self, room: Room) -> None:
        """As with an IPv6 address that leads nowhere."""
        room.dns.clear(HOST)
        room.dns.add(HOST, "A", "127.0.0.9", "127.0.0.1")
        await room.smtp()
        found = await room.one(transport="smtp")
        assert found.usable
        assert found.smtp is not None
        assert f"{HOST} (127.0.0.1) port {room.smtp_port}" == found.smtp.where


class TestCertificates:
    """What a host shows, and whether the rule minds."""

    async def test_verified(self, room: Room) -> None:
        """Both ways, with names, issuer and end; nothing to warn of."""
        await room.https(answers.MADMAIL_BAD_REQUEST)
        await room.smtp(tls=tls_context(room.authority, (HOST, "mx.b.example"), not_after=END))
        found = await room.one()
        assert found.https is not None
        assert found.smtp is not None
        assert (True, True) == (found.https.verified, found.smtp.verified)
        assert (found.https.certificate or "").startswith(f"for {HOST}, issued by trustme")
        whole = found.smtp.certificate or ""
        assert whole.startswith(f"for {HOST}, mx.b.example, issued by trustme")
        assert whole.endswith("until 2031-05-06, verified")
        assert ([], True) == (found.warnings, found.usable)

    @pytest.mark.parametrize("smtp", [False, True])
    async def test_untrusted_https_is_no_way(self, room: Room, stranger: trustme.CA, smtp: bool) -> None:
        """HTTPS to a name has to verify: it is left out, and the rule is usable only if SMTP is there."""
        peer = await room.https(answers.MADMAIL_BAD_REQUEST, stranger)
        if smtp:
            await room.smtp()
        found = await room.one()
        speaks, detail = https_of(found)
        assert found.https is not None
        assert False is speaks
        assert detail.startswith("its certificate does not verify: ")
        assert ", NOT verified: unable to get local issuer certificate" in (found.https.certificate or "")
        assert smtp == found.usable
        assert found.warnings[0].endswith("HTTPS will not be used for a.example")
        assert not peer.commands

    async def test_untrusted_https_alone_fails(self, room: Room) -> None:
        """A certificate for another name; with the transport https there is no other way."""
        await room.https(answers.MADMAIL_BAD_REQUEST, name="other.example")
        found = await room.one(transport="https")
        assert found.https is not None
        assert "for other.example, " in (found.https.certificate or "")
        assert "NOT verified: Hostname mismatch" in (found.https.certificate or "")
        assert found.warnings[0].endswith("deliveries by the rule for a.example will fail")
        assert not found.usable

    @pytest.mark.parametrize(("target", "tls"), [(HOST, "encrypt"), ("127.0.0.1", None)])
    async def test_where_nothing_demands_it(
        self, room: Room, stranger: trustme.CA, target: str, tls: Tls | None
    ) -> None:
        """An IP address, or a rule that only encrypts: shown, and no reason to warn."""
        await room.https(answers.MADMAIL_BAD_REQUEST, stranger)
        await room.smtp(tls=tls_context(stranger, (HOST,)))
        found = await room.one(target, tls=tls)
        assert found.https is not None
        assert found.smtp is not None
        assert (True, False) == (found.https.speaks, found.https.verified)
        assert (True, False) == (found.smtp.accepts, found.smtp.verified)
        assert "NOT verified: " in (found.smtp.certificate or "")
        assert ([], True) == (found.warnings, found.usable)

    async def test_untrusted_smtp_under_verify(self, room: Room, stranger: trustme.CA) -> None:
        """No session as the rule wants it, so no question; the certificate is shown all the same."""
        peer = await room.smtp(tls=tls_context(stranger, (HOST,)))
        found = await room.one(transport="smtp", tls="verify")
        assert found.smtp is not None
        assert (False, None, False) == (found.smtp.reachable, found.smtp.accepts, found.smtp.verified)
        assert (found.smtp.certificate or "").startswith(f"for {HOST}, ")
        assert found.warnings[0].endswith("deliveries by the rule for a.example will fail")
        assert not found.usable
        assert not [each for each in peer.commands if each.startswith("MAIL")]

    async def test_a_broken_starttls_is_as_good_as_none(self, room: Room) -> None:
        """As in a delivery: without a demand the question goes in the clear, and there is no certificate."""
        await room.smtp(Behaviour(starttls="broken"), Behaviour())
        found = await room.one(transport="smtp")
        assert found.smtp is not None
        assert (True, None, None) == (found.smtp.accepts, found.smtp.certificate, found.smtp.verified)

    async def test_starttls_that_is_demanded_and_not_there(self, room: Room) -> None:
        """The words of the session."""
        await room.smtp()
        found = await room.one(transport="smtp", tls="encrypt")
        assert (False, None, f"{HOST} does not offer STARTTLS, which the route requires") == smtp_of(found)
        assert not found.usable
