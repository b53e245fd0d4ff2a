"""Which connections are made, how long they are kept, for whom, and where they never lead."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from shared.delivery.gate import Gate
from shared.delivery.memory import Memory
from shared.delivery.mta_sts import Policies
from shared.delivery.posting import Patience
from shared.delivery.resolver import Resolver
from shared.delivery.smtp import ConnectionFault, Session, open_session
from shared.delivery.tls import Contexts
from shared.mail.outcome import Busy, Deferred, Delivered, Failed, Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.route import Route, Tls
from shared.runtime import main
from shared.runtime.settings import Settings
from tests.integration.conftest import MESSAGE, delivery, until
from tests.integration.test_https_transport import open_room, url
from tests.integration.test_next_hops import Clock
from tests.peers.dns import DnsPeer
from tests.peers.mxdeliv import Answer, MxdelivPeer
from tests.peers.raw_http import OK, RawHttpPeer, Script, http
from tests.peers.smtp import Behaviour, ScriptedSmtpPeer
from tests.peers.tls import ca_file, tls_context
from workers.https.transport import HttpsTransport
from workers.https.transport import open_transport as open_https
from workers.smtp.connections import IDLE, MAX_IDLE, MAX_MESSAGES, Connections, Hop
from workers.smtp.transport import SmtpTransport
from workers.smtp.transport import open_transport as open_smtp

pytestmark = pytest.mark.anyio

LARGE = MESSAGE + b"x" * 30_000_000  # more than the buffers of the kernel
DEMANDS: Sequence[Tls] = ("encrypt", "verify", "encrypt")
PUBLIC, PRIVATE = "8.8.8.8", "127.0.0.1"  # the first is never connected to: `Kept` opens nothing but loopback


class Kept:
    """The SMTP transport, with the limits that a test gives its connections, and the ways it went.

    Attributes:
        ways: The address of each connection that was to be opened.
    """

    def __init__(self, dns: DnsPeer, port: int, *, allow_private: bool, ca: Path | None, **limits: Any) -> None:
        self.ways: list[str] = []
        self.connections = Connections(self._open, **limits)
        self._contexts = Contexts(ca)
        resolver = Resolver([(dns.host, dns.port)], allow_private=allow_private, hostname="us.example")
        self.policies = Policies(resolver, self._contexts)
        self.transport = SmtpTransport(
            self.connections, resolver, self.policies, Gate(100), Memory(), smtp_port=port, https_port=443
        )

    async def _open(self, hop: Hop) -> Session:
        self.ways.append(hop.address)
        if hop.address not in {"127.0.0.1", "::1"}:
            raise ConnectionFault(Reply(code=450, enhanced="4.4.1", text="only this machine is connected to here"))
        fields = msgspec.structs.asdict(hop)
        return await open_session(**fields, contexts=self._contexts, hostname="us.example")

    async def deliver(self, *targets: str, tls: Tls | None = None, domain: str = "a.example") -> Outcome:
        """Deliver by a rule with these targets, or by the domain's MX hosts without."""
        return await send(self.transport, *targets, tls=tls, domain=domain)


@contextlib.asynccontextmanager
async def open_kept(
    port: int = 25, *, allow_private: bool = True, ca: Path | None = None, **limits: Any
) -> AsyncIterator[tuple[Kept, DnsPeer]]:
    """Open the transport, and a DNS server without names."""
    async with DnsPeer() as dns:
        kept = Kept(dns, port, allow_private=allow_private, ca=ca, **limits)
        async with main.background(kept.connections.sweep(every=0.01)), kept.policies:
            yield kept, dns
        await kept.connections.close()


async def send(
    by: SmtpTransport | HttpsTransport, *targets: str, tls: Tls | None = None, domain: str = "a.example"
) -> Outcome:
    """Deliver one message to one recipient; return the outcome."""
    route = Route(version=1, targets=targets, tls=tls)
    (outcome,) = (await by.deliver(delivery(domain=domain, route=route), MESSAGE)).values()
    return outcome


def settings(**changes: Any) -> Settings:
    """Return settings for a transport."""
    return Settings(amqp_url="amqp://unused", database_url="postgresql://unused", hostname="us.example", **changes)


def target(peer: ScriptedSmtpPeer, host: str = "127.0.0.1") -> str:
    """Return the peer as a rule names it."""
    return f"{host}:{peer.port}"


