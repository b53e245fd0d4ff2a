"""Delivery by SMTP: what hosts refuse, and replies that do not fit, with PIPELINING and without."""

import asyncio

import pytest

from shared.mail.outcome import Deferred, Delivered, Failed, Outcome
from tests.integration.test_smtp_faults import BOTH, at, deliver, impatient, kinds, then_all_is_well
from tests.peers.behaviour import GREETING
from tests.peers.smtp import END_OF_DATA, Behaviour

pytestmark = pytest.mark.anyio

CLOSING = "421 4.3.2 shutting down"
NEVER = "550 5.1.1 unknown"
LATE = 0.1  # seconds
THREE = ("ok@a.example", "never@a.example", "later@a.example")
REFUSE = {"never@a.example": NEVER, "later@a.example": "450 4.2.1 busy"}
# With and without the enhanced code, on one line and on several, and with codes nobody has heard of.
REFUSALS = [
    ("550 5.7.1 no", Failed),
    ("554-5.7.1 not\n554 5.7.1 ever", Failed),
    ("599 never", Failed),
    ("451 4.7.1 later", Deferred),
    ("450-not\n450 now", Deferred),
    ("499 some time", Deferred),
]


@BOTH
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", END_OF_DATA])
@pytest.mark.parametrize(("reply", "kind"), REFUSALS)
async def test_a_refusal_at_any_command_is_the_outcome(
    reply: str, kind: type[Outcome], verb: str, pipelining: bool
) -> None:
    """No other host is tried, and the connection is as good as before."""
    behaviour = at(pipelining, replies={verb: reply})
    async with (
        impatient() as room,
        room.peer("10 mx1.example.", behaviour) as first,
        room.peer("20 mx2.example.") as second,
    ):
        outcomes = await deliver(room, "b@a.example", "c@a.example")
        assert [kind, kind] == kinds(outcomes)
        assert {reply[:3]} == {str(each.reply.code) for each in outcomes}
        assert "RSET" in first.commands
        await then_all_is_well(room, first, second)
        assert (1, 0) == (first.connections, second.connections)


@BOTH
@pytest.mark.parametrize(
    "replies",
    [{"EHLO": "550 5.7.1 no", "HELO": "550 5.7.1 no"}, {"EHLO": "450 later", "HELO": "450 later"}, {"EHLO": CLOSING}],
)
async def test_a_refused_ehlo_is_a_fault_of_the_host(replies: dict[str, str], pipelining: bool) -> None:
    """It says nothing of the recipients."""
    async with (
        impatient() as room,
        room.peer("10 mx1.example.", at(pipelining, replies=replies)) as first,
        room.peer("20 mx2.example.") as second,
    ):
        assert [Delivered] == kinds(await deliver(room))
        assert 1 == len(second.received)
        await then_all_is_well(room, first, second)


@BOTH
@pytest.mark.parametrize("verb", [GREETING, "EHLO", "MAIL", "RCPT", "DATA", END_OF_DATA, "RSET"])
async def test_421_at_any_command_ends_the_connection(verb: str, pipelining: bool) -> None:
    """Until the message is sent the next host is tried; then this one may have it; with RSET all has been said."""
    fields: dict[str, object] = {"greeting": CLOSING} if verb == GREETING else {"replies": {verb: CLOSING}}
    if verb == "RSET":
        fields["refuse"] = {"b@a.example": NEVER}
    async with (
        impatient() as room,
        room.peer("10 mx1.example.", at(pipelining, **fields)) as first,
        room.peer("20 mx2.example.") as second,
    ):
        expected = {"RSET": Failed, END_OF_DATA: Deferred}.get(verb, Delivered)
        assert [expected] == kinds(await deliver(room))
        assert (expected is Delivered) == second.connections
        await then_all_is_well(room, first, second)
        assert 2 == first.connections


@BOTH
async def test_421_in_the_middle_of_the_recipients(pipelining: bool) -> None:
    """Who was refused for good before is told; nobody gets the message, and all others wait."""
    refuse = {"never@a.example": NEVER, "too-many@a.example": "421 4.7.0 too many errors"}
    async with impatient() as room, room.peer("10 mx1.example.", at(pipelining, refuse=refuse)) as peer:
        outcomes = await deliver(room, "ok@a.example", "never@a.example", "too-many@a.example", "z@a.example")
        assert [Deferred, Failed, Deferred, Deferred] == kinds(outcomes)
        assert not peer.received
        await then_all_is_well(room, peer)


@BOTH
async def test_three_recipients_three_outcomes(pipelining: bool) -> None:
    """One accepted, one refused, one put off; the first alone gets the message."""
    async with impatient() as room, room.peer("10 mx1.example.", at(pipelining, refuse=REFUSE)) as peer:
        outcomes = await deliver(room, *THREE)
        assert [Delivered, Failed, Deferred] == kinds(outcomes)
        assert {"mx1.example"} == {each.reply.mta for each in outcomes}
        assert [("ok@a.example",)] == [each.rcpt_to for each in peer.received]
        await then_all_is_well(room, peer)
        assert 1 == peer.connections


