"""`pushpush token ...`: who may do what with the panel and the admin API."""

from typing import Annotated

import typer

from shared.mail.rule import parse_expiry
from shared.runtime.clock import now
from shared.store.tokens import Role, Token, Tokens
from workers.cli.change import Actor
from workers.cli.frame import Fleet, Json, Refusal, Result, actor, ago, run, table

app = typer.Typer(no_args_is_help=True, help="Tokens: who may do what with the panel and the admin API.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of a person or program; it stands in the history.")]


@app.command("make", epilog="Example: pushpush token make ann --role operator --expires 90d")
def make(
    name: Name,
    role: Annotated[
        Role, typer.Option(help="viewer looks, operator also changes rules and mail, admin also makes tokens.")
    ],
    expires: Annotated[
        str | None, typer.Option(help="End by itself after 90d (or 2h), or at 2026-12-31T18:00Z.")
    ] = None,
    who: Actor = None,
    json: Json = False,
) -> None:
    """Make a token, and print its secret: it is shown now and never again."""

    async def work(fleet: Fleet) -> Result:
        expires_at = None if expires is None else parse_expiry(expires, now())
        tokens = Tokens(await fleet.pool())
        secret = await tokens.make(name, role, by=actor(who), via="cli", expires_at=expires_at)
        data = {"name": name, "role": role, "expires_at": expires_at, "secret": secret}
        return Result(data=data, text=secret, warnings=("this is the only time that the secret is shown",))

    run("token make", work, json=json)


@app.command("list", epilog="Example: pushpush token list")
def list_(json: Json = False) -> None:
    """Show every token, also those of the past, without their secrets."""

    async def work(fleet: Fleet) -> Result:
        tokens = await Tokens(await fleet.pool()).all()
        shown = table("name", "role", "state", "ends", "last used", "made", "by")
        for each in tokens:
            used = "never" if each.used_at is None else ago(each.used_at)
            ends = "-" if each.expires_at is None else ago(each.expires_at)
            shown.add_row(each.name, each.role, _state(each), ends, used, ago(each.created_at), each.created_by)
        return Result(data={"tokens": tokens}, text=shown if tokens else "no tokens; `pushpush token make` makes one")

    run("token list", work, json=json)


@app.command("revoke", epilog="Example: pushpush token revoke ann")
def revoke(name: Name, who: Actor = None, json: Json = False) -> None:
    """End a token at once, and every session that was opened with it."""

    async def work(fleet: Fleet) -> Result:
        revoked = await Tokens(await fleet.pool()).revoke(name, by=actor(who), via="cli")
        if revoked is None:
            raise Refusal(f"there is no token {name}; `pushpush token list` shows those there are")
        text = f"{name} is revoked{'' if revoked else ', as it was'}"
        return Result(data={"name": name, "changed": revoked}, text=text)

    run("token revoke", work, json=json)


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "live" if token.live else "ended"
