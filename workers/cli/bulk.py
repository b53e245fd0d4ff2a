"""`pushpush endpoint-cache import`, `export` and `sync`: many rules at once, all or nothing."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.fleet.change import How
from shared.fleet.release import WAIT
from shared.mail.rule import Rule
from shared.runtime.clock import now
from shared.store.overrides import Overrides
from shared.store.overrides import Progress as Told
from workers.cli import difference
from workers.cli.change import Actor, IfVersion, NoFlush, NoReload, NoWait, Timeout, how, writing
from workers.cli.frame import Fleet, Json, Refusal, Result, counted, run
from workers.cli.rules import data_of

Text: TypeAlias = Literal["csv", "yaml", "json"]
Format: TypeAlias = Literal["csv", "yaml", "json", "sqlite"]

_STDIN = "-"
_SQLITE = 16  # bytes by which a database is known
File = Annotated[
    str, typer.Argument(metavar="FILE", help="CSV, YAML, JSON, or madmail's SQLite database; - reads standard input.")
]
FileFormat = Annotated[Format | None, typer.Option("--format", help="What FILE holds, where its name does not tell.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the difference, and change nothing.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("import", epilog="Example: pushpush endpoint-cache import rules.csv --dry-run")(import_)
    app.command("export", epilog="Example: pushpush endpoint-cache export --format yaml --output rules.yaml")(export)
    app.command("sync", epilog="Example: pushpush endpoint-cache sync rules.yaml --actor 'CI, commit 4f2a'")(sync)


def import_(
    file: File,
    form: FileFormat = None,
    dry_run: DryRun = False,
    who: Actor = None,
    no_reload: NoReload = False,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT,
    no_flush: NoFlush = False,
    if_version: IfVersion = None,
    json: Json = False,
) -> None:
    """Make or change every rule of a file, as one version. Other rules stay as they are."""

    async def work(fleet: Fleet) -> Result:
        ours = how(
            who=who, no_reload=no_reload, no_wait=no_wait, timeout=timeout, no_flush=no_flush, if_version=if_version
        )
        return await _apply(fleet, ours, _rules(file, form), action="import", dry=dry_run)

    run("endpoint-cache import", work, json=json)


def sync(
    file: File,
    form: FileFormat = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Take a file without any rule: remove all there are.")] = False,
    who: Actor = None,
    no_reload: NoReload = False,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT,
    no_flush: NoFlush = False,
    if_version: IfVersion = None,
    json: Json = False,
) -> None:
    """Make the rules equal to a file, as one version: rules that it does not name are removed."""

    async def work(fleet: Fleet) -> Result:
        ours = how(
            who=who, no_reload=no_reload, no_wait=no_wait, timeout=timeout, no_flush=no_flush, if_version=if_version
        )
        rules = _rules(file, form)
        if not rules and not force and not dry_run:
            stored = await Overrides(await fleet.pool()).matching()
            raise Refusal(f"the file has no rules: --force removes all {counted(len(stored), 'rule', 'rules')}")
        return await _apply(fleet, ours, rules, action="sync", dry=dry_run)

    run("endpoint-cache sync", work, json=json)


def export(
    form: Annotated[
        Text | None, typer.Option("--format", help="csv, yaml or json; default: as FILE says, or csv.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there instead of standard output.")] = None,
    json: Json = False,
) -> None:
    """Print every rule in a form that `import` and `sync` take again."""

    async def work(fleet: Fleet) -> Result:
        from shared.fleet.files import format_of, write  # noqa: PLC0415 - slow to load, and only needed here

        chosen = form or (format_of(output.name, b"") if output else "csv")
        if chosen == "sqlite":
            raise Refusal("rules are not exported as a database: choose --format csv, yaml or json")
        stored = await Overrides(await fleet.pool()).matching()
        data: dict[str, object] = {"overrides": [data_of(each) for each in stored], "total": len(stored)}
        written = write([(each.rule, each.created_at, each.updated_at) for each in stored], chosen)
        if output is None:
            return Result(data=data, text=written)
        try:
            output.write_bytes(written)
        except OSError as error:
            raise Refusal(f"{str(output)!r} cannot be written: {error.strerror}") from error
        data = {"output": str(output), "format": chosen, "total": len(stored)}
        return Result(data=data, text=f"{counted(len(stored), 'rule', 'rules')} written to {output}")

    run("endpoint-cache export", work, json=json)


async def _apply(fleet: Fleet, ours: How, rules: list[Rule], *, action: str, dry: bool) -> Result:
    async with writing(fleet, ours) as change:
        with _progress() as told:
            saved = await change.rules.apply(
                {rule.lookup_key: rule for rule in rules},
                actor=ours.actor,
                release=ours.release,
                action=action,
                if_version=ours.if_version,
                whole=action == "sync",
                dry=dry,
                progress=told,
            )
        what = f"{action} of {counted(len(rules), 'rule', 'rules')}, {difference.summary(saved.changes)}"
        return await change.told(saved, what, {"rules": len(rules)}, dry=dry)


def _rules(file: str, form: Format | None) -> list[Rule]:
    """Return the rules of a file.

    Raises:
        FileError: It or a row in it is malformed.
        Refusal: It cannot be read.
    """
    from shared.fleet.files import MAX_BYTES, format_of, read, read_sqlite  # noqa: PLC0415 - slow to load

    if file == _STDIN:
        if form is None:
            raise Refusal("say what standard input holds: --format csv, yaml or json")
        return read(sys.stdin.buffer.read(MAX_BYTES + 1), form, now=now())
    path = Path(file)
    try:
        with path.open("rb") as opened:
            head = opened.read(_SQLITE)
            chosen = form or format_of(file, head)
            data = b"" if chosen == "sqlite" else head + opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise Refusal(f"{file!r} cannot be read: {error.strerror}") from error
    return read_sqlite(path, now=now()) if chosen == "sqlite" else read(data, chosen, now=now())


@contextlib.contextmanager
def _progress() -> Iterator[Told]:
    """Show a bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("writing rules"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
