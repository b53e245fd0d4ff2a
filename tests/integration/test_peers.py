"""The peers do what they say, shown with clients of other people's making."""

import asyncio
import json
import signal
import smtplib
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiosmtplib
import dns.asyncresolver
import dns.resolver
import httpx
import pytest
import trustme

from bench.sink import Counts, SinkProtocol
from tests.peers import answers
from tests.peers.answers import Answer
from tests.peers.dns import DnsPeer, Fault
from tests.peers.mxdeliv import MxdelivPeer, free_port
from tests.peers.smtp import (
    CLOSES_IDLE,
    END_OF_DATA,
    HELO_ONLY,
    Behaviour,
    Received,
    ScriptedSmtpPeer,
    SmtpPeer,
    tls_context,
)

pytestmark = pytest.mark.anyio

BODY = b"Subject: dots\r\n\r\n.one\r\n..two\r\nlast\r\n"
MAIL = ("a@from.example", ["b@to.example"])
AnyPeer = SmtpPeer | ScriptedSmtpPeer


@pytest.fixture
def anyio_backend() -> str:
    """The peers are asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """One authority for all certificates here."""
    return trustme.CA()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Return a client's context that trusts the authority alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


def client(peer: AnyPeer, *, timeout: float = 5) -> aiosmtplib.SMTP:
    """Return an aiosmtplib client for the peer, without TLS of its own accord."""
    return aiosmtplib.SMTP(
        hostname=peer.host, port=peer.port, timeout=timeout, start_tls=False, local_hostname="client.example"
    )


async def send(peer: AnyPeer, recipients: list[str] | None = None) -> str:
    """Send one message on a connection of its own; return the last reply."""
    async with client(peer) as smtp:
        _, reply = await smtp.sendmail("a@from.example", recipients or ["b@to.example"], BODY)
    return reply


async def raw(peer: AnyPeer, wire: bytes) -> bytes:
    """Send bytes as they are; return all that the peer says until it closes."""
    reader, writer = await asyncio.open_connection(peer.host, peer.port)
    writer.write(wire)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.fixture(params=[SmtpPeer, ScriptedSmtpPeer])
def kind(request: pytest.FixtureRequest) -> type[AnyPeer]:
    """Both kinds of SMTP peer behave alike where they behave well."""
    kind: type[AnyPeer] = request.param
    return kind


class TestSmtp:
    """Ordinary SMTP, on both peers."""

    async def test_records_a_message_byte_for_byte(self, kind: type[AnyPeer]) -> None:
        """Dots are unstuffed once, nothing else is touched."""
        async with kind() as peer:
            await send(peer, ["b@to.example", "c@to.example"])
            (message,) = await peer.wait_for(1)
        assert message == Received(
            mail_from="a@from.example",
            rcpt_to=("b@to.example", "c@to.example"),
            body=BODY,
            at=message.at,
            connection=1,
            tls=False,
            helo="client.example",
        )
        assert abs((datetime.now(UTC) - message.at).total_seconds()) < 5
        assert peer.commands[:2] == ["EHLO client.example", f"MAIL FROM:<a@from.example> size={len(BODY)}"]

    async def test_null_reverse_path_is_empty(self, kind: type[AnyPeer]) -> None:
        """A bounce has the sender ""."""
        async with kind() as peer, client(peer) as smtp:
            await smtp.sendmail("", ["b@to.example"], BODY)
            (message,) = await peer.wait_for(1)
        assert message.mail_from == ""

    async def test_starttls_with_smtplib(self, kind: type[AnyPeer], authority: trustme.CA) -> None:
        """The standard library's blocking client verifies the certificate and sends over TLS."""

        def deliver() -> None:
            with smtplib.SMTP(peer.host, peer.port, timeout=5) as smtp:
                smtp.starttls(context=trusting(authority))
                smtp.sendmail(*MAIL, BODY)

        async with kind(tls=tls_context(authority)) as peer:
            await asyncio.to_thread(deliver)
            (message,) = await peer.wait_for(1)
        assert message.tls
        assert message.body == BODY

    async def test_starttls_with_a_certificate_for_another_name(
        self, kind: type[AnyPeer], authority: trustme.CA
    ) -> None:
        """The client refuses, and the peer survives it."""
        async with kind(tls=tls_context(authority, ["other.example"])) as peer:
            smtp = client(peer)
            await smtp.connect()
            with pytest.raises((ssl.SSLError, aiosmtplib.SMTPException)):
                await smtp.starttls(tls_context=trusting(authority))
            smtp.close()
            await send(peer)
            assert len(await peer.wait_for(1)) == 1

    async def test_pipelined_commands_are_answered_in_order(self, kind: type[AnyPeer]) -> None:
        """Everything in one packet, two messages on one connection."""
        once = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\nS: 1\r\n\r\nx\r\n.\r\n"
        async with kind() as peer:
            said = await raw(peer, b"EHLO c.example\r\n" + once + once + b"QUIT\r\n")
            assert [message.body for message in await peer.wait_for(2)] == [b"S: 1\r\n\r\nx\r\n"] * 2
        final = [line[:3] for line in said.splitlines() if line[3:4] == b" "]
        assert final == [b"220", b"250", *[b"250", b"250", b"354", b"250"] * 2, b"221"]

    async def test_a_dot_after_a_bare_line_feed_ends_nothing(self, kind: type[AnyPeer]) -> None:
        """The peer does not hide a client that would let mail be smuggled."""
        start = b"EHLO c.example\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n"
        async with kind() as peer:
            await raw(peer, start + b"one\n.\r\ntwo\n.three\r\n.\r\nQUIT\r\n")
            (message,) = await peer.wait_for(1)
        assert message.body == b"one\n.\r\ntwo\n.three\r\n"

    async def test_refuses_one_recipient_of_three(self, kind: type[AnyPeer]) -> None:
        """Temporary or permanent, with the enhanced code, by address."""
        refuse = {"b@to.example": "450 4.2.1 later"}
        refusing = SmtpPeer(refuse=refuse) if kind is SmtpPeer else ScriptedSmtpPeer(Behaviour(refuse=refuse))
        async with refusing as peer:
            async with client(peer) as smtp:
                errors, _ = await smtp.sendmail("a@from.example", ["a@x.example", "b@to.example", "c@x.example"], BODY)
            (message,) = await peer.wait_for(1)
        assert message.rcpt_to == ("a@x.example", "c@x.example")
        assert errors["b@to.example"].code == 450

    async def test_wait_for_says_what_came_instead(self, kind: type[AnyPeer]) -> None:
        """A test that fails names what did arrive."""
        async with kind() as peer:
            await send(peer)
            with pytest.raises(TimeoutError, match=r"wanted 2 messages .*1 accepted[\s\S]*<a@from.example>"):
                await peer.wait_for(2, within=0.05)


