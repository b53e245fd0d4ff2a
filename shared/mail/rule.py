"""Rules: "deliver mail for this key to that target instead", checked when they are made, never later."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from hashlib import blake2b

import msgspec

from shared.mail.domain import DomainError, normalise
from shared.mail.retry import parse_duration
from shared.mail.route import Route, Target, TargetError, Tls, Transport, parse_targets, unmet

MAX_COMMENT = 1_000  # characters
ANY = "*"
WHOLE = 100  # percent
_SHOWN = 10  # keys of a circle that its refusal names
_LAST = datetime(9000, 1, 1, tzinfo=UTC)  # what the table holds
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

    def takes(self, message_id: str) -> bool:
        """Say whether the rule's share includes this message.

        The same message is always answered alike, so its retries stay together; a share that is raised keeps those it
        had. Each rule throws its own dice, or two rules with a share of 10% would take the same messages.
        """
        if self.share is None:
            return True
        thrown = blake2b(f"{self.lookup_key}\n{message_id}".encode(errors="backslashreplace"), digest_size=8).digest()
        return int.from_bytes(thrown, "big") % WHOLE < self.share

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
    enabled: bool = True,
    share: int | None = None,
) -> Rule:
    """Check what a person typed and return the rule in normal form.

    Raises:
        RuleError: Key, target, comment or share is malformed, or the rule points at itself.
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
    if (why := unmet(targets, tls, transport)) is not None:
        raise RuleError(f"{why}: write https:// or leave --tls out")
    if share is not None and not 1 <= share <= WHOLE:
        raise RuleError(f"the share {share} is not a percentage from 1 to {WHOLE}")
    return Rule(
        lookup_key=lookup_key,
        target_host=",".join(str(each) for each in targets),
        comment=comment,
        transport=transport,
        tls=tls,
        expires_at=expires_at,
        enabled=enabled,
        share=None if share == WHOLE else share,
    )


def parse_share(text: str) -> int | None:
    """Read `10%` or `10`, a part of the messages in percent; None for all of them.

    Raises:
        RuleError: It is no whole number from 1 to 100.
    """
    number = text.strip().removesuffix("%").rstrip()
    if not (number.isascii() and number.isdecimal() and len(number) < len("1000") and 1 <= int(number) <= WHOLE):
        raise RuleError(f"the share {text!r} is not a percentage from 1% to {WHOLE}%")
    return None if int(number) == WHOLE else int(number)


def parse_expiry(text: str, now: datetime) -> datetime:
    """Read when a rule ends: `90s`, `15m`, `2h`, `5d` from now, or an ISO 8601 time with its zone.

    Raises:
        RuleError: It is neither, or in the past.
    """
    try:
        return now + parse_duration(text)
    except ValueError:
        pass  # then it is a time
    try:
        at = datetime.fromisoformat(text.strip())
        zoned = at.tzinfo is not None and at.utcoffset() is not None
        # Compared as UTC also where that leaves the calendar, as at its very ends.
        at = at.astimezone(UTC) if zoned else at
    except (ValueError, OverflowError) as error:
        raise RuleError(f"{text!r} is neither a span such as 2h or 5d nor a time such as 2026-01-31T18:00Z") from error
    if not zoned:
        raise RuleError(f"the time {text!r} has no zone: write {at.isoformat(timespec='minutes')}Z for UTC")
    if at <= now:
        raise RuleError(f"the time {text!r} is past: the rule would end before it began")
    if at >= _LAST:
        raise RuleError(f"the time {text!r} is too far away")
    return at


def key_of(target: Target) -> str:
    """Return the exact lookup key that mail addressed to this target's host would be looked up by."""
    return normalise(target.host)


def check_cycles(made: Sequence[Rule], saved: Iterable[Rule]) -> None:
    """Refuse rules that close a circle a -> b -> a among the exact keys.

    A target is never looked up again, so a circle does not loop here; but when both hosts run a fleet with these rules,
    mail goes round between them, and nobody means that.

    Args:
        made: The rules about to be saved.
        saved: The saved rules that can be reached from their targets (others do no harm).

    Raises:
        RuleError: Names the circle.
    """
    known = {rule.lookup_key: rule for rule in saved}
    new = [rule.lookup_key for rule in made if rule.enabled]
    known |= {rule.lookup_key: rule for rule in made}
    leads_to = {key: _leads_to(rule) for key, rule in known.items() if rule.enabled}
    try:
        TopologicalSorter(leads_to).prepare()
    except CycleError:
        # Perhaps only among saved rules, as psql can make them; then it is not for the new ones to answer for.
        for key in new:
            _check_circle_through(key, leads_to)


def _leads_to(rule: Rule) -> list[str]:
    try:
        return [key_of(target) for target in rule.targets()]
    except TargetError:
        return []  # written with psql; `check` tells of it


def _check_circle_through(start: str, leads_to: Mapping[str, Sequence[str]]) -> None:
    came_from: dict[str, str] = {}
    waiting = [start]
    while waiting:
        key = waiting.pop()
        for following in leads_to[key]:
            if following == start:
                raise RuleError(f"the rule closes a circle: {' -> '.join(_path(key, came_from))} -> {start}")
            if following in leads_to and following not in came_from:
                came_from[following] = key
                waiting.append(following)


def _path(key: str, came_from: Mapping[str, str]) -> list[str]:
    path = [key]
    while key in came_from:
        key = came_from[key]
        path.append(key)
    path.reverse()
    return path if len(path) <= _SHOWN else [*path[: _SHOWN // 2], "...", *path[-_SHOWN // 2 :]]
