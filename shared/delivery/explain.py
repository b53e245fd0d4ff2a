"""Explain where mail to one domain goes, by the code that the router and the transports run; nothing is sent.

DNS is asked as the transports would ask it; what it does not answer is part of what is told. Only the store can fail.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from shared.delivery.mta_sts import Policies
from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts, for_https
from shared.mail.mta_sts import Demand, demand
from shared.mail.outcome import Failed
from shared.mail.route import Route, Target, Tls
from shared.mail.rule import WHOLE, Rule
from shared.mail.rulebook import Rulebook, keys_for
from shared.runtime.settings import Settings
from shared.store.hops import NextHops, Remembered
from shared.store.overrides import ConflictError, Overrides, Recorded
from shared.store.policies import StoredPolicies
from shared.store.pool import Pool
from shared.store.routers import Router, Routers
from shared.store.rulebooks import Rulebooks

_PATIENCE = 5.0  # seconds for the host of a domain's MTA-STS policy
_CHANGES = 10_000  # of one key that are looked through for the one that was in force
_HTTPS: dict[Tls, str] = {
    "verify": "encrypted, the certificate is verified by the name",
    **dict.fromkeys(("encrypt", "none"), "encrypted, the certificate is not verified"),
}
_SMTP: dict[Tls | None, str] = {
    None: "STARTTLS where it works (opportunistic), else in the clear; the certificate is not verified",
    "verify": "STARTTLS is required, the certificate is verified by the name",
    "encrypt": "STARTTLS is required, the certificate is not verified",
    "none": "none: in the clear",
}


class Match(Rule, frozen=True, kw_only=True, omit_defaults=False):
    """A rule for the domain, and who wrote it when, as far as the history has it.

    It `decides`, is `wider` than the one that does, takes only a `share` without this message, or is `disabled`.
    """

    set_by: str = ""
    set_at: datetime | None = None
    state: str = "decides"


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """A transport to a host: what DNS has for it now or why nothing, and what TLS does; target "" without a rule.

    `known` is what the fleet remembers of it for a while: that it has no mxdeliv, or that a worker leaves it alone.
    """

    target: str
    transport: str
    host: str
    where: str
    tls: str
    addresses: tuple[str, ...] = ()
    fault: str | None = None
    known: tuple[Remembered, ...] = ()


class Applied(Router, frozen=True, kw_only=True):
    """A router; it is current when it has applied the released version."""

    current: bool


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """Where mail to a domain goes, and why.

    Attributes:
        unreleased: Keys for this domain with changes that are not released.
        rule: The one that decides; None for direct federation. Of one with a share, for the messages that it takes.
        beaten: The other rules for the domain.
        share: Percent of the messages by the key that takes them, "" for none; empty when all go the same way.
        fault: Why nothing is tried, and what becomes of the mail, when there are no hops.
        policy: The mode of the domain's MTA-STS policy, which holds without a rule; None when there is none.
        agree: There are live routers, and each has applied the released version.
    """

    domain: str
    version: int
    released: int
    unreleased: tuple[str, ...]
    message_id: str | None
    rule: Match | None
    beaten: tuple[Match, ...]
    share: Mapping[str, float]
    hops: tuple[Hop, ...]
    fault: str | None
    policy: str | None
    routers: tuple[Applied, ...]
    agree: bool


async def explain(
    domain: str, pool: Pool, settings: Settings, *, at: int | None = None, message_id: str | None = None
) -> Explained:
    """Explain the way of mail to a normalised domain.

    Without a version the released one is explained, and without a message one that every rule's share includes.

    Raises:
        ConflictError: There is no such version.
        StoreUnavailable: The rules could not be read.
    """
    overrides, keys = Overrides(pool), keys_for(domain)
    versions = await overrides.versions()
    if at is not None and not 0 <= at <= versions.version:
        raise ConflictError(f"there is no version {at}: the latest is {versions.version}")
    book = await Rulebooks(pool).part(keys, versions.released if at is None else at)
    changes = {key: await overrides.history(key, limit=_CHANGES) for key in keys}
    rule = next(book.matching(domain), None) if message_id is None else book.lookup(domain, message_id)
    route = Route(version=book.version) if rule is None else rule.route(book.version)
    hops, fault, policy = await _hops(domain, route, settings, pool)
    hops = await _with_known(hops, domain, NextHops(pool))
    routers = [
        Applied(**msgspec.structs.asdict(each), current=each.applied >= versions.released)
        for each in await Routers(pool).all()
    ]
    matches = _matches(keys, book, domain, rule, changes)
    return Explained(
        domain=domain,
        version=book.version,
        released=versions.released,
        unreleased=tuple(key for key in keys if any(each.version > versions.released for each in changes[key])),
        message_id=message_id,
        rule=next((each for each in matches if each.state == "decides"), None),
        beaten=tuple(each for each in matches if each.state != "decides"),
        share=_parts(book.matching(domain)),
        hops=hops,
        fault=fault,
        policy=policy,
        routers=tuple(routers),
        agree=any(each.live for each in routers) and all(each.current for each in routers if each.live),
    )


def _matches(
    keys: Iterable[str], book: Rulebook, domain: str, rule: Rule | None, changes: Mapping[str, Sequence[Recorded]]
) -> list[Match]:
    """Return every rule for the domain at the book's version, narrowest first, with what the book leaves out."""
    enabled = {each.lookup_key: each for each in book.matching(domain)}
    made, narrower = [], True
    for key in keys:
        change = next((each for each in changes[key] if each.version <= book.version), None)
        saved = enabled.get(key) if change is None else change.change.after
        if saved is None:
            continue
        decides = rule is not None and rule.lookup_key == key
        state = "decides" if decides else "disabled" if key not in enabled else "share" if narrower else "wider"
        narrower = narrower and not decides
        who = {} if change is None else {"set_by": change.actor, "set_at": change.at}
        made.append(msgspec.convert({**msgspec.structs.asdict(saved), **who, "state": state}, Match))
    return made


