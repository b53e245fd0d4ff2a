"""`pushpush endpoint-cache explain`: where mail to an address goes, and why."""

from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer

from shared.delivery.explain import Explained, Hop, Match, explain
from shared.mail.address import domain_of
from shared.mail.domain import normalise
from workers.cli.frame import Fleet, Json, Refusal, Result, ago, printable, run

_POLICY = {
    "enforce": "enforced, so hosts that it does not list are left out (RFC 8461)",
    "testing": "in testing, so it changes nothing but the log",
    "none": "none: the domain has taken it back",
}
_KNOWN = {
    "without mxdeliv": "remembered as without mxdeliv, so it is passed over,",
    "suspended": "suspended by a worker, since it did not answer,",
}
_BEATEN = {
    "wider": "beaten: it is wider",
    "share": "the message is not in its share",
    "disabled": "disabled",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain", epilog="Example: pushpush endpoint-cache explain someone@a.com --at 41")(_explain)


def _explain(
    address: Annotated[str, typer.Argument(help="An address (someone@a.com) or a domain (a.com).")],
    at: Annotated[int | None, typer.Option(help="A version of the rules; default: the released one.")] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="Of one message, for rules that take a share of them.")
    ] = None,
    json: Json = False,
) -> None:
    """Show where mail to an address goes and why: the rule, the hosts with their addresses, transports and TLS."""

    async def work(fleet: Fleet) -> Result:
        domain = domain_of(address) if "@" in address else normalise(address)
        if id_ is not None and any("\ud800" <= each <= "\udfff" for each in id_):
            raise Refusal(f"the message id {id_!r} is not text")
        found = await explain(domain, await fleet.pool(), fleet.settings, at=at, message_id=id_)
        return Result(data=msgspec.structs.asdict(found), text="\n".join(map(printable, _report(found))))

    run("endpoint-cache explain", work, json=json)


def _report(found: Explained) -> Iterator[str]:
    released = "released" if found.version == found.released else f"released is {found.released}"
    yield f"{found.domain}, by version {found.version} of the rules ({released})"
    if found.unreleased:
        yield f"  not released: the last change of {', '.join(found.unreleased)}; `pushpush reload` applies it"
    yield ""
    yield from _rules(found)
    yield ""
    yield from _way(found)
    yield ""
    yield from _routers(found)


def _rules(found: Explained) -> Iterator[str]:
    if found.rule is None:
        yield "rule: none, so mail goes to the domain's own mail hosts"
    else:
        yield f"rule: {_arrow(found.rule)}"
        yield from (f"  {line}" for line in _facts(found.rule))
    if found.share:
        parts = (f"{part:.3g}% {key or 'without a rule, to its own mail hosts'}" for key, part in found.share.items())
        yield f"  share of the messages: {'; '.join(parts)}"
        if found.message_id is not None:
            taken = "no rule" if found.rule is None else found.rule.lookup_key
            yield f"  message {found.message_id}: {taken} takes it"
        elif found.rule is not None:
            yield "  below is the way of the messages that it takes; --id MESSAGE-ID tells of one message"
    for each in found.beaten:
        yield f"  {_arrow(each)}: {_BEATEN[each.state]}"


def _facts(rule: Match) -> Iterator[str]:
    if rule.comment:
        yield f"comment: {rule.comment}"
    if rule.set_at is not None:
        yield f"set: in version {rule.version} by {rule.set_by}, {rule.set_at:%Y-%m-%d %H:%M:%SZ} ({ago(rule.set_at)})"
    if rule.expires_at is not None:
        yield f"ends: {rule.expires_at:%Y-%m-%d %H:%M:%SZ} ({ago(rule.expires_at)})"


def _arrow(rule: Match) -> str:
    return f"{rule.lookup_key} -> {rule.target_host}"


def _way(found: Explained) -> Iterator[str]:
    if found.fault is not None:
        yield found.fault
        return
    yield f"way: {_why(found)}"
    if found.policy is not None:
        yield f"  MTA-STS: the domain's policy is {_POLICY[found.policy]}"
    for number, hop in enumerate(found.hops, 1):
        yield f"  {number}. {hop.transport.upper()} {hop.where}"
        yield f"     {_addresses(hop)}"
        yield f"     TLS: {hop.tls}"
        for each in hop.known:
            yield f"     {_KNOWN[each.state]} until {each.until:%H:%M:%SZ} ({ago(each.until)}): {each.reason}"
    if len(found.hops) > 1:
        yield "  a connection fault goes to the next, a refusal ends it"


def _why(found: Explained) -> str:
    if found.rule is not None:
        chosen = found.rule.transport
        order = "HTTPS first, then SMTP, at each target" if chosen == "auto" else f"{chosen.upper()} only"
        return f"{order} (transport {chosen})"
    if found.domain.startswith("["):
        return "SMTP to the address itself"
    if [hop.where.rpartition(":")[0] for hop in found.hops] == [found.domain]:
        return "SMTP to the domain itself: no MX names another host"
    return "SMTP to the MX hosts, the best first"


def _addresses(hop: Hop) -> str:
    return f"no address: {hop.fault}" if hop.fault is not None else f"at {', '.join(hop.addresses)}"


def _routers(found: Explained) -> Iterator[str]:
    live = [each for each in found.routers if each.live]
    if not live:
        yield "routers: none is running"
    elif found.agree:
        every = "the only router has" if len(live) == 1 else f"all {len(live)} routers have"
        yield f"routers: {every} applied version {found.released}"
    else:
        behind = ", ".join(f"{each.name} (at {each.applied})" for each in live if not each.current)
        yield f"routers: not all have applied version {found.released}; behind: {behind}"
    for each in found.routers:
        state = "silent" if not each.live else "current" if each.current else "behind"
        yield f"  {each.name}: version {each.applied}, {state}"
