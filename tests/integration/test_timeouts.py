"""How long each phase is waited for, and what a host that never answers does to the mail for others."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from shared.delivery.gate import FAILURES, Gate
from shared.delivery.posting import Patience
from shared.delivery.smtp import TIMEOUTS, Timeouts
from shared.mail.outcome import Busy, Deferred, Delivered, Failed, Outcome, Unsuited
from shared.mail.route import Route, Tls
from shared.runtime.settings import Settings
from tests.integration.conftest import MESSAGE, delivery, until
from tests.integration.test_https_transport import open_room
from tests.integration.test_smtp_faults import BOTH, Room, at, deliver, impatient, kinds
from tests.peers.behaviour import END_OF_DATA, WELL_BEHAVED
from tests.peers.raw_http import OK, RawHttpPeer, Script
from tests.peers.smtp import Behaviour, ScriptedSmtpPeer
from tests.peers.tls import tls_context
from workers.smtp.transport import SmtpTransport, open_transport

pytestmark = pytest.mark.anyio

SHORT, LONG = 0.3, 60.0  # seconds; a delivery that ends within `ENOUGH` has waited for nothing long
ENOUGH = 10.0
LARGE = MESSAGE + b"x" * 30_000_000  # more than the buffers of the kernel
SHARE = 2

PHASES: list[tuple[str, dict[str, Any]]] = [
    ("greeting", {"greeting": None}),
    ("mail", {"stall_at": "EHLO"}),
    ("mail", {"stall_at": "HELO", "replies": {"EHLO": "502 5.5.1 what?"}}),
    ("mail", {"stall_at": "MAIL"}),
    ("rcpt", {"stall_at": "RCPT"}),
    ("data", {"stall_at": "DATA"}),
    ("block", {"reads": "nothing"}),
    ("dot", {"stall_at": END_OF_DATA}),
]


@contextlib.asynccontextmanager
async def only(field: str) -> AsyncIterator[Room]:
    """Open a transport that waits long for everything but one."""
    patience: dict[str, Any] = dict.fromkeys(Timeouts.__struct_fields__, LONG)
    async with impatient(**{**patience, field: SHORT}) as room:
        yield room


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """Give a port that answers no connection: its queue is full, and nobody takes anything out of it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


@pytest.fixture
def dead() -> Iterator[str]:
    """A target that answers no connection."""
    with black_hole() as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the peers' certificates."""
    return trustme.CA()


def ruled(*targets: str, tls: Tls | None = None) -> Route:
    """Return the route of a rule."""
    return Route(version=1, key="a.example", targets=targets, tls=tls)


def test_smtp_waits_as_long_as_the_rfc_says() -> None:
    """RFC 5321 4.5.3.2.1 to 4.5.3.2.6; what it says nothing of is ours."""
    minutes = {"greeting": 5, "mail": 5, "rcpt": 5, "data": 2, "block": 3, "dot": 10}
    seconds = {"connect": 30.0, "tls": 30.0, "quit": 5.0, **{phase: 60.0 * each for phase, each in minutes.items()}}
    assert seconds == {field: getattr(TIMEOUTS, field) for field in Timeouts.__struct_fields__}


def test_https_waits_as_long_as_the_operator_is_told() -> None:
    """And a large message has its time on top."""
    patience = Patience()
    assert (15, 60, 30, 200) == (patience.connect, patience.whole, patience.idle, patience.messages)
    assert 760 == patience.for_message(70_000_000)


class TestSmtp:
    """Each time-out is that of its own phase: a host stalls there, and only this one is short."""

    @BOTH
    @pytest.mark.parametrize(
        ("field", "stalls"), [pytest.param(*each, id=f"{each[0]} {next(iter(each[1].values()))}") for each in PHASES]
    )
    async def test_it_ends(self, field: str, stalls: dict[str, Any], pipelining: bool) -> None:
        """The mail waits, and the connection ends."""
        async with only(field) as room, room.peer("10 mx1.example.", at(pipelining, **stalls)) as peer:
            async with asyncio.timeout(ENOUGH):
                outcomes = await deliver(room, message=LARGE if field == "block" else MESSAGE)
            assert [Deferred] == kinds(outcomes)
            assert "SMTPReadTimeoutError" in outcomes[0].reply.text
            await until(lambda: not peer.open_connections)

    @BOTH
    async def test_after_a_refusal(self, pipelining: bool) -> None:
        """RSET has the time of MAIL, and the refusal counts."""
        behaviour = at(pipelining, refuse={"b@a.example": "550 5.1.1 unknown"}, stall_at="RSET")
        async with only("mail") as room, room.peer("10 mx1.example.", behaviour):
            async with asyncio.timeout(ENOUGH):
                assert [Failed] == kinds(await deliver(room))

    @pytest.mark.parametrize("stalls", [{"stall_at": "STARTTLS"}, {"starttls": "silent"}])
    @pytest.mark.parametrize(("tls", "kind"), [("encrypt", Deferred), (None, Delivered)])
    async def test_starttls(
        self, authority: trustme.CA, tls: Tls | None, kind: type[Outcome], stalls: dict[str, Any]
    ) -> None:
        """STARTTLS has the time of MAIL, its handshake too; who does not insist goes on in the clear."""
        async with only("mail") as room:
            peer = room.peer("10 mx1.example.", Behaviour(**stalls), WELL_BEHAVED, tls=tls_context(authority))
            async with peer, asyncio.timeout(ENOUGH):
                assert [kind] == kinds(await deliver(room, route=ruled("mx1.example", tls=tls)))
                assert (1 if tls else 2) == peer.connections

    async def test_quit(self) -> None:
        """Nothing depends on it, not even the end of the room."""
        async with only("quit") as room, room.peer("10 mx1.example.", Behaviour(stall_at="QUIT")) as peer:
            assert [Delivered] == kinds(await deliver(room))
            async with asyncio.timeout(ENOUGH):
                await room.close()
                await until(lambda: not peer.open_connections)

    async def test_a_connection_that_is_never_made(self, dead: str) -> None:
        """The next target of a rule has its turn."""
        async with only("connect") as room, ScriptedSmtpPeer() as peer, asyncio.timeout(ENOUGH):
            [outcome] = await deliver(room, route=ruled(dead))
            assert (Deferred, "4.4.1") == (type(outcome), outcome.reply.enhanced)
            route = ruled(dead, f"127.0.0.1:{peer.port}")
            by_smtp_alone = Route(version=1, key="a.example", targets=route.targets, transport="smtp")
            assert [Delivered] == kinds(await deliver(room, route=by_smtp_alone))


