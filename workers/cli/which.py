"""Which waiting mail a command is about: the options that say so, and what they mean."""

from typing import Annotated

import typer

from shared.mail.domain import normalise
from shared.mail.privacy import Privacy
from shared.mail.retry import parse_duration
from shared.mail.route import Target as RuleTarget
from shared.runtime.settings import Settings
from shared.store.selection import Selection
from workers.cli.frame import Refusal, one_line

Id = Annotated[str | None, typer.Argument(metavar="[ID]", help="Only this message, as `queue list` shows it.")]
Domain = Annotated[str | None, typer.Option(help="Only mail to this domain.")]
Target = Annotated[
    str | None, typer.Option(help='Only mail last tried at this target of a rule; "" for the MX hosts of its domain.')
]
Older = Annotated[str | None, typer.Option(help="Only mail that is here for longer than 4h (or 90s, 15m, 5d).")]
Error = Annotated[str | None, typer.Option(help="Only mail whose last answer has this in it.")]
All = Annotated[bool, typer.Option("--all", help="All that waits.")]

_LONGEST = 1_000  # characters of what is searched for


def selection(
    message: str | None = None,
    *,
    domain: str | None = None,
    target: str | None = None,
    older: str | None = None,
    error: str | None = None,
) -> Selection:
    """Return what the options choose.

    Raises:
        ValueError: One of them cannot be understood.
        Refusal: One of them is no text to search for.
    """
    return Selection(
        message_id=None if message is None else one_line("the ID", message, _LONGEST),
        domain=None if domain is None else normalise(domain),
        target=None if target is None else _target(target),
        older=None if older is None else parse_duration(older),
        error=None if error is None else one_line("what the answer has in it", error, _LONGEST),
    )


def privacy(settings: Settings) -> Privacy:
    """Return how the audit log keeps the addresses that the options may name."""
    return Privacy(mode=settings.journal_addresses, key=settings.journal_key or "")


def not_by_chance(chosen: Selection, *, everything: bool) -> None:
    """Refuse to act on all that waits unless that was said, and to act on less when it was.

    Raises:
        Refusal: It was not said which mail.
    """
    if everything != chosen.everything:
        raise Refusal("say which mail: an ID, --domain, --target, --older, --error, or --all for all that waits")


def _target(text: str) -> str:
    """Return the target, or several in order, as a route has them."""
    return ",".join(str(RuleTarget.parse(each.strip())) for each in text.split(",")) if text.strip() else ""