def _parts(rules: Iterable[Rule]) -> Mapping[str, float]:
    left, parts = float(WHOLE), {}
    for rule in rules:
        parts[rule.lookup_key] = taken = left * (rule.share or WHOLE) / WHOLE
        left -= taken
    some = {key: round(part, 4) for key, part in {**parts, "": left}.items() if part}
    return some if len(some) > 1 else {}


async def _hops(
    domain: str, route: Route, settings: Settings, pool: Pool
) -> tuple[tuple[Hop, ...], str | None, str | None]:
    """Return the hops, why there are none, and the mode of the domain's policy."""
    if (fault := route.fault()) is not None:
        return (), f"the mail waits until the rule is mended: {fault}", None
    resolver = Resolver(settings.dns_servers, allow_private=settings.allow_private_targets, hostname=settings.hostname)
    if route.targets:
        ruled = [hop for text in route.targets for hop in _tries(text, route, settings)]
        return await _found(ruled, resolver, ruled=True), None, None
    hosts = await resolver.mail_hosts(domain)
    if not isinstance(hosts, list):
        what = "is returned" if isinstance(hosts, Failed) else "waits and is tried again"
        return (), f"the mail {what}: {hosts.reply}", None
    async with Policies(resolver, Contexts(settings.ca_file), StoredPolicies(pool), patience=_PATIENCE) as policies:
        policy = await policies.of(domain)
    mode = None if policy is None else policy.mode
    demands = {host: demand(policy, host) for host in hosts}
    if all(each is Demand.SKIP for each in demands.values()):
        return (), "the mail waits: the domain's MTA-STS policy lists none of its mail hosts", mode
    verified = msgspec.structs.replace(route, tls="verify")
    hops = [
        _smtp("", host, settings.smtp_port, verified if demands[host] is Demand.VERIFY else route)
        for host in hosts
        if demands[host] is not Demand.SKIP
    ]
    return await _found(hops, resolver, ruled=False), None, mode


def _tries(text: str, route: Route, settings: Settings) -> list[Hop]:
    """Return the hop of each transport for one target: with `auto` both have their turn at it."""
    target, tries = Target.parse(text), []
    if route.by_https_first:
        url = target.https_url(settings.https_port)
        tls = _HTTPS[for_https(route.tls, target.host)] if url.startswith("https:") else "none: http:// is in the clear"
        tries.append(Hop(target=text, transport="https", host=target.host, where=url, tls=tls))
    if route.transport != "https":
        tries.append(_smtp(text, target.host, target.smtp_port or settings.smtp_port, route))
    return tries


def _smtp(text: str, host: str, port: int, route: Route) -> Hop:
    return Hop(
        target=text, transport="smtp", host=host, where=str(Target(host=host, smtp_port=port)), tls=_SMTP[route.tls]
    )


async def _with_known(hops: Sequence[Hop], domain: str, store: NextHops) -> tuple[Hop, ...]:
    """Add what is known by the name under which a worker's gate has the hop; without a rule that is the domain."""
    names = [hop.where if hop.target else domain for hop in hops]
    known = await store.about(list(dict.fromkeys(names)))
    return tuple(
        msgspec.structs.replace(hop, known=tuple(each for each in known if each.hop == name))
        for hop, name in zip(hops, names, strict=True)
    )


async def _found(hops: Sequence[Hop], resolver: Resolver, *, ruled: bool) -> tuple[Hop, ...]:
    hosts = dict.fromkeys(hop.host for hop in hops)
    answers = await asyncio.gather(*(resolver.addresses(host, ruled=ruled) for host in hosts))
    found = {
        host: {"addresses": tuple(answer)} if isinstance(answer, list) else {"fault": str(answer.reply)}
        for host, answer in zip(hosts, answers, strict=True)
    }
    return tuple(msgspec.structs.replace(hop, **found[hop.host]) for hop in hops)
