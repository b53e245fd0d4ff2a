"""All rules of one version, ready to look up: exact key, then the longest `*.` suffix, then `*`.

A rulebook never changes; `changed` gives the next one. The bulk of the rules is shared between the two and only a small
layer of recent changes is copied, so one edit costs the same with ten rules and with a million.
"""

from collections.abc import Iterable, Mapping
from typing import Self

from shared.mail.route import Route
from shared.mail.rule import ANY, Rule

_LAYER = 1_024  # recent changes kept apart before they are merged into the bulk


class Rulebook:
    """An immutable set of rules. Disabled rules are not in it."""

    __slots__ = ("_base", "_layer", "size", "version")

    def __init__(self, rules: Iterable[Rule], version: int) -> None:
        """Build from rules; `version` is the released version they are read at."""
        self._base: Mapping[str, Rule] = {rule.lookup_key: rule for rule in rules if rule.enabled}
        self._layer: Mapping[str, Rule | None] = {}
        self.version = version
        self.size = len(self._base)

    def route(self, domain: str) -> Route:
        """Return the route for a normalised domain; direct federation when no rule matches."""
        rule = self.lookup(domain)
        return Route(version=self.version) if rule is None else rule.route(self.version)

    def lookup(self, domain: str) -> Rule | None:
        """Return the rule that decides for a normalised domain or literal, or None."""
        if (rule := self._get(domain)) is not None:
            return rule
        if not domain.startswith("["):
            # `*.a.com` matches x.a.com and y.x.a.com, never a.com itself.
            dot = domain.find(".")
            while dot != -1:
                if (rule := self._get("*" + domain[dot:])) is not None:
                    return rule
                dot = domain.find(".", dot + 1)
        return self._get(ANY)

    def changed(self, changes: Mapping[str, Rule | None], version: int) -> Self:
        """Return the rulebook after some changes.

        Args:
            changes: By lookup key, the rule as it is now, or None for a removed one.
            version: The version that the result has.
        """
        now = {key: None if rule is None or not rule.enabled else rule for key, rule in changes.items()}
        after = type(self)((), version)
        after._layer = {**self._layer, **now}  # noqa: SLF001 - our own kind
        after._base = self._base  # noqa: SLF001
        grown = sum((rule is not None) - (self._get(key) is not None) for key, rule in now.items())
        after.size = self.size + grown
        if len(after._layer) > _LAYER:  # noqa: SLF001
            after._merge()  # noqa: SLF001
        return after

    def _merge(self) -> None:
        merged = {**self._base, **{key: rule for key, rule in self._layer.items() if rule is not None}}
        for key, rule in self._layer.items():
            if rule is None:
                merged.pop(key, None)
        self._base, self._layer = merged, {}

    def _get(self, key: str) -> Rule | None:
        if key in self._layer:
            return self._layer[key]
        return self._base.get(key)
