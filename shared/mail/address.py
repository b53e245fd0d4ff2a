"""Mail addresses as they stand between the angle brackets of MAIL FROM and RCPT TO (RFC 5321 4.1.2, RFC 6531 3.3).

An address is kept as it was written; only its domain is looked at in normal form. What could break out of an SMTP
command or an HTTP header (CR, LF, NUL and every other control character) is refused here, once, for all transports.
"""

import re
from functools import lru_cache

from shared.mail.domain import DomainError, normalise

# Octets, RFC 5321 4.5.3.1.3 less the brackets. The 64 octets of a local part (4.5.3.1.1) are not enforced: return
# addresses of mailing lists (VERP, SRS) are longer, and the servers that made them take them.
MAX_ADDRESS = 254

# A dot-string, read leniently: some providers hand out addresses with doubled or trailing dots.
_DOT_STRING = re.compile(r"[a-zA-Z0-9!#$%&'*+\-/=?^_`{|}~.\u0080-\U0010ffff]+")
_QUOTED = re.compile(r'"(?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*"')
_AS_IT_IS = re.compile(r"\[.*\]|[a-zA-Z0-9_.-]*[a-zA-Z]")  # a domain that ends in a letter is no IP address
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class AddressError(ValueError):
    """The text is no address; the message says why."""


@lru_cache(maxsize=65_536)
def domain_of(address: str) -> str:
    """Return the normalised domain of a valid address.

    Raises:
        AddressError: The address is malformed or has no domain.
    """
    if _CONTROL.search(address):
        raise AddressError(f"{address!r} has a control character")
    local, at, domain = address.rpartition("@")
    if not at or not domain:
        raise AddressError(f"{address!r} has no domain")
    if not local:
        raise AddressError(f"{address!r} has nothing before the @")
    if not (_DOT_STRING.fullmatch(local) or _QUOTED.fullmatch(local)):
        raise AddressError(f"{address!r}: the part before the @ needs quotes or has a character that is not allowed")
    if len(address.encode()) > MAX_ADDRESS:
        raise AddressError(f"{address[:80]!r} is longer than an address may be")
    try:
        return normalise(domain)
    except DomainError as error:
        raise AddressError(f"{address!r}: {error}") from error


def needs_smtputf8(address: str) -> bool:
    """Say whether the address can only be sent with SMTPUTF8 (RFC 6531): its local part is not ASCII."""
    return not address.rpartition("@")[0].isascii()


def to_ascii_domain(address: str) -> str:
    """Return the address with its domain as every SMTP server understands it.

    That is A-labels (RFC 5890 2.3.2.1), no trailing dot, and brackets around an IP address: a strict server answers a
    final 501 to `<a@192.0.2.1>` or `<a@b.com.>`.
    """
    local, _, domain = address.rpartition("@")
    return address if not domain or _AS_IT_IS.fullmatch(domain) else f"{local}@{normalise(domain)}"
