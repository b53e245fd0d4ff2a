"""Domains in normal form: equal domains must be equal strings, and nothing but a domain may pass."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.mail.domain import DomainError, as_address, literal, literal_address, normalise
from tests.unit.strategies import address_literals, domains, hostile_text

LONG_LABEL = "a" * 63
LONGEST = ".".join([LONG_LABEL, LONG_LABEL, LONG_LABEL, "a" * 61])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.com", "a.com"),
        ("A.CoM", "a.com"),
        ("a.com.", "a.com"),
        ("localhost", "localhost"),
        ("123.com", "123.com"),
        ("a.123b", "a.123b"),
        ("1e3", "1e3"),
        ("_chat.a.com", "_chat.a.com"),
        ("a_.com", "a_.com"),
        ("a--b.com", "a--b.com"),
        (f"{LONG_LABEL}.com", f"{LONG_LABEL}.com"),
        (LONGEST, LONGEST),
        (f"{LONGEST}.", LONGEST),
    ],
)
def test_a_name_is_lower_case_without_the_dot_of_the_root(text: str, expected: str) -> None:
    """`A.com.` and `a.com` are one domain (RFC 1035 2.3.3); madmail looked up one and had stored the other."""
    assert expected == normalise(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("B\u00dcCHER.EXAMPLE.", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("stra\u00dfe.example", "xn--strae-oqa.example"),
        ("\u4e2d\u56fd\u3002example\u3002", "xn--fiqs8s.example"),
        ("\uff41.com", "a.com"),
        ("_chat.b\u00fccher.example", "_chat.xn--bcher-kva.example"),
        ("_chat.xn--bcher-kva.example", "_chat.xn--bcher-kva.example"),
        ("\u043f\u043e\u0447\u0442\u0430.\u0440\u0444", "xn--80a1acny.xn--p1ai"),
    ],
)
def test_a_unicode_name_and_its_a_labels_are_one_domain(text: str, expected: str) -> None:
    """Mail to `bücher.example` takes the rule of `xn--bcher-kva.example`, whichever form the sender wrote."""
    assert expected == normalise(text)


@pytest.mark.parametrize("text", ["xn--i-7iq.ws", "xn--zzzz9999.com"])
def test_a_labels_that_idna_2008_would_not_make_are_domains_all_the_same(text: str) -> None:
    """Emoji domains are in DNS and take mail; a message with such a recipient must not end among the undecodable."""
    assert text == normalise(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "[192.0.2.1]"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[192.0.2.1].", "[192.0.2.1]"),
        ("2001:db8::1", "[IPv6:2001:db8::1]"),
        ("2001:0DB8:0:0:0:0:0:1", "[IPv6:2001:db8::1]"),
        ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
        ("[ipv6:2001:DB8:0::0:1]", "[IPv6:2001:db8::1]"),
        ("[IPv6:::1]", "[IPv6:::1]"),
        ("::1", "[IPv6:::1]"),
        ("::", "[IPv6:::]"),
        ("2001:db8::192.0.2.1", "[IPv6:2001:db8::c000:201]"),
        ("::ffff:192.0.2.1", "[192.0.2.1]"),
        ("[IPv6:::FFFF:c000:0201]", "[192.0.2.1]"),
        ("[IPv6:0:0:0:0:0:ffff:192.0.2.1]", "[192.0.2.1]"),
    ],
)
def test_an_address_has_one_literal(text: str, expected: str) -> None:
    """Every spelling of an address finds the same rule and the same guard; IPv4-mapped is the IPv4 host itself."""
    assert expected == normalise(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        ".a.com",
        "a..com",
        "a.com..",
        "b\u00fc.example..",
        "-a.com",
        "a-.com",
        "a b.com",
        " a.com",
        "a.com\n",
        "a.com\r\nX: y",
        "a\x00.com",
        "a@b.com",
        "a,b.com",
        "a/b.com",
        "*.a.com",
        "*",
        "a%b.com",
        "xn--.com",
        "\u2764.ws",
        "a\u3000b.example",
        "\uff20.example",
        f"{LONG_LABEL}a.com",
        f"{LONGEST}a",
        "\u00fc" * 60 + ".example",
        "a" * 1_000_000,
        "\u00fc" * 1_000_000,
        "a.\ud800",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    """A domain goes into SMTP commands, URLs and DNS queries; what could break out of them is no domain."""
    with pytest.raises(DomainError):
        normalise(text)


@pytest.mark.parametrize(
    "text",
    [
        "1", "2130706433", "127.1", "a.1", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.4.",
        "0x7f000001", "0x7f.1", "127.0.0.0x1", "a.0x", "\uff11.2.3.4", "\u0661.2.3.4",
    ],
)  # fmt: skip
def test_a_number_at_the_end_is_no_name(text: str) -> None:
    """The C library reads `127.1` and `0x7f000001` as loopback: a stranger's domain must not reach an inner service."""
    with pytest.raises(DomainError):
        normalise(text)


@pytest.mark.parametrize(
    "text",
    [
        "[", "[]", "[.", "[]]", "[1.2.3.4", "[1.2.3.4]x", "[a.com]", "[::1]", "[IPv6:]", "[IPv6:1.2.3.4]",
        "[IPv6:fe80::1%eth0]", "fe80::1%eth0", "[IPv6:::1%25lo]", "[1.2.3.4%eth0]", "[IPv6:::1]]", "[[1.2.3.4]]",
        "[IPv6:2001:db8::/32]", "[1.2.3.4/8]", "[IPv6: ::1]", "[1.2.3.4\r\n]", "[Foo:bar]",
    ],
)  # fmt: skip
def test_what_is_no_literal_is_refused(text: str) -> None:
    """Zones, networks and unknown literal tags name no host that mail could go to (RFC 5321 4.1.3)."""
    with pytest.raises(DomainError):
        normalise(text)


def test_the_refusal_of_long_text_is_short() -> None:
    """A refusal is shown to a person and travels in a header: a megabyte of domain must not come back whole."""
    with pytest.raises(DomainError) as refusal:
        normalise("a" * 1_000_000)
    assert len(str(refusal.value)) < 200


@given(st.one_of(hostile_text, domains, address_literals))
@example("\u0130")
@example("xn--ss-.\u1e9e")
@example("\u00ad.com")
def test_any_text_is_a_domain_or_a_domain_error(text: str) -> None:
    """Nothing a stranger writes raises another exception; what passes is ASCII, in normal form and stays so."""
    try:
        domain = normalise(text)
    except DomainError:
        return
    assert domain == normalise(domain)
    assert domain == domain.lower().replace("[ipv6:", "[IPv6:")
    assert set(domain) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.:[]IP")
    assert len(domain) <= 253


@given(domains)
def test_a_plain_name_is_its_own_normal_form(domain: str) -> None:
    """Case and the dot of the root are the only freedom that an ASCII name has."""
    assert domain == normalise(domain.upper() + ".")


@given(st.ip_addresses())
def test_literal_and_address_are_two_forms_of_one_thing(address: IPv4Address | IPv6Address) -> None:
    """The address inside a literal, its exploded spelling and the literal itself all give that literal."""
    domain = literal(address)
    inner = literal_address(domain)
    assert inner is not None
    assert domain == normalise(inner) == normalise(address.exploded) == normalise(domain)


def test_a_name_has_no_address() -> None:
    """Only a literal holds an address."""
    assert literal_address("a.com") is None
    assert as_address("a.com") is None
    assert as_address("fe80::1%eth0") is None
