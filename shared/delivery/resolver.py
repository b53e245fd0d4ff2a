"""Names to addresses and domains to mail hosts, by DNS (RFC 5321 5.1).

Only a clear "does not exist" is permanent; a time-out or a server failure is temporary.
"""

import asyncio
import copy
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import NamedTuple

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.resolver
from dns.rdtypes.ANY.MX import MX
from dns.rdtypes.ANY.TXT import TXT

from shared.mail.domain import as_address, literal_address
from shared.mail.outcome import Deferred, Failed
from shared.mail.reply import Reply

_CACHE = 50_000  # answers
_LIFETIME = 10.0  # seconds for one question, over all servers and tries

_NO_SUCH_DOMAIN = Failed(Reply(code=550, enhanced="5.1.2", text="the domain does not exist"))
_NULL_MX = Failed(Reply(code=556, enhanced="5.1.10", text="the domain accepts no mail (null MX, RFC 7505)"))
_NO_HOST = Failed(Reply(code=550, enhanced="5.4.4", text="the domain has neither a mail host nor an address"))
_NOT_PUBLIC = Failed(Reply(code=550, enhanced="5.4.4", text="the domain points to addresses that are not public"))
# A mail server beside the fleet often has the same name. Its mail, and reports to its users, wait to be told apart: a
# bounce would end them, and a report is not even bounced.
IF_WE_ARE_NOT = "make a rule for the domain, or give pushpush a name of its own (PUSHPUSH_HOSTNAME)"
_OURSELVES = Deferred(
    Reply(
        code=451, enhanced="4.4.6", text=f"the domain's best mail host is this one, so mail would loop: {IF_WE_ARE_NOT}"
    )
)

# Not reachable over the Internet, whatever this Python's `is_global` says: protocol assignments (RFC 6890), 6to4 relays
# (RFC 7526), documentation (RFC 9637), and 6to4 itself (RFC 3056), which leads to any IPv4 address its owner likes.
_NOT_REACHABLE_4 = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"))
_NOT_REACHABLE_6 = (IPv6Network("2002::/16"), IPv6Network("3fff::/20"))
_UNICAST = IPv6Network("2000::/3")  # all that IANA has given out; mapped, compatible, site-local are outside
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: leads to the IPv4 address in the last 32 bits


class Texts(NamedTuple):
    """The TXT records of a name, the strings of each put together, and for how many seconds they hold."""

    records: tuple[bytes, ...]
    ttl: float


