"""Who really asks, and by TLS or not, where a proxy stands in front: believed only of proxies that are known."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Self

import msgspec
from starlette.datastructures import Headers

from shared.runtime.settings import ConfigError

_LOOKED_AT = 20  # addresses of one X-Forwarded-For


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request came from.

    Attributes:
        address: Of the client, as far as it is known.
        secure: It came by TLS, to the proxy at least.
        host: What the client calls us.
    """

    address: str
    secure: bool
    host: str


class Proxies:
    """The proxies whose X-Forwarded-* are believed."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Read the setting.

        Raises:
            ConfigError: One of them is no address.
        """
        try:
            self._networks = [ip_network(each, strict=False) for each in networks]
        except ValueError as error:
            raise ConfigError(f"PUSHPUSH_PANEL_PROXIES is malformed: {error}") from error

    @classmethod
    def none(cls) -> Self:
        """Believe nobody."""
        return cls(())

    def caller(self, peer: str, scheme: str, headers: Headers) -> Caller:
        """Say where a request came from.

        Args:
            peer: The address that the connection came from.
            scheme: `http` or `https`.
            headers: Of the request.
        """
        if not self.known(peer):
            return Caller(address=peer, secure=scheme == "https", host=headers.get("host", ""))
        address = peer
        # From the right: what the nearest proxy saw, then what that one was told. A stranger can only add on the left.
        told = ",".join(headers.getlist("x-forwarded-for")).split(",")
        for each in reversed(told[-_LOOKED_AT:]):
            found = _address(_without_port(each.strip()))
            if found is None:
                break
            address = str(found)
            if not self.known(address):
                break
        proto = headers.get("x-forwarded-proto", scheme).rpartition(",")[2].strip().lower()
        host = headers.get("x-forwarded-host", headers.get("host", "")).rpartition(",")[2].strip()
        return Caller(address=address, secure=proto == "https", host=host)

    def known(self, address: str) -> bool:
        """Say whether an address is that of a proxy that is believed."""
        found = _address(address)
        return found is not None and any(found in each for each in self._networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address. A socket for both families has those of IPv4 as `::ffff:192.0.2.1`."""
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def _without_port(text: str) -> str:
    """Return an address as some proxies write it, `192.0.2.1:4711` or `[2001:db8::1]:4711`, without the rest."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
