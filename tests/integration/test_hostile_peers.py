"""Peers whose words must not be believed: what they say is no reason to lose a message or to bounce it."""

from collections.abc import AsyncIterator

import pytest

from shared.mail.outcome import Deferred, Delivered, Outcome
from shared.mail.route import Route
from tests.integration.conftest import MESSAGE, delivery
from tests.integration.rooms import SmtpRoom, open_smtp
from tests.peers.smtp import END_OF_DATA, Behaviour, ScriptedSmtpPeer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def room() -> AsyncIterator[SmtpRoom]:
    """The transport."""
    async with open_smtp() as room:
        yield room


async def one(room: SmtpRoom, peer: ScriptedSmtpPeer, message: bytes = MESSAGE) -> Outcome:
    """Deliver to a peer by a rule; return the outcome."""
    route = Route(version=1, key="a.example", targets=(f"127.0.0.1:{peer.port}",))
    [outcome] = (await room.transport.deliver(delivery(route=route), message)).values()
    return outcome


async def test_success_without_having_taken_the_message_is_no_delivery(room: SmtpRoom) -> None:
    """A 250 to DATA itself, in place of 354: not one byte of the message went."""
    async with ScriptedSmtpPeer(Behaviour(replies={"DATA": "250 2.0.0 fine"})) as peer:
        assert isinstance(await one(room, peer), Deferred)
        assert [] == peer.received


async def test_one_reply_too_many_does_not_deliver_the_next_message(room: SmtpRoom) -> None:
    """Two replies to one message would make each later message of the connection live by the word for another."""
    chatty = Behaviour(replies={END_OF_DATA: "250 2.0.0 queued\n250 2.0.0 by the way"})
    async with ScriptedSmtpPeer(chatty, Behaviour(refuse={"b@a.example": "450 4.2.1 not now"})) as peer:
        assert isinstance(await one(room, peer), Delivered)
        assert isinstance(await one(room, peer), Deferred)
        assert 2 == peer.connections


async def test_a_passing_tls_fault_does_not_bounce(room: SmtpRoom) -> None:
    """The host takes mail only with TLS, and TLS broke this once: its refusal is not the last word."""
    strict = Behaviour(starttls="broken", replies={"MAIL": "530 5.7.0 Must issue a STARTTLS command first"})
    async with ScriptedSmtpPeer(strict) as peer:
        outcome = await one(room, peer)
    assert isinstance(outcome, Deferred)
    assert "4.7.5" == outcome.reply.enhanced


async def test_552_to_a_recipient_is_too_many_for_now(room: SmtpRoom) -> None:
    """Old servers say 552 where 452 is meant (RFC 5321 4.5.3.1.10)."""
    async with ScriptedSmtpPeer(Behaviour(refuse={"b@a.example": "552 too many recipients"})) as peer:
        assert isinstance(await one(room, peer), Deferred)
