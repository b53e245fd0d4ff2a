"""Rules and their changes in words: `+ a.com -> b.com`, `~ a.com: target b.com -> c.com`, `- a.com`."""

from collections.abc import Sequence
from datetime import UTC, datetime

from shared.mail.rule import Rule
from shared.runtime.clock import now
from shared.store.overrides import Change
from workers.cli.frame import ago, counted

SHOWN = 50  # lines of a difference


def options(rule: Rule) -> str:
    """Return what a rule says besides its key and target, ` (smtp, tls verify, off)`, or nothing."""
    words: list[str] = [] if rule.transport == "auto" else [rule.transport]
    if rule.tls:
        words.append(f"tls {rule.tls}")
    if rule.share:
        words.append(f"{rule.share}%")
    if rule.expires_at:
        # As a time: a rule of the past would else seem to end anew with every look at the history.
        words.append(f"until {rule.expires_at.astimezone(UTC):%Y-%m-%d %H:%MZ}")
    if not rule.enabled:
        words.append("off")
    return f" ({', '.join(words)})" if words else ""


def ends(at: datetime | None) -> str:
    """Return when a rule ends, as a list shows it."""
    if at is None:
        return "-"
    return ago(at) if at > now() else "ended, waits for a scheduler"


def line(change: Change) -> str:
    """Return one change in one line."""
    key, before, after = change.lookup_key, change.before, change.after
    if after is None:
        return f"- {key}"
    if before is None:
        return f"+ {key} -> {after.target_host}{options(after)}"
    old, new = _fields(before), _fields(after)
    return f"~ {key}: {', '.join(f'{name} {old[name]} -> {new[name]}' for name in old if old[name] != new[name])}"


def lines(changes: Sequence[Change]) -> str:
    """Return a difference, a line for each of its first changes."""
    told = [line(change) for change in changes[:SHOWN]]
    if len(changes) > SHOWN:
        told.append(f"and {len(changes) - SHOWN} more")
    return "\n".join(told) or "no difference"


def count(changes: Sequence[Change]) -> dict[str, int]:
    """Return how many rules are new, different and gone."""
    return {
        "added": sum(change.before is None for change in changes),
        "altered": sum(change.before is not None and change.after is not None for change in changes),
        "removed": sum(change.after is None for change in changes),
    }


def summary(changes: Sequence[Change]) -> str:
    """Return the counts in words."""
    counts = count(changes)
    rules = counted(counts["added"], "rule", "rules")
    return f"{rules} added, {counts['altered']} changed, {counts['removed']} removed"


def _fields(rule: Rule) -> dict[str, str]:
    return {
        "target": rule.target_host,
        "comment": repr(rule.comment),
        "transport": rule.transport,
        "tls": rule.tls or "default",
        "ends": rule.expires_at.isoformat(timespec="seconds") if rule.expires_at else "never",
        "state": "on" if rule.enabled else "off",
        "share": f"{rule.share or 100}%",
    }
