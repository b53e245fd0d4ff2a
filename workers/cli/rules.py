"""`pushpush endpoint-cache ...`: one rule at a time."""

from typing import Annotated

import msgspec
import typer

from shared.fleet.change import ends_for_good
from shared.fleet.release import WAIT
from shared.mail.rule import Rule, make_rule, parse_expiry, parse_key, parse_share
from shared.runtime.clock import now
from shared.store.overrides import Change, Overrides, Stored
from workers.cli.change import Actor, IfVersion, Key, NoFlush, NoReload, NoWait, Timeout, how, writing
from workers.cli.difference import ends, options
from workers.cli.frame import Fleet, Json, Refusal, Result, ago, one_line, run, table
from workers.cli.probe import TargetText, TlsText, TransportText

app = typer.Typer(no_args_is_help=True, help="Rules: deliver mail for one domain to another host instead.")

_LONGEST_SEARCH = 1_000  # characters


@app.command("set", epilog="Example: pushpush endpoint-cache set a.com b.com:2525 --comment 'a.com is blocked here'")
def set_(
    key: Key,
    target: TargetText,
    comment_: Annotated[str, typer.Argument(metavar="COMMENT", help="Why; the same as --comment.")] = "",
    comment: Annotated[str, typer.Option(help="Why the rule is there.")] = "",
    transport: TransportText = "auto",
    tls: TlsText = None,
    expires: Annotated[
        str | None, typer.Option(help="End by itself after 2h (or 90s, 15m, 5d), or at 2026-01-31T18:00Z.")
    ] = None,
    share: Annotated[str | None, typer.Option(help="Only this part of the messages takes the rule, as in 10%.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Set it whatever the probe finds.")] = False,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Do not try the target first.")] = False,
    who: Actor = None,
    no_reload: NoReload = False,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT,
    no_flush: NoFlush = False,
    if_version: IfVersion = None,
    json: Json = False,
) -> None:
    """Make a rule, or change the one with this key. Returns when every live router has applied it."""

    async def work(fleet: Fleet) -> Result:
        rule = make_rule(
            key,
            target,
            comment=comment or comment_,
            transport=transport,
            tls=tls,
            expires_at=None if expires is None else parse_expiry(expires, now()),
            share=None if share is None else parse_share(share),
        )
        ours = how(
            who=who, no_reload=no_reload, no_wait=no_wait, timeout=timeout, no_flush=no_flush, if_version=if_version
        )
        warnings = [] if no_probe else await _tried(fleet, rule, force=force)
        async with writing(fleet, ours) as change:
            saved = await change.rules.set(rule, actor=ours.actor, release=ours.release, if_version=ours.if_version)
            before, after = f"{rule.lookup_key} -> {rule.target_host}", ""
            for made in saved.changes:
                after = _in_place_of(made)
            warnings += ends_for_good(saved)
            data = msgspec.structs.asdict(rule)
            return await change.go_on(saved, before + after, data, warnings=tuple(warnings))

    run("endpoint-cache set", work, json=json)


@app.command("remove", epilog="Example: pushpush endpoint-cache remove a.com")
@app.command("delete", hidden=True)
def remove(
    key: Key,
    who: Actor = None,
    no_reload: NoReload = False,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT,
    no_flush: NoFlush = False,
    if_version: IfVersion = None,
    json: Json = False,
) -> None:
    """Remove a rule: its mail goes where it would go without it. Returns when every live router has applied it."""

    async def work(fleet: Fleet) -> Result:
        lookup_key = parse_key(key)
        ours = how(
            who=who, no_reload=no_reload, no_wait=no_wait, timeout=timeout, no_flush=no_flush, if_version=if_version
        )
        async with writing(fleet, ours) as change:
            saved = await change.rules.remove(
                lookup_key, actor=ours.actor, release=ours.release, if_version=ours.if_version
            )
            if saved is None:
                raise _no_rule(lookup_key)
            return await change.go_on(saved, f"{lookup_key} removed", {"deleted": lookup_key})

    run("endpoint-cache remove", work, json=json)


@app.command("enable", epilog="Example: pushpush endpoint-cache enable a.com")
def enable(
    key: Key,
    who: Actor = None,
    no_reload: NoReload = False,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT,
    no_flush: NoFlush = False,
    if_version: IfVersion = None,
    json: Json = False,
) -> None:
    """Take a rule into use again that was disabled. Returns when every live router has applied it."""
    _switch(True, key, who, no_reload, no_wait, timeout, no_flush, if_version, json)