class Resolver:
    """Asks the system's DNS servers, or those of the settings."""

    def __init__(
        self, servers: Sequence[tuple[str, int]] = (), *, allow_private: bool = False, hostname: str = ""
    ) -> None:
        """Describe where to ask.

        Args:
            servers: Addresses and ports; empty for the system's.
            allow_private: Let mail without a rule go to loopback, private and link-local addresses.
            hostname: What we are called among mail hosts; "" when we take no mail.
        """
        self._allow_private = allow_private
        self._hostname = hostname.lower().removesuffix(".")
        self._dns = dns.asyncresolver.Resolver(configure=not servers)
        if servers:
            self._dns.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in servers]
        self._dns.lifetime = _LIFETIME
        self._uncached = copy.copy(self._dns)
        self._dns.cache = dns.resolver.LRUCache(_CACHE)

    async def mail_hosts(self, domain: str) -> list[str] | Deferred | Failed:
        """Return the hosts that take mail for a domain, best first, equals shuffled.

        Without an MX record the domain is its own host (the implicit MX of RFC 5321 5.1); a null MX refuses all mail.
        We ourselves and what is no better than us are left out. An address literal is its own host.
        """
        if (address := literal_address(domain)) is not None:
            return [address]
        try:
            answer = await self._dns.resolve(domain, "MX", search=False)
        except dns.resolver.NoAnswer:
            return await self._implicit(domain)
        except dns.resolver.NXDOMAIN as error:
            # The end of an alias that is gone is somebody else's mistake, and may be mended.
            return _unknown(domain, error) if _is_alias(error) else _NO_SUCH_DOMAIN
        except dns.exception.DNSException as error:
            return _unknown(domain, error)
        return _by_preference(answer, self._hostname)

    async def addresses(self, host: str, *, ruled: bool) -> list[str] | Deferred | Failed:
        """Return the addresses of a host, IPv6 first, each family in the order of its answer.

        They are to be connected to as they are: looked up again, the name could lead to another one.

        Args:
            host: A name or an address.
            ruled: A rule names this host, so it may be a private address; a stranger's recipient address may not.
        """
        found, fault = await self._lookup(host)
        allowed = found if ruled or self._allow_private else [each for each in found if _is_public(each)]
        if allowed:
            return allowed
        if fault is not None:
            return fault  # also beside private addresses: the family that is not known may have a public one
        return _NOT_PUBLIC if found else Deferred(Reply(code=451, enhanced="4.4.4", text=f"{host} has no address"))

    async def texts(self, name: str) -> Texts | Deferred:
        """Return the TXT records of a name; none is an answer too. It is not remembered here."""
        try:
            answer = await self._uncached.resolve(name, "TXT", search=False, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN as error:
            chains = (response.resolve_chaining() for response in error.kwargs["responses"].values())
            return Texts((), min((chain.minimum_ttl for chain in chains), default=0))
        except dns.exception.DNSException as error:
            return _unknown(name, error)
        records = tuple(b"".join(record.strings) for record in answer.rrset or () if isinstance(record, TXT))
        return Texts(records, answer.chaining_result.minimum_ttl)

    async def _implicit(self, domain: str) -> list[str] | Deferred | Failed:
        """Return the domain as its own host of preference 0, unless it clearly has no address."""
        if domain == self._hostname:
            return _OURSELVES
        found, fault = await self._lookup(domain)
        return [domain] if found else fault or _NO_HOST

    async def _lookup(self, host: str) -> tuple[list[str], Deferred | None]:
        """Return what addresses there are, and the fault when a family could not be looked up."""
        if as_address(host) is not None:
            return [host], None
        if host == "localhost" or host.endswith(".localhost"):
            return ["127.0.0.1", "::1"], None  # RFC 6761 6.3
        answers = await asyncio.gather(self._one(host, "AAAA"), self._one(host, "A"))
        found = [address for answer in answers if isinstance(answer, list) for address in answer]
        return found, next((answer for answer in answers if isinstance(answer, Deferred)), None)

    async def _one(self, host: str, kind: str) -> list[str] | Deferred:
        try:
            answer = await self._dns.resolve(host, kind, search=False)
        except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
            # For a host (not the recipient's domain) this is a mistake that its owner, or the rule's, can mend.
            return []
        except dns.exception.DNSException as error:
            return _unknown(host, error)
        return [record.address for record in answer]


def _is_public(text: str) -> bool:
    address = ip_address(text)
    if address.is_multicast or not address.is_global:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_REACHABLE_4)
    if address in _NAT64:
        return _is_public(str(IPv4Address(int(address) & 0xFFFF_FFFF)))
    return address in _UNICAST and not any(address in network for network in _NOT_REACHABLE_6)


def _is_alias(error: dns.resolver.NXDOMAIN) -> bool:
    return bool(error.canonical_name != error.kwargs["qnames"][0])


def _by_preference(answer: dns.resolver.Answer, ourselves: str) -> list[str] | Deferred | Failed:
    assert answer.rrset is not None  # `resolve` raises NoAnswer instead
    records = [record for record in answer.rrset.processing_order() if isinstance(record, MX)]
    # Beside other hosts a null MX is a mistake (RFC 7505 3), and no reason to bounce mail that those would take.
    hosts = [
        (record.preference, record.exchange.to_text(omit_final_dot=True).lower())
        for record in records
        if record.exchange != dns.name.root
    ]
    if not hosts:
        return _NULL_MX
    # Mail that is here must not go back to a host that would send it here again (RFC 5321 5.1).
    ours = min((preference for preference, host in hosts if host == ourselves), default=None)
    return [host for preference, host in hosts if ours is None or preference < ours] or _OURSELVES


def _unknown(name: str, error: dns.exception.DNSException) -> Deferred:
    why = type(error).__name__
    return Deferred(Reply(code=451, enhanced="4.4.3", text=f"{name} could not be looked up: {why}: {error}"[:500]))
