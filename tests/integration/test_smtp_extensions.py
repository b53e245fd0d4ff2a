"""Delivery by SMTP: what is made of the extensions a host offers, and of its name."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme

from shared.mail.outcome import Deferred, Delivered, Failed
from shared.mail.route import Route
from tests.integration.conftest import MESSAGE
from tests.integration.test_smtp_faults import BOTH, at, deliver, impatient, kinds, then_all_is_well
from tests.peers.smtp import END_OF_DATA, HELO_ONLY, Behaviour
from tests.peers.tls import tls_context

pytestmark = pytest.mark.anyio

OURSELVES = Behaviour(extensions=("PIPELINING",))
BIG = 8 * 2**20


def via(*targets: str) -> Route:
    """Return the route of a rule."""
    return Route(version=1, key="a.example", targets=targets)


@contextlib.asynccontextmanager
async def mute(*steps: tuple[bytes, bytes]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Listen as a host that says the second only when everything up to the end of the first is there."""
    chunks: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mute.example ESMTP\r\n")
        for awaited, reply in steps:
            chunks.append(await reader.readuntil(awaited))
            writer.write(reply)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        yield server.sockets[0].getsockname()[1], chunks


class TestPipelining:
    """RFC 2920."""

    async def test_mail_every_rcpt_and_data_go_together(self) -> None:
        """Before a single reply; then the message with its dot; and the next message likewise."""
        replies = b"250 OK\r\n250 OK\r\n550 5.1.1 unknown\r\n354 go on\r\n"
        hello = (b"\r\n", b"250-mute.example\r\n250 PIPELINING\r\n")
        message = (b"\r\n.\r\n", b"250 2.0.0 queued\r\n")
        steps = [hello, (b"DATA\r\n", replies), message, (b"DATA\r\n", replies), message]
        async with mute(*steps) as (port, chunks), impatient() as room:
            for _ in range(2):
                rcpt_to = ("b@a.example", "c@a.example")
                outcomes = await deliver(room, *rcpt_to, route=via(f"127.0.0.1:{port}"))
                assert [Delivered, Failed] == kinds(outcomes)
            commands = b"MAIL FROM:<a@from.example>\r\nRCPT TO:<b@a.example>\r\nRCPT TO:<c@a.example>\r\nDATA\r\n"
            assert [commands, MESSAGE + b".\r\n"] * 2 == chunks[1:]

    async def test_a_host_that_does_not_offer_it_is_not_hurried(self) -> None:
        """Each command waits for the reply before; a HELO host has no extensions."""
        async with impatient() as room:
            for behaviour in (at(False, delays={"MAIL": 0.1}), HELO_ONLY):
                async with room.peer(None, behaviour) as peer:
                    assert [Delivered] == kinds(await deliver(room, domain=f"[{peer.host}]"))
                    assert "DATA" in peer.commands

    @BOTH
    async def test_replies_may_come_in_any_pieces(self, pipelining: bool) -> None:
        """TCP knows no lines: byte by byte, in several lines, with bare LF."""
        raw = {"MAIL": b"250-2.1.0 so\n250 2.1.0 far\n", "RCPT": b"250\r\n"}
        async with impatient() as room, room.peer("10 mx1.example.", at(pipelining, raw=raw)) as peer:
            assert [Delivered, Delivered] == kinds(await deliver(room, "b@a.example", "c@a.example"))
            await then_all_is_well(room, peer)


@pytest.mark.parametrize(
    "replies",
    [b"250 OK\r\n250 OK\r\n550 5.1.1 d\r\n354 go on\r\n", b"250 OK\r\n550 5.1.1 c\r\n550 5.1.1 d\r\n503 5.5.1 no\r\n"],
    ids=["one accepted", "none"],
)
async def test_a_missing_reply_bounces_nobody(replies: bytes) -> None:
    """The host has not answered for the first of three recipients: each reply after it would be another's."""
    steps = ((b"\r\n", b"250-mute.example\r\n250 PIPELINING\r\n"), (b"DATA\r\n", replies))
    async with impatient() as room, mute(*steps) as (port, _):
        outcomes = await deliver(room, *(f"{each}@a.example" for each in "bcd"), route=via(f"127.0.0.1:{port}"))
        assert [Deferred] * 3 == kinds(outcomes)


