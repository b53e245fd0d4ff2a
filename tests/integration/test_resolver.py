"""Domains to mail hosts, and hosts to addresses, against a DNS server of our own."""

from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest

from shared.delivery import resolver as module
from shared.delivery.resolver import Resolver, Texts
from shared.mail.outcome import Deferred, Failed
from tests.peers.dns import DnsPeer, Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
async def dns() -> AsyncIterator[DnsPeer]:
    """A DNS server without names."""
    async with DnsPeer() as peer:
        yield peer


@pytest.fixture
def resolver(dns: DnsPeer) -> Resolver:
    """A resolver that asks it."""
    return Resolver([(dns.host, dns.port)])


class TestMailHosts:
    """RFC 5321 5.1."""

    async def test_best_first_and_equals_shuffled(self, dns: DnsPeer) -> None:
        """The order of preference always, and among equals each is first at some time."""
        dns.add("a.example", "MX", "20 c.example.", "10 B1.example.", "10 b2.example.", "30 d.example.")
        orders = {tuple(await _hosts(dns)) for _ in range(60)}
        assert {
            ("b1.example", "b2.example", "c.example", "d.example"),
            ("b2.example", "b1.example", "c.example", "d.example"),
        } == orders

    async def test_without_mx_the_domain_is_its_own_host(self, dns: DnsPeer, resolver: Resolver) -> None:
        """The implicit MX, also where the name is an alias."""
        dns.add("a.example", "A", "192.0.2.1")
        dns.add("b.example", "CNAME", "a.example.")
        assert ["a.example"] == await resolver.mail_hosts("a.example")
        assert ["b.example"] == await resolver.mail_hosts("b.example")

    async def test_without_mx_and_address_it_takes_no_mail(self, dns: DnsPeer, resolver: Resolver) -> None:
        """Only when both families clearly have none: what could not be looked up may be there later."""
        dns.add("a.example", "TXT", '"x"')
        answer = await resolver.mail_hosts("a.example")
        assert isinstance(answer, Failed)
        assert (550, "5.4.4") == (answer.reply.code, answer.reply.enhanced)

    @pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED, Fault.SILENT])
    @pytest.mark.parametrize("kind", ["A", "AAAA"])
    async def test_without_mx_and_with_an_address_that_is_not_known(
        self, dns: DnsPeer, monkeypatch: pytest.MonkeyPatch, fault: Fault, kind: str
    ) -> None:
        """One family that failed is enough to wait, and the other one's address enough to go on."""
        monkeypatch.setattr(module, "_LIFETIME", 0.3)
        resolver = Resolver([(dns.host, dns.port)])
        dns.add("a.example", "TXT", '"x"')
        dns.fault("a.example", fault, kind)
        answer = await resolver.mail_hosts("a.example")
        assert isinstance(answer, Deferred)
        assert (451, "4.4.3") == (answer.reply.code, answer.reply.enhanced)
        other, address = ("AAAA", "2606:4700::1111") if kind == "A" else ("A", "8.8.8.8")
        dns.add("b.example", other, address)
        dns.fault("b.example", fault, kind)
        assert ["b.example"] == await resolver.mail_hosts("b.example")

    async def test_an_mx_without_address_is_not_the_domain(self, dns: DnsPeer, resolver: Resolver) -> None:
        """Its host may get one, so the mail waits; the domain's own address is not used (RFC 5321 5.1)."""
        dns.add("a.example", "MX", "10 b.example.")
        dns.add("a.example", "A", "8.8.8.8")
        assert ["b.example"] == await resolver.mail_hosts("a.example")
        assert isinstance(await resolver.addresses("b.example", ruled=False), Deferred)

    @pytest.mark.parametrize("ours", ["us.example", "US.Example", "us.example."])
    async def test_we_and_what_is_no_better_are_left_out(self, dns: DnsPeer, ours: str) -> None:
        """RFC 5321 5.1: mail would come back to us from there."""
        dns.add("a.example", "MX", "10 b.example.", "20 US.example.", "20 c.example.", "30 d.example.")
        assert ["b.example"] == await Resolver([(dns.host, dns.port)], hostname=ours).mail_hosts("a.example")
        assert 4 == len(await _hosts(dns))

    async def test_we_are_named_twice(self, dns: DnsPeer) -> None:
        """Our best preference counts."""
        dns.add("a.example", "MX", "10 b.example.", "20 us.example.", "30 c.example.", "40 us.example.")
        assert ["b.example"] == await Resolver([(dns.host, dns.port)], hostname="us.example").mail_hosts("a.example")

    @pytest.mark.parametrize(
        ("kind", "records"),
        [("MX", ["10 us.example."]), ("MX", ["10 us.example.", "10 b.example.", "20 c.example."]), ("A", ["8.8.8.8"])],
        ids=["alone", "among equals", "implicit"],
    )
    async def test_we_are_the_best(self, dns: DnsPeer, kind: str, records: list[str]) -> None:
        """A loop; or a server beside us with the same name, whose mail must not be lost: 451 4.4.6, with what to do."""
        name = "a.example" if kind == "MX" else "us.example"
        dns.add(name, kind, *records)
        answer = await Resolver([(dns.host, dns.port)], hostname="us.example").mail_hosts(name)
        assert isinstance(answer, Deferred)
        assert (451, "4.4.6") == (answer.reply.code, answer.reply.enhanced)
        assert "make a rule" in answer.reply.text

    @pytest.mark.parametrize("times", [1, 2])
    async def test_an_alias_to_nothing_is_temporary(self, dns: DnsPeer, resolver: Resolver, times: int) -> None:
        """The domain exists, and its alias may be mended; also when the answer is remembered."""
        dns.add("a.example", "CNAME", "b.example.")
        dns.add("b.example", "CNAME", "gone.example.")
        for _ in range(times):
            answer = await resolver.mail_hosts("a.example")
            assert isinstance(answer, Deferred)
            assert (451, "4.4.3") == (answer.reply.code, answer.reply.enhanced)

    async def test_an_alias_that_fails_is_temporary(self, dns: DnsPeer, resolver: Resolver) -> None:
        """Also one that leads round in a circle."""
        dns.add("a.example", "CNAME", "b.example.")
        dns.add("b.example", "CNAME", "a.example.")
        assert isinstance(await resolver.mail_hosts("a.example"), Deferred)

    async def test_a_null_mx_refuses_for_good(self, dns: DnsPeer, resolver: Resolver) -> None:
        """RFC 7505: 556 5.1.10."""
        dns.add("a.example", "MX", "0 .")
        answer = await resolver.mail_hosts("a.example")
        assert isinstance(answer, Failed)
        assert (556, "5.1.10") == (answer.reply.code, answer.reply.enhanced)

    async def test_a_null_mx_beside_others_is_a_mistake(self, dns: DnsPeer, resolver: Resolver) -> None:
        """The other hosts may take the mail, so it is not bounced."""
        dns.add("a.example", "MX", "0 .", "10 b.example.")
        assert ["b.example"] == await resolver.mail_hosts("a.example")

    async def test_a_domain_that_does_not_exist(self, dns: DnsPeer, resolver: Resolver) -> None:
        """The only permanent answer besides the null MX."""
        dns.add("other.example", "A", "192.0.2.1")
        answer = await resolver.mail_hosts("a.example")
        assert isinstance(answer, Failed)
        assert "5.1.2" == answer.reply.enhanced

    @pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED, Fault.SILENT])
    async def test_a_fault_of_the_server_is_temporary(
        self, dns: DnsPeer, monkeypatch: pytest.MonkeyPatch, fault: Fault
    ) -> None:
        """What could not be looked up is asked again later, and is not remembered."""
        monkeypatch.setattr(module, "_LIFETIME", 0.3)
        resolver = Resolver([(dns.host, dns.port)])
        dns.fault("a.example", fault)
        answer = await resolver.mail_hosts("a.example")
        assert isinstance(answer, Deferred)
        assert (451, "4.4.3") == (answer.reply.code, answer.reply.enhanced)
        dns.clear()
        dns.add("a.example", "MX", "10 b.example.")
        assert ["b.example"] == await resolver.mail_hosts("a.example")

    async def test_a_long_answer_comes_over_tcp(self, dns: DnsPeer, resolver: Resolver) -> None:
        """A truncated answer is no answer."""
        dns.add("a.example", "MX", "10 b.example.")
        dns.fault("a.example", Fault.TRUNCATED)
        assert ["b.example"] == await resolver.mail_hosts("a.example")

    async def test_answers_are_remembered(self, dns: DnsPeer, resolver: Resolver) -> None:
        """A thousand messages to one domain are not a thousand questions."""
        dns.add("a.example", "MX", "10 b.example.")
        for _ in range(5):
            await resolver.mail_hosts("a.example")
        assert 1 == dns.queries["a.example", "MX"]

    @pytest.mark.parametrize(
        ("literal", "address"), [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1")]
    )
    async def test_a_literal_is_its_own_host(self, dns: DnsPeer, literal: str, address: str) -> None:
        """Nobody is asked."""
        assert [address] == await Resolver([(dns.host, dns.port)]).mail_hosts(literal)
        assert not dns.queries


class TestAddresses:
    """A and AAAA, and who may point where."""

    async def test_both_families(self, dns: DnsPeer, resolver: Resolver) -> None:
        """Every address is a way to the host."""
        dns.add("b.example", "A", "8.8.8.8", "8.8.4.4")
        dns.add("b.example", "AAAA", "2606:4700::1111")
        found = await _addresses(resolver, "b.example")
        assert {"8.8.8.8", "8.8.4.4", "2606:4700::1111"} == set(found)
        assert "2606:4700::1111" == found[0]

    async def test_one_family_that_fails_does_not_hide_the_other(self, dns: DnsPeer, resolver: Resolver) -> None:
        """A broken AAAA keeps no mail from an A; with neither, the fault is told."""
        dns.add("b.example", "A", "8.8.8.8")
        dns.fault("b.example", Fault.SERVFAIL, "AAAA")
        assert ["8.8.8.8"] == await resolver.addresses("b.example", ruled=False)
        dns.clear("b.example", "A")
        dns.add("b.example", "TXT", '"x"')
        answer = await Resolver([(dns.host, dns.port)]).addresses("b.example", ruled=False)
        assert isinstance(answer, Deferred)
        assert "4.4.3" == answer.reply.enhanced

    @pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED, Fault.SILENT])
    @pytest.mark.parametrize("family", ["A", "AAAA"])
    async def test_a_private_address_beside_a_fault_is_temporary(
        self, dns: DnsPeer, monkeypatch: pytest.MonkeyPatch, fault: Fault, family: str
    ) -> None:
        """The family that could not be looked up may have the public address; then it is used."""
        private, failing, public = {
            "A": ("10.0.0.1", "AAAA", "2606:4700::1111"),
            "AAAA": ("fc00::1", "A", "8.8.8.8"),
        }[family]
        monkeypatch.setattr(module, "_LIFETIME", 0.3)
        resolver = Resolver([(dns.host, dns.port)])
        dns.add("b.example", family, private)
        dns.fault("b.example", fault, failing)
        answer = await resolver.addresses("b.example", ruled=False)
        assert isinstance(answer, Deferred)
        assert "4.4.3" == answer.reply.enhanced
        assert [private] == await resolver.addresses("b.example", ruled=True)
        dns.clear("b.example", failing)
        dns.add("b.example", failing, public)
        assert [public] == await resolver.addresses("b.example", ruled=False)

    @pytest.mark.parametrize("exists", [True, False])
    async def test_a_host_without_address_is_temporary(self, dns: DnsPeer, resolver: Resolver, exists: bool) -> None:
        """It is the host's mistake, not the recipient's: the owner can mend it before the mail is given up."""
        dns.add("b.example" if exists else "c.example", "TXT", '"x"')
        answer = await resolver.addresses("b.example", ruled=False)
        assert isinstance(answer, Deferred)
        assert "4.4.4" == answer.reply.enhanced

    @pytest.mark.parametrize(
        "address",
        [
            *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
            *("::1", "::", "fe80::1", "fc00::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2001:db8::1"),
            *("64:ff9b::127.0.0.1", "64:ff9b:1::1", "2002:7f00:1::", "::127.0.0.1", "224.0.0.1", "ff02::1"),
            *("100.127.255.255", "192.0.0.8", "192.88.99.1", "198.18.0.1", "203.0.113.1", "240.0.0.1"),
            *("255.255.255.255", "239.255.255.255", "::ffff:0:127.0.0.1", "::8.8.8.8", "::ffff:8.8.8.8", "100::1"),
            *("64:ff9b::224.0.0.1", "64:ff9b::192.0.0.8", "64:ff9b::100.64.0.1", "2002:808:808::", "2001::1"),
            *("3fff::1", "5f00::1", "4000::1", "ff0e::1"),
        ],
    )
    async def test_a_stranger_cannot_point_the_fleet_at_an_internal_service(
        self, dns: DnsPeer, resolver: Resolver, address: str
    ) -> None:
        """Without a rule only public addresses are connected to, by name or by literal; a rule may name any."""
        dns.add("b.example", "AAAA" if ":" in address else "A", address)
        for host in ("b.example", address):
            answer = await resolver.addresses(host, ruled=False)
            assert isinstance(answer, Failed), host
            assert "5.4.4" == answer.reply.enhanced
        assert [ip_address(address)] == [
            ip_address(each) for each in await _addresses(resolver, "b.example", ruled=True)
        ]
        assert [address] == await Resolver([(dns.host, dns.port)], allow_private=True).addresses(address, ruled=False)

    @pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "100.63.255.255", "3ffe::1"])
    async def test_what_is_public_is_reached(self, dns: DnsPeer, resolver: Resolver, address: str) -> None:
        """The guard leaves the Internet as it is, and gives the very address to connect to, not a name."""
        dns.add("b.example", "AAAA" if ":" in address else "A", address)
        for host in ("b.example", address):
            assert [address] == await resolver.addresses(host, ruled=False)

    async def test_only_the_private_ones_are_left_out(self, dns: DnsPeer, resolver: Resolver) -> None:
        """A host with a public address besides is reached there."""
        dns.add("b.example", "A", "127.0.0.1", "8.8.8.8")
        assert ["8.8.8.8"] == await resolver.addresses("b.example", ruled=False)

    @pytest.mark.parametrize("name", ["localhost", "mx.localhost"])
    async def test_localhost_is_not_asked_for(self, dns: DnsPeer, resolver: Resolver, name: str) -> None:
        """RFC 6761 6.3: it is this machine; and no stranger may go there."""
        assert ["127.0.0.1", "::1"] == await resolver.addresses(name, ruled=True)
        assert isinstance(await resolver.addresses(name, ruled=False), Failed)
        assert not dns.queries


