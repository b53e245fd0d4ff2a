"""MTA-STS policies of domains, from a DNS server and policy hosts of our own."""

import asyncio
import contextlib
import gzip
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from shared.delivery import mta_sts as module
from shared.delivery.mta_sts import Policies
from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts
from shared.mail.mta_sts import MAX_POLICY, Demand, Policy, demand
from tests.integration.conftest import NOON, until
from tests.peers.answers import Answer
from tests.peers.dns import DnsPeer, Fault
from tests.peers.mxdeliv import free_port
from tests.peers.policy_host import PolicyHost, policy
from tests.peers.tls import ca_file, tls_context

pytestmark = pytest.mark.anyio

ENFORCED = Policy(mode="enforce", mx=("*.a.example",), max_age=86_400)
NAME = "mta-sts.a.example"
GOOD = policy("*.a.example")


class Domain:
    """`a.example`, its DNS and its policy host, and the time; by default it announces and enforces a policy."""

    def __init__(self, dns: DnsPeer, host: PolicyHost, contexts: Contexts) -> None:
        self.dns = dns
        self.host = host
        self.contexts = contexts
        self.time = NOON
        self.announce("1")
        dns.add(NAME, "A", "127.0.0.1")

    def announce(self, id: str | None, *, ttl: int = 60) -> None:  # noqa: A002 - the record's word
        """Announce a policy, or none."""
        self.dns.clear("_mta-sts.a.example")
        if id is not None:
            self.dns.add("_mta-sts.a.example", "TXT", f'"v=STSv1; " "id={id};"', ttl=ttl)

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.time += timedelta(seconds=seconds)

    def policies(self, *, allow_private: bool = True, patience: float = 5, port: int | None = None) -> Policies:
        """What a process knows that has just begun."""
        return Policies(
            Resolver([(self.dns.host, self.dns.port)], allow_private=allow_private),
            self.contexts,
            clock=lambda: self.time,
            https_port=port or self.host.port,
            patience=patience,
        )


@contextlib.asynccontextmanager
async def a_domain(folder: Path, **certificate: datetime | tuple[str, ...]) -> AsyncIterator[Domain]:
    """A domain whose policy host has a certificate of its name, unless the test says otherwise."""
    authority = trustme.CA()
    contexts = Contexts(ca_file(authority, folder / "ca.pem"))
    given = {"names": (NAME,), **certificate}
    context: ssl.SSLContext = tls_context(authority, **given)  # type: ignore[arg-type] # by name
    async with DnsPeer() as dns, PolicyHost(context) as host:
        yield Domain(dns, host, contexts)


@pytest.fixture
async def domain(tmp_path: Path) -> AsyncIterator[Domain]:
    """A domain that enforces its policy."""
    async with a_domain(tmp_path) as domain:
        yield domain


@pytest.fixture
async def policies(domain: Domain) -> AsyncIterator[Policies]:
    """The policies of a process that has just begun."""
    async with domain.policies() as policies:
        yield policies


def counted(result: str) -> float:
    """Return how often a fetch had a result."""
    return float(module._RESULTS.labels(result)._value.get())


