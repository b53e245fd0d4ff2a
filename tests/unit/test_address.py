"""Addresses: refused once, here, when they could break out of an SMTP command or an HTTP header."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.mail.address import AddressError, domain_of, needs_smtputf8, to_ascii_domain
from shared.mail.domain import normalise
from tests.unit.strategies import addresses, hostile_text

LONGEST_LOCAL_PART = "a" * 64
LONGEST_DOMAIN = ".".join(["b" * 63, "b" * 63, "b" * 57, "com"])  # with the @ and the local part: 254 octets


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("a@b.com", "b.com"),
        ("A@B.COM.", "b.com"),
        ("bounce-" + "a" * 100 + "=c.com@b.com", "b.com"),
        ("a+tag@b.com", "b.com"),
        ("a..b.@b.com", "b.com"),
        ("!#$%&'*+-/=?^_`{|}~@b.com", "b.com"),
        ('""@b.com', "b.com"),
        ('"a b"@b.com', "b.com"),
        ('"a@b"@c.com', "c.com"),
        ('"a\\"b\\\\"@b.com', "b.com"),
        ('"<>,;:()"@b.com', "b.com"),
        ("j\u00f6rg@b.com", "b.com"),
        ("\U0001f4e7@b.com", "b.com"),
        ("a@b\u00fccher.example", "xn--bcher-kva.example"),
        ("a@[192.0.2.1]", "[192.0.2.1]"),
        ("a@192.0.2.1", "[192.0.2.1]"),
        ("a@[IPv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
        (f"{LONGEST_LOCAL_PART}@b.com", "b.com"),
        (f"{LONGEST_LOCAL_PART}@{LONGEST_DOMAIN}", LONGEST_DOMAIN),
    ],
)
def test_an_address_has_a_domain_in_normal_form(address: str, expected: str) -> None:
    """Rules are looked up by what stands after the last @, in normal form; quoted local parts may hold an @."""
    assert expected == domain_of(address)


@pytest.mark.parametrize(
    "control", ["\r", "\n", "\r\n", "\x00", "\t", "\x0b", "\x1f", "\x7f", "\x85", "\u2028", "\ud800"]
)
@pytest.mark.parametrize(
    "form", ["a{}b@c.com", "{}a@c.com", "a@c{}.com", "a@c.com{}", '"a{}b"@c.com', '"a\\{}b"@c.com']
)
def test_a_control_character_is_refused_everywhere(form: str, control: str) -> None:
    """CR or LF in an address would end the RCPT command or the X-Mail-To header and begin another."""
    with pytest.raises(AddressError):
        domain_of(form.format(control))


@pytest.mark.parametrize(
    "address",
    [
        "", "@", "a", "a@", "@b.com", "a.b.com", "a b@c.com", "a@b@c.com", "<a@b.com>", "a@b.com>", "a,b@c.com",
        'a"b@c.com', '"a@c.com', '"a"b"@c.com', '"a\\"@c.com', '"a"x@c.com', "a(b)@c.com", "a@b..com", "a@b.com\x20",
        "a@[1.2.3]", "a@1.2.3", "a@*.b.com", "a@b.com,c@d.com", "a:b@c.com", "a;b@c.com", "a\\b@c.com",
        "a@b.com> SIZE=1", "a@b.com>\r\nRSET",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    """No domain, several @ without quotes, brackets, blanks and lists are not one address (RFC 5321 4.1.2)."""
    with pytest.raises(AddressError):
        domain_of(address)


@pytest.mark.parametrize(
    "address",
    [
        "a" * 249 + "@b.com",
        "\u00e4" * 125 + "@b.com",
        f"{LONGEST_LOCAL_PART}@{LONGEST_DOMAIN}m",
        "a@" + "b" * 64 + ".com",
        "a" * 1_000_000 + "@b.com",
    ],
)
def test_lengths_are_counted_in_octets(address: str) -> None:
    """254 in all (RFC 5321 4.5.3.1.3); an umlaut is two."""
    with pytest.raises(AddressError):
        domain_of(address)


@given(st.one_of(hostile_text, addresses, st.builds("{}@{}".format, hostile_text, hostile_text)))
@example("a@b\u00adc.com")
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    """What passes can stand in a command or header as it is: one line, no brackets around it, encodable."""
    try:
        domain = domain_of(text)
    except AddressError:
        return
    assert domain == normalise(domain)
    assert len(text.splitlines()) == 1
    assert len(text.encode()) <= 254
    assert "\x00" not in text
    if not text.startswith('"'):
        assert not set(text) & set(' <>,;()"\\')


@given(addresses)
def test_valid_addresses_are_taken(address: str) -> None:
    """No address that the grammar allows is refused: a refusal here sends a whole message to the undecodable."""
    assert domain_of(address) == normalise(address.rpartition("@")[2])


@given(addresses)
def test_what_goes_on_the_wire_reaches_the_same_mailbox(address: str) -> None:
    """Only the spelling of the domain may change on the way out, never the local part or the domain meant."""
    sent = to_ascii_domain(address)
    assert domain_of(address) == domain_of(sent)
    assert address.rpartition("@")[0] == sent.rpartition("@")[0]
    assert sent.rpartition("@")[2].isascii()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", ""),
        ("a@B.com", "a@B.com"),
        ("a@b.com.", "a@b.com"),
        ("a@b\u00fccher.example", "a@xn--bcher-kva.example"),
        ("a@[192.0.2.1]", "a@[192.0.2.1]"),
        ("a@192.0.2.1", "a@[192.0.2.1]"),
        ("a@::1", "a@[IPv6:::1]"),
        ("a@2001:db8::a", "a@[IPv6:2001:db8::a]"),
        ("a@b.xn--90a3ac", "a@b.xn--90a3ac"),
        ("j\u00f6rg@b\u00fccher.example", "j\u00f6rg@xn--bcher-kva.example"),
    ],
)
def test_the_domain_is_sent_as_every_server_understands_it(address: str, expected: str) -> None:
    """A strict server refuses `<a@192.0.2.1>` and `<a@b.com.>` for good; the null reverse-path stays empty."""
    assert expected == to_ascii_domain(address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("j\u00f6rg@b.com", True), ("a@b\u00fccher.example", False), ("a@b.com", False), ("", False)],
)
def test_smtputf8_is_needed_for_the_local_part_only(address: str, expected: bool) -> None:
    """A domain has A-labels; asking for SMTPUTF8 without need would lock out servers that do not have it."""
    assert expected == needs_smtputf8(address)
