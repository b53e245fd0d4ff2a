"""Rules: refused while the person who typed them is still there, in words that help."""

import contextlib
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.route import Route, Target, Tls, Transport
from shared.mail.rule import Rule, RuleError, check_cycles, key_of, make_rule, parse_expiry, parse_key, parse_share
from tests.unit.strategies import domains, hostile_text, target_texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.com", "a.com"),
        (" A.Com. ", "a.com"),
        ("*", "*"),
        (" * ", "*"),
        ("*.A.com", "*.a.com"),
        ("*.com", "*.com"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("*.b\u00fccher.example", "*.xn--bcher-kva.example"),
        ("192.0.2.1", "[192.0.2.1]"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("2001:DB8::1", "[IPv6:2001:db8::1]"),
        ("[IPv6:2001:db8:0::1]", "[IPv6:2001:db8::1]"),
        ("::ffff:192.0.2.1", "[192.0.2.1]"),
    ],
)
def test_a_key_is_stored_in_normal_form(text: str, expected: str) -> None:
    """Madmail stored `A.com` as typed, looked up `a.com`, and the rule never matched."""
    assert expected == parse_key(text)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", "*.", "*.*", "**", "*a.com", "a.*", "a.*.com", "*.*.com", "*.192.0.2.1", "*.[192.0.2.1]", "*.::1",
        "a b", "a@b.com", "@a.com", "a.com,b.com", "a.com:25", "https://a.com", "a..com", "-a.com", "127.1", "[::1]",
        "a.com\x00", "a\r\n.com", "a" * 64 + ".com",
    ],
)  # fmt: skip
def test_a_malformed_key_is_refused(text: str) -> None:
    """A key that can never match would stand in the table looking as if it did something."""
    with pytest.raises(RuleError):
        parse_key(text)


@given(hostile_text | domains | domains.map("*.{}".format))
def test_any_text_is_a_key_or_a_rule_error(text: str) -> None:
    """What passes is stable: reading a stored key again changes nothing."""
    try:
        key = parse_key(text)
    except RuleError:
        return
    assert key == parse_key(key)


def test_a_rule_is_made_in_normal_form() -> None:
    """What is stored is what is looked up and carried in routes."""
    made = make_rule(
        " B\u00dcCHER.example", "B.com , [2001:DB8::1]:25", comment="moved \u2709", transport="smtp", tls="verify"
    )
    expected = Rule(
        lookup_key="xn--bcher-kva.example",
        target_host="b.com,[2001:db8::1]:25",
        comment="moved \u2709",
        transport="smtp",
        tls="verify",
    )
    assert expected == made


@given(domains, st.lists(target_texts, min_size=1, max_size=3), st.sampled_from(["auto", "smtp"]))
def test_the_route_of_a_rule_has_its_targets(key: str, texts: list[str], transport: Transport) -> None:
    """A comma separates targets in the row, and the route takes them apart in the same way."""
    try:
        rule = make_rule(key, ",".join(texts), transport=transport, tls="none")
    except RuleError:
        return  # the same target twice, or the key itself
    tls: Tls = "none"
    expected = Route(version=7, key=key, targets=tuple(map(str, rule.targets())), transport=transport, tls=tls)
    assert expected == rule.route(7)


@pytest.mark.parametrize("key", ["", "a b", "a@b.com"])
def test_a_rule_with_a_bad_key_is_refused(key: str) -> None:
    """The refusal names the key."""
    with pytest.raises(RuleError, match="key"):
        make_rule(key, "b.com")


@pytest.mark.parametrize("target", ["", " ", "b com", "b.com:0", "ftp://b.com", "b.com,", "b.com,b.com", "a@b.com"])
def test_a_rule_with_a_bad_target_is_refused(target: str) -> None:
    """The refusal says that it is the target."""
    with pytest.raises(RuleError, match="target"):
        make_rule("a.com", target)


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("a.com", "a.com"),
        ("a.com", "A.COM."),
        ("a.com", "a.com:2525"),
        ("a.com", "https://a.com/mxdeliv"),
        ("a.com", "b.com,a.com"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("192.0.2.1", "192.0.2.1:2525"),
        ("[192.0.2.1]", "::ffff:192.0.2.1"),
        ("[IPv6:2001:db8::1]", "https://[2001:db8:0::1]"),
    ],
)
def test_a_rule_that_points_at_itself_is_refused(key: str, target: str) -> None:
    """Also in another spelling, on another port, or as the second choice."""
    with pytest.raises(RuleError, match="points at itself"):
        make_rule(key, target)


