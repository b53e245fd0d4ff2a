"""Mail without a rule to domains with an MTA-STS policy (RFC 8461 4 and 5)."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trustme

from shared.mail.outcome import Deferred, Delivered, Outcome
from shared.mail.route import Route
from shared.runtime.settings import Settings
from tests.integration.conftest import MESSAGE, delivery
from tests.peers.dns import DnsPeer
from tests.peers.mxdeliv import free_port
from tests.peers.policy_host import PolicyHost, policy
from tests.peers.smtp import SmtpPeer
from tests.peers.tls import ca_file, tls_context
from workers.smtp.transport import SmtpTransport, open_transport

pytestmark = pytest.mark.anyio


class Room:
    """The transport, and `a.example` with two mail hosts: the first is not listed by the policy, the second is."""

    def __init__(self, transport: SmtpTransport, host: PolicyHost, peers: Sequence[SmtpPeer]) -> None:
        self.transport = transport
        self.host = host
        self.first, self.second = peers

    async def send(self, route: Route | None = None) -> Outcome:
        """Deliver one message; return the outcome."""
        given = {} if route is None else {"route": route}
        [outcome] = (await self.transport.deliver(delivery(**given), MESSAGE)).values()
        return outcome


@contextlib.asynccontextmanager
async def a_room(folder: Path, *, certified: str = "mx.a.example") -> AsyncIterator[Room]:
    """Open it; the second host's certificate is of a name."""
    authority, port = trustme.CA(), free_port()
    async with contextlib.AsyncExitStack() as stack:
        dns = await stack.enter_async_context(DnsPeer())
        host = await stack.enter_async_context(PolicyHost(tls_context(authority, ["mta-sts.a.example"])))
        peers = []
        for number, (name, subject) in enumerate((("other.example", "other.example"), ("mx.a.example", certified)), 2):
            peer = SmtpPeer(host=f"127.0.0.{number}", port=port, tls=tls_context(authority, [subject]))
            peers.append(await stack.enter_async_context(peer))
            dns.add("a.example", "MX", f"{number} {name}.")
            dns.add(name, "A", f"127.0.0.{number}")
        dns.add("mta-sts.a.example", "A", "127.0.0.1")
        dns.add("_mta-sts.a.example", "TXT", '"v=STSv1; id=1"')
        settings = Settings(
            amqp_url="amqp://unused",
            database_url="postgresql://unused",
            hostname="mail.pushpush.example",
            dns_servers=((dns.host, dns.port),),
            smtp_port=port,
            allow_private_targets=True,
            ca_file=ca_file(authority, folder / "ca.pem"),
        )
        transport = await stack.enter_async_context(open_transport(settings, policy_port=host.port))
        yield Room(transport, host, peers)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """A room in which all certificates are good."""
    async with a_room(tmp_path) as room:
        yield room


async def test_enforced(room: Room) -> None:
    """A host that is not listed gets nothing, however good its certificate; the next one is verified by its name."""
    assert isinstance(await room.send(), Delivered)
    assert not room.first.received
    assert [True] == [each.tls for each in room.second.received]


async def test_a_certificate_of_another_name(tmp_path: Path) -> None:
    """The mail waits, and does not go in the clear."""
    async with a_room(tmp_path, certified="other.example") as room:
        outcome = await room.send()
        assert isinstance(outcome, Deferred)
        assert "4.7.5" == outcome.reply.enhanced
        assert not room.first.received
        assert not room.second.received


async def test_no_starttls(room: Room) -> None:
    """Who strips STARTTLS gets no mail."""
    room.second.tls = None
    outcome = await room.send()
    assert isinstance(outcome, Deferred)
    assert not room.second.received


async def test_no_host_is_listed(room: Room) -> None:
    """The mail waits: 451 4.7.5."""
    room.host.answer = policy("mx.elsewhere.example")
    outcome = await room.send()
    assert isinstance(outcome, Deferred)
    assert (451, "4.7.5") == (outcome.reply.code, outcome.reply.enhanced)
    assert not room.first.received


@pytest.mark.parametrize("mode", ["testing", "none"])
async def test_a_policy_that_demands_nothing(room: Room, mode: str) -> None:
    """The best host gets it, as without a policy."""
    room.host.answer = policy("mx.a.example", mode=mode)
    assert isinstance(await room.send(), Delivered)
    assert 1 == len(room.first.received)


async def test_a_rule_is_not_under_the_policy(room: Room) -> None:
    """The operator's word decides, and nobody is asked."""
    route = Route(version=1, key="a.example", targets=(f"127.0.0.2:{room.first.port}",))
    assert isinstance(await room.send(route), Delivered)
    assert 1 == len(room.first.received)
    assert not room.host.gets
