"""STARTTLS that fails in every way, opportunistic and demanded, with PIPELINING and without."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from shared.mail.outcome import Deferred, Delivered
from shared.mail.route import Route, Tls
from tests.integration.test_smtp_faults import BOTH, SHORT, Room, at, deliver, impatient, kinds, then_all_is_well
from tests.peers.smtp import ca_file, tls_context

pytestmark = pytest.mark.anyio

BROKEN: dict[str, dict[str, object]] = {
    "refused for now": {"replies": {"STARTTLS": "454 4.7.0 not now"}},
    "refused": {"replies": {"STARTTLS": "502 5.5.1 what?"}},
    "closing": {"replies": {"STARTTLS": "421 4.3.2 shutting down"}},
    "no reply": {"stall_at": "STARTTLS"},
    "late": {"delays": {"STARTTLS": 2 * SHORT}},
    "gibberish": {"replies": {"STARTTLS": "what?"}},
    "half a reply": {"raw": {"STARTTLS": b"220-go"}},
    "endless reply": {"endless_at": "STARTTLS"},
    "hangs up before": {"hang_up_at": "STARTTLS"},
    "hangs up after": {"hang_up_after": "STARTTLS"},
    "broken handshake": {"starttls": "broken"},
    "silent handshake": {"starttls": "silent"},
    "commands smuggled in": {"extra": {"STARTTLS": "250-mx.evil.example\n250 SIZE 1"}},
    "half a command smuggled in": {"extra": {"STARTTLS": "250-mx.evil.example"}},
}
CERTIFICATES = {
    "of another name": (["other.example"], True, None),
    "of a stranger": (["mx1.example"], False, None),
    "expired": (["mx1.example"], True, datetime(2001, 1, 1, tzinfo=UTC)),
}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the peers' certificates."""
    return trustme.CA()


@pytest.fixture
async def room(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Room]:
    """The transport, trusting that authority."""
    async with impatient(ca_file(authority, tmp_path / "ca.pem"), dot=5) as room:
        yield room


def via(tls: Tls | None) -> Route:
    """Return the route of a rule; none without a demand."""
    return Route(version=1) if tls is None else Route(version=1, key="a.example", targets=("mx1.example",), tls=tls)


@BOTH
@pytest.mark.parametrize("how", BROKEN)
async def test_opportunistic_tls_that_fails_is_left_out(
    room: Room, authority: trustme.CA, how: str, pipelining: bool
) -> None:
    """On a new connection, in the clear (RFC 7435); nothing that was received before counts there."""
    context = tls_context(authority, ["mx1.example"])
    async with room.peer("10 mx1.example.", at(pipelining, **BROKEN[how]), tls=context) as peer:
        assert [Delivered] == kinds(await deliver(room))
        assert [(2, False)] == [(each.connection, each.tls) for each in peer.received]
        await then_all_is_well(room, peer)


@BOTH
@pytest.mark.parametrize("tls", ["verify", "encrypt"])
@pytest.mark.parametrize("how", BROKEN)
async def test_demanded_tls_that_fails_is_waited_for(
    room: Room, authority: trustme.CA, how: str, tls: Tls, pipelining: bool
) -> None:
    """Not one address goes over the wire."""
    context = tls_context(authority, ["mx1.example"])
    async with room.peer("10 mx1.example.", at(pipelining, **BROKEN[how]), tls=context) as peer:
        outcomes = await deliver(room, "b@a.example", "c@a.example", route=via(tls))
        assert [(Deferred, "4.7.5")] * 2 == [(type(each), each.reply.enhanced) for each in outcomes]
        assert not any(line.startswith(("MAIL", "RCPT")) for line in peer.commands)
        await then_all_is_well(room, peer)


@BOTH
@pytest.mark.parametrize("tls", ["verify", "encrypt", None])
@pytest.mark.parametrize("certificate", CERTIFICATES)
async def test_a_wrong_certificate_matters_to_who_verifies(
    room: Room, authority: trustme.CA, certificate: str, tls: Tls | None, pipelining: bool
) -> None:
    """To the others encrypted is better than clear."""
    names, known, ends = CERTIFICATES[certificate]
    context = tls_context(authority if known else trustme.CA(), names, not_after=ends)
    async with room.peer("10 mx1.example.", at(pipelining), tls=context) as peer:
        [outcome] = await deliver(room, route=via(tls))
        assert (Deferred if tls == "verify" else Delivered) is type(outcome)
        assert [True] * (tls != "verify") == [each.tls for each in peer.received]
        assert tls != "verify" or outcome.reply.enhanced == "4.7.5"
        await then_all_is_well(room, peer)


@BOTH
@pytest.mark.parametrize("reply", ["530 5.7.0 Must issue a STARTTLS command first", "554 5.7.3 no TLS"])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT"])
async def test_a_host_that_wants_tls_which_fails_is_waited_for(
    room: Room, reply: str, verb: str, pipelining: bool
) -> None:
    """It would have taken the message with TLS, so its refusal is not the last word."""
    async with room.peer("10 mx1.example.", at(pipelining, starttls="broken", replies={verb: reply})) as peer:
        [outcome] = await deliver(room)
        assert (Deferred, "4.7.5") == (type(outcome), outcome.reply.enhanced)
        await then_all_is_well(room, peer)


@BOTH
async def test_many_messages_and_a_large_one_under_tls(room: Room, authority: trustme.CA, pipelining: bool) -> None:
    """On one connection, byte for byte."""
    async with room.peer("10 mx1.example.", at(pipelining), tls=tls_context(authority)) as peer:
        messages = [b"S: 1\r\n\r\n.\r\n", b"S: 2\r\n\r\n" + b"x" * 3_000_000 + b"\r\n", b"S: 3\r\n"]
        for message in messages:
            assert [Delivered] == kinds(await deliver(room, message=message))
        assert [(1, True, message) for message in messages] == [(e.connection, e.tls, e.body) for e in peer.received]
        await then_all_is_well(room, peer)