class TestFetching:
    """RFC 8461 3.3: what is a policy, and what is none."""

    async def test_enforce(self, domain: Domain, policies: Policies) -> None:
        """An announced policy is fetched by its host's name, and decides for each mail host."""
        before = counted("enforce")
        found = await policies.of("a.example")
        assert ENFORCED == found
        assert [f"{NAME}:{domain.host.port}"] == domain.host.gets
        assert Demand.VERIFY is demand(found, "mx.a.example")
        assert Demand.SKIP is demand(found, "mx.evil.example")
        assert before + 1 == counted("enforce")

    @pytest.mark.parametrize("mode", ["testing", "none"])
    async def test_a_policy_that_demands_nothing(self, domain: Domain, policies: Policies, mode: str) -> None:
        """It is told to whoever asks, and mail goes as without it."""
        domain.host.answer = policy("*.a.example", mode=mode)
        before = counted(mode)
        found = await policies.of("a.example")
        assert found is not None
        assert mode == found.mode
        assert Demand.NOTHING is demand(found, "mx.evil.example")
        assert before + 1 == counted(mode)

    @pytest.mark.parametrize("lookup", [None, *Fault])
    async def test_without_announcement_no_host_is_asked(
        self, domain: Domain, monkeypatch: pytest.MonkeyPatch, lookup: Fault | None
    ) -> None:
        """Most domains have no policy, and cost one question to the DNS; when that fails, mail goes on as well."""
        monkeypatch.setattr("shared.delivery.resolver._LIFETIME", 0.2)
        domain.announce(None)
        if lookup is not None:
            domain.dns.fault("_mta-sts.a.example", lookup)
        async with domain.policies() as policies:
            assert await policies.of("a.example") is None
            assert await policies.of("a.example") is None
        assert not domain.host.gets

    async def test_two_announcements_are_none(self, domain: Domain, policies: Policies) -> None:
        """RFC 8461 3.1."""
        domain.dns.add("_mta-sts.a.example", "TXT", '"v=STSv1; id=2"', '"v=spf1 -all"')
        assert await policies.of("a.example") is None
        assert not domain.host.gets

    async def test_an_announcement_by_alias_and_over_tcp(self, domain: Domain, policies: Policies) -> None:
        """Providers have their customers' names point at their own."""
        domain.dns.clear("_mta-sts.a.example")
        domain.dns.add("_mta-sts.a.example", "CNAME", "_mta-sts.b.example.")
        domain.dns.add("_mta-sts.b.example", "TXT", '"v=STSv1; id=1"')
        domain.dns.fault("_mta-sts.a.example", Fault.TRUNCATED)
        assert ENFORCED == await policies.of("a.example")

    @pytest.mark.parametrize("literal", ["[192.0.2.1]", "[IPv6:2001:db8::1]"])
    async def test_literals_have_no_policy(self, domain: Domain, policies: Policies, literal: str) -> None:
        """Nobody is asked."""
        assert await policies.of(literal) is None
        assert not domain.dns.queries

    async def test_a_name_too_long_for_a_policy(self, policies: Policies) -> None:
        """A domain of 253 octets has no room for the label before it."""
        assert await policies.of(".".join(["a" * 63] * 3 + ["a" * 61])) is None

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(Answer(status=404, body=GOOD.body, content_type="text/plain"), id="not found"),
            pytest.param(Answer(status=201, body=GOOD.body, content_type="text/plain"), id="created"),
            pytest.param(Answer(status=500), id="server error"),
            pytest.param(Answer(body=GOOD.body, content_type="text/html"), id="HTML"),
            pytest.param(Answer(body=GOOD.body, content_type=None), id="no media type"),
            pytest.param(Answer(body=b"<html>", content_type="text/plain"), id="a page that says it is text"),
            pytest.param(Answer(body=b"", content_type="text/plain"), id="empty"),
            pytest.param(Answer(body=b"\xff\xfe", content_type="text/plain"), id="not UTF-8"),
            pytest.param(Answer(body=GOOD.body + b"x: " + b"x" * MAX_POLICY), id="too long"),
            pytest.param(Answer(body=gzip.compress(GOOD.body), headers={"Content-Encoding": "gzip"}), id="packed"),
            pytest.param(policy(mode="enforce"), id="no mx"),
            pytest.param(policy("*.a.example", mode="Enforce"), id="unknown mode"),
        ],
    )
    async def test_what_is_no_policy(self, domain: Domain, policies: Policies, answer: Answer) -> None:
        """Mail goes on as without one."""
        domain.host.answer = answer
        before = counted("failed")
        assert await policies.of("a.example") is None
        assert 1 == len(domain.host.gets)
        assert before + 1 == counted("failed")

    async def test_an_endless_answer_is_not_read_to_the_patience(self, domain: Domain, policies: Policies) -> None:
        """It is let go as soon as it is longer than a policy may be."""
        domain.host.answer = Answer(body=b"x: y\n" * 100, endless=True, content_type="text/plain")
        with capture_logs() as logs:
            assert await policies.of("a.example") is None
        assert [f"the policy is longer than {MAX_POLICY} bytes"] == [each["error"] for each in logs]

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    async def test_a_redirect_is_not_followed(self, domain: Domain, policies: Policies, status: int) -> None:
        """RFC 8461 3.3: it could lead anywhere, also to a name that an attacker has a certificate for."""
        where = f"https://{NAME}:{domain.host.port}/policy.txt"
        domain.host.answer = Answer(status=status, headers={"Location": where}, body=GOOD.body)
        assert await policies.of("a.example") is None
        assert not domain.host.other_paths

    @pytest.mark.parametrize(
        "certificate",
        [{"names": ("a.example", "mx.a.example")}, {"not_after": datetime(2020, 1, 1, tzinfo=UTC)}],
        ids=["of another name", "expired"],
    )
    async def test_a_certificate_that_proves_nothing(
        self, tmp_path: Path, certificate: dict[str, datetime | tuple[str, ...]]
    ) -> None:
        """Whoever can send us to another address must not be able to set the policy."""
        async with a_domain(tmp_path, **certificate) as domain, domain.policies() as policies:
            assert await policies.of("a.example") is None
            assert not domain.host.gets

    async def test_a_certificate_of_an_unknown_authority(self, domain: Domain, tmp_path: Path) -> None:
        """As above."""
        domain.contexts = Contexts(ca_file(trustme.CA(), tmp_path / "other.pem"))
        async with domain.policies() as policies:
            assert await policies.of("a.example") is None
        assert not domain.host.gets

    async def test_a_host_that_is_not_there(self, domain: Domain) -> None:
        """Nothing listens, or it has no address: mail goes on."""
        async with domain.policies(port=free_port()) as policies:
            assert await policies.of("a.example") is None
        domain.dns.clear(NAME)
        async with domain.policies() as policies:
            assert await policies.of("a.example") is None

    async def test_no_private_address_is_asked(self, domain: Domain) -> None:
        """A stranger cannot have the fleet ask an internal service."""
        async with domain.policies(allow_private=False) as policies:
            assert await policies.of("a.example") is None
        assert not domain.host.gets
        assert 1 == domain.dns.queries[NAME, "A"]

    @pytest.mark.parametrize("slow", ["silent", "slow"])
    async def test_a_slow_host_holds_mail_up_only_so_long(self, domain: Domain, slow: str) -> None:
        """The patience is for the whole fetch, not for each byte."""
        if slow == "silent":
            domain.host.open.clear()
        else:
            domain.host.answer = Answer(body=GOOD.body, pause=0.05, content_type="text/plain")
        async with domain.policies(patience=0.4) as policies:
            assert await policies.of("a.example") is None
            assert await policies.of("a.example") is None
        assert 1 == len(domain.host.gets)