def scripted(**behaviour: object) -> ScriptedSmtpPeer:
    """Return a peer with one behaviour for all connections."""
    return ScriptedSmtpPeer(Behaviour(**behaviour))  # type: ignore[arg-type]


class TestMisbehaviour:
    """Each fault of a scripted peer."""

    @pytest.mark.parametrize("verb", ["EHLO", "MAIL", "RCPT", "DATA", END_OF_DATA])
    async def test_hangs_up_before_the_reply(self, verb: str) -> None:
        """The client sees the end of the connection, the peer keeps no message as accepted."""
        async with scripted(hang_up_at=verb) as peer:
            with pytest.raises((aiosmtplib.SMTPException, ConnectionError)):
                await send(peer)
            assert peer.received == []
            assert len(peer.refused) == (verb == END_OF_DATA)

    @pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", END_OF_DATA])
    async def test_answers_421_and_closes(self, verb: str) -> None:
        """A 421 at any command is the last word."""
        async with scripted(replies={verb: "421 4.3.2 closing"}) as peer:
            script = b"EHLO c\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"
            assert (await raw(peer, script)).endswith(b"421 4.3.2 closing\r\n")

    @pytest.mark.parametrize("verb", ["EHLO", "MAIL", "RCPT", "DATA", END_OF_DATA, "QUIT"])
    async def test_stalls(self, verb: str) -> None:
        """A reply that never comes."""
        async with scripted(stall_at=verb) as peer:
            smtp = client(peer, timeout=0.1)
            with pytest.raises(aiosmtplib.SMTPException):  # noqa: PT012 - QUIT is the stalling step once
                await smtp.connect()
                await smtp.sendmail(*MAIL, BODY)
                await smtp.quit()
            smtp.close()
            assert len(peer.received) == (verb == "QUIT")

    async def test_late_greeting(self) -> None:
        """Slower than an impatient client, and not slower than a patient one."""
        async with scripted(greeting_after=0.2) as peer:
            with pytest.raises(aiosmtplib.SMTPException):
                await client(peer, timeout=0.05).connect()
            await send(peer)
            assert len(await peer.wait_for(1)) == 1

    @pytest.mark.parametrize("greeting", ["554 5.7.1 go away", "421 4.3.2 busy", b"\x00\xffwhat?\r\n", "hello", None])
    async def test_greetings_that_are_none(self, greeting: str | bytes | None) -> None:
        """Refusals, gibberish and silence."""
        async with scripted(greeting=greeting) as peer:
            smtp = client(peer, timeout=0.2)
            with pytest.raises(aiosmtplib.SMTPException):
                await smtp.connect()
            smtp.close()
            assert peer.connections == 1

    async def test_after_a_refusing_greeting_only_quit_is_left(self) -> None:
        """RFC 5321 3.1: 503 to everything else."""
        async with scripted(greeting="554 5.7.1 go away") as peer:
            said = await raw(peer, b"EHLO c\r\nQUIT\r\n")
        assert [line[:3] for line in said.splitlines()] == [b"554", b"503", b"221"]

    async def test_refuses_ehlo(self) -> None:
        """HELO still works."""
        async with ScriptedSmtpPeer(HELO_ONLY) as peer:
            await send(peer)
            assert peer.commands[:2] == ["EHLO client.example", "HELO client.example"]

    async def test_no_starttls(self, authority: trustme.CA) -> None:
        """It is neither offered nor there, even with a certificate at hand."""
        async with ScriptedSmtpPeer(Behaviour(starttls="hidden"), tls=tls_context(authority)) as peer:
            async with client(peer) as smtp:
                await smtp.ehlo()
                assert not smtp.supports_extension("starttls")
            said = await raw(peer, b"EHLO c\r\nSTARTTLS\r\nQUIT\r\n")
        assert said.splitlines()[-2] == b"502 5.5.1 no TLS here"

    @pytest.mark.parametrize("starttls", ["broken", "silent"])
    async def test_starttls_that_fails(self, starttls: str) -> None:
        """Garbage or nothing in place of the handshake."""
        async with scripted(starttls=starttls) as peer:
            smtp = client(peer)
            await smtp.connect()
            with pytest.raises((ssl.SSLError, aiosmtplib.SMTPException, OSError)):
                await smtp.starttls(validate_certs=False, timeout=0.2)
            smtp.close()

    async def test_starttls_refused(self, authority: trustme.CA) -> None:
        """Offered, but "not now"."""
        behaviour = Behaviour(replies={"STARTTLS": "454 4.7.0 TLS not available"})
        async with ScriptedSmtpPeer(behaviour, tls=tls_context(authority)) as peer:
            smtp = client(peer)
            await smtp.connect()
            with pytest.raises(aiosmtplib.SMTPException, match="TLS not available"):
                await smtp.starttls(validate_certs=False)
            smtp.close()

    async def test_refuses_after_the_final_dot_in_several_lines(self) -> None:
        """The client gets all lines; the message is with the refused."""
        async with scripted(replies={END_OF_DATA: "554-5.7.1 we do not\n554 5.7.1 like this"}) as peer:
            with pytest.raises(aiosmtplib.SMTPDataError) as caught:
                await send(peer)
            assert (caught.value.code, caught.value.message) == (554, "5.7.1 we do not\n5.7.1 like this")
            assert [message.body for message in peer.refused] == [BODY]
            assert peer.received == []

    async def test_one_behaviour_a_connection(self) -> None:
        """Fails once, then recovers; `behave` changes it again."""
        async with ScriptedSmtpPeer(Behaviour(greeting="421 4.3.2 busy"), Behaviour()) as peer:
            with pytest.raises(aiosmtplib.SMTPConnectError):
                await client(peer).connect()
            await send(peer)
            peer.behave(Behaviour(greeting="421 4.3.2 busy again"))
            with pytest.raises(aiosmtplib.SMTPConnectError):
                await client(peer).connect()
            assert (peer.connections, len(peer.received)) == (3, 1)

    async def test_closes_an_idle_connection(self) -> None:
        """The second message on a kept connection meets a closed one."""
        async with ScriptedSmtpPeer(CLOSES_IDLE) as peer:
            smtp = client(peer)
            await smtp.connect()
            await smtp.sendmail(*MAIL, BODY)
            with pytest.raises((aiosmtplib.SMTPException, ConnectionError)):
                await smtp.sendmail(*MAIL, BODY)
            smtp.close()

    async def test_limits(self) -> None:
        """Connections at once, messages on one, recipients of one."""
        async with scripted(max_connections=1, max_messages=1, max_recipients=2) as peer, client(peer) as smtp:
            with pytest.raises(aiosmtplib.SMTPConnectError):
                await client(peer).connect()
            errors, _ = await smtp.sendmail("a@x.example", [f"{n}@x.example" for n in range(3)], BODY)
            assert errors["2@x.example"].code == 452
            with pytest.raises(aiosmtplib.SMTPException) as caught:
                await smtp.sendmail(*MAIL, BODY)
            assert getattr(caught.value, "code", 421) == 421

    async def test_wait_until(self) -> None:
        """Wakes on a command, long before any message."""
        async with scripted(stall_at="RCPT") as peer:
            smtp = client(peer)
            await smtp.connect()
            task = asyncio.create_task(smtp.sendmail(*MAIL, BODY))
            await peer.wait_until(lambda: any(line.startswith("RCPT") for line in peer.commands), within=2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            smtp.close()


async def post(peer: MxdelivPeer, *, verify: ssl.SSLContext | bool = True) -> httpx.Response:
    """Post one message with two recipients, as filtermail does."""
    headers = [("X-Mail-From", "a@from.example"), ("X-Mail-To", "b@to.example"), ("X-Mail-To", "c@to.example")]
    async with httpx.AsyncClient(verify=verify, trust_env=False, timeout=2) as http:
        return await http.post(peer.url, headers=headers, content=BODY)


class TestMxdeliv:
    """The HTTP peer."""

    async def test_records_over_tls(self, authority: trustme.CA, tmp_path: Path) -> None:
        """The client trusts the file that `ca_file` wrote; the message comes as it was."""
        async with MxdelivPeer(authority=authority) as peer:
            context = ssl.create_default_context(cafile=str(peer.ca_file(tmp_path / "ca.pem")))
            response = await post(peer, verify=context)
            (message,) = await peer.wait_for(1)
        assert (response.status_code, response.text) == (200, "OK")
        assert (message.mail_from, message.rcpt_to) == ("a@from.example", ("b@to.example", "c@to.example"))
        assert (message.body, message.tls, message.connection) == (BODY, True, 1)

    async def test_certificate_for_another_name(self, authority: trustme.CA) -> None:
        """A client that verifies does not deliver."""
        async with MxdelivPeer(authority=authority, names=["other.example"]) as peer:
            with pytest.raises(httpx.ConnectError):
                await post(peer, verify=trusting(authority))
            assert peer.received == []

    async def test_null_reverse_path(self) -> None:
        """No X-Mail-From is ""."""
        async with MxdelivPeer() as peer, httpx.AsyncClient(trust_env=False) as http:
            await http.post(peer.url, headers={"X-Mail-To": "b@to.example"}, content=BODY)
            (message,) = await peer.wait_for(1)
        assert (message.mail_from, message.tls) == ("", False)

    @pytest.mark.parametrize(
        ("answer", "accepts"),
        [
            (answers.MADMAIL_OK, True),
            (answers.FILTERMAIL_OK, True),
            (answers.EXCHANGER_OK, True),
            (answers.FILTERMAIL_GREYLISTED, False),
            (answers.MADMAIL_FORBIDDEN, False),
            (answers.MADMAIL_TOO_LARGE, False),
            (answers.MADMAIL_QUOTA, False),
            (answers.MADMAIL_ERROR, False),
            (answers.TOO_MANY_REQUESTS, False),
            (answers.UNAVAILABLE, False),
            (answers.NGINX_TOO_LARGE, False),
            (answers.WEBSITE, False),
            (answers.WEBSITE_MOVED, False),
        ],
    )
    async def test_ready_made_answers(self, answer: Answer, *, accepts: bool) -> None:
        """What is sent is the answer; the message is filed by it."""
        async with MxdelivPeer(answer=answer) as peer:
            response = await post(peer)
        assert (response.status_code, response.content) == (answer.status, answer.body)
        assert response.headers.get("content-type") == answer.content_type
        assert dict(answer.headers).items() <= {name.title(): value for name, value in response.headers.items()}.items()
        assert (len(peer.received), len(peer.refused)) == (accepts, not accepts)

    @pytest.mark.parametrize("answer", [answers.SLOW, answers.STALLED, answers.HANGS_UP])
    async def test_answers_that_do_not_come(self, answer: Answer) -> None:
        """Slow, stalled, or cut off; and the peer closes at once all the same."""
        async with MxdelivPeer(answer=answer) as peer, httpx.AsyncClient(trust_env=False, timeout=0.2) as http:
            with pytest.raises(httpx.TransportError):
                await http.post(peer.url, content=BODY)

    async def test_endless_body(self) -> None:
        """A client that counts can stop; the peer stops with it."""
        async with MxdelivPeer(answer=answers.ENDLESS) as peer, httpx.AsyncClient(trust_env=False) as http:
            request = http.build_request("POST", peer.url, content=BODY)
            response = await http.send(request, stream=True)
            seen = 0
            async for chunk in response.aiter_bytes():
                seen += len(chunk)
                if seen > 2**20:
                    break
            await response.aclose()
        assert seen > 2**20

    async def test_answer_may_depend_on_the_message(self) -> None:
        """One function decides, and may change its mind."""

        def decide(message: Received) -> Answer:
            return answers.MADMAIL_OK if message.mail_from == "" else answers.MADMAIL_FORBIDDEN

        async with MxdelivPeer(answer=decide) as peer:
            assert (await post(peer)).status_code == 403
            peer.answer = answers.FILTERMAIL_OK
            assert (await post(peer)).text == "250 OK"

    async def test_other_paths_and_methods(self) -> None:
        """404 and 405, as from a server that knows its one path."""
        async with MxdelivPeer() as peer, httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(peer.url)).status_code == 405
            assert (await http.post(peer.url + "x")).status_code == 404

    async def test_free_port_refuses(self) -> None:
        """Nothing listens there."""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", free_port())