def numbers(peer: ScriptedSmtpPeer | MxdelivPeer) -> list[int]:
    """Return the connection of each message that the peer has taken."""
    return [each.connection for each in peer.received]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the peers' certificates."""
    return trustme.CA()


class TestSmtpKept:
    """For so many messages, for so long, and so many."""

    async def test_another_one_after_so_many_messages(self) -> None:
        """The one that has carried its last is ended with QUIT, and nothing is lost."""
        async with open_kept(messages=3) as (kept, _), ScriptedSmtpPeer() as peer:
            assert [Delivered] * 7 == [type(await kept.deliver(target(peer))) for _ in range(7)]
            assert [1, 1, 1, 2, 2, 2, 3] == numbers(peer)
            await until(lambda: (2, 1) == (peer.commands.count("QUIT"), peer.open_connections))

    async def test_the_limits_are_those_that_the_operator_is_told(self) -> None:
        """And the transport of the room keeps to them."""
        assert (10, 200, 64) == (IDLE, MAX_MESSAGES, MAX_IDLE)
        async with ScriptedSmtpPeer() as peer, open_smtp(settings()) as by:
            for _ in range(201):
                assert isinstance(await send(by, target(peer)), Delivered)
            assert [1] * 200 + [2] == numbers(peer)

    async def test_a_refused_message_counts(self) -> None:
        """The host has had work with it all the same."""
        async with open_kept(messages=2) as (kept, _), ScriptedSmtpPeer(Behaviour(replies={"MAIL": "550 no"})) as peer:
            assert [Failed] * 4 == [type(await kept.deliver(target(peer))) for _ in range(4)]
            assert 2 == peer.connections

    async def test_an_idle_one_is_ended_with_quit(self) -> None:
        """By the sweep, which leaves the others; and a new one is made afterwards."""
        clock = Clock()
        async with open_kept(idle=10, clock=clock) as (kept, _), ScriptedSmtpPeer() as old, ScriptedSmtpPeer() as young:
            await kept.deliver(target(old))
            clock.time += 9
            await kept.deliver(target(young))
            assert [1, 1] == [each.open_connections for each in (old, young)]
            clock.time += 2
            await until(lambda: 0 == old.open_connections)
            assert ("QUIT", False, 1) == (old.commands[-1], "QUIT" in young.commands, young.open_connections)
            assert [Delivered] * 2 == [type(await kept.deliver(target(each))) for each in (old, young)]
            assert ([1, 2], [1, 1]) == (numbers(old), numbers(young))

    async def test_one_that_is_used_is_not_idle(self) -> None:
        """The time begins with the last message."""
        clock = Clock()
        async with open_kept(idle=10, clock=clock) as (kept, _), ScriptedSmtpPeer() as peer:
            for _ in range(4):
                await kept.deliver(target(peer))
                clock.time += 9
            assert [1] * 4 == numbers(peer)

    async def test_an_old_one_is_not_used_before_the_sweep_comes(self) -> None:
        """The host may have given it up by now."""
        clock = Clock()
        async with DnsPeer() as dns, ScriptedSmtpPeer() as peer:
            kept = Kept(dns, 25, allow_private=True, ca=None, idle=10, clock=clock)
            await kept.deliver(target(peer))
            clock.time += 10
            assert isinstance(await kept.deliver(target(peer)), Delivered)
            await kept.connections.close()
            assert ([1, 2], 2) == (numbers(peer), peer.commands.count("QUIT"))

    async def test_only_so_many_are_kept_for_a_next_hop(self) -> None:
        """What five messages at once have opened; each hop has its own."""
        async with open_kept(most=2) as (kept, _), ScriptedSmtpPeer() as first, ScriptedSmtpPeer() as second:
            for peer in (first, second):
                outcomes = await asyncio.gather(*(kept.deliver(target(peer)) for _ in range(5)))
                assert ([Delivered] * 5, 5) == ([type(each) for each in outcomes], peer.connections)
            await until(
                lambda: [(3, 2)] * 2 == [(p.commands.count("QUIT"), p.open_connections) for p in (first, second)]
            )

    async def test_two_next_hops_share_none(self) -> None:
        """Also under one address and port: the host may be another one for each name."""
        async with ScriptedSmtpPeer() as peer, open_kept(peer.port) as (kept, dns):
            for name in ("b.example", "c.example"):
                dns.add(name, "A", "127.0.0.1")
            dns.add("a.example", "MX", "10 b.example.")
            for name in ("b.example", "c.example", "b.example", "c.example"):
                assert isinstance(await kept.deliver(target(peer, name)), Delivered)
            assert isinstance(await kept.deliver(), Delivered)  # by MX: it might be ourselves, and that is looked at
            assert isinstance(await kept.deliver(target(peer)), Delivered)
            assert [1, 2, 1, 2, 3, 4] == numbers(peer)

    async def test_two_demands_of_tls_share_none(self, authority: trustme.CA, tmp_path: Path) -> None:
        """A connection that only encrypts, to a host with a wrong certificate, is not there for who verifies."""
        ca = ca_file(authority, tmp_path / "ca.pem")
        context = tls_context(authority, ["other.example"])
        async with ScriptedSmtpPeer(tls=context) as peer, open_kept(ca=ca) as (kept, dns):
            dns.add("b.example", "A", "127.0.0.1")
            way = target(peer, "b.example")
            outcomes = [await kept.deliver(way, tls=tls) for tls in DEMANDS]
            assert [Delivered, Deferred, Delivered] == [type(each) for each in outcomes]
            assert "4.7.5" == outcomes[1].reply.enhanced
            assert ([1, 1], 2) == (numbers(peer), peer.connections)


