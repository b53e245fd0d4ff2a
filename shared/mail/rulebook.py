"""All rules of one version, ready to look up: exact key, then the longest `*.` suffix, then `*`.

A rulebook never changes; `changed` gives the next one. It is cut into a thousand small dicts, of which a change copies
only those it touches, so one edit costs the same with ten rules and with a million.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

from shared.mail.route import Route
from shared.mail.rule import ANY, Rule

_SHARDS = 1_024  # a power of two
_MASK = _SHARDS - 1
_PLACE_OF_ANY = hash("") & _MASK

# A rule that does no more than name a target is kept as that text alone: a million of them fit into 200 MB.
_Kept = str | Rule
_Shard = Mapping[str, _Kept]


class Rulebook:
    """An immutable set of rules, as far as routing needs them: no comments, no dates. Disabled rules are not in it.

    Attributes:
        version: The released version that it was read at.
        size: How many rules it has.
        mark: Tells this history of the rules from another one with the same version, as a database has that lost
            commits and took other ones.
    """

    __slots__ = ("_depths", "_shards", "mark", "size", "version")

    def __init__(self, rules: Iterable[Rule], version: int, mark: object = None) -> None:
        """Build from rules; `version` is the released version they are read at."""
        building = Building()
        for rule in rules:
            building.add(rule)
        self._take(building, version, mark)

    @classmethod
    def built(cls, building: "Building", version: int, mark: object = None) -> Self:
        """Return what was built piece by piece."""
        made = cls.__new__(cls)
        made._take(building, version, mark)  # noqa: SLF001 - our own kind
        return made

    def _take(self, building: "Building", version: int, mark: object) -> None:
        self._shards: tuple[_Shard, ...] = tuple(building.shards)
        self._depths: Mapping[int, int] = building.depths
        self.size = building.size
        self.version = version
        self.mark = mark

    def route(self, domain: str, message_id: str) -> Route:
        """Return the route for a message to a normalised domain; direct federation when no rule takes it."""
        rule = self.lookup(domain, message_id)
        return Route(version=self.version) if rule is None else rule.route(self.version)

    def lookup(self, domain: str, message_id: str) -> Rule | None:
        """Return the rule that decides for a message to a normalised domain or literal, or None.

        A rule with a share takes only that part of the messages; the others go where they would go without it.
        """
        kept = self._shards[hash(domain) & _MASK].get(domain)
        if type(kept) is str:  # nearly all rules are so, and need no more
            return Rule(lookup_key=domain, target_host=kept)
        for rule in self.matching(domain):
            if rule.share is None or rule.takes(message_id):
                return rule
        return None

    def matching(self, domain: str) -> Iterator[Rule]:
        """Return the rules for a normalised domain or literal, the one that goes before the others first."""
        shards = self._shards
        if (kept := shards[hash(domain) & _MASK].get(domain)) is not None:
            yield _rule(domain, kept)
        if domain[0] != "[":
            # `*.a.com` matches x.a.com and y.x.a.com, never a.com itself.
            dot, depth = domain.find("."), domain.count(".")
            while dot != -1:
                if depth in self._depths:
                    name = domain[dot:]
                    if (kept := shards[hash(name) & _MASK].get(name)) is not None:
                        yield _rule("*" + name, kept)
                dot, depth = domain.find(".", dot + 1), depth - 1
        if (kept := shards[_PLACE_OF_ANY].get("")) is not None:
            yield _rule(ANY, kept)

    def changed(self, changes: Mapping[str, Rule | None], version: int, mark: object = None) -> Self:
        """Return the rulebook after some changes.

        Args:
            changes: By lookup key, the rule as it is now, or None for a removed one.
            version: The version that the result has.
            mark: Its mark.
        """
        shards = list(self._shards)
        own: dict[int, dict[str, _Kept]] = {}
        size = self.size
        depths = Counter(self._depths)
        for key, rule in changes.items():
            name = _name(key)
            place = hash(name) & _MASK
            if (shard := own.get(place)) is None:
                shards[place] = shard = own[place] = dict(shards[place])
            grown = (rule is not None and rule.enabled) - (name in shard)
            if rule is not None and rule.enabled:
                shard[name] = _kept(rule)
            else:
                shard.pop(name, None)
            size += grown
            if name.startswith("."):
                depths[name.count(".")] += grown
        after = type(self).__new__(type(self))
        after._shards, after.size, after.version, after.mark = tuple(shards), size, version, mark  # noqa: SLF001 - our own kind
        after._depths = {depth: count for depth, count in depths.items() if count}  # noqa: SLF001
        return after


def keys_for(domain: str) -> list[str]:
    """Return the lookup keys that match a normalised domain or literal, the one that goes before the others first.

    `Rulebook.matching` goes through the same keys, but makes none that it does not come to.
    """
    if domain.startswith("["):
        return [domain, ANY]
    dots = [place for place, each in enumerate(domain) if each == "."]
    return [domain, *("*" + domain[dot:] for dot in dots), ANY]


class Building:
    """A rulebook in the making, for those who read a million rules piece by piece."""

    def __init__(self) -> None:
        """Begin with no rules."""
        self.shards: list[dict[str, _Kept]] = [{} for _ in range(_SHARDS)]

    @property
    def depths(self) -> Mapping[int, int]:
        """How many wildcards there are by their number of dots: few are deep, so most cuts need not be looked up."""
        return Counter(name.count(".") for shard in self.shards for name in shard if name[:1] == ".")

    @property
    def size(self) -> int:
        """How many rules there are so far."""
        return sum(map(len, self.shards))

    def add(self, rule: Rule) -> None:
        """Add a rule, unless it is disabled."""
        if rule.enabled:
            name = _name(rule.lookup_key)
            self.shards[hash(name) & _MASK][name] = _kept(rule)

    def add_plain(self, rows: Iterable[tuple[str, str]]) -> None:
        """Add keys and targets of rules that say no more than that."""
        shards = self.shards
        for key, target in rows:
            name = _name(key) if key[0] in "*." else key
            shards[hash(name) & _MASK][name] = target


def _name(key: str) -> str:
    """Return what a key is kept as: without its star, so that a lookup need only cut the domain, not put one before.

    Keys that psql can write, but no domain is looked up by (`*a.com`, `.a.com`), are kept under names like that, too.
    """
    if key.startswith("*.") or key == ANY:
        return key[1:]
    return f"*{key}" if key.startswith(".") else key


def _kept(rule: Rule) -> _Kept:
    if rule.transport == "auto" and rule.tls is None and rule.share is None:
        return rule.target_host
    return Rule(
        lookup_key=rule.lookup_key,
        target_host=rule.target_host,
        transport=rule.transport,
        tls=rule.tls,
        share=rule.share,
    )


def _rule(key: str, kept: _Kept) -> Rule:
    return Rule(lookup_key=key, target_host=kept) if isinstance(kept, str) else kept
