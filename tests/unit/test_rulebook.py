"""The rulebook: which rule decides, and that a change gives the same book as building it anew."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.route import Route
from shared.mail.rule import Rule
from shared.mail.rulebook import Building, Rulebook

KEYS = ["a.com", "x.a.com", "*.a.com", "*.x.a.com", "*.com", "com", "*", "[192.0.2.1]", "[IPv6:2001:db8::1]"]
DOMAINS = [
    "a.com", "x.a.com", "y.x.a.com", "z.y.x.a.com", "b.com", "com", "xa.com", "a.org", "[192.0.2.1]",
    "[IPv6:2001:db8::1]", "[192.0.2.2]", "[IPv6:2001:db8::2]",
]  # fmt: skip


def book(*keys: str) -> Rulebook:
    """Return a rulebook with a rule for each key."""
    return Rulebook([Rule(lookup_key=key, target_host="t.example") for key in keys], version=1)


@pytest.mark.parametrize(
    ("keys", "domain", "expected"),
    [
        (KEYS, "a.com", "a.com"),
        (KEYS, "x.a.com", "x.a.com"),
        (KEYS, "y.x.a.com", "*.x.a.com"),
        (KEYS, "z.y.x.a.com", "*.x.a.com"),
        (KEYS, "y.a.com", "*.a.com"),
        (KEYS, "b.com", "*.com"),
        (KEYS, "xa.com", "*.com"),
        (KEYS, "com", "com"),
        (KEYS, "a.org", "*"),
        (KEYS, "[192.0.2.1]", "[192.0.2.1]"),
        (KEYS, "[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
        (KEYS, "[192.0.2.2]", "*"),
        (["*.a.com"], "x.a.com", "*.a.com"),
        (["*.a.com"], "y.x.a.com", "*.a.com"),
        (["*.a.com"], "a.com", None),
        (["*.a.com"], "xa.com", None),
        (["*.a.com"], "a.com.org", None),
        (["*.com"], "com", None),
        (["a.com"], "x.a.com", None),
        (["*.0.2.1", "*.2.1]", "*.1]"], "[192.0.2.1]", None),
        (["*a.com", ".a.com", "*.", "."], "a.com", None),
        (["*a.com", ".a.com", "*.", "."], "x.a.com", None),
        ([], "a.com", None),
    ],
)
def test_exact_then_the_longest_suffix_then_any(keys: list[str], domain: str, expected: str | None) -> None:
    """CONTRACT 4.2. `*.a.com` is for x.a.com and y.x.a.com, never for a.com; a literal has no subdomains."""
    found = book(*keys).lookup(domain, "m1")
    assert expected == (None if found is None else found.lookup_key)


def test_a_route_names_the_version_it_was_decided_by() -> None:
    """A router is done with a version when no route of it is under way."""
    rule = Rule(lookup_key="a.com", target_host="b.com,c.com:25", transport="smtp", tls="encrypt")
    rules = Rulebook([rule], version=41)
    expected = Route(version=41, key="a.com", targets=("b.com", "c.com:25"), transport="smtp", tls="encrypt")
    assert expected == rules.route("a.com", "m1")
    assert Route(version=41) == rules.route("b.com", "m1")


def test_a_disabled_rule_is_not_there() -> None:
    """Neither when the book is built nor when it is changed; a wider rule takes over."""
    off = Rule(lookup_key="a.com", target_host="t.example", enabled=False)
    built = Rulebook([off, Rule(lookup_key="*", target_host="t.example")], version=1)
    changed = book("a.com", "*").changed({"a.com": off}, 2)
    assert (built.size, changed.size) == (1, 1)
    for rules in (built, changed):
        found = rules.lookup("a.com", "m1")
        assert found is not None
        assert found.lookup_key == "*"


def view(rules: Rulebook) -> list[Rule | None]:
    """Return what the book says for each domain: all that a router can see of it."""
    return [rules.lookup(domain, "m1") for domain in DOMAINS]


changes = st.dictionaries(
    st.sampled_from(KEYS),
    st.none() | st.tuples(st.sampled_from(["t.example", "u.example"]), st.booleans()),
    max_size=4,
)


@given(st.lists(changes, max_size=8))
def test_a_changed_book_is_the_book_built_anew(steps: list[dict[str, tuple[str, bool] | None]]) -> None:
    """Whatever the sequence of deltas, all routers route alike, and older books stay as they were."""
    table: dict[str, Rule] = {}
    rules = Rulebook((), version=0)
    earlier = []
    for version, step in enumerate(steps, 1):
        delta = {
            key: None if row is None else Rule(lookup_key=key, target_host=row[0], enabled=row[1], version=version)
            for key, row in step.items()
        }
        table.update({key: rule for key, rule in delta.items() if rule is not None})
        for key in [key for key, rule in delta.items() if rule is None]:
            table.pop(key, None)
        earlier.append((rules, view(rules), rules.size, rules.version))
        rules = rules.changed(delta, version)
        anew = Rulebook(table.values(), version)
        assert view(anew) == view(rules)
        assert (anew.size, anew.version) == (rules.size, rules.version)
    for old, seen, size, version in earlier:
        assert seen == view(old)
        assert (size, version) == (old.size, old.version)


def test_thousands_of_edits_change_nothing_else() -> None:
    """Added one by one, every other one removed again: each is there or is not, and the size is right."""
    rules = book("*")
    for number in range(3_000):
        rules = rules.changed({f"n{number}.example": Rule(lookup_key=f"n{number}.example", target_host="t.example")}, 2)
    for number in range(0, 3_000, 2):
        rules = rules.changed({f"n{number}.example": None}, 3)
    found = [rules.lookup(f"n{number}.example", "m1") for number in range(3_000)]
    expected = [f"n{n}.example" if n % 2 else "*" for n in range(3_000)]
    assert expected == [rule.lookup_key for rule in found if rule is not None]
    assert rules.size == 1_501


def test_built_piece_by_piece_is_the_same_book() -> None:
    """A million plain rules are added as pairs, the others whole."""
    rules = [
        Rule(lookup_key="a.com", target_host="t.example", comment="why", version=3),
        Rule(lookup_key="x.a.com", target_host="t.example", share=50, tls="verify"),
        Rule(lookup_key="*", target_host="t.example", enabled=False),
    ]
    building = Building()
    building.add_plain([("a.com", "t.example")])
    for rule in rules[1:]:
        building.add(rule)
    built = Rulebook.built(building, 7)
    assert view(Rulebook(rules, 7)) == view(built)
    assert (2, 7) == (built.size, built.version)


IDS = [f"4Xq{number:X}" for number in range(2_000)]


@pytest.mark.parametrize("share", [1, 10, 50, 99])
def test_a_share_takes_about_that_part_of_the_messages(share: int) -> None:
    """The rest goes where it would go without the rule: here to the wider one, or direct."""
    canary = Rule(lookup_key="x.a.com", target_host="new.example", share=share)
    for wider, elsewhere in ([Rule(lookup_key="*.a.com", target_host="old.example")], ("old.example",)), ([], ()):
        rules = Rulebook([canary, *wider], version=1)
        taken = [rules.route("x.a.com", each).targets for each in IDS]
        assert {("new.example",), elsewhere} == set(taken)
        part = 100 * taken.count(("new.example",)) / len(IDS)
        assert abs(part - share) < 5


@given(st.text(), st.integers(1, 99), st.integers(1, 99))
def test_a_raised_share_keeps_the_messages_it_had(message_id: str, low: int, high: int) -> None:
    """Retries stay together: the same message gets the same answer, and is not moved back by a larger share."""
    few = Rule(lookup_key="a.com", target_host="t.example", share=min(low, high))
    many = Rule(lookup_key="a.com", target_host="t.example", share=max(low, high))
    assert few.takes(message_id) <= many.takes(message_id)
    assert Rule(lookup_key="a.com", target_host="t.example").takes(message_id)


def test_two_rules_do_not_take_the_same_messages() -> None:
    """Else a canary of 10% at two keys would move the same tenth of the senders' mail twice."""
    one, other = (Rule(lookup_key=key, target_host="t.example", share=50) for key in ("a.com", "b.com"))
    both = sum(one.takes(each) and other.takes(each) for each in IDS)
    assert abs(100 * both / len(IDS) - 25) < 5