@pytest.mark.parametrize("tls", ["verify", "encrypt"])
def test_a_demand_that_the_target_cannot_meet_is_refused(tls: Tls) -> None:
    """Never in the clear when the operator demanded otherwise."""
    with pytest.raises(RuleError, match="in the clear, but tls is"):
        make_rule("a.com", "b.com,http://c.com", tls=tls)
    make_rule("a.com", "http://c.com", tls="none")
    make_rule("a.com", "http://c.com", tls=tls, transport="smtp")


@pytest.mark.parametrize(("key", "target"), [("*.a.com", "mail.a.com"), ("*.a.com", "a.com"), ("*", "a.com")])
def test_a_wildcard_may_point_into_itself(key: str, target: str) -> None:
    """One host for all subdomains is the commonest rule; a target is never looked up again."""
    assert make_rule(key, target).lookup_key == key


@pytest.mark.parametrize("comment", ["a\nb", "a\r", "\x00", "\x1b[2J", "\x9b2J", "\u2028", "\ud800", "a" * 1_001])
def test_a_comment_is_one_printable_line(comment: str) -> None:
    """It is shown in the terminals and panels of colleagues, and PostgreSQL holds no NUL."""
    with pytest.raises(RuleError, match="comment"):
        make_rule("a.com", "b.com", comment=comment)


def test_a_long_comment_is_kept() -> None:
    """A thousand characters are allowed."""
    comment = "\u00e4" * 1_000
    assert comment == make_rule("a.com", "b.com", comment=comment).comment


def test_an_smtp_port_with_https_only_is_refused() -> None:
    """The port would be ignored without a word."""
    with pytest.raises(RuleError, match="SMTP port"):
        make_rule("a.com", "b.com,c.com:2525", transport="https")


@given(target_texts)
def test_the_key_of_a_target_is_a_key(text: str) -> None:
    """Circles are found by the key that mail to the target's host would be looked up by."""
    key = key_of(Target.parse(text))
    assert key == parse_key(key)


def rules(*pairs: str) -> list[Rule]:
    """Return the rules `a>b` says, with a host for each letter."""
    made = []
    for pair in pairs:
        key, _, target = pair.partition(">")
        made.append(make_rule(f"{key}.example", ",".join(f"{each}.example" for each in target.split("|"))))
    return made


@pytest.mark.parametrize(
    ("rule", "saved"),
    [
        ("a>b", ["b>a"]),
        ("a>b", ["b>c", "c>a"]),
        ("a>x|b", ["b>y|c", "c>z|a"]),
        ("a>b|c", ["c>a"]),
        ("a>b", ["b>c|d", "c>e", "d>a", "e>c"]),
        ("a>b", ["a>z", "b>a"]),
    ],
)
def test_a_circle_is_refused(rule: str, saved: list[str]) -> None:
    """Also over the failover targets, for when the first choice is down; and past a circle that is already there."""
    with pytest.raises(RuleError, match="circle"):
        check_cycles([rules(rule)[0]], rules(*saved))


def test_a_circle_in_other_spellings_is_a_circle() -> None:
    """A URL, a port or a bare address name the same host."""
    saved = [make_rule("b.example", "https://[::ffff:192.0.2.1]:8443/x")]
    with pytest.raises(RuleError, match="circle"):
        check_cycles([make_rule("[192.0.2.1]", "b.example:2525")], saved)


def test_the_refusal_names_the_circle() -> None:
    """The person must see which rule to change."""
    with pytest.raises(RuleError) as refusal:
        check_cycles([rules("a>b")[0]], rules("b>c", "c>a"))
    assert str(refusal.value).endswith("a.example -> b.example -> c.example -> a.example")