class TestHttpsKept:
    """The same by HTTPS."""

    @pytest.mark.parametrize("tls", [False, True])
    async def test_another_one_after_so_many_messages(self, authority: trustme.CA, tmp_path: Path, tls: bool) -> None:
        """Also where there are interim answers, which do not count."""
        script = Script(say=b"HTTP/1.1 100 Continue\r\n\r\n" + http(), then="keep")
        async with (
            open_room(authority, tmp_path, Patience(messages=3)) as room,
            RawHttpPeer(script, tls=tls_context(authority) if tls else None) as peer,
        ):
            assert [Delivered] * 7 == [type(await room.deliver(peer.url)) for _ in range(7)]
            assert [MESSAGE] * 7 == [request.partition(b"\r\n\r\n")[2] for request in peer.requests]
            assert 3 == peer.connections
            await until(lambda: 1 == peer.open)

    async def test_the_limit_is_that_which_the_operator_is_told(self) -> None:
        """And the transport of the room keeps to it."""
        async with MxdelivPeer() as peer, open_https(settings()) as by:
            for _ in range(201):
                assert isinstance(await send(by, peer.url), Delivered)
            assert [1] * 200 + [2] == numbers(peer)

    async def test_the_last_answer_is_read_to_its_end(self, authority: trustme.CA, tmp_path: Path) -> None:
        """Its words decide, however slowly they come."""
        slow = Script(say=http(b"554 5.7.1 " + b"no, and " * 20 + b"never", status=b"400 Bad Request"), pause=0.001)
        early = Script(say=http(b"552 5.3.4 no"), at="header", then="hold")
        async with open_room(authority, tmp_path, Patience(messages=1)) as room:
            async with RawHttpPeer(slow, tls=tls_context(authority)) as peer:
                for _ in range(2):
                    outcome = await room.deliver(peer.url)
                    assert (Failed, True) == (type(outcome), outcome.reply.text.endswith("never"))
            async with RawHttpPeer(early, OK) as peer:
                assert [Failed, Delivered] == [type(await room.deliver(peer.url, message=LARGE)) for _ in range(2)]
                await until(lambda: 0 == peer.open)

    async def test_a_long_message_on_the_last_one(self, authority: trustme.CA, tmp_path: Path) -> None:
        """It goes out whole before the connection ends."""
        async with (
            open_room(authority, tmp_path, Patience(messages=1)) as room,
            MxdelivPeer(authority=authority, names=("b.example",)) as peer,
        ):
            assert isinstance(await room.deliver(url(peer), message=LARGE), Delivered)
            assert [LARGE] == [each.body for each in peer.received]

    async def test_an_idle_one_is_ended(self, authority: trustme.CA, tmp_path: Path) -> None:
        """And a new one is made afterwards."""
        async with (
            RawHttpPeer(OK) as peer,
            open_room(authority, tmp_path, Patience(idle=0.1)) as impatient,
            open_room(authority, tmp_path, Patience(idle=60)) as patient,
        ):
            for room in (patient, impatient):
                assert isinstance(await room.deliver(peer.url), Delivered)
            await until(lambda: 1 == peer.open)
            for room in (patient, impatient):
                assert isinstance(await room.deliver(peer.url), Delivered)
            assert 3 == peer.connections

    async def test_no_more_at_once_than_the_worker_delivers(self) -> None:
        """Over all next hops; who waits for one has it when another message is done."""
        peers = [RawHttpPeer(Script(say=http(), pause=0.002, then="keep")) for _ in range(3)]
        most = 0
        async with contextlib.AsyncExitStack() as stack:
            for peer in peers:
                await stack.enter_async_context(peer)
            by = await stack.enter_async_context(open_https(settings(concurrency=2, hop_concurrency=100)))
            sending = asyncio.gather(*(send(by, peer.url) for _ in range(4) for peer in peers))
            while not sending.done():
                most = max(most, sum(peer.open and not peer.idle for peer in peers))
                await asyncio.sleep(0)
            assert [Delivered] * 12 == [type(each) for each in await sending]
            assert 2 == most

    async def test_two_next_hops_share_none(self, authority: trustme.CA, tmp_path: Path) -> None:
        """Also under one address and port, and with one certificate for both names."""
        names = ("b.example", "c.example")
        async with (
            open_room(authority, tmp_path) as room,
            MxdelivPeer(authority=authority, names=names) as peer,
        ):
            room.dns.add("c.example", "A", "127.0.0.1")
            for name in (*names, *names):
                assert isinstance(await room.deliver(url(peer, name)), Delivered)
            assert [1, 2, 1, 2] == numbers(peer)

    async def test_two_demands_of_tls_share_none(self, authority: trustme.CA, tmp_path: Path) -> None:
        """A connection that only encrypts, to a host with a wrong certificate, is not there for who verifies."""
        async with (
            open_room(authority, tmp_path) as room,
            MxdelivPeer(authority=authority, names=("other.example",)) as peer,
        ):
            kinds = [type(await room.deliver(url(peer), tls=tls)) for tls in DEMANDS]
            assert [Delivered, Unsuited, Delivered] == kinds
            assert [1, 1] == numbers(peer)