class TestHttps:
    """The time to connect is one thing, and that of the whole request another."""

    async def test_a_connection_that_is_never_made(self, authority: trustme.CA, tmp_path: Path, dead: str) -> None:
        """In the clear and with TLS; and SMTP has its turn."""
        async with open_room(authority, tmp_path, Patience(connect=SHORT, whole=LONG)) as room:
            for scheme in ("http", "https"):
                async with asyncio.timeout(ENOUGH):
                    outcome = await room.deliver(f"{scheme}://{dead}/mxdeliv")
                assert (Unsuited, "4.4.1") == (type(outcome), outcome.reply.enhanced)

    @pytest.mark.parametrize("tls", ["verify", "encrypt"])
    async def test_a_silent_handshake(self, authority: trustme.CA, tmp_path: Path, tls: Tls) -> None:
        """The time to connect covers it, also where the whole request has much more."""
        async with (
            open_room(authority, tmp_path, Patience(connect=SHORT, whole=LONG)) as room,
            RawHttpPeer(Script(at="connect", then="hold")) as peer,
        ):
            async with asyncio.timeout(ENOUGH):
                outcome = await room.deliver(peer.url.replace("http:", "https:"), tls=tls)
            assert (Unsuited, "4.4.1") == (type(outcome), outcome.reply.enhanced)
            await until(lambda: not peer.open)

    async def test_an_answer_that_never_comes(self, authority: trustme.CA, tmp_path: Path) -> None:
        """That is the whole request's; and one in time may come later than a connection may."""
        late = Script(say=OK.say, pause=2 * SHORT / len(OK.say), then="keep")
        async with (
            RawHttpPeer(Script(then="hold")) as silent,
            RawHttpPeer(late) as slow,
            open_room(authority, tmp_path, Patience(connect=LONG, whole=SHORT)) as impatient_room,
            open_room(authority, tmp_path, Patience(connect=SHORT, whole=LONG)) as patient_room,
        ):
            async with asyncio.timeout(ENOUGH):
                outcome = await impatient_room.deliver(silent.url, transport="https")
            assert (Deferred, "4.4.2") == (type(outcome), outcome.reply.enhanced)
            assert isinstance(await patient_room.deliver(slow.url), Delivered)


class TestBesideABlackHole:
    """A healthy host and one that answers no connection, through one transport."""

    async def test_the_healthy_one_is_served(self, dead: str) -> None:
        """The dead one holds its share of the worker and no more, for as long as it is waited for."""
        async with ScriptedSmtpPeer() as peer, transport(connect=LONG) as by:
            sending = [asyncio.create_task(send(by, dead)) for _ in range(SHARE + 4)]
            for _ in range(5):
                assert isinstance(await send(by, f"127.0.0.1:{peer.port}"), Delivered)
            await until(lambda: SHARE == sum(not each.done() for each in sending))
            assert [Busy] * 4 == [type(each.result()) for each in sending if each.done()]
            assert isinstance(await send(by, f"127.0.0.1:{peer.port}"), Delivered)
            assert SHARE == sum(not each.done() for each in sending)
            for each in sending:
                each.cancel()
            await asyncio.wait(sending)

    async def test_until_it_is_left_alone(self, dead: str) -> None:
        """Each is put back, or waits with the reason; then none is tried any more."""
        async with ScriptedSmtpPeer() as peer, transport(connect=SHORT) as by:
            async with asyncio.timeout(ENOUGH):
                outcomes = [await send(by, dead) for _ in range(FAILURES)]
                outcomes += await asyncio.gather(*(send(by, dead) for _ in range(20)))
            assert [Deferred] * (FAILURES + 20) == kinds(outcomes)
            assert ["did not answer 5 times" in each.reply.text for each in outcomes] == [False] * FAILURES + [
                True
            ] * 20
            assert isinstance(await send(by, f"127.0.0.1:{peer.port}"), Delivered)


@contextlib.asynccontextmanager
async def transport(*, connect: float) -> AsyncIterator[SmtpTransport]:
    """Open a transport with a share of two, by the real clock."""
    given = Settings(amqp_url="amqp://unused", database_url="postgresql://unused", hostname="us.example")
    async with open_transport(given, gate=Gate(SHARE), patience=Timeouts(connect=connect)) as by:
        yield by


async def send(by: SmtpTransport, target: str) -> Outcome:
    """Deliver one message to one recipient by a rule; return the outcome."""
    (outcome,) = (await by.deliver(delivery(route=ruled(target)), MESSAGE)).values()
    return outcome
