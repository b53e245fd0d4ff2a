"""Rules, changes and events in words, for the templates. Pure."""

from datetime import UTC
from typing import Final

from shared.mail.event import Event
from shared.mail.rule import Rule
from shared.store.overrides import Change
from workers.panel.words import plural

_TONES: Final = {
    "delivered": "ok",
    "routed": "",
    "rerouted": "",
    "deferred": "warn",
    "postponed": "warn",
    "fallback": "warn",
    "failed": "bad",
    "bounced": "bad",
    "dropped": "bad",
    "removed": "bad",
    "reported": "",
    # How a recipient stands.
    "waits": "warn",
    "given up": "bad",
    "set aside": "bad",
    "on its way": "info",
}


def tone(news: str) -> str:
    """Return how good the news of an event or a state is, as the style sheet calls it."""
    return _TONES.get(news, "")


def options(rule: Rule) -> str:
    """Return what a rule says besides its key and target, `(smtp, tls verify, off)`, or nothing."""
    said: list[str] = [] if rule.transport == "auto" else [rule.transport]
    if rule.tls:
        said.append(f"tls {rule.tls}")
    if rule.share:
        said.append(f"{rule.share}%")
    if rule.expires_at:
        said.append(f"until {rule.expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
    if not rule.enabled:
        said.append("off")
    return f"({', '.join(said)})" if said else ""


def altered(change: Change) -> str:
    """Return what differs between two states of a rule: `target b.com → c.com`."""
    assert change.before is not None
    assert change.after is not None
    old, new = _fields(change.before), _fields(change.after)
    return ", ".join(f"{name} {old[name]} → {new[name]}" for name in old if old[name] != new[name])


def summary(changes: tuple[Change, ...]) -> str:
    """Return a difference in numbers."""
    added = sum(change.before is None for change in changes)
    removed = sum(change.after is None for change in changes)
    return f"{plural(added, 'rule')} added, {len(changes) - added - removed:,} changed, {removed:,} removed"


def told(event: Event) -> str:
    """Return an event in a sentence; the words of a peer stand beside it."""
    rule = f"rule {event.rule} of version {event.version}" if event.rule else "no rule"
    where = event.target or f"the mail hosts of {event.domain}"
    sentences = {
        "routed": f"Routed to {where}: {rule}.",
        "rerouted": f"Waiting mail, routed anew to {where}: {rule}.",
        "delivered": f"Delivered by {event.room}{_to(event)}.",
        "deferred": f"Not taken by {event.room}{_to(event)}; it is tried again.",
        "postponed": f"Not tried by {event.room}: no room for it, or the next hop is left alone for a while.",
        "fallback": f"Not taken by {event.room}{_to(event)}; the next way has its turn.",
        "failed": "Could not be settled, and was set aside for people to see.",
        "bounced": "Given up; the sender is told.",
        "dropped": "Given up; nobody is told, since the message is a report itself.",
        "reported": f"The sender was told, by message {event.report}.",
        "removed": "Taken out by an operator; nobody is told.",
    }
    return sentences[event.kind]


def _to(event: Event) -> str:
    return f" at {event.mta}" if event.mta else f" at {event.target}" if event.target else ""


def _fields(rule: Rule) -> dict[str, str]:
    return {
        "target": rule.target_host,
        "comment": f"“{rule.comment}”",
        "transport": rule.transport,
        "tls": rule.tls or "default",
        "ends": f"{rule.expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if rule.expires_at else "never",
        "state": "on" if rule.enabled else "off",
        "share": f"{rule.share or 100}%",
    }
