"""Mail domains in one normal form, so that equal domains are equal strings.

Lower case, no trailing dot, IDNA A-labels (RFC 5891 after UTS 46), and address literals in the one spelling of RFC 5321
4.1.3 with the address compressed (RFC 5952). A bare IP address means its literal, and an IPv4-mapped IPv6 address means
the IPv4 address: it is the same host, and must not be a way around what is said about it.
"""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address

import idna

MAX_DOMAIN = 253  # octets, RFC 1035 2.3.4 without the root's dot
_MAX_TEXT = 1_024  # characters looked at; no spelling of a domain is longer

# The underscore is no host-name character, but chatmail names test and onion-like relays with it.
_PLAIN = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# A name whose last label is a number is read as an address by resolvers of the C library: `127.1`, `0x7f000001`.
_NUMBERS_LAST = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$")


class DomainError(ValueError):
    """The text is no domain; the message says why, in a sentence for the person who typed it."""


@lru_cache(maxsize=65_536)
def normalise(text: str) -> str:
    """Return the normal form of a domain, an IP address or an address literal.

    Args:
        text: For example `A.COM.`, `bücher.example`, `[IPv6:2001:DB8::1]` or `192.0.2.1`.

    Returns:
        For example `a.com`, `xn--bcher-kva.example`, `[IPv6:2001:db8::1]` or `[192.0.2.1]`.

    Raises:
        DomainError: The text is neither a domain nor an address.
    """
    if len(text) > _MAX_TEXT:
        raise DomainError(f"{text[:80]!r}... is longer than a domain name may be")
    if text.startswith("["):
        return _literal(text)
    if (address := as_address(text)) is not None:
        return literal(address)
    # A-labels are taken as they are, also those IDNA 2008 would not make (emoji domains): DNS has them.
    name = (text.lower() if text.isascii() else _to_a_labels(text)).removesuffix(".")
    if not name or len(name) > MAX_DOMAIN or not _PLAIN.fullmatch(name):
        raise DomainError(f"{text!r} is not a domain name")
    if _NUMBERS_LAST.search(name):
        raise DomainError(f"{text!r} is neither a domain name nor an IP address")
    return name


def as_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the bare IP address that the text is, or None. Scoped addresses (`fe80::1%eth0`) are none."""
    if "%" in text:
        return None
    try:
        return ip_address(text)
    except ValueError:
        return None


def literal(address: IPv4Address | IPv6Address) -> str:
    """Return the address literal of RFC 5321 4.1.3: `[192.0.2.1]` or `[IPv6:2001:db8::1]`."""
    if isinstance(address, IPv6Address):
        return f"[IPv6:{address}]" if address.ipv4_mapped is None else f"[{address.ipv4_mapped}]"
    return f"[{address}]"


def literal_address(domain: str) -> str | None:
    """Return the bare address inside a normalised literal, or None for a name."""
    if not domain.startswith("["):
        return None
    return domain[1:-1].removeprefix("IPv6:")


def _literal(text: str) -> str:
    inner = text.removesuffix(".")
    if not inner.endswith("]"):
        raise DomainError(f"{text!r} opens a bracket that it does not close")
    inner = inner[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            inner = inner[5:]
            if "%" in inner:
                raise DomainError(f"{text!r}: a zone is not part of an address literal")
            return literal(IPv6Address(inner))
        return literal(IPv4Address(inner))
    except AddressValueError as error:
        raise DomainError(f"{text!r} is not an address literal: write [192.0.2.1] or [IPv6:2001:db8::1]") from error


def _to_a_labels(text: str) -> str:
    try:
        labels = idna.uts46_remap(text, std3_rules=False).split(".")
        return ".".join(each.lower() if each.isascii() else idna.alabel(each).decode("ascii") for each in labels)
    except (idna.IDNAError, UnicodeError) as error:
        raise DomainError(f"{text!r} is not a valid internationalised domain: {error}") from error
