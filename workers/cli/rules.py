"""`pushpush endpoint-cache ...`: the rules."""

import asyncio
from typing import Annotated

import msgspec
import typer

from shared.broker.publisher import Publisher
from shared.fleet.release import WAIT, Applied, announce
from shared.mail.route import Tls, Transport
from shared.mail.rule import make_rule, parse_key
from shared.store.overrides import Overrides, Saved, Stored
from shared.store.pool import Pool
from shared.store.routers import Routers
from workers.cli.frame import LATE, Fleet, Json, Refusal, Result, actor, ago, run, table

app = typer.Typer(no_args_is_help=True, help="Rules: deliver mail for one domain to another host instead.")

Key = Annotated[str, typer.Argument(help="A domain (a.com), its subdomains (*.a.com), an address ([192.0.2.1]), or *.")]
Actor = Annotated[str | None, typer.Option("--actor", help="Who makes the change; default: the user of the system.")]
NoReload = Annotated[bool, typer.Option("--no-reload", help="Save only; `pushpush reload` applies it later.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until the routers have applied it.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the routers.")]


@app.command("set", epilog="Example: pushpush endpoint-cache set a.com b.com:2525 --comment 'a.com is blocked here'")
def set_(
    key: Key,
    target: Annotated[
        str,
        typer.Argument(help="b.com, b.com:2525, an IP address, or https://b.com[:PORT][/PATH]; several with commas."),
    ],
    comment_: Annotated[str, typer.Argument(metavar="[COMMENT]", help="Why; the same as --comment.")] = "",
    comment: Annotated[str, typer.Option(help="Why the rule is there.")] = "",
    transport: Annotated[Transport, typer.Option(help="auto (HTTPS first, then SMTP), https or smtp.")] = "auto",
    tls: Annotated[Tls | None, typer.Option(help="verify, encrypt or none; default: what suits the target.")] = None,
    actor_: Actor = None,
    no_reload: NoReload = False,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT,
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
        )
        pool = await fleet.pool()
        # The broker is connected to meanwhile, so that the event goes out the moment the rule is committed.
        connecting = asyncio.create_task(fleet.publisher())
        saved = await Overrides(pool).set(rule, actor=actor(actor_), release=not no_reload)
        what = f"{rule.lookup_key} -> {rule.target_host}"
        return await _released(pool, saved, what, connecting, wait=0 if no_wait else timeout)

    run("endpoint-cache set", work, json=json)


@app.command("remove", epilog="Example: pushpush endpoint-cache remove a.com")
@app.command("delete", hidden=True)
def remove(
    key: Key,
    actor_: Actor = None,
    no_reload: NoReload = False,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT,
    json: Json = False,
) -> None:
    """Remove a rule: its mail goes where it would go without it. Returns when every live router has applied it."""

    async def work(fleet: Fleet) -> Result:
        lookup_key = parse_key(key)
        pool = await fleet.pool()
        connecting = asyncio.create_task(fleet.publisher())
        saved = await Overrides(pool).remove(lookup_key, actor=actor(actor_), release=not no_reload)
        if saved is None:
            raise Refusal(f"there is no rule for {lookup_key}; `pushpush endpoint-cache list` shows those there are")
        return await _released(pool, saved, f"{lookup_key} removed", connecting, wait=0 if no_wait else timeout)

    run("endpoint-cache remove", work, json=json)


@app.command("list", epilog="Example: pushpush endpoint-cache list --search partner")
def list_(
    search: Annotated[str | None, typer.Option(help="Only rules with this text in key, target or comment.")] = None,
    json: Json = False,
) -> None:
    """Show the rules."""

    async def work(fleet: Fleet) -> Result:
        rules = await Overrides(await fleet.pool()).matching(search)
        shown = table("key", "target", "transport", "tls", "changed", "comment")
        for each in rules:
            rule = each.rule
            shown.add_row(
                rule.lookup_key, rule.target_host, rule.transport, rule.tls or "-", ago(each.updated_at), rule.comment
            )
        empty = "no rules" if search is None else f"no rule has {search!r} in its key, target or comment"
        return Result(
            data={"rules": [_data(each) for each in rules], "total": len(rules)}, text=shown if rules else empty
        )

    run("endpoint-cache list", work, json=json)


@app.command("get", epilog="Example: pushpush endpoint-cache get a.com")
def get(key: Key, json: Json = False) -> None:
    """Show one rule whole."""

    async def work(fleet: Fleet) -> Result:
        lookup_key = parse_key(key)
        stored = await Overrides(await fleet.pool()).get(lookup_key)
        if stored is None:
            raise Refusal(f"there is no rule for {lookup_key}; `pushpush endpoint-cache list` shows those there are")
        data = _data(stored)
        text = "\n".join(f"{name}: {'-' if value in (None, '') else value}" for name, value in data.items())
        return Result(data=data, text=text)

    run("endpoint-cache get", work, json=json)


def reload(
    no_wait: NoWait = False,
    timeout: Timeout = WAIT,
    json: Json = False,
) -> None:
    """Release every saved change, and return when every live router has applied it."""

    async def work(fleet: Fleet) -> Result:
        pool = await fleet.pool()
        publisher = await fleet.publisher()
        version = await Overrides(pool).release()
        applied = await announce(version, publisher, Routers(pool), wait=0 if no_wait else timeout)
        return _told(applied, {}, "", waited=not no_wait)

    run("reload", work, json=json)


def routers(json: Json = False) -> None:
    """Show the routers, and the version of the rules that each has applied."""

    async def work(fleet: Fleet) -> Result:
        pool = await fleet.pool()
        versions = await Overrides(pool).versions()
        every = await Routers(pool).all()
        shown = table("router", "applied", "last sign of life", "started", "state")
        for each in every:
            state = "silent" if not each.live else "behind" if each.applied < versions.released else "current"
            shown.add_row(each.name, str(each.applied), ago(each.seen_at), ago(each.started_at), state)
        data = {**msgspec.structs.asdict(versions), "routers": every}
        return Result(data=data, text=shown if every else "no router is signed in")

    run("routers", work, json=json)


async def _released(pool: Pool, saved: Saved, what: str, connecting: asyncio.Task[Publisher], *, wait: float) -> Result:
    data: dict[str, object] = {"version": saved.version, "changed": saved.changed, "released": saved.released}
    if not saved.released:
        connecting.cancel()
        return Result(data=data, text=f"{what}: saved as version {saved.version}; `pushpush reload` applies it")
    applied = await announce(saved.version, await connecting, Routers(pool), wait=wait)
    return _told(applied, data, f"{what}: ", waited=wait > 0)


def _told(applied: Applied, data: dict[str, object], prefix: str, *, waited: bool) -> Result:
    data |= msgspec.structs.asdict(applied)
    if not waited:
        away = f"; the reload event could not be published ({applied.broker_away})" if applied.broker_away else ""
        return Result(data=data, text=f"{prefix}released as version {applied.version}, not waited for{away}")
    return Result(data=data, text=prefix + applied.sentence(), code=LATE if applied.late else 0)


def _data(stored: Stored) -> dict[str, object]:
    return msgspec.structs.asdict(stored.rule) | {"created_at": stored.created_at, "updated_at": stored.updated_at}
