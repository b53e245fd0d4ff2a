"""What the transports do with the gate and the memory: a share for each next hop, nothing for a dead one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import trustme

from shared.delivery.gate import FAILURES, SUSPENDED, Gate
from shared.delivery.memory import Memory
from shared.delivery.smtp import TIMEOUTS
from shared.mail.envelope import Delivery
from shared.mail.outcome import Busy, Deferred, Delivered, Failed, Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.route import Route, Transport
from shared.runtime.settings import Settings
from tests.integration.conftest import MESSAGE, delivery
from tests.peers.behaviour import END_OF_DATA
from tests.peers.dns import DnsPeer
from tests.peers.mxdeliv import Answer, MxdelivPeer, free_port
from tests.peers.smtp import Behaviour, ScriptedSmtpPeer
from tests.peers.tls import tls_context
from workers.https.transport import HttpsTransport
from workers.https.transport import open_transport as open_https
from workers.smtp.transport import SmtpTransport
from workers.smtp.transport import open_transport as open_smtp

pytestmark = pytest.mark.anyio

SHARE = 2


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.time


class Rooms:
    """Both transports, with one memory, as the fleet has it through the store."""

    def __init__(self, smtp: SmtpTransport, https: HttpsTransport, memory: Memory, clock: Clock) -> None:
        self.smtp = smtp
        self.https = https
        self.memory = memory
        self.clock = clock


@contextlib.asynccontextmanager
async def open_rooms(**settings: Any) -> AsyncIterator[Rooms]:
    """Open both; the ports are those of targets that name none."""
    given = Settings(amqp_url="amqp://unused", database_url="postgresql://unused", hostname="us.example", **settings)
    memory, clock = Memory(), Clock()
    async with (
        open_smtp(given, gate=Gate(SHARE, told=memory, clock=clock), memory=memory) as smtp,
        open_https(given, gate=Gate(SHARE, told=memory, clock=clock), memory=memory) as https,
    ):
        yield Rooms(smtp, https, memory, clock)


@pytest.fixture
async def rooms() -> AsyncIterator[Rooms]:
    """Both transports."""
    async with open_rooms() as rooms:
        yield rooms


async def send(
    by: SmtpTransport | HttpsTransport, *targets: str, transport: Transport = "auto", lacking: str = ""
) -> Outcome:
    """Deliver one message to one recipient; return the outcome."""
    route = Route(version=1, key="a.example" if targets else "", targets=targets, transport=transport)
    reply = Reply(code=450, enhanced="4.4.0", text="a page")
    (outcome,) = (await by.deliver(delivery(route=route, lacking=lacking, reply=reply), MESSAGE)).values()
    return outcome


class TestShare:
    """At most so many deliveries at once."""

    @pytest.mark.parametrize("room", ["smtp", "https"])
    async def test_a_slow_hop_has_its_share_and_others_theirs(self, rooms: Rooms, room: str) -> None:
        """What is beyond it is not tried, and comes back; the hop never sees more at once."""
        slow_smtp, quick_smtp = ScriptedSmtpPeer(Behaviour(delays={END_OF_DATA: 3})), ScriptedSmtpPeer()
        slow_https, quick_https = MxdelivPeer(answer=Answer(body=b"OK", after=3)), MxdelivPeer()
        async with slow_smtp, quick_smtp, slow_https, quick_https:
            by = rooms.smtp if room == "smtp" else rooms.https
            slow = f"127.0.0.1:{slow_smtp.port}" if room == "smtp" else slow_https.url
            quick = f"127.0.0.1:{quick_smtp.port}" if room == "smtp" else quick_https.url
            outcomes = asyncio.gather(*(send(by, slow) for _ in range(SHARE + 4)))
            assert isinstance(await send(by, quick), Delivered)
            kinds = sorted(type(each).__name__ for each in await outcomes)
            assert ["Busy"] * 4 + ["Delivered"] * SHARE == kinds
            assert SHARE == (slow_smtp if room == "smtp" else slow_https).connections
            rooms.clock.time += 1
            assert isinstance(await send(by, slow), Delivered)

    async def test_a_cancelled_delivery_gives_its_turn_back(self, rooms: Rooms) -> None:
        """The time for an attempt ends by cancelling it, wherever it is."""
        async with ScriptedSmtpPeer(Behaviour(stall_at="MAIL"), Behaviour(stall_at="MAIL"), Behaviour()) as peer:
            target = f"127.0.0.1:{peer.port}"
            stalled = [asyncio.create_task(send(rooms.smtp, target)) for _ in range(SHARE)]
            await peer.wait_until(lambda: sum("MAIL" in line for line in peer.commands) == SHARE)
            for each in stalled:
                each.cancel()
            await asyncio.gather(*stalled, return_exceptions=True)
            assert isinstance(await send(rooms.smtp, target), Delivered)


class TestSuspended:
    """Five connection failures in a row."""

    async def test_smtp_leaves_a_dead_host_alone_then_asks_once(self, rooms: Rooms) -> None:
        """Meanwhile no connection is made, whatever is there by now."""
        port = free_port()
        target = f"127.0.0.1:{port}"
        for _ in range(FAILURES):
            assert isinstance(await send(rooms.smtp, target), Deferred)
        async with ScriptedSmtpPeer(port=port) as peer:
            put_off = await send(rooms.smtp, target)
            assert isinstance(put_off, Deferred)
            assert "did not answer 5 times" in put_off.reply.text
            assert 0 == peer.connections
            rooms.clock.time += SUSPENDED
            assert isinstance(await send(rooms.smtp, target), Delivered)
            assert isinstance(await send(rooms.smtp, target), Delivered)

    async def test_a_refusal_is_an_answer(self, rooms: Rooms) -> None:
        """A host that refuses every message is not dead."""
        async with ScriptedSmtpPeer(Behaviour(replies={"MAIL": "450 4.7.1 later"})) as peer:
            for _ in range(FAILURES + 3):
                outcome = await send(rooms.smtp, f"127.0.0.1:{peer.port}")
                assert "later" in outcome.reply.text

    async def test_the_next_target_has_its_turn_at_once(self, rooms: Rooms) -> None:
        """By SMTP alone in the same attempt; with auto by way of the https worker."""
        dead = f"127.0.0.1:{free_port()}"
        async with ScriptedSmtpPeer() as peer:
            for _ in range(FAILURES):
                await send(rooms.smtp, dead, transport="smtp")
            assert isinstance(await send(rooms.smtp, dead, f"127.0.0.1:{peer.port}", transport="smtp"), Delivered)
            assert isinstance(await send(rooms.smtp, dead, f"127.0.0.1:{peer.port}"), Unsuited)

    async def test_https_leaves_a_dead_host_to_smtp(self, rooms: Rooms) -> None:
        """At once, without waiting for the connection to fail; alone, the mail is deferred by its schedule."""
        port = free_port()
        url = f"http://127.0.0.1:{port}/mxdeliv"
        for _ in range(FAILURES):
            assert isinstance(await send(rooms.https, url), Unsuited)
        async with MxdelivPeer(port=port) as peer:
            for transport in ("auto", "https"):
                put_off = await send(rooms.https, url, transport=transport)
                assert isinstance(put_off, Unsuited)
                assert ("", True) == (put_off.lacking, "did not answer 5 times" in put_off.reply.text)
            assert 0 == peer.connections
            rooms.clock.time += SUSPENDED
            assert isinstance(await send(rooms.https, url), Delivered)


class TestMemory:
    """Hosts without mxdeliv."""

    async def test_it_begins_when_smtp_succeeds_and_ends_when_smtp_fails(self) -> None:
        """Between, HTTPS is not tried; a rule for HTTPS alone tries all the same."""
        port = free_port()
        async with open_rooms(smtp_port=port, https_port=free_port()) as rooms, MxdelivPeer() as web:
            url = web.url
            target = url  # the URL is HTTPS's, and 127.0.0.1 on the port of the settings SMTP's
            assert isinstance(await send(rooms.smtp, target, lacking=url), Deferred)
            assert not rooms.memory.lacks_mxdeliv(url)  # SMTP is not there either
            async with ScriptedSmtpPeer(port=port):
                assert isinstance(await send(rooms.smtp, target), Delivered)
                assert not rooms.memory.lacks_mxdeliv(url)  # HTTPS found nothing out before
            async with ScriptedSmtpPeer(Behaviour(replies={"RCPT": "550 5.1.1 no"}), port=port):
                assert isinstance(await send(rooms.smtp, target, lacking=url), Failed)
                assert not rooms.memory.lacks_mxdeliv(url)  # a refusal is no success
            async with ScriptedSmtpPeer(port=port):
                assert isinstance(await send(rooms.smtp, target, lacking=url), Delivered)
                assert rooms.memory.lacks_mxdeliv(url)
                passed = await send(rooms.https, target)
                assert isinstance(passed, Unsuited)
                assert ("", 0) == (passed.lacking, web.connections)
                assert isinstance(await send(rooms.https, target, transport="https"), Delivered)
            await send(rooms.smtp, target)
            assert not rooms.memory.lacks_mxdeliv(url)
            assert isinstance(await send(rooms.https, target), Delivered)

    async def test_a_busy_hop_is_no_lack(self, rooms: Rooms) -> None:
        """Nothing is learned from what was not tried."""
        async with MxdelivPeer(answer=Answer(body=b"OK", after=3)) as peer:
            outcomes = await asyncio.gather(*(send(rooms.https, peer.url) for _ in range(SHARE + 1)))
            assert [Busy] == [type(each) for each in outcomes if not isinstance(each, Delivered)]
            assert not rooms.memory.lacks_mxdeliv(peer.url)


class TestMailHosts:
    """Mail without a rule: the next hop is the domain."""

    async def test_what_dns_says_suspends_nobody(self) -> None:
        """A domain that points to a private address is refused each time, in the words that are true."""
        async with DnsPeer() as dns, open_rooms(dns_servers=((dns.host, dns.port),)) as rooms:
            dns.add("a.example", "MX", "10 mx.a.example.")
            dns.add("mx.a.example", "A", "10.0.0.1")
            outcomes = [await send(rooms.smtp) for _ in range(FAILURES + 2)]
            assert {(Failed, "550 5.4.4 the domain points to addresses that are not public")} == {
                (type(each), str(each.reply)) for each in outcomes
            }

    async def test_hosts_that_say_nothing_leave_time_for_the_next(self) -> None:
        """Three that take connections and do not greet; the fourth is well."""
        port = free_port()
        async with contextlib.AsyncExitStack() as stack:
            dns = await stack.enter_async_context(DnsPeer())
            silent = [ScriptedSmtpPeer(Behaviour(greeting=None), host=f"127.0.0.{n}", port=port) for n in (2, 3, 4)]
            well = ScriptedSmtpPeer(host="127.0.0.5", port=port)
            for number, peer in enumerate((*silent, well)):
                await stack.enter_async_context(peer)
                dns.add("a.example", "MX", f"{number} mx{number}.example.")
                dns.add(f"mx{number}.example", "A", peer.host)
            settings = Settings(
                amqp_url="amqp://unused",
                database_url="postgresql://unused",
                hostname="us.example",
                dns_servers=((dns.host, dns.port),),
                smtp_port=port,
                allow_private_targets=True,
            )
            smtp = await stack.enter_async_context(open_smtp(settings, ready=1.0))
            async with asyncio.timeout(10):
                assert isinstance(await send(smtp), Delivered)
            assert [1, 1, 1, 1] == [peer.connections for peer in (*silent, well)]

    async def test_a_handshake_that_stalls_leaves_time_for_the_clear(self) -> None:
        """At one of several addresses, too, whose time together is short."""
        port = free_port()
        tls = tls_context(trustme.CA(), ["mx.a.example"])
        async with contextlib.AsyncExitStack() as stack:
            dns = await stack.enter_async_context(DnsPeer())
            dns.add("a.example", "MX", "10 mx.a.example.")
            for host in ("127.0.0.2", "127.0.0.3"):
                dns.add("mx.a.example", "A", host)
                peer = ScriptedSmtpPeer(Behaviour(starttls="silent"), host=host, port=port, tls=tls)
                await stack.enter_async_context(peer)
            settings = Settings(
                amqp_url="amqp://unused",
                database_url="postgresql://unused",
                hostname="us.example",
                dns_servers=((dns.host, dns.port),),
                smtp_port=port,
                allow_private_targets=True,
            )
            patience = msgspec.structs.replace(TIMEOUTS, tls=0.3)
            smtp = await stack.enter_async_context(open_smtp(settings, ready=6.0, patience=patience))
            assert isinstance(await send(smtp), Delivered)

    async def test_an_attempt_that_ran_out_of_time_is_a_failure(self, rooms: Rooms) -> None:
        """A tarpit would else have its share for ever."""
        async with ScriptedSmtpPeer(Behaviour(greeting=None)) as peer:
            target = f"127.0.0.1:{peer.port}"
            for _ in range(FAILURES):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await send(rooms.smtp, target)
            put_off = await send(rooms.smtp, target)
            assert isinstance(put_off, Deferred)
            assert "did not answer 5 times" in put_off.reply.text


class TestPutOff:
    """What a transport had no room for, in the middle of an attempt."""

    ROUTE = Route(version=1, key="a.example", targets=("b.example", "c.example"))

    def parked(self, **fields: object) -> Delivery:
        """Return a delivery that SMTP put off after HTTPS had its turn."""
        return delivery(route=self.ROUTE, lacking="https://b.example/mxdeliv", put_off="smtp", **fields)

    def test_it_goes_on_where_it_was(self) -> None:
        """HTTPS may have handed the message over, and lost the answer: it must not do so each time."""
        again = self.parked().rerouted(msgspec.structs.replace(self.ROUTE, version=2))
        assert (False, "https://b.example/mxdeliv", 2) == (again.by_https, again.lacking, again.route.version)

    def test_also_at_a_later_target(self) -> None:
        """The first one has had its turn in this attempt."""
        second = self.parked().at_next_target().but(put_off="smtp")
        again = second.rerouted(self.ROUTE)
        assert (("c.example",), False) == (again.route.targets, again.by_https)

    @pytest.mark.parametrize("changes", [{"targets": ("d.example",)}, {"tls": "verify"}, {"key": "*"}])
    def test_a_new_rule_begins_anew(self, changes: dict[str, Any]) -> None:
        """The rules of the moment apply."""
        again = self.parked().rerouted(msgspec.structs.replace(self.ROUTE, **changes))
        assert (True, "", None) == (again.by_https, again.lacking, again.put_off)
