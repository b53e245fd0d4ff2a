"""`pushpush endpoint-cache history` and `rollback`: what was changed, and how to take it back."""

from datetime import UTC
from typing import Annotated

import msgspec
import typer

from shared.fleet.release import WAIT
from shared.mail.rule import Rule, parse_key
from shared.runtime.clock import now
from shared.store.overrides import Overrides
from workers.cli import difference
from workers.cli.change import Actor, IfVersion, NoFlush, NoReload, NoWait, Timeout, how, writing
from workers.cli.frame import Fleet, Json, Result, run, table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("history", epilog="Example: pushpush endpoint-cache history a.com --limit 10")(history)
    app.command("rollback", epilog="Example: pushpush endpoint-cache rollback 41 --dry-run")(rollback)


def history(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="Only the changes of the rule with this key.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many changes at most.")] = 100,
    json: Json = False,
) -> None:
    """Show who changed what and when, the latest first."""

    async def work(fleet: Fleet) -> Result:
        lookup_key = None if key is None else parse_key(key)
        found = await Overrides(await fleet.pool()).history(lookup_key, limit=limit)
        shown = table("version", "when", "who", "action", "key", "before", "", "after")
        data = []
        for each in found:
            change = each.change
            when = f"{each.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
            row = (when, each.actor, each.action, change.lookup_key, _words(change.before), "->", _words(change.after))
            shown.add_row(str(each.version), *row)
            fields = msgspec.structs.asdict(each)
            del fields["change"]
            data.append(fields | msgspec.structs.asdict(change))
        none = "no rule was changed yet" if key is None else f"the rule {lookup_key} was never there"
        return Result(data={"history": data, "total": len(data)}, text=shown if found else none)

    run("endpoint-cache history", work, json=json)


def rollback(
    version: Annotated[
        int, typer.Argument(metavar="VERSION", min=0, help="The version to go back to; `history` shows them.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, and change nothing.")] = False,
    who: Actor = None,
    no_reload: NoReload = False,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT,
    no_flush: NoFlush = False,
    if_version: IfVersion = None,
    json: Json = False,
) -> None:
    """Make the rules what they were at a version, as one new version. Rules that have ended since stay away."""

    async def work(fleet: Fleet) -> Result:
        ours = how(
            who=who, no_reload=no_reload, no_wait=no_wait, timeout=timeout, no_flush=no_flush, if_version=if_version
        )
        async with writing(fleet, ours) as change:
            saved = await change.rules.rollback(
                version,
                actor=ours.actor,
                release=ours.release,
                now=now(),
                if_version=ours.if_version,
                dry=dry_run,
            )
            what = f"back to version {version}, {difference.summary(saved.changes)}"
            return await change.told(saved, what, {"rolled_back_to": version}, dry=dry_run)

    run("endpoint-cache rollback", work, json=json)


def _words(rule: Rule | None) -> str:
    return "-" if rule is None else rule.target_host + difference.options(rule)