class TestTexts:
    """TXT records, for MTA-STS."""

    async def test_strings_are_put_together(self, dns: DnsPeer, resolver: Resolver) -> None:
        """A record of several strings is one text (RFC 8461 3.1); several records are several."""
        dns.add("a.example", "TXT", '"one " "record"', '"another"', ttl=120)
        found = await resolver.texts("a.example")
        assert isinstance(found, Texts)
        assert {b"one record", b"another"} == set(found.records)
        assert 120 == found.ttl

    async def test_none_is_an_answer(self, dns: DnsPeer, resolver: Resolver) -> None:
        """Whether the name exists or not."""
        dns.add("a.example", "A", "192.0.2.1")
        for name in ("a.example", "b.example"):
            found = await resolver.texts(name)
            assert isinstance(found, Texts)
            assert not found.records

    @pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED, Fault.SILENT])
    async def test_a_fault_is_no_answer(self, dns: DnsPeer, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
        """It is not taken for "none"."""
        monkeypatch.setattr(module, "_LIFETIME", 0.3)
        dns.fault("a.example", fault)
        assert isinstance(await Resolver([(dns.host, dns.port)]).texts("a.example"), Deferred)

    async def test_it_is_not_remembered(self, dns: DnsPeer, resolver: Resolver) -> None:
        """Whoever asks decides for how long."""
        for number in (1, 2):
            dns.clear()
            dns.add("a.example", "TXT", f'"{number}"')
            found = await resolver.texts("a.example")
            assert isinstance(found, Texts)
            assert (str(number).encode(),) == found.records


async def _hosts(dns: DnsPeer) -> list[str]:
    hosts = await Resolver([(dns.host, dns.port)]).mail_hosts("a.example")
    assert isinstance(hosts, list)
    return hosts


async def _addresses(resolver: Resolver, host: str, *, ruled: bool = False) -> list[str]:
    addresses = await resolver.addresses(host, ruled=ruled)
    assert isinstance(addresses, list)
    return addresses
