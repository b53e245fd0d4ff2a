"""`pushpush endpoint-cache explain`: what it says is what the router and the transports would do."""

import os
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given

from shared.delivery.explain import explain
from shared.mail.mta_sts import Held
from shared.mail.rule import Rule, make_rule
from shared.mail.rulebook import Rulebook, keys_for
from shared.runtime.settings import Settings
from shared.store.hops import NextHops
from shared.store.overrides import Overrides
from shared.store.policies import StoredPolicies
from shared.store.pool import Pool
from shared.store.routers import Routers
from shared.store.rulebooks import Rulebooks
from tests.integration.command_line import CommandLine
from tests.peers.dns import DnsPeer
from tests.unit.strategies import address_literals, domains

pytestmark = [pytest.mark.anyio, pytest.mark.services]

EXPLAIN = ("endpoint-cache", "explain")
OPPORTUNISTIC = "STARTTLS where it works (opportunistic), else in the clear; the certificate is not verified"
BY_NAME = "encrypted, the certificate is verified by the name"
UNVERIFIED = "encrypted, the certificate is not verified"


@pytest.fixture
async def dns() -> AsyncIterator[DnsPeer]:
    """A DNS server with a few hosts."""
    async with DnsPeer() as peer:
        peer.add("b.example", "A", "192.0.2.1")
        peer.add("b.example", "AAAA", "2001:db8::1")
        peer.add("c.example", "A", "192.0.2.2")
        yield peer


@pytest.fixture
def pushpush(settings: Settings, dns: DnsPeer) -> CommandLine:
    """The command line for the private broker, database and DNS."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PUSHPUSH_")}
    return CommandLine(
        ours
        | {
            "PUSHPUSH_AMQP_URL": settings.amqp_url,
            "PUSHPUSH_DATABASE_URL": settings.database_url,
            "PUSHPUSH_DNS_SERVERS": dns.address,
        }
    )


@pytest.fixture
def overrides(pool: Pool) -> Overrides:
    """The rules, none yet."""
    return Overrides(pool)


async def save(overrides: Overrides, key: str, target: str, *, release: bool = True, **fields: Any) -> int:
    """Save a rule; return its version."""
    return (await overrides.set(make_rule(key, target, **fields), actor="ann", release=release)).version


async def explained(pushpush: CommandLine, *words: str) -> dict[str, Any]:
    """Return what is said as JSON."""
    return (await pushpush(*EXPLAIN, *words, "--json")).data


def ways(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return transport and place of each hop."""
    return [(hop["transport"], hop["where"]) for hop in data["hops"]]


