"""Names to addresses and domains to mail hosts, by DNS (RFC 5321 5.1).

Only a clear "does not exist" is permanent; a time-out or a server failure is temporary.
"""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.resolver
from dns.rdtypes.ANY.MX import MX

from shared.mail.domain import as_address, literal_address
from shared.mail.outcome import Deferred, Failed
from shared.mail.reply import Reply

_CACHE = 50_000  # answers
_LIFETIME = 10.0  # seconds for one question, over all servers and tries

_NO_SUCH_DOMAIN = Failed(Reply(code=550, enhanced="5.1.2", text="the domain does not exist"))
_NULL_MX = Failed(Reply(code=556, enhanced="5.1.10", text="the domain accepts no mail (null MX, RFC 7505)"))
_NOT_PUBLIC = Failed(Reply(code=550, enhanced="5.4.4", text="the domain points to addresses that are not public"))


# IPv6 addresses that lead to an IPv4 one, in their last 32 bits: NAT64 (RFC 6052), IPv4-compatible.
_TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("::/96"))
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215


class Resolver:
    """Asks the system's DNS servers, or those of the settings."""

    def __init__(self, servers: Sequence[tuple[str, int]] = (), *, allow_private: bool = False) -> None:
        """Describe where to ask.

        Args:
            servers: Addresses and ports; empty for the system's.
            allow_private: Let mail without a rule go to loopback, private and link-local addresses.
        """
        self._allow_private = allow_private
        self._dns = dns.asyncresolver.Resolver(configure=not servers)
        if servers:
            self._dns.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in servers]
        self._dns.lifetime = _LIFETIME
        self._dns.cache = dns.resolver.LRUCache(_CACHE)

    async def mail_hosts(self, domain: str) -> list[str] | Deferred | Failed:
        """Return the hosts that take mail for a domain, best first, equals shuffled.

        Without an MX record the domain is its own host (the implicit MX of RFC 5321 5.1); a null MX refuses all mail.
        An address literal is its own host.
        """
        if (address := literal_address(domain)) is not None:
            return [address]
        try:
            answer = await self._dns.resolve(domain, "MX", search=False)
        except dns.resolver.NoAnswer:
            return [domain]
        except dns.resolver.NXDOMAIN:
            return _NO_SUCH_DOMAIN
        except dns.exception.DNSException as error:
            return _unknown(domain, error)
        return _by_preference(answer)

    async def addresses(self, host: str, *, ruled: bool) -> list[str] | Deferred | Failed:
        """Return the addresses of a host, IPv6 and IPv4 in the order of the answers.

        Args:
            host: A name or an address.
            ruled: A rule names this host, so it may be a private address; a stranger's recipient address may not.
        """
        found = await self._lookup(host)
        if not isinstance(found, list) or ruled or self._allow_private:
            return found
        public = [each for each in found if _is_public(each)]
        return public or _NOT_PUBLIC

    async def _lookup(self, host: str) -> list[str] | Deferred:
        if as_address(host) is not None:
            return [host]
        if host == "localhost" or host.endswith(".localhost"):
            return ["127.0.0.1", "::1"]  # RFC 6761 6.3
        v6, v4 = await asyncio.gather(self._one(host, "AAAA"), self._one(host, "A"))
        found = [address for answer in (v6, v4) if isinstance(answer, list) for address in answer]
        if found:
            return found
        fault = next((answer for answer in (v6, v4) if isinstance(answer, Deferred)), None)
        return fault or Deferred(Reply(code=451, enhanced="4.4.4", text=f"{host} has no address"))

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
    if isinstance(address, IPv6Address):
        inner = address.sixtofour
        if any(address in network for network in _TRANSLATED):
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if (inner is not None and not inner.is_global) or address in _LOCAL_NAT64 or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast


def _by_preference(answer: dns.resolver.Answer) -> list[str] | Failed:
    assert answer.rrset is not None  # `resolve` raises NoAnswer instead
    records = [record for record in answer.rrset.processing_order() if isinstance(record, MX)]
    # Beside other hosts a null MX is a mistake (RFC 7505 3), and no reason to bounce mail that those would take.
    hosts = [record.exchange for record in records if record.exchange != dns.name.root]
    return [host.to_text(omit_final_dot=True).lower() for host in hosts] or _NULL_MX


def _unknown(name: str, error: dns.exception.DNSException) -> Deferred:
    why = type(error).__name__
    return Deferred(Reply(code=451, enhanced="4.4.3", text=f"{name} could not be looked up: {why}: {error}"[:500]))