def resolver(peer: DnsPeer, *, lifetime: float = 2) -> dns.asyncresolver.Resolver:
    """Return a resolver that asks the peer alone."""
    found = dns.asyncresolver.Resolver(configure=False)
    found.nameservers = [peer.host]
    found.port = peer.port
    found.lifetime = lifetime
    return found


class TestDns:
    """The DNS peer."""

    @pytest.mark.parametrize("tcp", [False, True])
    async def test_answers(self, *, tcp: bool) -> None:
        """Records of several types, names in any case, over both transports."""
        async with DnsPeer() as peer:
            peer.add("a.example", "MX", "10 mx.a.example.", "20 mx2.a.example.")
            peer.add("MX.a.example.", "A", "127.0.0.1")
            ask = resolver(peer)
            found = await ask.resolve("A.example.", "MX", tcp=tcp)
            assert sorted(record.to_text().lower() for record in found) == ["10 mx.a.example.", "20 mx2.a.example."]
            assert [record.to_text() for record in await ask.resolve("mx.a.example.", "A", tcp=tcp)] == ["127.0.0.1"]
            assert peer.queries == {("a.example", "MX"): 1, ("mx.a.example", "A"): 1}
            assert peer.address == f"127.0.0.1:{peer.port}"

    async def test_nothing_there(self) -> None:
        """NXDOMAIN for an unknown name, NODATA for a known one, and NXDOMAIN again once it is cleared."""
        async with DnsPeer() as peer:
            peer.add("a.example", "A", "127.0.0.1")
            ask = resolver(peer)
            with pytest.raises(dns.resolver.NXDOMAIN):
                await ask.resolve("b.example.", "MX")
            with pytest.raises(dns.resolver.NoAnswer):
                await ask.resolve("a.example.", "MX")
            peer.clear("a.example")
            with pytest.raises(dns.resolver.NXDOMAIN):
                await ask.resolve("a.example.", "A")

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (Fault.NXDOMAIN, dns.resolver.NXDOMAIN),
            (Fault.SERVFAIL, dns.resolver.NoNameservers),
            (Fault.REFUSED, dns.resolver.NoNameservers),
            (Fault.SILENT, dns.resolver.LifetimeTimeout),
        ],
    )
    async def test_faults(self, fault: Fault, error: type[Exception]) -> None:
        """Each fault, for one type of one name."""
        async with DnsPeer() as peer:
            peer.add("a.example", "A", "127.0.0.1")
            peer.add("a.example", "MX", "10 a.example.")
            peer.fault("a.example", fault, "MX")
            ask = resolver(peer, lifetime=0.3)
            with pytest.raises(error):
                await ask.resolve("a.example.", "MX")
            assert len(await ask.resolve("a.example.", "A")) == 1

    async def test_truncated(self) -> None:
        """Nothing but TC over UDP, all of it over TCP: by fault, and by size."""
        async with DnsPeer() as peer:
            peer.add("a.example", "A", "127.0.0.1")
            peer.fault("a.example", Fault.TRUNCATED)
            peer.add("big.example", "A", *(f"127.0.1.{n}" for n in range(200)))
            assert len(await resolver(peer).resolve("a.example.", "A")) == 1
            assert len(await resolver(peer).resolve("big.example.", "A")) == 200
            assert peer.queries == {("a.example", "A"): 2, ("big.example", "A"): 2}

    async def test_alias(self) -> None:
        """A CNAME brings its target along."""
        async with DnsPeer() as peer:
            peer.add("www.example", "CNAME", "a.example.")
            peer.add("a.example", "A", "127.0.0.1")
            assert [record.to_text() for record in await resolver(peer).resolve("www.example.", "A")] == ["127.0.0.1"]


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """Connect a blocking socket to a sink."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        yield sock


@asynccontextmanager
async def sink(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Run a sink in a process of its own; give the process and its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.sink", *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        word, port = (await process.stdout.readline()).split()
        assert word == b"port"
        yield process, int(port)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def last_words(process: asyncio.subprocess.Process) -> dict[str, float]:
    """Return the counts that the sink prints at its end, once it has ended well."""
    out, _ = await asyncio.wait_for(process.communicate(), 5)
    assert process.returncode == 0
    counts: dict[str, float] = json.loads(out)
    return counts


SINK_BODY = b"x\r\n..\r\n\r\n.x\r\n"
TO_DATA = b"MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n"
DIALOGUE = (
    b"EHLO c\r\nDATA\r\n" + TO_DATA + b".\r\n" + TO_DATA + SINK_BODY + b".\r\n" + b"RSET\r\nNOOP\r\nWHAT\r\nQUIT\r\n"
)
TAKEN = ["250 ", "250 ", "354 ", "250 "]
SAID = ["220 ", "250-", "250-", "250-", "250 ", "503 ", *TAKEN, *TAKEN, "250 ", "250 ", "500 ", "221 "]


class Replies(asyncio.Transport):
    """A transport that keeps what is written: pieces on a socket would be joined on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.written += data

    def close(self) -> None:
        """Note it."""
        self.closed = True

    def codes(self) -> list[str]:
        """Return the code of each line, with what separates it from the text."""
        return [line[:4].decode() for line in self.written.splitlines()]