def states(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return key and state of the rules that do not decide."""
    return [(rule["lookup_key"], rule["state"]) for rule in data["beaten"]]


class TestRule:
    """Which rule decides, and which it beats."""

    async def test_the_narrowest_rule_decides(self, pushpush: CommandLine, overrides: Overrides) -> None:
        """Exact beats suffix, the longer suffix the shorter, and all of them beat `*`."""
        for key in ("*", "*.example", "*.a.example", "x.a.example"):
            await save(overrides, key, "b.example", comment=f"for {key}")
        exact, suffix, apex, other = [
            await explained(pushpush, each) for each in ("u@X.A.example.", "y.x.a.example", "a.example", "u@a.test")
        ]
        assert ("x.a.example", "x.a.example", 4, 4) == (
            exact["domain"],
            exact["rule"]["lookup_key"],
            exact["rule"]["version"],
            exact["version"],
        )
        assert ("for x.a.example", "ann") == (exact["rule"]["comment"], exact["rule"]["set_by"])
        assert [("*.a.example", "wider"), ("*.example", "wider"), ("*", "wider")] == states(exact)
        assert ["*.a.example", "*.example", "*"] == [each["rule"]["lookup_key"] for each in (suffix, apex, other)]

    async def test_a_disabled_rule_is_listed_and_passed_over(self, pushpush: CommandLine, overrides: Overrides) -> None:
        """The wider one decides; the disabled one is told, so that nobody wonders."""
        await save(overrides, "*", "c.example")
        await save(overrides, "a.example", "b.example")
        await overrides.enable("a.example", enabled=False, actor="bob", release=True)
        data = await explained(pushpush, "a.example")
        assert ("*", [("a.example", "disabled")], "bob") == (
            data["rule"]["lookup_key"],
            states(data),
            data["beaten"][0]["set_by"],
        )
        assert "a.example -> b.example: disabled" in (await pushpush(*EXPLAIN, "a.example")).out

    async def test_an_older_version_shows_the_older_rule(self, pushpush: CommandLine, overrides: Overrides) -> None:
        """Also the time before there was one, with the comment of then; a version that never was is refused."""
        first = await save(overrides, "a.example", "b.example", comment="then")
        await save(overrides, "a.example", "c.example", comment="now")
        await overrides.remove("a.example", actor="ann", release=True)
        then, before, now = [await explained(pushpush, "a.example", "--at", at) for at in (str(first), "0", "3")]
        assert ("b.example", "then", first) == (
            then["rule"]["target_host"],
            then["rule"]["comment"],
            then["rule"]["version"],
        )
        assert [None, None] == [before["rule"], now["rule"]]
        for at in ("4", "-1", "99999999999999999999"):
            ran = await pushpush(*EXPLAIN, "a.example", "--at", at)
            assert (1, True) == (ran.code, f"there is no version {at}: the latest is 3" in ran.sentence)

    async def test_an_unreleased_change_is_told(self, pushpush: CommandLine, overrides: Overrides) -> None:
        """What routers do is explained, and what `reload` would change is said."""
        await save(overrides, "a.example", "b.example")
        await save(overrides, "a.example", "c.example", release=False)
        await save(overrides, "other.example", "c.example", release=False)
        data, text = await explained(pushpush, "a.example"), (await pushpush(*EXPLAIN, "a.example")).out
        assert ("b.example", 1, ["a.example"]) == (data["rule"]["target_host"], data["version"], data["unreleased"])
        assert "not released: the last change of a.example; `pushpush reload` applies it" in text
        assert "c.example" == (await explained(pushpush, "a.example", "--at", "2"))["rule"]["target_host"]

    async def test_a_share_is_told_in_parts(self, pushpush: CommandLine, overrides: Overrides) -> None:
        """Who takes how much, and with --id which rule this message takes: as the router's lookup says."""
        await save(overrides, "a.example", "b.example", share=10)
        await save(overrides, "*.example", "c.example")
        await save(overrides, "x.a.example", "b.example", share=30)
        rule = make_rule("x.a.example", "b.example", share=30)
        within = next(str(number) for number in range(1_000) if rule.takes(str(number)))
        beyond = next(str(number) for number in range(1_000) if not rule.takes(str(number)))
        any_, taken, passed = [
            await explained(pushpush, "x.a.example", *words) for words in ((), ("--id", within), ("--id", beyond))
        ]
        assert {"x.a.example": 30.0, "*.example": 70.0} == any_["share"]
        assert ["x.a.example", "x.a.example", "*.example"] == [
            each["rule"]["lookup_key"] for each in (any_, taken, passed)
        ]
        assert ([("x.a.example", "share")], "c.example") == (states(passed), passed["hops"][0]["target"])
        text = (await pushpush(*EXPLAIN, "x.a.example", "--id", beyond)).out
        assert "share of the messages: 30% x.a.example; 70% *.example" in text
        assert f"message {beyond}: *.example takes it" in text

    async def test_when_a_rule_ends_is_told(self, pushpush: CommandLine, overrides: Overrides) -> None:
        """With the time that is left."""
        await save(overrides, "a.example", "b.example", expires_at=datetime.now(UTC) + timedelta(hours=2, minutes=5))
        assert "(in 2 h)" in (await pushpush(*EXPLAIN, "a.example")).out


class TestWay:
    """Hosts, transports, addresses and TLS."""

    async def test_several_targets(self, pushpush: CommandLine, overrides: Overrides) -> None:
        """With auto both transports have their turn at one target before the next one has its own."""
        await save(overrides, "a.example", "b.example:2525,c.example,gone.example")
        data = await explained(pushpush, "u@a.example")
        assert [
            ("https", "https://b.example/mxdeliv"),
            ("smtp", "b.example:2525"),
            ("https", "https://c.example/mxdeliv"),
            ("smtp", "c.example:25"),
            ("https", "https://gone.example/mxdeliv"),
            ("smtp", "gone.example:25"),
        ] == ways(data)
        assert ([["2001:db8::1", "192.0.2.1"]] * 2, [BY_NAME, OPPORTUNISTIC]) == (
            [hop["addresses"] for hop in data["hops"][:2]],
            [hop["tls"] for hop in data["hops"][:2]],
        )
        assert ([], "451 4.4.4 gone.example has no address") == (
            data["hops"][4]["addresses"],
            data["hops"][4]["fault"],
        )
        text = (await pushpush(*EXPLAIN, "u@a.example")).out
        assert "HTTPS first, then SMTP, at each target (transport auto)" in text
        assert "a connection fault goes to the next, a refusal ends it" in text

    @pytest.mark.parametrize(
        ("target", "fields", "expected"),
        [
            (
                "https://b.example:8443/in",
                {"transport": "https", "tls": "encrypt"},
                [("https", "https://b.example:8443/in", UNVERIFIED)],
            ),
            (
                "b.example,c.example",
                {"transport": "smtp", "tls": "verify"},
                [
                    ("smtp", "b.example:25", "STARTTLS is required, the certificate is verified by the name"),
                    ("smtp", "c.example:25", "STARTTLS is required, the certificate is verified by the name"),
                ],
            ),
            (
                "[2001:db8::1]:2525",
                {},
                [
                    ("https", "https://[2001:db8::1]/mxdeliv", UNVERIFIED),
                    ("smtp", "[2001:db8::1]:2525", OPPORTUNISTIC),
                ],
            ),
            (
                "http://10.0.0.1:8080/mxdeliv",
                {"tls": "none"},
                [
                    ("https", "http://10.0.0.1:8080/mxdeliv", "none: http:// is in the clear"),
                    ("smtp", "10.0.0.1:25", "none: in the clear"),
                ],
            ),
        ],
    )
    async def test_url_port_transport_and_tls(
        self,
        pushpush: CommandLine,
        overrides: Overrides,
        target: str,
        fields: dict[str, Any],
        expected: list[tuple[str, str, str]],
    ) -> None:
        """As the rule says it, and as the transports take it; a rule may lead to a private address."""
        await save(overrides, "a.example", target, **fields)
        data = await explained(pushpush, "a.example")
        assert expected == [(hop["transport"], hop["where"], hop["tls"]) for hop in data["hops"]]
        assert all(hop["addresses"] for hop in data["hops"])

    async def test_without_a_rule_the_mx_hosts_in_order(self, pushpush: CommandLine, dns: DnsPeer) -> None:
        """By SMTP alone, the best first; a stranger's private address is refused."""
        dns.add("a.example", "MX", "20 mx2.a.example.", "10 mx1.a.example.")
        dns.add("mx1.a.example", "A", "8.8.8.8")
        dns.add("mx2.a.example", "A", "10.0.0.1")
        data = await explained(pushpush, "a.example")
        assert (None, [], [("smtp", "mx1.a.example:25"), ("smtp", "mx2.a.example:25")]) == (
            data["rule"],
            data["beaten"],
            ways(data),
        )
        assert (["8.8.8.8"], None, []) == (
            data["hops"][0]["addresses"],
            data["hops"][0]["fault"],
            data["hops"][1]["addresses"],
        )
        assert "550 5.4.4" in data["hops"][1]["fault"]
        assert "SMTP to the MX hosts, the best first" in (await pushpush(*EXPLAIN, "a.example")).out

    async def test_without_a_rule_and_without_mx_hosts(self, pushpush: CommandLine, dns: DnsPeer) -> None:
        """The domain itself, or why the mail is returned: a null MX, or no such domain."""
        dns.add("a.example", "A", "8.8.8.8")
        dns.add("null.example", "MX", "0 .")
        itself, null, gone = [
            (await pushpush(*EXPLAIN, each)).out for each in ("a.example", "null.example", "gone.test")
        ]
        assert "SMTP to the domain itself: no MX names another host" in itself
        assert "1. SMTP a.example:25\n     at 8.8.8.8" in itself
        assert "the mail is returned: 556 5.1.10 the domain accepts no mail (null MX, RFC 7505)" in null
        assert "the mail is returned: 550 5.1.2 the domain does not exist" in gone

    async def test_a_literal(self, pushpush: CommandLine, overrides: Overrides) -> None:
        """In any spelling; it has no subdomains, and `*` is for it too."""
        free = await explained(pushpush, "u@[IPv6:2606:4700:4700:0::1111]")
        assert ("[IPv6:2606:4700:4700::1111]", [("smtp", "[2606:4700:4700::1111]:25")]) == (free["domain"], ways(free))
        await save(overrides, "[192.0.2.9]", "b.example")
        await save(overrides, "*", "c.example")
        data = await explained(pushpush, "192.0.2.9")
        assert ("[192.0.2.9]", [("*", "wider")]) == (data["rule"]["lookup_key"], states(data))

    async def test_an_internationalised_domain(self, pushpush: CommandLine, overrides: Overrides) -> None:
        """Both forms are one domain."""
        await save(overrides, "bücher.example", "b.example")
        data = await explained(pushpush, "jörg@BÜCHER.example")
        assert ("xn--bcher-kva.example", "xn--bcher-kva.example") == (data["domain"], data["rule"]["lookup_key"])

    async def test_a_malformed_rule(self, pushpush: CommandLine, pool: Pool) -> None:
        """As psql can write one: its mail waits, and nothing of it reaches the terminal raw."""
        async with pool.transaction() as connection:
            await connection.execute(
                "INSERT INTO dns_overrides (lookup_key, target_host, comment) VALUES ('a.example', 'b..example', %s)",
                ("\x1b[31m",),
            )
        await Overrides(pool).release()
        data, text = await explained(pushpush, "a.example"), (await pushpush(*EXPLAIN, "a.example")).out
        assert ([], "b..example") == (data["hops"], data["rule"]["target_host"])
        assert data["fault"].startswith("the mail waits until the rule is mended: the rule for a.example is malformed")
        assert data["fault"] in text
        assert "\x1b" not in text

    async def test_what_is_remembered_of_a_hop(self, pushpush: CommandLine, overrides: Overrides, pool: Pool) -> None:
        """By the names that the workers' gates use; of a domain's own mail hosts, the domain."""
        await save(overrides, "a.example", "b.example,c.example:26")
        store = NextHops(pool)
        await store.remember("https://b.example/mxdeliv", "without mxdeliv", 1_700, "a web site")
        await store.remember("c.example:26", "suspended", 29, "450 4.4.1 connection refused")
        await store.remember("c.example:25", "suspended", 29, "of somebody else")
        await store.remember("b.example", "suspended", 0, "it is over")
        data = await explained(pushpush, "u@a.example")
        assert [["without mxdeliv"], [], [], ["suspended"]] == [
            [each["state"] for each in hop["known"]] for hop in data["hops"]
        ]
        text = (await pushpush(*EXPLAIN, "u@a.example")).out
        assert "remembered as without mxdeliv, so it is passed over, until" in text
        assert "suspended by a worker, since it did not answer, until" in text
        await store.remember("b.example", "suspended", 29, "450 4.4.1 connection refused")
        (direct,) = (await explained(pushpush, "u@b.example"))["hops"]
        assert ["suspended"] == [each["state"] for each in direct["known"]]

    async def test_the_policy_of_the_domain(self, pushpush: CommandLine, dns: DnsPeer, pool: Pool) -> None:
        """MTA-STS as the transport keeps it: hosts that are not listed are left out, the others verified by name."""
        dns.add("d.example", "MX", "10 c.example.", "20 b.example.")
        text = "version: STSv1\nmode: {}\nmx: b.example\nmax_age: 86400\n"
        said = {}
        for mode in ("enforce", "testing"):
            await StoredPolicies(pool).put("d.example", Held.of("1", text.format(mode), datetime.now(UTC)))
            said[mode] = await explained(pushpush, "d.example")
        assert [("smtp", "b.example:25")] == ways(said["enforce"])
        assert ("enforce", "verified by the name") == (
            said["enforce"]["policy"],
            said["enforce"]["hops"][0]["tls"].partition("certificate is ")[2],
        )
        assert ["c.example:25", "b.example:25"] == [where for _, where in ways(said["testing"])]
        assert "MTA-STS: the domain's policy is in testing" in (await pushpush(*EXPLAIN, "d.example")).out


class TestRouters:
    """Whether all of them have applied the rules."""

    async def test_routers_behind_are_named(self, pushpush: CommandLine, pool: Pool, overrides: Overrides) -> None:
        """Silent ones do not count, as they do not for a change; without a router nobody agrees."""
        none = await explained(pushpush, "b.example")
        version = await save(overrides, "a.example", "b.example")
        for name, applied in (("one", version), ("two", 0), ("silent", 0)):
            await Routers(pool).seen(name, applied)
        async with pool.transaction() as connection:
            await connection.execute("UPDATE routers SET seen_at = now() - interval '1 hour' WHERE name = 'silent'")
        behind, text = await explained(pushpush, "a.example"), (await pushpush(*EXPLAIN, "a.example")).out
        await Routers(pool).seen("two", version)
        agreed, all_ = await explained(pushpush, "a.example"), (await pushpush(*EXPLAIN, "a.example")).out
        assert (False, False, True) == (none["agree"], behind["agree"], agreed["agree"])
        assert [("one", 1, True, True), ("silent", 0, False, False), ("two", 0, True, False)] == [
            (each["name"], each["applied"], each["live"], each["current"]) for each in behind["routers"]
        ]
        assert "not all have applied version 1; behind: two (at 0)" in text
        assert "all 2 routers have applied version 1" in all_


@pytest.mark.parametrize("address", ["", "@a.example", "a@", "a b@a.example", "*.a.example", "a..example", "u@[1.2]"])
async def test_what_is_no_address_is_refused(pushpush: CommandLine, address: str) -> None:
    """Exit 1 and one sentence."""
    ran = await pushpush(*EXPLAIN, "--", address)
    assert (1, True) == (ran.code, ran.sentence.startswith("pushpush endpoint-cache explain: "))


async def test_an_id_that_is_no_text_is_refused(pushpush: CommandLine) -> None:
    """A bad byte of the shell could not be printed as JSON; no message has such an id."""
    ran = await pushpush(*EXPLAIN, "a.example", "--id", "\udcff", "--json")
    assert (1, "refused") == (ran.code, ran.object["error"]["kind"])


@given(domains | address_literals)
def test_the_keys_of_a_domain_are_those_that_match(domain: str) -> None:
    """`keys_for` and `Rulebook.matching` go through the same keys in the same order, and neither knows another."""
    keys = keys_for(domain)
    wrong = ["x." + domain, "*." + domain, "*.", "*.x.example"]
    book = Rulebook([Rule(lookup_key=key, target_host="t.example") for key in {*keys, *wrong}], version=1)
    assert keys == [rule.lookup_key for rule in book.matching(domain)]


async def test_it_says_what_the_router_does(pool: Pool, overrides: Overrides, settings: Settings, dns: DnsPeer) -> None:
    """For any table the rule and the targets are those of the whole rulebook that a router loads."""
    settings = settings.model_copy(update={"dns_servers": ((dns.host, dns.port),)})
    dice = random.Random(7)
    keys = ["a.example", "x.a.example", "*.a.example", "*.x.a.example", "*.example", "*", "[192.0.2.9]"]
    for _ in range(15):
        chosen = dice.sample(keys, dice.randint(0, 6))
        rules = {
            key: make_rule(
                key,
                dice.choice(["b.test", "b.test:26,c.test", "https://c.test/x"]),
                enabled=dice.random() < 0.7,
                share=dice.choice([None, None, 20, 60]),
            )
            for key in chosen
        }
        await overrides.apply(rules, actor="ann", release=dice.random() < 0.7, whole=True)
        book = await Rulebooks(pool).rulebook()
        for domain in ("a.example", "x.a.example", "y.x.a.example", "a.test", "[192.0.2.9]"):
            message_id = str(dice.random())
            found = await explain(domain, pool, settings, message_id=message_id)
            rule, route = book.lookup(domain, message_id), book.route(domain, message_id)
            assert (rule and rule.lookup_key, book.version) == (found.rule and found.rule.lookup_key, found.version)
            assert route.targets == (tuple(dict.fromkeys(hop.target for hop in found.hops)) if rule else ())
            first = next(book.matching(domain), None)
            without_id = (await explain(domain, pool, settings)).rule
            assert (first and first.lookup_key) == (without_id and without_id.lookup_key)