@pytest.mark.parametrize(
    ("rule", "saved"),
    [
        ("a>b", []),
        ("a>b", ["b>c", "c>d"]),
        ("a>b", ["c>a", "d>a"]),
        ("a>b", ["b>c", "c>b"]),
        ("a>b|c", ["b>d", "c>d"]),
        ("a>z", ["a>b", "b>a"]),
    ],
)
def test_a_chain_is_no_circle(rule: str, saved: list[str]) -> None:
    """Chains, diamonds, and a circle the rule is no part of, or breaks, are let be."""
    check_cycles([rules(rule)[0]], rules(*saved))


def test_a_disabled_rule_closes_no_circle() -> None:
    """It is out of use."""
    disabled = Rule(lookup_key="b.example", target_host="a.example", enabled=False)
    check_cycles([rules("a>b")[0]], [disabled])
    check_cycles([disabled], rules("a>b", "b>a"))


@pytest.mark.parametrize(("last", "circle"), [("end.example", False), ("n0.example", True)])
def test_a_chain_of_ten_thousand_rules_is_followed(last: str, circle: bool) -> None:
    """No recursion, no quadratic time; and the refusal stays readable."""
    hosts = [f"n{number}.example" for number in range(10_000)] + [last]
    chain = [Rule(lookup_key=key, target_host=target) for key, target in pairwise(hosts)]
    if not circle:
        check_cycles([chain[0]], chain[1:])
        return
    with pytest.raises(RuleError) as refusal:
        check_cycles([chain[0]], chain[1:])
    assert len(str(refusal.value)) < 500
    assert "n0.example -> n1.example" in str(refusal.value)
    assert "n9999.example -> n0.example" in str(refusal.value)


@pytest.mark.parametrize(("text", "expected"), [("10%", 10), ("1", 1), (" 99 % ", 99), ("100%", None), ("100", None)])
def test_a_share_is_a_percentage(text: str, expected: int | None) -> None:
    """With or without the sign; 100% is all, and so no share at all."""
    assert expected == parse_share(text)


@pytest.mark.parametrize(
    "text", ["", "%", "0", "0%", "101%", "-5", "1.5%", "ten", "10%%", "1e1", "\u0663", "9" * 5_000]
)
def test_what_is_no_share_is_refused(text: str) -> None:
    """In one sentence that says what would be right."""
    with pytest.raises(RuleError, match=r"is not a percentage from 1% to 100%"):
        parse_share(text)


@pytest.mark.parametrize("share", [0, 101, -1])
def test_a_share_out_of_range_makes_no_rule(share: int) -> None:
    """However it comes."""
    with pytest.raises(RuleError, match="percentage"):
        make_rule("a.com", "b.com", share=share)


NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", NOW + timedelta(hours=2)),
        ("5d", NOW + timedelta(days=5)),
        ("2026-06-01T18:00Z", NOW.replace(hour=18)),
        ("2026-06-01T18:00+02:00", NOW.replace(hour=16)),
        (" 2026-06-02 00:00:00+00:00 ", NOW + timedelta(hours=12)),
    ],
)
def test_an_expiry_is_a_span_or_a_time_with_its_zone(text: str, expected: datetime) -> None:
    """A span counts from now."""
    assert expected == parse_expiry(text, NOW)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "neither a span"),
        ("soon", "neither a span"),
        ("0h", "neither a span"),
        ("-2h", "neither a span"),
        ("99999d", "neither a span"),
        ("2026-06-01T18:00", "has no zone: write 2026-06-01T18:00Z for UTC"),
        ("2026-06-02", "has no zone"),
        ("2026-06-01T11:59Z", "is past"),
        ("0001-01-01T00:00+23:59", "neither a span"),
        ("9999-12-31T23:59-12:00", "neither a span"),
        ("9500-01-01T00:00Z", "too far away"),
    ],
)
def test_what_is_no_expiry_is_refused(text: str, why: str) -> None:
    """A time without a zone would end hours early or late."""
    with pytest.raises(RuleError, match=why):
        parse_expiry(text, NOW)


@given(hostile_text)
def test_any_text_is_an_expiry_or_refused(text: str) -> None:
    """Whatever is typed."""
    with contextlib.suppress(RuleError):
        assert NOW < parse_expiry(text, NOW)
    with contextlib.suppress(RuleError):
        share = parse_share(text)
        assert share is None or 1 <= share < 100
