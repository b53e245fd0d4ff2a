"""Rules: "deliver mail for this key to that target instead", checked when they are made, never later."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from shared.mail.domain import DomainError, normalise
from shared.mail.route import Route, Target, TargetError, Tls, Transport, parse_targets

MAX_COMMENT = 1_000  # characters
ANY = "*"
_SHOWN = 10  # keys of a circle that its refusal names
# What PostgreSQL cannot hold, or would do things to the terminal of the colleague who lists the rules.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class RuleError(ValueError):
    """The rule is not acceptable; the message is one sentence for the person who typed it."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of `dns_overrides`.

    Attributes:
        lookup_key: Normalised: a domain, `*.` and a domain, an address literal, or `*`.
        target_host: Normalised targets, separated by commas.
        comment: Why the rule is there.
        transport: Which transports may be used.
        tls: What is demanded of TLS; None for the default.
        expires_at: When it ends by itself, or None.
        enabled: False keeps the row and takes it out of use.
        share: Percent of the messages that take the rule; None for all.
        version: The rulebook version that wrote this row last; 0 before it is saved.
    """

    lookup_key: str
    target_host: str
    comment: str = ""
    transport: Transport = "auto"
    tls: Tls | None = None
    expires_at: datetime | None = None
    enabled: bool = True
    share: int | None = None
    version: int = 0

    def targets(self) -> tuple[Target, ...]:
        """Return the targets in the order they are to be tried."""
        return parse_targets(self.target_host)

    def route(self, version: int) -> Route:
        """Return the route that this rule gives to a delivery, under rules of the given version."""
        return Route(
            version=version,
            key=self.lookup_key,
            targets=tuple(self.target_host.split(",")),
            transport=self.transport,
            tls=self.tls,
        )


def parse_key(text: str) -> str:
    """Return a lookup key in normal form: `*`, `*.a.com`, `a.com`, `[192.0.2.1]`.

    Raises:
        RuleError: The key is empty or no domain.
    """
    key = text.strip()
    if not key:
        raise RuleError("the key is empty: name a domain (a.com), its subdomains (*.a.com), an address or *")
    if key == ANY:
        return ANY
    wildcard = key.startswith("*.")
    try:
        domain = normalise(key[2:] if wildcard else key)
    except DomainError as error:
        raise RuleError(f"the key {text!r} is malformed: {error}") from error
    if wildcard and domain.startswith("["):
        raise RuleError(f"the key {text!r} is malformed: an address has no subdomains")
    return f"*.{domain}" if wildcard else domain


def make_rule(
    key: str,
    target: str,
    *,
    comment: str = "",
    transport: Transport = "auto",
    tls: Tls | None = None,
    expires_at: datetime | None = None,
) -> Rule:
    """Check what a person typed and return the rule in normal form.

    Raises:
        RuleError: Key, target or comment is malformed, or the rule points at itself.
    """
    lookup_key = parse_key(key)
    try:
        targets = parse_targets(target)
    except TargetError as error:
        raise RuleError(f"the target is malformed: {error}") from error
    if any(key_of(each) == lookup_key for each in targets):
        raise RuleError(f"the rule {lookup_key} -> {target} points at itself: mail would come back to where it is")
    if len(comment) > MAX_COMMENT or _CONTROL.search(comment):
        raise RuleError(f"the comment must be one line of at most {MAX_COMMENT} characters")
    if transport == "https" and any(each.smtp_port for each in targets):
        raise RuleError(f"{target!r} names an SMTP port, but the transport is https: write https://HOST:PORT instead")
    return Rule(
        lookup_key=lookup_key,
        target_host=",".join(str(each) for each in targets),
        comment=comment,
        transport=transport,
        tls=tls,
        expires_at=expires_at,
    )


def key_of(target: Target) -> str:
    """Return the exact lookup key that mail addressed to this target's host would be looked up by."""
    return normalise(target.host)


def check_cycle(rule: Rule, rules: Iterable[Rule]) -> None:
    """Refuse a rule that closes a circle a -> b -> a among the exact keys.

    A target is never looked up again, so a circle does not loop here; but when both hosts run a fleet with these rules,
    mail goes round between them, and nobody means that.

    Args:
        rule: The rule about to be saved.
        rules: The saved rules that can be reached from its targets (others do no harm).

    Raises:
        RuleError: Names the circle.
    """
    known = {each.lookup_key: each for each in rules if each.enabled}
    known[rule.lookup_key] = rule
    came_from: dict[str, str] = {}
    waiting = [rule.lookup_key]
    while waiting:
        key = waiting.pop()
        for target in known[key].targets():
            following = key_of(target)
            if following == rule.lookup_key:
                raise RuleError(f"the rule closes a circle: {' -> '.join(_path(key, came_from))} -> {following}")
            if following in known and following not in came_from:
                came_from[following] = key
                waiting.append(following)


def _path(key: str, came_from: Mapping[str, str]) -> list[str]:
    path = [key]
    while key in came_from:
        key = came_from[key]
        path.append(key)
    path.reverse()
    return path if len(path) <= _SHOWN else [*path[: _SHOWN // 2], "...", *path[-_SHOWN // 2 :]]
