"""Ask before something is destroyed, with the count of what it is about."""

import sys

import typer

from workers.cli.frame import Refusal, printable

Yes = typer.Option("--yes", help="Do not ask; needed where nobody can be asked, and with --json.")


def confirm(what: str, *, yes: bool, json: bool) -> None:
    """Return when it was said, before or now, that it is to be done.

    Args:
        what: What is about to happen, with its count, such as `bounce 5 deliveries`.
        yes: It was said before.
        json: A program asked; it cannot answer.

    Raises:
        Refusal: It was not said; the message has the count.
    """
    if yes:
        return
    if json or not sys.stdin.isatty():
        raise Refusal(f"this would {what}; nothing was changed: --yes does it")
    try:
        agreed = typer.confirm(printable(f"This will {what}. Go on?"), err=True)
    except typer.Abort:
        agreed = False
    if not agreed:
        raise Refusal("nothing was changed")