@BOTH
@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, True),  # DATA is refused: there is no recipient
        ({"data_anyway": True}, True),  # 354, then the empty message is refused
        ({"data_anyway": True, "replies": {END_OF_DATA: "250 2.0.0 queued"}}, False),  # and taken, for nobody
        ({"data_anyway": True, "raw": {END_OF_DATA: b"25"}}, False),
        ({"data_anyway": True, "hang_up_at": END_OF_DATA}, False),
        ({"data_anyway": True, "replies": {END_OF_DATA: CLOSING}}, False),
    ],
)
async def test_all_refused_and_the_host_wants_a_message(
    fields: dict[str, object], kept: bool, pipelining: bool
) -> None:
    """RFC 2920 3.1: it gets a lone dot, and is only trusted on when it refuses that. Nobody's outcome depends on it."""
    behaviour = at(pipelining, refuse=REFUSE, **fields)
    async with impatient() as room, room.peer("10 mx1.example.", behaviour) as peer:
        assert [Failed, Deferred] == kinds(await deliver(room, *THREE[1:]))
        bodies = [each.body for each in (*peer.received, *peer.refused)]
        assert [b""] * (pipelining and "data_anyway" in fields) == bodies
        await then_all_is_well(room, peer)
        assert (kept or not pipelining) == (peer.connections == 1)


@BOTH
@pytest.mark.parametrize("anyway", [True, False])
async def test_mail_refused_and_the_host_wants_a_message(anyway: bool, pipelining: bool) -> None:
    """It never gets one, not even an empty one: it might take it. Without the 354 the connection is kept."""
    behaviour = at(pipelining, replies={"MAIL": "550 5.7.1 no"}, data_anyway=anyway)
    async with impatient() as room, room.peer("10 mx1.example.", behaviour) as peer:
        assert [Failed, Failed] == kinds(await deliver(room, "b@a.example", "c@a.example"))
        assert ([], []) == (peer.received, peer.refused)
        await then_all_is_well(room, peer)
        assert (anyway and pipelining) == (peer.connections == 2)


@BOTH
@pytest.mark.parametrize("after", [0, LATE])
@pytest.mark.parametrize("verb", [GREETING, "EHLO", "MAIL", "RCPT", "DATA", END_OF_DATA, "RSET"])
async def test_a_reply_too_many(verb: str, after: float, pipelining: bool) -> None:
    """It answers no command. Nobody fails by another's refusal, and the connection is not used again.

    One that comes later than the next command is read as its reply, and each one after it as that to the command
    before: this shows, at the latest, when the reply to DATA is none or comes for RSET.
    """
    replies = {END_OF_DATA: "451 4.3.0 not now"} if verb == "RSET" else {}
    extra = {verb: "250 2.0.0 by the way"}
    behaviour = at(pipelining, refuse=REFUSE, replies=replies, extra=extra, extra_after=after)
    async with (
        impatient() as room,
        room.peer("10 mx1.example.", behaviour) as first,
        room.peer("20 mx2.example.", at(pipelining, refuse=REFUSE)) as second,
    ):
        ok, _, later = outcomes = await deliver(room, "ok@a.example", "never@a.example", "later@a.example")
        assert (False, Deferred) == (isinstance(ok, Failed), type(later))
        assert isinstance(ok, Delivered) == (len(first.received) + len(second.received))
        assert isinstance(ok, Delivered) >= (END_OF_DATA == verb), outcomes
        await asyncio.sleep(2 * after)
        await then_all_is_well(room, first, second)
        assert 2 == first.received[-1].connection


@BOTH
async def test_a_reply_too_many_while_the_next_message_is_under_way(pipelining: bool) -> None:
    """That message waits, or goes on a new connection at once when this shows in time; nobody fails by it."""
    extra = {END_OF_DATA: "250 2.0.0 by the way"}
    behaviour = at(pipelining, extra=extra, extra_after=LATE, refuse=REFUSE)
    async with impatient() as room, room.peer("10 mx1.example.", behaviour) as peer:
        assert [Delivered] == kinds(await deliver(room, "ok@a.example"))
        found = kinds(await deliver(room, "ok@a.example", "later@a.example", "never@a.example"))
        assert found in ([Deferred, Deferred, Deferred], [Delivered, Deferred, Failed])
        assert 1 + found.count(Delivered) == len(peer.received)
        await asyncio.sleep(2 * LATE)
        await then_all_is_well(room, peer)


@BOTH
@pytest.mark.parametrize("count", [1, 100])
async def test_many_recipients(count: int, pipelining: bool) -> None:
    """Each has the reply to her own RCPT, also when every third is refused and the host is slow to read."""
    rcpt_to = [f"{'r' * 60}{number}@a.example" for number in range(count)]
    refuse = {each: f"550 5.1.1 {each} unknown" for each in rcpt_to[2::3]}
    async with impatient() as room, room.peer("10 mx1.example.", at(pipelining, refuse=refuse)) as peer:
        outcomes = await deliver(room, *rcpt_to)
        for recipient, outcome in zip(rcpt_to, outcomes, strict=True):
            assert (recipient in refuse) == isinstance(outcome, Failed) == (recipient in outcome.reply.text)
        assert [tuple(each for each in rcpt_to if each not in refuse)] == [each.rcpt_to for each in peer.received]
        await then_all_is_well(room, peer)


async def test_an_old_server_refuses_too() -> None:
    """HELO, and no extensions: one by one."""
    behaviour = Behaviour(replies={"EHLO": "502 5.5.1 what?"}, refuse=REFUSE)
    async with impatient() as room, room.peer("10 mx1.example.", behaviour) as peer:
        assert [Delivered, Failed, Deferred] == kinds(await deliver(room, *THREE))
        await then_all_is_well(room, peer)
