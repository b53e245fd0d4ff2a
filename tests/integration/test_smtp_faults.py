"""Delivery by SMTP to hosts that are slow, talk nonsense or hang up, with PIPELINING and without."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from shared.delivery.smtp import Timeouts
from shared.mail.outcome import Deferred, Delivered, Failed, Outcome
from tests.integration.conftest import MESSAGE, delivery, until
from tests.integration.rooms import SmtpRoom
from tests.peers.behaviour import EXTENSIONS, GREETING
from tests.peers.dns import DnsPeer
from tests.peers.smtp import END_OF_DATA, Behaviour, ScriptedSmtpPeer
from workers.smtp.transport import open_transport

pytestmark = pytest.mark.anyio

SHORT = 0.4  # seconds, of every time-out
IMPATIENT = Timeouts(**dict.fromkeys(Timeouts.__struct_fields__, SHORT))
BOTH = pytest.mark.parametrize("pipelining", [True, False], ids=["pipelining", "one by one"])
BEFORE = (GREETING, "EHLO", "MAIL", "RCPT", "DATA")  # until then not one byte of the message was sent
AFTER = (END_OF_DATA,)
NO: Mapping[str, str] = MappingProxyType({"b@a.example": "550 5.1.1 unknown"})


class Room(SmtpRoom):
    """A transport that waits for nothing longer than `SHORT`, or for as long as a test says."""

    patience = IMPATIENT

    async def open(self) -> None:
        """Open the transport."""
        transport = open_transport(self._settings, patience=self.patience)
        self.transport = await self._ending.enter_async_context(transport)


@contextlib.asynccontextmanager
async def impatient(ca: Path | None = None, **patience: float) -> AsyncIterator[Room]:
    """Open an impatient transport."""
    async with DnsPeer() as dns:
        room = Room(dns, allow_private=True, ca=ca)
        room.patience = msgspec.structs.replace(IMPATIENT, **patience)
        await room.open()
        try:
            yield room
        finally:
            await room.close()


def at(pipelining: bool, **fields: object) -> Behaviour:
    """Return a behaviour, of a host that offers PIPELINING or not."""
    offered = EXTENSIONS if pipelining else EXTENSIONS[1:]
    return Behaviour(**{"extensions": offered, **fields})  # type: ignore[arg-type] # fields by name


async def deliver(room: SmtpRoom, *rcpt_to: str, message: bytes = MESSAGE, **fields: Any) -> list[Outcome]:
    """Deliver and return the outcomes in the order of the recipients."""
    return list((await room.transport.deliver(delivery(*rcpt_to, **fields), message)).values())


def kinds(outcomes: list[Outcome]) -> list[type[Outcome]]:
    """Return what became of each."""
    return [type(each) for each in outcomes]


async def then_all_is_well(room: SmtpRoom, *peers: ScriptedSmtpPeer) -> None:
    """The first host mends its ways: it gets a message, also on a connection kept from before; and none is left."""
    peers[0].mend()
    before = len(peers[0].received)
    assert [Delivered] == kinds(await deliver(room, "after@a.example"))
    assert [("after@a.example",)] == [each.rcpt_to for each in peers[0].received[before:]]
    await room.close()
    await until(lambda: not any(peer.open_connections for peer in peers), wanted="no connection left in use")


def faults(verb: str) -> dict[str, dict[str, object]]:
    """Return every way of not replying to one command."""
    greets = verb == GREETING
    return {
        "late": {"greeting_after": 2 * SHORT} if greets else {"delays": {verb: 2 * SHORT}},
        "gibberish": {"greeting": "what?"} if greets else {"replies": {verb: "what?"}},
        "no code": {"raw": {verb: b"2x0 yes\r\n"}},
        "bytes": {"raw": {verb: b"\xff\x00\x1b[31m\r\n"}},
        "half": {"raw": {verb: b"250-half of"}},
        "half, then the end": {"raw": {verb: b"250-half of\r\n250"}, "hang_up_after": verb},
        "endless": {"endless_at": verb},
        "endless, slowly": {"endless_at": verb, "drip": SHORT / 4},
        "one endless line": {"raw": {verb: b"250 " + b"x" * 2**20}},
        "hangs up": {"hang_up_at": verb},
    }


FAULTS = [pytest.param(verb, how, id=f"{verb} {how}") for verb in (*BEFORE, *AFTER) for how in faults(verb)]


@BOTH
@pytest.mark.parametrize(("verb", "how"), FAULTS)
async def test_what_is_no_reply(verb: str, how: str, pipelining: bool) -> None:
    """Until the message is sent the next host is tried; from then on this one may have taken it, and it waits."""
    behaviour = at(pipelining, **faults(verb)[how])
    async with (
        impatient() as room,
        room.peer("10 mx1.example.", behaviour) as first,
        room.peer("20 mx2.example.") as second,
    ):
        outcomes = await deliver(room)
        assert [Delivered if verb in BEFORE else Deferred] == kinds(outcomes)
        assert (verb in BEFORE) == second.connections == len(second.received)
        await then_all_is_well(room, first, second)


@BOTH
@pytest.mark.parametrize(
    ("verb", "kind", "elsewhere"),
    [
        (GREETING, Delivered, True),
        ("EHLO", Delivered, True),
        ("MAIL", Delivered, True),
        ("RCPT", Delivered, True),
        ("DATA", Deferred, False),
        (END_OF_DATA, Delivered, False),
    ],
)
async def test_a_host_that_hangs_up_after_its_reply(
    verb: str, kind: type[Outcome], elsewhere: bool, pipelining: bool
) -> None:
    """That is before the reply to the next command; after the last one all is done."""
    async with (
        impatient() as room,
        room.peer("10 mx1.example.", at(pipelining, hang_up_after=verb)) as first,
        room.peer("20 mx2.example.") as second,
    ):
        assert [kind] == kinds(await deliver(room))
        assert elsewhere == len(second.received)
        await then_all_is_well(room, first, second)


@BOTH
@pytest.mark.parametrize("how", ["hang_up_at", "hang_up_after", "stall_at", "endless_at"])
async def test_a_refusal_counts_whatever_becomes_of_rset(how: str, pipelining: bool) -> None:
    """The transaction is over when RSET is sent."""
    behaviour = at(pipelining, refuse=NO, **{how: "RSET"})
    async with impatient() as room, room.peer("10 mx1.example.", behaviour) as peer:
        assert [Failed] == kinds(await deliver(room))
        await then_all_is_well(room, peer)


@BOTH
@pytest.mark.parametrize("verb", ["DATA", END_OF_DATA])
@pytest.mark.parametrize("how", ["late", "gibberish", "half", "endless", "hangs up"])
async def test_who_was_refused_before_stays_so(verb: str, how: str, pipelining: bool) -> None:
    """A fault after the recipients were judged is one of the accepted only."""
    refuse = {"never@a.example": "550 5.1.1 unknown", "later@a.example": "450 4.2.1 busy"}
    behaviour = at(pipelining, refuse=refuse, **faults(verb)[how])
    async with impatient() as room, room.peer("10 mx1.example.", behaviour) as peer:
        outcomes = await deliver(room, "ok@a.example", "never@a.example", "later@a.example")
        if pipelining and verb == "DATA" and how in {"late", "half"}:
            # The reply that does not come may be an earlier one, so that each of the others was another's.
            assert [(Deferred, None)] * 3 == [(type(each), each.reply.mta) for each in outcomes]
        else:
            assert [Deferred, Failed, Deferred] == kinds(outcomes)
            assert [None, "mx1.example", "mx1.example"] == [each.reply.mta for each in outcomes]
        await then_all_is_well(room, peer)


@BOTH
@pytest.mark.parametrize("how", ["while it is idle", "at the next MAIL", "in the middle of the next MAIL"])
async def test_a_kept_connection_that_was_closed_is_replaced(how: str, pipelining: bool) -> None:
    """In the same attempt, and nobody gets it twice."""
    ends = {
        "while it is idle": at(pipelining, hang_up_after=END_OF_DATA),
        "at the next MAIL": at(pipelining, max_messages=1),
        "in the middle of the next MAIL": at(pipelining),
    }
    async with impatient() as room, room.peer("10 mx1.example.", ends[how]) as peer:
        assert [Delivered] == kinds(await deliver(room))
        peer.behave(at(pipelining))
        if how == "in the middle of the next MAIL":
            peer.mend(at(pipelining, raw={"MAIL": b"250-"}, hang_up_after="MAIL"))
            peer.behave(at(pipelining))
        assert [Delivered] == kinds(await deliver(room))
        assert [1, 2] == [each.connection for each in peer.received]
        await then_all_is_well(room, peer)