@pytest.fixture
def six() -> None:
    """Skip where this machine has no IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")


@pytest.mark.usefixtures("six")
class TestIPv6:
    """RFC 5321 5.2: the transports do not care."""

    async def test_smtp_by_a_rule(self, authority: trustme.CA, tmp_path: Path) -> None:
        """By address and by name; a certificate may be for the address."""
        ca = ca_file(authority, tmp_path / "ca.pem")
        async with ScriptedSmtpPeer(host="::1", tls=tls_context(authority)) as peer, open_kept(ca=ca) as (kept, dns):
            dns.add("b.example", "AAAA", "::1")
            assert isinstance(await kept.deliver(target(peer, "[::1]"), tls="verify"), Delivered)
            assert isinstance(await kept.deliver(target(peer, "b.example")), Delivered)
            assert ["::1", "::1"] == kept.ways

    async def test_https_by_a_rule(self, authority: trustme.CA, tmp_path: Path) -> None:
        """By address, in the clear and verified, and by name."""
        names = ("::1", "c.example")
        async with (
            open_room(authority, tmp_path) as room,
            MxdelivPeer(host="::1") as plain,
            MxdelivPeer(host="::1", authority=authority, names=names) as peer,
        ):
            room.dns.add("c.example", "AAAA", "::1")
            assert isinstance(await room.deliver(plain.url), Delivered)
            assert isinstance(await room.deliver(peer.url, tls="verify"), Delivered)
            assert isinstance(await room.deliver(url(peer, "c.example")), Delivered)
            assert (1, 2) == (len(plain.received), len(peer.received))

    @pytest.mark.parametrize(("allowed", "kind"), [(True, Delivered), (False, Failed)])
    async def test_an_address_literal(self, allowed: bool, kind: type[Outcome]) -> None:
        """The one without a name; without leave it is as private as any."""
        async with (
            ScriptedSmtpPeer(host="::1") as peer,
            open_smtp(settings(smtp_port=peer.port, allow_private_targets=allowed)) as by,
        ):
            await asyncio.sleep(0)  # a refusal asks nobody, and the room ends no work that has not begun
            assert kind is type(await send(by, domain="[IPv6:::1]"))
            assert allowed == peer.connections

    async def test_ipv4_where_ipv6_is_refused(self) -> None:
        """Both are ways to the host."""
        async with ScriptedSmtpPeer() as peer, open_kept() as (kept, dns):
            dns.add("b.example", "AAAA", "::1")
            dns.add("b.example", "A", "127.0.0.1")
            assert isinstance(await kept.deliver(target(peer, "b.example")), Delivered)
            assert ["::1", "127.0.0.1"] == kept.ways


class TestRebinding:
    """A stranger's name that leads to the public first, and then to this machine, where a server waits."""

    async def test_from_one_message_to_the_next(self) -> None:
        """Each time the answer is looked at anew."""
        async with ScriptedSmtpPeer() as peer, open_kept(peer.port, allow_private=False) as (kept, dns):
            dns.add("a.example", "MX", "10 mx.example.", ttl=0)
            for address, kind in ((PUBLIC, Deferred), (PRIVATE, Failed), (PUBLIC, Deferred), (PRIVATE, Failed)):
                dns.clear("mx.example")
                dns.add("mx.example", "A", address, ttl=0)
                assert kind is type(await kept.deliver())
            assert ([PUBLIC, PUBLIC], 0) == (kept.ways, peer.connections)

    async def test_within_one_message(self) -> None:
        """What was looked at is what is connected to: the name is asked for once."""
        async with ScriptedSmtpPeer() as peer, open_kept(peer.port, allow_private=False) as (kept, dns):
            dns.add("a.example", "MX", "10 mx.example.", ttl=0)
            dns.add("mx.example", "A", PUBLIC, ttl=0)
            await kept.deliver()
            assert (1, [PUBLIC], 0) == (dns.queries["mx.example", "A"], kept.ways, peer.connections)

    @pytest.mark.parametrize(
        ("kind", "private"), [("A", PRIVATE), ("AAAA", "::1"), ("AAAA", "::ffff:127.0.0.1"), ("A", "10.0.0.1")]
    )
    async def test_both_kinds_at_once(self, kind: str, private: str) -> None:
        """Only the public one is tried, whatever comes of it; nor the next host of the domain at all."""
        async with ScriptedSmtpPeer() as peer, open_kept(peer.port, allow_private=False) as (kept, dns):
            dns.add("a.example", "MX", "10 mx.example.", "20 localhost.", "30 private.example.")
            dns.add("mx.example", kind, private)
            dns.add("mx.example", "A", PUBLIC)
            dns.add("private.example", kind, private)
            assert isinstance(await kept.deliver(), Deferred)
            assert ([PUBLIC], 0) == (kept.ways, peer.connections)

    async def test_a_rule_is_no_stranger(self) -> None:
        """This shows that the server waits indeed, and that the way to it is open."""
        async with ScriptedSmtpPeer() as peer, open_kept(peer.port, allow_private=False) as (kept, dns):
            dns.add("mx.example", "A", PRIVATE)
            assert isinstance(await kept.deliver("mx.example"), Delivered)
            assert ([PRIVATE], 1) == (kept.ways, peer.connections)


class TestShareOfTheSettings:
    """A transport that is given no gate makes its own."""

    @pytest.mark.parametrize(
        ("changes", "share"), [({"concurrency": 8}, 2), ({"concurrency": 8, "hop_concurrency": 3}, 3)]
    )
    @pytest.mark.parametrize("room", ["smtp", "https"])
    async def test_so_many_at_once(self, room: str, changes: dict[str, int], share: int) -> None:
        """The others are put back."""
        smtp, https = ScriptedSmtpPeer(Behaviour(stall_at="MAIL")), MxdelivPeer(answer=Answer(body=b"OK", after=60))
        async with smtp, https, open_smtp(settings(**changes)) as by_smtp, open_https(settings(**changes)) as by_https:
            way, by = (target(smtp), by_smtp) if room == "smtp" else (https.url, by_https)
            sending = [asyncio.create_task(send(by, way)) for _ in range(8)]
            await until(lambda: share == sum(not each.done() for each in sending))
            assert [Busy] * (8 - share) == [type(each.result()) for each in sending if each.done()]
            assert share == (smtp if room == "smtp" else https).connections
            for each in sending:
                each.cancel()
            await asyncio.wait(sending)
