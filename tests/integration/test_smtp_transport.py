"""Delivery by SMTP against well-behaved and misbehaving peers: hosts, replies and faults."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, Unsuited
from shared.mail.route import Route, Transport
from tests.integration.conftest import MESSAGE, delivery
from tests.integration.rooms import SmtpRoom, open_smtp
from tests.integration.test_smtp_faults import impatient
from tests.peers.dns import Fault
from tests.peers.smtp import END_OF_DATA, HELO_ONLY, Behaviour, ScriptedSmtpPeer, SmtpPeer

pytestmark = pytest.mark.anyio

PHASES = ("EHLO", "MAIL", "RCPT")


@pytest.fixture
async def room() -> AsyncIterator[SmtpRoom]:
    """The transport, with a DNS server that knows nothing yet."""
    async with open_smtp() as room:
        yield room


async def deliver(room: SmtpRoom, *rcpt_to: str, message: bytes = MESSAGE, **fields: object) -> dict[str, Outcome]:
    """Deliver and return the outcomes."""
    part = delivery(*rcpt_to, **fields)
    outcomes = dict(await room.transport.deliver(part, message))
    assert list(part.envelope.rcpt_to) == list(outcomes)
    return outcomes


async def one(room: SmtpRoom, *, message: bytes = MESSAGE, **fields: object) -> Outcome:
    """Deliver to one recipient and return the outcome."""
    [outcome] = (await deliver(room, message=message, **fields)).values()
    return outcome


def ruled(*targets: str, transport: Transport = "auto") -> Route:
    """Return the route of a rule."""
    return Route(version=1, key="a.example", targets=targets, transport=transport)


class TestHosts:
    """Which host is tried, and when the next one is."""

    async def test_the_best_mx_is_used(self, room: SmtpRoom) -> None:
        """One of two that both work; the other is not even connected to."""
        async with room.peer("10 mx1.example.") as first, room.peer("20 mx2.example.") as second:
            assert isinstance(await one(room), Delivered)
            assert (1, 0) == (len(first.received), second.connections)
            assert ("a@from.example", ("b@a.example",)) == (first.received[0].mail_from, first.received[0].rcpt_to)
            assert "mail.pushpush.example" == first.received[0].helo

    async def test_without_mx_the_domain_is_the_host(self, room: SmtpRoom) -> None:
        """The implicit MX of RFC 5321 5.1."""
        async with room.peer(None) as peer:
            assert isinstance(await one(room), Delivered)
            assert 1 == len(peer.received)

    async def test_a_literal_is_the_host(self, room: SmtpRoom) -> None:
        """No name is asked for."""
        async with room.peer(None) as peer:
            assert isinstance(await one(room, domain=f"[{peer.host}]"), Delivered)
            assert not room.dns.queries

    async def test_a_rule_names_host_and_port(self, room: SmtpRoom) -> None:
        """No MX of the target is asked for, and by SMTP alone several targets are tried in order."""
        async with SmtpPeer() as peer:
            route = ruled("127.0.0.1:1", f"b.example:{peer.port}", transport="smtp")
            room.dns.add("b.example", "A", peer.host)
            room.dns.add("b.example", "MX", "10 nowhere.example.")
            assert isinstance(await one(room, route=route), Delivered)
            assert 0 == room.dns.queries["b.example", "MX"]

    @pytest.mark.parametrize(
        ("answer", "enhanced"),
        [("null", "5.1.10"), (Fault.NXDOMAIN, "5.1.2"), (Fault.SERVFAIL, "4.4.3")],
    )
    async def test_what_dns_says_decides(self, room: SmtpRoom, answer: Fault | str, enhanced: str) -> None:
        """Null MX and a missing domain are permanent, a fault is temporary; for every recipient."""
        if isinstance(answer, Fault):
            room.dns.fault("a.example", answer)
        else:
            room.dns.add("a.example", "MX", "0 .")
        outcomes = await deliver(room, "b@a.example", "c@a.example")
        assert {enhanced} == {each.reply.enhanced for each in outcomes.values()}
        assert {Failed if enhanced.startswith("5") else Deferred} == {type(each) for each in outcomes.values()}

    async def test_private_addresses_need_a_rule(self) -> None:
        """A stranger's address must not make the fleet call an internal service; a rule may."""
        async with open_smtp(allow_private=False) as room, room.peer("10 mx1.example.") as peer:
            outcome = await one(room)
            assert isinstance(outcome, Failed)
            assert ("5.4.4", 0) == (outcome.reply.enhanced, peer.connections)
            assert isinstance(await one(room, domain="[127.0.0.1]"), Failed)
            route = Route(version=1, key="a.example", targets=("mx1.example",))
            assert isinstance(await one(room, route=route), Delivered)

    async def test_a_host_that_can_never_take_mail_bounces_nothing_while_another_is_down(self) -> None:
        """MX 10 is down today and MX 20 points to a private address: wait, since MX 10 may come back."""
        async with open_smtp(allow_private=False) as room:
            room.dns.add("a.example", "MX", "10 mx1.example.", "20 mx2.example.")
            room.dns.add("mx1.example", "TXT", '"no address today"')
            room.dns.add("mx2.example", "A", "127.0.0.1")
            assert isinstance(await one(room), Deferred)

    @pytest.mark.parametrize(
        "behaviour",
        [
            Behaviour(greeting="421 4.3.2 not now"),
            Behaviour(greeting="554 5.3.2 no service here"),
            Behaviour(greeting=b"\xff\xfe\x00 gibberish\r\n"),
            Behaviour(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            *(Behaviour(hang_up_at=verb) for verb in PHASES),
            *(Behaviour(replies={verb: "421 4.3.2 shutting down"}) for verb in PHASES),
        ],
    )
    async def test_a_connection_fault_tries_the_next_host(self, room: SmtpRoom, behaviour: Behaviour) -> None:
        """Before the message was on its way, every fault of a connection means: this host not, perhaps the next one."""
        async with room.peer("10 mx1.example.", behaviour) as first, room.peer("20 mx2.example.") as second:
            assert isinstance(await one(room), Delivered)
            assert (0, 1) == (len(first.received), len(second.received))

    async def test_when_all_hosts_fail_it_is_temporary(self, room: SmtpRoom) -> None:
        """Nobody listens: also a 554 in every greeting is no word about the recipient."""
        async with room.peer("10 mx1.example.", Behaviour(greeting="554 5.3.2 no")):
            room.dns.add("a.example", "MX", "20 mx2.example.")
            room.dns.add("mx2.example", "A", "127.0.0.77")
            outcome = await one(room)
            assert isinstance(outcome, Deferred)
            assert "4.4.1" == outcome.reply.enhanced

    async def test_strange_bytes_of_a_host_do_not_break_the_delivery(self, room: SmtpRoom) -> None:
        """What a host says is text that can be stored, logged and reported, whatever its bytes are."""
        for behaviour in (
            Behaviour(greeting=b"220 \xff\x00\r\n", hang_up_at="EHLO"),
            Behaviour(greeting=b"\xff\x00\xfe\r\n"),
            Behaviour(replies={"MAIL": "451 \udcff\x00\x1b[31m"}),
            Behaviour(replies={"MAIL": "\udcff\udcfe"}),
            Behaviour(replies={"EHLO": "\udcff\udcfe", "HELO": "\udcff"}),
        ):
            async with ScriptedSmtpPeer(behaviour) as peer:
                route = Route(version=1, key="a.example", targets=(f"127.0.0.1:{peer.port}",))
                outcome = await one(room, route=route)
                assert isinstance(outcome, Deferred), behaviour
                assert outcome.reply.text.encode().isascii() or outcome.reply.text.isprintable()
                assert "\x00" not in outcome.reply.text


class TestNextTarget:
    """With `auto`, what SMTP cannot do at one target is left to the next, which has its turn by HTTPS first."""

    @pytest.mark.parametrize(
        "behaviour",
        [
            Behaviour(greeting="421 4.3.2 not now"),
            Behaviour(greeting="554 5.3.2 no service here"),
            *(Behaviour(hang_up_at=verb) for verb in PHASES),
        ],
    )
    async def test_a_connection_fault_leaves_it_to_the_next_target(self, room: SmtpRoom, behaviour: Behaviour) -> None:
        """For all recipients, and the next one is not asked here; at the last target it waits."""
        async with ScriptedSmtpPeer(behaviour) as peer, SmtpPeer() as other:
            first, second = f"127.0.0.1:{peer.port}", f"127.0.0.1:{other.port}"
            outcomes = await deliver(room, "b@a.example", "c@a.example", route=ruled(first, second))
            assert {Unsuited} == {type(each) for each in outcomes.values()}
            assert (True, 0) == (peer.connections > 0, other.connections)
            assert isinstance(await one(room, route=ruled(first)), Deferred)
            assert 0 == other.connections

    @pytest.mark.parametrize("fault", [Fault.NXDOMAIN, Fault.SERVFAIL, Fault.REFUSED, None])
    async def test_a_target_without_an_address_is_one_too(self, room: SmtpRoom, fault: Fault | None) -> None:
        """Unknown, without an address, or not to be looked up."""
        if fault is None:
            room.dns.add("b.example", "TXT", '"no address"')
        else:
            room.dns.fault("b.example", fault)
        assert isinstance(await one(room, route=ruled("b.example", "c.example")), Unsuited)
        assert isinstance(await one(room, route=ruled("b.example")), Deferred)

    async def test_all_addresses_of_a_target_are_tried_first(self, room: SmtpRoom) -> None:
        """One dead address does not make a target dead."""
        async with room.peer("10 b.example.") as peer:
            room.dns.add("b.example", "A", "127.0.0.77")
            for _ in range(4):
                assert isinstance(await one(room, route=ruled("b.example", "c.example")), Delivered)
            assert 4 == len(peer.received)

    async def test_a_target_that_says_nothing_does_not_use_up_the_attempt(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has more addresses than there is time for; the next target must have its turn in this attempt."""
        monkeypatch.setattr("workers.smtp.transport.PATIENCE", 0.1)
        silent = Behaviour(greeting=None)
        async with (
            impatient() as room,
            room.peer("10 b.example.", silent) as first,
            room.peer("10 b.example.", silent) as second,
        ):
            assert isinstance(await one(room, route=ruled("b.example", "c.example")), Unsuited)
            assert 1 == first.connections + second.connections
            assert isinstance(await one(room, route=ruled("b.example")), Deferred)
            assert 3 == first.connections + second.connections

    async def test_once_the_message_was_on_its_way_it_waits(self, room: SmtpRoom) -> None:
        """The host may have taken it: at the next target it would perhaps arrive a second time."""
        async with ScriptedSmtpPeer(Behaviour(hang_up_at=END_OF_DATA)) as peer:
            assert isinstance(await one(room, route=ruled(f"127.0.0.1:{peer.port}", "c.example")), Deferred)

    @pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", END_OF_DATA])
    @pytest.mark.parametrize(("reply", "kind"), [("550 5.7.1 no", Failed), ("451 4.7.1 later", Deferred)])
    async def test_a_refusal_is_no_fault(self, room: SmtpRoom, verb: str, reply: str, kind: type[Outcome]) -> None:
        """A target that answers has decided."""
        async with ScriptedSmtpPeer(Behaviour(replies={verb: reply})) as peer:
            assert kind is type(await one(room, route=ruled(f"127.0.0.1:{peer.port}", "c.example")))

    async def test_whom_a_host_refused_before_it_hung_up_is_not_asked_for_elsewhere(self, room: SmtpRoom) -> None:
        """It is there and has answered: the others wait for it."""
        replies = {"n@a.example": "550 5.1.1 unknown", "m@a.example": "421 4.7.0 too many errors"}
        async with ScriptedSmtpPeer(Behaviour(refuse=replies)) as peer:
            route = ruled(f"127.0.0.1:{peer.port}", "c.example")
            outcomes = await deliver(room, "n@a.example", "m@a.example", "z@a.example", route=route)
        assert [Failed, Deferred, Deferred] == [type(each) for each in outcomes.values()]

    async def test_by_smtp_alone_all_dead_targets_are_one_deferral(self, room: SmtpRoom) -> None:
        """Nothing is left to another transport or target."""
        route = ruled("127.0.0.77", "b.example", transport="smtp")
        assert isinstance(await one(room, route=route), Deferred)


class TestReplies:
    """Every recipient gets its own outcome."""

    async def test_three_recipients_three_outcomes(self, room: SmtpRoom) -> None:
        """Accepted, deferred and refused in one transaction; the accepted one gets the message, the others do not."""
        behaviour = Behaviour(refuse={"later@a.example": "450 4.2.1 busy", "never@a.example": "550 5.1.1 unknown"})
        async with room.peer("10 mx1.example.", behaviour) as peer:
            outcomes = await deliver(room, "ok@a.example", "later@a.example", "never@a.example")
            assert [Delivered, Deferred, Failed] == [type(each) for each in outcomes.values()]
            assert ["250", "450 4.2.1 busy", "550 5.1.1 unknown"] == [
                str(each.reply).removesuffix(" 2.0.0 queued") for each in outcomes.values()
            ]
            assert {"mx1.example"} == {each.reply.mta for each in outcomes.values()}
            assert [("ok@a.example",)] == [each.rcpt_to for each in peer.received]

    @pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", END_OF_DATA])
    @pytest.mark.parametrize(("reply", "kind"), [("550 5.7.1 no", Failed), ("451 4.7.1 later", Deferred)])
    async def test_a_refusal_is_final_for_this_attempt(
        self, room: SmtpRoom, verb: str, reply: str, kind: type[Outcome]
    ) -> None:
        """A host that answers has decided: no other host is asked, and the connection can be used again."""
        behaviour = Behaviour(replies={verb: reply})
        async with room.peer("10 mx1.example.", behaviour) as first, room.peer("20 mx2.example.") as second:
            outcome = await one(room)
            assert (kind, reply) == (type(outcome), str(outcome.reply))
            await one(room)
            assert (1, 0) == (first.connections, second.connections)

    @pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", END_OF_DATA])
    async def test_a_refusal_counts_although_the_host_hangs_up(self, room: SmtpRoom, verb: str) -> None:
        """A 550 from a host that hangs up after it is a refusal, not a fault that is tried for five days."""
        async with room.peer("10 mx1.example.", Behaviour(replies={verb: "550 5.7.1 no"}, hang_up_after=verb)):
            outcome = await one(room)
            assert (Failed, "550 5.7.1 no") == (type(outcome), str(outcome.reply))

    @pytest.mark.parametrize("verb", [END_OF_DATA])
    @pytest.mark.parametrize("how", ["hang_up_at", "421"])
    async def test_once_the_message_was_on_its_way_no_other_host_is_tried(
        self, room: SmtpRoom, verb: str, how: str
    ) -> None:
        """The host may have taken it: deferred, and the next host gets nothing in this attempt."""
        behaviour = Behaviour(hang_up_at=verb) if how == "hang_up_at" else Behaviour(replies={verb: "421 4.3.2 gone"})
        async with room.peer("10 mx1.example.", behaviour), room.peer("20 mx2.example.") as second:
            assert {Deferred} == {type(each) for each in (await deliver(room, "b@a.example", "c@a.example")).values()}
            assert 0 == second.connections

    async def test_the_refused_are_told_although_the_host_gives_up_on_the_rest(self, room: SmtpRoom) -> None:
        """A host hangs up after some unknown recipients: those have failed, so the next attempt gets further."""
        replies = {"n1@a.example": "550 5.1.1 unknown", "n2@a.example": "421 4.7.0 too many errors"}
        async with room.peer("10 mx1.example.", Behaviour(refuse=replies)):
            outcomes = await deliver(room, "ok@a.example", "n1@a.example", "n2@a.example", "z@a.example")
        assert [Deferred, Failed, Deferred, Deferred] == [type(each) for each in outcomes.values()]

    async def test_an_old_server_is_greeted_with_helo(self, room: SmtpRoom) -> None:
        """RFC 5321 3.2: a server that knows no EHLO gets HELO, and no extensions."""
        async with room.peer("10 mx1.example.", HELO_ONLY) as peer:
            assert isinstance(await one(room, message="Subject: ü\r\n\r\nü\r\n".encode()), Delivered)
            assert "MAIL FROM:<a@from.example>" in peer.commands


class TestKeptConnections:
    """Connections are used again, and replaced when they are gone."""

    async def test_one_connection_for_many_messages(self, room: SmtpRoom) -> None:
        """Also after a refusal; and never for two messages at once."""
        async with room.peer("10 mx1.example.", Behaviour(refuse={"n@a.example": "550 no"})) as peer:
            for recipient in ("b@a.example", "n@a.example", "c@a.example"):
                await deliver(room, recipient)
            assert 1 == peer.connections
            await asyncio.gather(*(one(room) for _ in range(3)))
            assert 3 == peer.connections

    @pytest.mark.parametrize(
        "first",
        [
            Behaviour(hang_up_after=END_OF_DATA),
            Behaviour(max_messages=1),
            Behaviour(max_messages=1, replies={"RSET": "421 4.4.2 idle too long"}),
        ],
    )
    async def test_one_that_the_host_ended_is_replaced(self, room: SmtpRoom, first: Behaviour) -> None:
        """Without a word, or with a 421 to the next MAIL: the message goes on a new connection, in the same attempt."""
        async with room.peer("10 mx1.example.", first, Behaviour()) as peer:
            assert [Delivered, Delivered] == [type(await one(room)) for _ in range(2)]
            assert [1, 2] == [each.connection for each in peer.received]

    async def test_a_message_that_was_cancelled_spoils_no_other(self, room: SmtpRoom) -> None:
        """A connection in the middle of a message is not used again."""
        behaviour = Behaviour(delays={"RCPT": 0.3})
        async with room.peer("10 mx1.example.", behaviour, Behaviour()) as peer:
            task = asyncio.create_task(one(room))
            await peer.wait_until(lambda: any(line.startswith("RCPT") for line in peer.commands))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert isinstance(await one(room), Delivered)
            assert [2] == [each.connection for each in peer.received]

    async def test_they_end_politely(self) -> None:
        """At the end of the room each kept connection gets a QUIT."""
        async with open_smtp() as room:
            peer = await room.stack.enter_async_context(room.peer("10 mx1.example."))
            await one(room)
            await room.close()
            assert "QUIT" == peer.commands[-1]
