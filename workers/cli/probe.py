"""`pushpush endpoint-cache probe`: try a target before a rule names it."""

from typing import TYPE_CHECKING, Annotated

import typer

from shared.mail.route import Tls, Transport
from shared.mail.rule import make_rule
from workers.cli.change import Key
from workers.cli.frame import REFUSED, Fleet, Json, Result, printable, run

if TYPE_CHECKING:
    from shared.delivery.probe import Found

TargetText = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="b.com, b.com:2525, an IP address, or https://b.com[:PORT][/PATH]; several with commas."
    ),
]
TransportText = Annotated[Transport, typer.Option("--transport", help="auto (HTTPS first, then SMTP), https or smtp.")]
TlsText = Annotated[Tls | None, typer.Option("--tls", help="verify, encrypt or none; default: what suits the target.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("probe", epilog="Example: pushpush endpoint-cache probe a.com b.com:2525")(probe_)


def probe_(
    key: Key, target: TargetText, transport: TransportText = "auto", tls: TlsText = None, json: Json = False
) -> None:
    """Try the targets of a rule before it is made: what answers, and would it take mail for KEY? Sends no mail."""

    async def work(fleet: Fleet) -> Result:
        from shared.delivery.trial import tried, unusable  # noqa: PLC0415 - slow to load, and only needed here

        found = await tried(fleet.settings, make_rule(key, target, transport=transport, tls=tls))
        refused = unusable(found)
        return Result(
            data={"targets": found},
            text="\n".join(map(_words, found)),
            code=REFUSED if refused else 0,
            fault="; ".join(refused),
        )

    run("endpoint-cache probe", work, json=json)


def _words(found: "Found") -> str:
    lines = [f"{found.target}: {'usable' if found.usable else 'NOT usable'}"]
    if found.https:
        lines.append(f"  HTTPS {found.https.url}: {found.https.detail}")
        lines += [f"    certificate {found.https.certificate}"] * bool(found.https.certificate)
    if found.smtp:
        lines.append(f"  SMTP {found.smtp.where}, RCPT TO:<{found.smtp.recipient}>: {found.smtp.detail}")
        lines += [f"    certificate {found.smtp.certificate}"] * bool(found.smtp.certificate)
    return "\n".join(map(printable, lines + [f"  warning: {each}" for each in found.warnings]))
