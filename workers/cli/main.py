"""`pushpush`: the command line, put together."""

import contextlib
import io
import sys
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from workers.cli import bulk, check, dead, explain, migrate, probe, queue, routers, rules, token, trace, traffic, undo
from workers.cli.frame import USAGE, fail
from workers.cli.send import send

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Deliver mail for domains that cannot be reached to a host that can, at once and on every machine.",
    epilog="Example: pushpush endpoint-cache set a.com b.com --comment 'a.com is blocked here'",
)
for commands in (probe, undo, bulk):
    commands.register(rules.app)
explain.register(rules.app)
app.add_typer(rules.app, name="endpoint-cache")
for alias in ("dns-cache", "rules"):
    app.add_typer(rules.app, name=alias, hidden=True)
app.add_typer(queue.app, name="queue")
app.add_typer(dead.app, name="dead")
app.add_typer(token.app, name="token")
app.command("reload", epilog="Example: pushpush reload")(routers.reload)
app.command("routers", epilog="Example: pushpush routers")(routers.routers)
app.command("trace", epilog="Example: pushpush trace someone@a.com")(trace.trace)
app.command("traffic", epilog="Example: pushpush traffic a.com --since 7d --by hour")(traffic.traffic)
app.command("send", epilog="Example: pushpush send hello.eml --from you@x.example --to someone@a.com")(send)
app.command("migrate", epilog="Example: pushpush migrate")(migrate.migrate)
app.command("check", epilog="Example: pushpush check")(check.check)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pushpush {version_of('pushpush')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def options(
    show: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Take the options that come before a command."""
    del show  # its callback has done it: this function is not called without a command


# Typer does not export the base of its usage errors.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What was typed may be no text in any encoding; a sentence that names it is still to come out.
            stream.reconfigure(errors="backslashreplace")
    if "--json" not in sys.argv:
        app()
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        # Also what Typer does not understand is told as an object to whoever asked for objects.
        context = getattr(error, "ctx", None)
        command = context.command_path.partition(" ")[2] if context else ""
        with contextlib.suppress(typer.Exit):
            fail(command, "usage", str(error), USAGE, json=True)
        sys.exit(USAGE)


if __name__ == "__main__":
    main()
