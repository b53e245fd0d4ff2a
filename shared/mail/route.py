"""Where a delivery goes: the targets a rule names, or the destination's own MX hosts when no rule matches."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, Self
from urllib.parse import urlsplit

import msgspec

from shared.mail.domain import DomainError, literal_address, normalise
from shared.mail.mxdeliv import PATH

Transport = Literal["auto", "https", "smtp"]
Tls = Literal["verify", "encrypt", "none"]

_HOST_PORT = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
MAX_PORT = 65_535
MAX_TARGETS = 10  # of one rule


class TargetError(ValueError):
    """The text is no target; the message says why, in a sentence for the person who typed it."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One next hop, as a rule names it.

    Attributes:
        host: A normalised host name or a bare IP address (no brackets).
        smtp_port: The port the rule names for SMTP, else None for the default.
        url: The URL the rule names for HTTPS, with its path, else None for `https://HOST/mxdeliv`.
    """

    host: str
    smtp_port: int | None = None
    url: str | None = None

    @classmethod
    @lru_cache(maxsize=65_536)
    def parse(cls, text: str) -> Self:
        """Read `b.com`, `b.com:2525`, an IP address, `[2001:db8::1]:2525` or `https://b.com[:port][/path]`.

        Raises:
            TargetError: The text is none of these.
        """
        if "://" in text:
            return cls._from_url(text)
        # A bare IPv6 address has colons of its own, so it is tried before a port is looked for.
        if text.count(":") > 1 and not text.startswith("["):
            return cls(host=_host(text, text))
        if not (found := _HOST_PORT.fullmatch(text)):
            raise TargetError(f"{text!r} is neither a host, nor an IP address, nor a URL")
        port = None if found["port"] is None else _port(int(found["port"]), text)
        return cls(host=_host(found["host"], text), smtp_port=port)

    @classmethod
    def _from_url(cls, text: str) -> Self:
        if _UNSAFE.search(text):
            raise TargetError(f"{text!r}: a URL has no spaces, control characters or backslashes")
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError as error:
            raise TargetError(f"{text!r} is not a URL: {error}") from error
        if url.scheme not in ("https", "http"):
            raise TargetError(f"{text!r}: only https:// (or, explicitly, http://) URLs can take mail")
        if url.username is not None or url.query or url.fragment or not url.hostname:
            raise TargetError(f"{text!r}: a target URL is https://HOST[:PORT][/PATH] and nothing else")
        host = _host(f"[{url.hostname}]" if ":" in url.hostname else url.hostname, text)
        if port is not None:
            _port(port, text)
        where = f"[{host}]" if ":" in host else host
        path = PATH if url.path in ("", "/") else url.path
        return cls(host=host, url=f"{url.scheme}://{where}{'' if port is None else f':{port}'}{path}")

    def https_url(self, default_port: int) -> str:
        """Return the URL to POST to; without one in the rule, `https://HOST/mxdeliv` on the default port."""
        if self.url is not None:
            return self.url
        where = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if default_port == 443 else f":{default_port}"  # noqa: PLR2004 - https's own
        return f"https://{where}{port}{PATH}"

    def __str__(self) -> str:
        """Return the target as a rule stores it."""
        if self.url is not None:
            return self.url
        if self.smtp_port is None:
            return self.host
        return f"[{self.host}]:{self.smtp_port}" if ":" in self.host else f"{self.host}:{self.smtp_port}"


class Route(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The way of one delivery, decided by the router with the rules of one version.

    Attributes:
        version: The version of the rules that decided it.
        key: The lookup key of the rule that matched; "" for direct federation.
        targets: The rule's targets in order, each readable by `Target.parse`; empty for direct federation by MX.
        transport: Which transports may be used; `auto` is HTTPS first, then SMTP.
        tls: What the rule demands of TLS; None for the default of the transport.
    """

    version: int
    key: str = ""
    targets: tuple[str, ...] = ()
    transport: Transport = "auto"
    tls: Tls | None = None

    @property
    def by_https_first(self) -> bool:
        """Say whether HTTPS is tried before SMTP. Without a rule mail goes to the MX, which speaks SMTP."""
        return bool(self.targets) and self.transport != "smtp"

    def fault(self) -> str | None:
        """Return what is wrong with the targets, as a rule written with psql may have them; None when all is well.

        Such mail must wait for the rule to be mended: without the rule it would go where the operator does not want it.
        """
        try:
            targets = [Target.parse(text) for text in self.targets]
        except TargetError as error:
            return f"the rule for {self.key} is malformed: {error}"
        why = unmet(targets, self.tls, self.transport)
        return None if why is None else f"the rule for {self.key} cannot be kept: {why}"


def unmet(targets: Iterable[Target], tls: Tls | None, transport: Transport) -> str | None:
    """Return why a demand on TLS cannot be met by these targets; None when it can."""
    if tls in ("verify", "encrypt") and transport != "smtp":
        for each in targets:
            if each.url is not None and each.url.startswith("http:"):
                return f"{each.url} is in the clear, but tls is {tls}"
    return None


def parse_targets(text: str) -> tuple[Target, ...]:
    """Read one target or several, separated by commas.

    Raises:
        TargetError: There is none, one is malformed, or one stands there twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise TargetError("the target is empty: name a host, an IP address or an https:// URL")
    if not all(parts):
        raise TargetError(f"{text!r} has an empty target between its commas")
    if len(parts) > MAX_TARGETS:
        raise TargetError(f"{len(parts)} targets are too many: a rule names at most {MAX_TARGETS}")
    targets = tuple(Target.parse(part) for part in parts)
    if len(set(targets)) != len(targets):
        raise TargetError(f"{text!r} names the same target twice")
    return targets


def _host(host: str, text: str) -> str:
    if not host:
        raise TargetError(f"{text!r} has no host")
    if host.startswith("[") and not host.lower().startswith("[ipv6:") and ":" in host:
        host = f"[IPv6:{host[1:]}"
    try:
        name = normalise(host)
    except DomainError as error:
        raise TargetError(f"{text!r} is neither a host, nor an IP address, nor a URL: {error}") from error
    return literal_address(name) or name


def _port(port: int, text: str) -> int:
    if not 1 <= port <= MAX_PORT:
        raise TargetError(f"{text!r}: a port is a number from 1 to {MAX_PORT}")
    return port
