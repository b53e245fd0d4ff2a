"""Who really asks, and by TLS or not, where a proxy stands in front: believed only of proxies that are known."""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
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
        if not self._known(peer):
            return Caller(address=peer, secure=scheme == "https", host=headers.get("host", ""))
        address = peer
        # From the right: what the nearest proxy saw, then what that one was told. A stranger can only add on the left.
        told = ",".join(headers.getlist("x-forwarded-for")).split(",")
        for each in reversed(told[-_LOOKED_AT:]):
            if not _is_address(each.strip()):
                break
            address = each.strip()
            if not self._known(address):
                break
        proto = headers.get("x-forwarded-proto", scheme).rpartition(",")[2].strip().lower()
        host = headers.get("x-forwarded-host", headers.get("host", "")).rpartition(",")[2].strip()
        return Caller(address=address, secure=proto == "https", host=host)

    def _known(self, address: str) -> bool:
        return _is_address(address) and any(ip_address(address) in each for each in self._networks)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