@app.command("disable", epilog="Example: pushpush endpoint-cache disable a.com")
def disable(
    key: Key,
    who: Actor = None,
    no_reload: NoReload = False,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT,
    no_flush: NoFlush = False,
    if_version: IfVersion = None,
    json: Json = False,
) -> None:
    """Take a rule out of use, and keep it. Returns when every live router has applied it."""
    _switch(False, key, who, no_reload, no_wait, timeout, no_flush, if_version, json)


@app.command("list", epilog="Example: pushpush endpoint-cache list --search partner")
def list_(
    search: Annotated[str | None, typer.Option(help="Only rules with this text in key, target or comment.")] = None,
    json: Json = False,
) -> None:
    """Show the rules."""

    async def work(fleet: Fleet) -> Result:
        wanted = None if search is None else one_line("the text to search for", search, _LONGEST_SEARCH)
        rules = await Overrides(await fleet.pool()).matching(wanted)
        shown = table("key", "target", "transport", "tls", "share", "ends", "state", "changed", "comment")
        for each in rules:
            rule = each.rule
            shown.add_row(
                rule.lookup_key,
                rule.target_host,
                rule.transport,
                rule.tls or "-",
                f"{rule.share}%" if rule.share else "-",
                ends(rule.expires_at),
                "on" if rule.enabled else "off",
                ago(each.updated_at),
                rule.comment,
            )
        empty = "no rules" if search is None else f"no rule has {search!r} in its key, target or comment"
        return Result(
            data={"overrides": [data_of(each) for each in rules], "total": len(rules)}, text=shown if rules else empty
        )

    run("endpoint-cache list", work, json=json)


@app.command("get", epilog="Example: pushpush endpoint-cache get a.com")
def get(key: Key, json: Json = False) -> None:
    """Show one rule whole."""

    async def work(fleet: Fleet) -> Result:
        lookup_key = parse_key(key)
        stored = await Overrides(await fleet.pool()).get(lookup_key)
        if stored is None:
            raise _no_rule(lookup_key)
        data = data_of(stored)
        text = "\n".join(f"{name}: {'-' if value in (None, '') else value}" for name, value in data.items())
        return Result(data=data, text=text)

    run("endpoint-cache get", work, json=json)


def data_of(stored: Stored) -> dict[str, object]:
    """Return a saved rule for machines."""
    return msgspec.structs.asdict(stored.rule) | {"created_at": stored.created_at, "updated_at": stored.updated_at}


def _switch(
    on: bool,
    key: str,
    who: str | None,
    no_reload: bool,
    no_wait: bool,
    timeout: float,
    no_flush: bool,
    if_version: int | None,
    json: bool,
) -> None:
    async def work(fleet: Fleet) -> Result:
        lookup_key = parse_key(key)
        ours = how(
            who=who, no_reload=no_reload, no_wait=no_wait, timeout=timeout, no_flush=no_flush, if_version=if_version
        )
        async with writing(fleet, ours) as change:
            saved = await change.rules.enable(
                lookup_key, enabled=on, actor=ours.actor, release=ours.release, if_version=ours.if_version
            )
            if saved is None:
                raise _no_rule(lookup_key)
            what = f"{lookup_key} is {'on' if on else 'off'}{'' if saved.changed else ', as it was'}"
            return await change.go_on(saved, what, {"lookup_key": lookup_key, "enabled": on})

    run(f"endpoint-cache {'enable' if on else 'disable'}", work, json=json)


async def _tried(fleet: Fleet, rule: Rule, *, force: bool) -> list[str]:
    """Probe a rule's targets and return what is to be warned of.

    Raises:
        Refusal: Mail sent there would be lost, bounced or stuck.
    """
    from shared.delivery.trial import tried, unusable  # noqa: PLC0415 - slow to load, and only needed here

    found = await tried(fleet.settings, rule)
    if (refused := unusable(found)) and not force:
        raise Refusal(f"{'; '.join(refused)}; --force sets it all the same; nothing was changed")
    return [warning for each in found for warning in each.warnings]


def _in_place_of(change: Change) -> str:
    if change.before is None:
        return ""
    return f" (in place of {change.before.target_host}{options(change.before)})"


def _no_rule(key: str) -> Refusal:
    return Refusal(f"there is no rule for {key}; `pushpush endpoint-cache list` shows those there are")
