"""`pushpush endpoint-cache probe`, and what `set` makes of what it finds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shared.mail.route import Tls, Transport
from shared.mail.rule import Rule, make_rule
from shared.runtime.settings import ConfigError, Settings
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
        found = await probed(fleet.settings, make_rule(key, target, transport=transport, tls=tls))
        refused = unusable(found)
        return Result(
            data={"targets": found},
            text="\n".join(map(_words, found)),
            code=REFUSED if refused else 0,
            fault="; ".join(refused),
        )

    run("endpoint-cache probe", work, json=json)


async def probed(settings: Settings, rule: Rule) -> "list[Found]":
    """Try every target of a rule.

    Raises:
        ConfigError: The certificates to trust cannot be read.
    """
    # Slow to load, and only needed here.
    from shared.delivery.probe import probe  # noqa: PLC0415
    from shared.delivery.resolver import Resolver  # noqa: PLC0415
    from shared.delivery.tls import Contexts  # noqa: PLC0415

    try:
        contexts = Contexts(settings.ca_file)
    except OSError as error:  # of which an SSLError is one
        raise ConfigError(f"PUSHPUSH_CA_FILE cannot be read as certificates: {error}") from error
    return await probe(
        rule,
        contexts=contexts,
        resolver=Resolver(settings.dns_servers),
        smtp_port=settings.smtp_port,
        https_port=settings.https_port,
        hostname=settings.hostname,
    )


def unusable(found: "Sequence[Found]") -> list[str]:
    """Return why a rule with these targets should not be made; empty when it may.

    One target that answers is enough, for the others may be down just now. A black hole is never acceptable: mail that
    it takes is lost, and the targets after it are not tried.
    """
    holes = [each for each in found if each.smtp and each.smtp.accepts is False]
    bad = holes or ([] if any(each.usable for each in found) else list(found))
    return [warning for each in bad for warning in each.warnings]


def _words(found: "Found") -> str:
    lines = [f"{found.target}: {'usable' if found.usable else 'NOT usable'}"]
    if found.https:
        lines.append(f"  HTTPS {found.https.url}: {found.https.detail}")
        lines += [f"    certificate {found.https.certificate}"] * bool(found.https.certificate)
    if found.smtp:
        lines.append(f"  SMTP {found.smtp.where}, RCPT TO:<{found.smtp.recipient}>: {found.smtp.detail}")
        lines += [f"    certificate {found.smtp.certificate}"] * bool(found.smtp.certificate)
    return "\n".join(map(printable, lines + [f"  warning: {each}" for each in found.warnings]))