class TestKeeping:
    """RFC 8461 3.3, 5.1 and 10.2: what holds for how long."""

    async def test_what_is_known_costs_nothing(self, domain: Domain, policies: Policies) -> None:
        """A thousand messages to one domain are not a thousand questions; a TTL of zero is a minute."""
        domain.announce("1", ttl=0)
        for _ in range(5):
            domain.passes(11)
            assert ENFORCED == await policies.of("a.example")
        assert 1 == domain.dns.queries["_mta-sts.a.example", "TXT"]
        domain.passes(20)
        assert ENFORCED == await policies.of("a.example")
        assert 2 == domain.dns.queries["_mta-sts.a.example", "TXT"]
        assert 1 == len(domain.host.gets)

    async def test_a_new_id_is_a_new_policy(self, domain: Domain, policies: Policies) -> None:
        """It is seen when the record's TTL is over, however long the policy may be kept; an hour at the most."""
        domain.announce("1", ttl=86_400)
        await policies.of("a.example")
        domain.announce("2")
        domain.host.answer = policy("mx.b.example", mode="testing")
        domain.passes(3_599)
        assert ENFORCED == await policies.of("a.example")
        domain.passes(1)
        found = await policies.of("a.example")
        assert found is not None
        assert ("testing", ("mx.b.example",)) == (found.mode, found.mx)
        domain.passes(60)
        await policies.of("a.example")
        assert 2 == len(domain.host.gets)

    @pytest.mark.parametrize("gone", [None, Fault.NXDOMAIN, Fault.SERVFAIL, "two"])
    async def test_without_its_announcement_it_stays_in_force(
        self, domain: Domain, policies: Policies, gone: Fault | str | None
    ) -> None:
        """Who can suppress the record must not be able to switch the policy off; only time does."""
        await policies.of("a.example")
        if isinstance(gone, Fault):
            domain.dns.fault("_mta-sts.a.example", gone)
        elif gone is None:
            domain.announce(None)
        else:
            domain.dns.add("_mta-sts.a.example", "TXT", '"v=STSv1; id=2"')
        domain.host.answer = Answer(status=404)
        domain.passes(86_399)
        assert ENFORCED == await policies.of("a.example")
        domain.passes(1)
        assert await policies.of("a.example") is None

    async def test_a_fetch_that_fails_changes_nothing(self, domain: Domain, policies: Policies) -> None:
        """A new policy that cannot be fetched leaves the old one in force until it ends."""
        await policies.of("a.example")
        domain.announce("2")
        domain.host.answer = Answer(body=b"mode: none", content_type="text/plain")
        domain.passes(86_399)
        assert ENFORCED == await policies.of("a.example")
        assert 2 == len(domain.host.gets)
        domain.passes(1)
        assert await policies.of("a.example") is None

    async def test_half_its_time_over_it_is_fetched_again(self, domain: Domain, policies: Policies) -> None:
        """Also when the record is suppressed: who does so cannot wait for the end (RFC 8461 10.2)."""
        await policies.of("a.example")
        domain.announce(None)
        domain.passes(43_199)
        await policies.of("a.example")
        assert 1 == len(domain.host.gets)
        domain.passes(60)
        await policies.of("a.example")
        assert 2 == len(domain.host.gets)
        domain.passes(60_000)
        assert ENFORCED == await policies.of("a.example")

    @pytest.mark.parametrize("max_age", [0, 1, 90])
    async def test_a_short_policy_leaves_no_gap(self, domain: Domain, policies: Policies, max_age: int) -> None:
        """It holds at least for the mail that it was fetched for, and is fetched again when it ends."""
        domain.announce("1", ttl=86_400)
        domain.host.answer = policy("*.a.example", max_age=max_age)
        for _ in range(10):
            found = await policies.of("a.example")
            assert found is not None
            domain.passes(20)
        assert 3 <= len(domain.host.gets) <= 4

    async def test_taken_back(self, domain: Domain, policies: Policies) -> None:
        """RFC 8461 8.3: a new id and mode none end a policy early."""
        await policies.of("a.example")
        domain.announce("2")
        domain.host.answer = policy(mode="none")
        domain.passes(60)
        assert Demand.NOTHING is demand(await policies.of("a.example"), "mx.evil.example")

    @pytest.mark.parametrize("ttl", [0, 86_400])
    async def test_a_broken_host_is_left_alone(self, domain: Domain, policies: Policies, ttl: int) -> None:
        """Five minutes for all messages, however often the record is looked up; then it has its chance."""
        domain.announce("1", ttl=ttl)
        domain.host.answer = Answer(status=500)
        for _ in range(10):
            assert await policies.of("a.example") is None
            domain.passes(29.9)
        assert 1 == len(domain.host.gets)
        domain.host.answer = GOOD
        domain.passes(60)
        assert ENFORCED == await policies.of("a.example")

    async def test_it_is_bounded(self, domain: Domain, policies: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
        """A flood of domains takes no more memory; the one looked up longest ago is forgotten."""
        monkeypatch.setattr(module, "_MOST", 3)
        for name in ("a.example", "b.example", "c.example", "d.example"):
            await policies.of(name)
        assert ["b.example", "c.example", "d.example"] == list(policies._known)
        assert ENFORCED == await policies.of("a.example")
        assert 2 == len(domain.host.gets)


class TestTogether:
    """Many messages at once."""

    async def test_one_fetch_for_all(self, domain: Domain, policies: Policies) -> None:
        """Twenty deliveries wait for one answer; another domain does not wait for it."""
        domain.host.open.clear()
        waiting = [asyncio.create_task(policies.of("a.example")) for _ in range(20)]
        await until(lambda: bool(domain.host.gets))
        assert await policies.of("b.example") is None
        assert not any(each.done() for each in waiting)
        domain.host.open.set()
        assert [ENFORCED] * 20 == await asyncio.gather(*waiting)
        assert 1 == len(domain.host.gets)
        assert 1 == domain.dns.queries["_mta-sts.a.example", "TXT"]

    async def test_who_gives_up_takes_it_from_nobody(self, domain: Domain, policies: Policies) -> None:
        """An attempt that is ended while it waits leaves the fetch to the others."""
        domain.host.open.clear()
        first, second = (asyncio.create_task(policies.of("a.example")) for _ in range(2))
        await until(lambda: bool(domain.host.gets))
        first.cancel()
        domain.host.open.set()
        assert ENFORCED == await second
        assert first.cancelled()
        assert 1 == len(domain.host.gets)

    async def test_closing_ends_a_fetch(self, domain: Domain) -> None:
        """Who waits is cancelled: mail that a policy may forbid does not go without it."""
        domain.host.open.clear()
        async with domain.policies() as policies:
            waiting = asyncio.create_task(policies.of("a.example"))
            await until(lambda: bool(domain.host.gets))
        with pytest.raises(asyncio.CancelledError):
            await waiting
