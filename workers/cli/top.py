"""`pushpush queue top`: the ages of waiting mail by domain, live, as qshape shows them."""

import asyncio
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from shared.runtime.clock import now
from shared.runtime.errors import StoreUnavailable
from shared.store.pool import Pool
from shared.store.waiting import AGES, DomainAges, WaitingMail
from workers.cli.frame import Fleet, Json, Result, ago, run, table

_EVERY = 2.0  # seconds


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("top", epilog="Example: pushpush queue top")(top)


def top(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many domains.")] = 20,
    once: Annotated[bool, typer.Option("--once", help="Show it once.")] = False,
    json: Json = False,
) -> None:
    """Show how old the waiting mail is, by domain, until you press Ctrl-C."""

    async def work(fleet: Fleet) -> Result:
        pool = await fleet.pool()
        if not (once or json) and sys.stdout.isatty():
            await _live(pool, limit)
            return Result(data={}, text="")
        domains = await WaitingMail(pool).ages(now(), limit=limit)
        data = {"minutes": AGES, "domains": domains}
        return Result(data=data, text=_shown(domains) if domains else "nothing waits")

    run("queue top", work, json=json)


async def _live(pool: Pool, limit: int) -> None:
    """Show it again and again; Ctrl-C is how it ends."""
    shown: Table | str = "one moment"
    with Live(
        shown, console=Console(highlight=False, markup=False, emoji=False), screen=True, auto_refresh=False
    ) as live:
        try:
            while True:
                try:
                    domains = await WaitingMail(pool).ages(now(), limit=limit)
                    shown = _shown(domains) if domains else "nothing waits"
                except StoreUnavailable as error:
                    shown = str(error)
                live.update(shown, refresh=True)
                await asyncio.sleep(_EVERY)
        except asyncio.CancelledError:
            return


def _shown(domains: list[DomainAges]) -> Table:
    """Return the table: how many are younger than so many minutes, and not in a column before."""
    shown = table("domain", "oldest", "total", *(f"{age}m" for age in AGES), f"{AGES[-1]}m+")
    for column in shown.columns[2:]:
        column.justify = "right"
    for each in domains:
        shown.add_row(each.domain, ago(each.oldest), str(each.deliveries), *(str(count or "") for count in each.counts))
    return shown