@pytest.mark.parametrize("secure", [False, True], ids=["in the clear", "under TLS"])
class TestBlock:
    """A host that takes a long message slowly, or no more of it (RFC 5321 4.5.3.2.5)."""

    @BOTH
    async def test_as_long_as_it_reads_it_may_take_its_time(self, secure: bool, pipelining: bool) -> None:
        """In pauses that last longer than its patience, taken together."""
        message = MESSAGE + b"x" * BIG
        behaviour = at(pipelining, reads="slowly")
        async with impatient(dot=5) as room, room.peer("10 mx1.example.", behaviour, tls=tls_if(secure)) as peer:
            assert [Delivered] == kinds(await deliver(room, message=message))
            assert [(message + b"\r\n", secure)] == [(each.body, each.tls) for each in peer.received]
            await then_all_is_well(room, peer)

    @BOTH
    async def test_one_that_reads_no_more_is_left(self, secure: bool, pipelining: bool) -> None:
        """Its message waits, and the connection does not stay open for what is unsent."""
        behaviour = at(pipelining, reads="nothing")
        async with impatient(dot=60) as room, room.peer("10 mx1.example.", behaviour, tls=tls_if(secure)) as peer:
            async with asyncio.timeout(5):
                [outcome] = await deliver(room, message=MESSAGE + b"x" * BIG)
            assert isinstance(outcome, Deferred)
            assert "took nothing of the message" in outcome.reply.text
            await then_all_is_well(room, peer)

    @BOTH
    @pytest.mark.parametrize("reply", ["552 5.3.4 too large", "250 2.0.0 enough"])
    async def test_a_reply_in_mid_message(self, secure: bool, reply: str, pipelining: bool) -> None:
        """A refusal counts; a success is none, since the host does not have the message."""
        behaviour = at(pipelining, extra={"DATA": reply}, extra_after=0.2, reads="nothing")
        tls = tls_if(secure)
        async with impatient(block=5, dot=5) as room, room.peer("10 mx1.example.", behaviour, tls=tls) as peer:
            outcomes = await deliver(room, message=MESSAGE + b"x" * BIG)
            assert [Failed if reply.startswith("5") else Deferred] == kinds(outcomes)
            await then_all_is_well(room, peer)


async def test_a_host_that_never_had_the_end_of_a_message_cannot_have_taken_it() -> None:
    """The next one gets it in the same attempt: a path that breaks on large mail would else keep it for five days."""
    message = MESSAGE + b"x" * BIG
    async with (
        impatient() as room,
        room.peer("10 mx1.example.", at(True, hang_up_after="DATA")) as first,
        room.peer("20 mx2.example.") as second,
    ):
        assert [Delivered] == kinds(await deliver(room, message=message))
        assert [message + b"\r\n"] == [each.body for each in second.received]
        await then_all_is_well(room, first, second)


def tls_if(secure: bool) -> ssl.SSLContext | None:
    """Return what a host needs to offer STARTTLS, which is used where it is offered."""
    return tls_context(trustme.CA(), ["mx1.example"]) if secure else None


class TestSize:
    """RFC 1870."""

    @pytest.mark.parametrize(
        "size", ["SIZE", "SIZE 0", "SIZE lots", f"SIZE {len(MESSAGE)}", "SIZE 99999999999999999999"]
    )
    async def test_what_is_not_too_large_is_announced(self, size: str) -> None:
        """No number and 0 are no limit; a message may have just as many bytes as the host takes."""
        async with impatient() as room, room.peer("10 mx1.example.", Behaviour(extensions=(size,))) as peer:
            assert [Delivered] == kinds(await deliver(room))
            assert f"MAIL FROM:<a@from.example> SIZE={len(MESSAGE)}" in peer.commands

    @BOTH
    async def test_what_is_too_large_is_not_even_begun(self, pipelining: bool) -> None:
        """For every recipient, and the connection is as good as before. Line ends count as they are sent."""
        offered = ("PIPELINING", "SIZE 60") if pipelining else ("SIZE 60",)
        async with impatient() as room, room.peer("10 mx1.example.", Behaviour(extensions=offered)) as peer:
            outcomes = await deliver(room, "b@a.example", "c@a.example", message=b"S: x\n\n" + b"x" * 52 + b"\n")
            assert ["552 5.3.4 the message has 62 bytes, mx1.example takes at most 60"] * 2 == [
                str(each.reply) for each in outcomes
            ]
            assert [Failed, Failed] == kinds(outcomes)
            assert [Delivered] == kinds(await deliver(room, message=b"S: x\n\n" + b"x" * 48 + b"\n"))
            assert 1 == peer.connections == sum(line.startswith("MAIL") for line in peer.commands)