class TestSink:
    """The benchmark's sink."""

    async def test_counts_whatever_the_pieces(self) -> None:
        """The same dialogue in one piece and byte by byte; an empty message, and dots that end nothing."""
        for size in range(1, len(DIALOGUE) + 1):
            counts, transport = Counts(), Replies()
            protocol = SinkProtocol(counts, set())
            protocol.connection_made(transport)
            for at in range(0, len(DIALOGUE), size):
                protocol.data_received(DIALOGUE[at : at + size])
            assert (transport.codes(), transport.closed) == (SAID, True)
            assert (counts.messages, counts.bytes) == (2, len(SINK_BODY))

    async def test_serves_in_a_process_of_its_own(self) -> None:
        """Over a socket, until SIGTERM; the counts are its last words."""

        def talk(port: int) -> list[str]:
            with connected(port) as sock, sock.makefile("rb") as stream:
                sock.sendall(DIALOGUE)
                return [line[:4].decode() for line in stream]

        async with sink() as (process, port):
            assert await asyncio.to_thread(talk, port) == SAID
            process.send_signal(signal.SIGTERM)
            counts = await last_words(process)
        assert (counts["messages"], counts["bytes"], counts["connections"]) == (2, len(SINK_BODY), 1)
        assert counts["cpu_seconds"] >= 0

    async def test_stops_at_the_count(self) -> None:
        """The last message still gets its reply."""
        async with sink("--count", "2") as (process, port):
            smtp = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, timeout=5, start_tls=False)
            await smtp.connect()
            for _ in range(2):
                assert await smtp.sendmail(*MAIL, BODY) == ({}, "2.0.0 OK")
            assert (await last_words(process))["messages"] == 2
            smtp.close()

    async def test_tells_the_count_while_running(self) -> None:
        """SIGUSR1 asks, the sink goes on."""
        async with sink() as (process, _):
            assert process.stdout is not None
            process.send_signal(signal.SIGUSR1)
            assert json.loads(await process.stdout.readline())["messages"] == 0
            process.send_signal(signal.SIGINT)
            assert (await last_words(process))["messages"] == 0