class TestBody:
    """8BITMIME (RFC 6152)."""

    @pytest.mark.parametrize("offered", [("8BITMIME",), ()])
    async def test_bytes_of_8_bits_are_sent_as_they_are(self, offered: tuple[str, ...]) -> None:
        """Announced where it is offered, and never rewritten: signatures hold."""
        message = MESSAGE + b"\xff\xc3\xbc\r\n"
        async with impatient() as room, room.peer("10 mx1.example.", Behaviour(extensions=offered)) as peer:
            assert [Delivered] == kinds(await deliver(room, message=message))
            assert f"MAIL FROM:<a@from.example>{' BODY=8BITMIME' if offered else ''}" in peer.commands
            assert [message] == [each.body for each in peer.received]


class TestDsn:
    """RFC 3461."""

    ASKED: dict[str, Any] = {"ret": "HDRS", "envid": "QQ+2B314", "notify": "SUCCESS,DELAY"}  # noqa: RUF012 - never changed

    @BOTH
    async def test_what_the_sender_asked_for_is_passed_on(self, pipelining: bool) -> None:
        """And the host has taken responsibility for it."""
        offered = ("PIPELINING", "DSN") if pipelining else ("DSN",)
        async with impatient() as room, room.peer("10 mx1.example.", Behaviour(extensions=offered)) as peer:
            outcomes = await deliver(room, "b+c=d@a.example", "b@bücher.example", **self.ASKED)
            assert [True, True] == [isinstance(each, Delivered) and each.reports for each in outcomes]
            assert peer.commands[1:4] == [
                "MAIL FROM:<a@from.example> RET=HDRS ENVID=QQ+2B314",
                "RCPT TO:<b+c=d@a.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b+2Bc+3Dd@a.example",
                "RCPT TO:<b@xn--bcher-kva.example> NOTIFY=SUCCESS,DELAY",
            ]

    async def test_nothing_is_added_that_was_not_asked_for(self) -> None:
        """But for the address as the sender knows it. A refused message has no reports taken over."""
        behaviour = Behaviour(extensions=("DSN",), replies={END_OF_DATA: "550 5.7.1 no"})
        async with impatient() as room, room.peer("10 mx1.example.", behaviour) as peer:
            assert [Failed] == kinds(await deliver(room, f"{'=' * 180}@a.example", mail_from=""))
            assert peer.commands[1:3] == ["MAIL FROM:<>", f"RCPT TO:<{'=' * 180}@a.example>"]  # ORCPT is too long

    async def test_a_host_without_it_is_not_asked(self) -> None:
        """It would refuse the words; the reports stay ours."""
        async with impatient() as room, room.peer("10 mx1.example.", at(True)) as peer:
            [outcome] = await deliver(room, **self.ASKED)
            assert isinstance(outcome, Delivered)
            assert not outcome.reports
            assert "RCPT TO:<b@a.example>" in peer.commands


class TestLoop:
    """The host calls itself by our own name."""

    async def test_without_a_rule_it_waits(self) -> None:
        """And hosts that are worse than ourselves would give it back (RFC 5321 5.1): they are not asked."""
        async with (
            impatient() as room,
            room.peer("10 mx1.example.", OURSELVES) as peer,
            room.peer("20 mx2.example.") as second,
        ):
            peer.name = "Mail.PushPush.example offers extensions"
            outcomes = await deliver(room, "b@a.example", "c@a.example")
            assert [Deferred, Deferred] == kinds(outcomes)
            assert {"4.4.6"} == {each.reply.enhanced for each in outcomes}
            assert (0, False) == (second.connections, any(line.startswith("MAIL") for line in peer.commands))
            peer.name = "mx.peer.example"
            await then_all_is_well(room, peer)

    async def test_a_better_host_that_is_down_may_come_back(self) -> None:
        """Not every host of the domain is ourselves."""
        async with impatient() as room, room.peer("20 mx2.example.", OURSELVES) as peer:
            peer.name = "mail.pushpush.example"
            room.dns.add("a.example", "MX", "10 mx1.example.")
            room.dns.add("mx1.example", "A", "127.0.0.77")
            assert [Deferred] == kinds(await deliver(room))

    async def test_with_a_rule_the_operator_knows_what_is_there(self) -> None:
        """Another mail server on the same machine, under the same name."""
        async with impatient() as room, room.peer("10 b.example.", OURSELVES) as peer:
            peer.name = "mail.pushpush.example"
            assert [Delivered] == kinds(await deliver(room, route=via("b.example")))
