"""`pushpush traffic`: how much mail went where, and what became of it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

import typer
from rich.table import Table

from shared.mail.domain import normalise
from shared.mail.retry import parse_duration
from shared.runtime.clock import now
from shared.store.traffic import Counts, DomainTraffic, HourTraffic, Order, Traffic, TransportTraffic
from workers.cli.frame import Fleet, Json, Refusal, Result, printable, run, table

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_STEP = 1_000


def traffic(
    domain: Annotated[str | None, typer.Argument(metavar="[DOMAIN]", help="Only mail to this domain.")] = None,
    since: Annotated[str, typer.Option(help="How far back, such as 90m, 24h or 7d; whole hours are counted.")] = "24h",
    by: Annotated[
        Literal["domain", "hour", "transport"] | None,
        typer.Option(help="A line for each of these; default: domain, and for one domain transport."),
    ] = None,
    order: Annotated[Order, typer.Option(help="The domains with the most of this first.")] = "delivered",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many domains.")] = 50,
    json: Json = False,
) -> None:
    """Show how many recipients mail was delivered to, deferred and given up for: by domain, hour or transport."""

    async def work(fleet: Fleet) -> Result:
        start = now() - parse_duration(since)
        store = Traffic(await fleet.pool())
        name = None if domain is None else normalise(domain)
        rows: Sequence[Counts]
        match by or ("domain" if name is None else "transport"):
            case "hour":
                rows = await store.by_hour(since=start, domain=name)
            case "transport":
                if name is None:
                    raise Refusal("say of which domain: pushpush traffic DOMAIN --by transport")
                rows = await store.of_domain(name, start)
            case _:
                if name is not None:
                    raise Refusal("one domain is shown by hour or transport")
                rows = await store.by_domain(since=start, limit=limit, order=order)
        return _shown(rows, name, start)

    run("traffic", work, json=json)


def _shown(rows: Sequence[Counts], domain: str | None, since: datetime) -> Result:
    data = {"domain": domain, "since": since, "traffic": rows}
    to = f" to {domain}" if domain else ""
    if not any(_any(each) for each in rows):
        return Result(data=data, text=f"no mail{to} since {since:%Y-%m-%d %H:%MZ}")
    return Result(data=data, text=_table(rows))


def _any(row: Counts) -> bool:
    return any(getattr(row, each) for each in Counts.__struct_fields__)


def _table(rows: Sequence[Counts]) -> Table:
    what = {DomainTraffic: "domain", HourTraffic: "hour (UTC)", TransportTraffic: "transport"}[type(rows[0])]
    shown = table(
        what, "delivered", "deferred", "given up", "removed", "fallback", "postponed", "volume", "ms an attempt"
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    for each in [*rows, _sum(rows)] if len(rows) > 1 else rows:
        shown.add_row(
            _name(each),
            *map(str, (each.delivered, each.deferred, _given_up(each), each.removed, each.fallback, each.postponed)),
            _volume(each.bytes),
            f"{each.ms / each.attempts:.0f}" if each.attempts else "-",
        )
    return shown


def _name(row: Counts) -> str:
    match row:
        case DomainTraffic():
            return printable(row.domain)
        case TransportTraffic():
            return printable(row.transport)
        case HourTraffic():
            return f"{row.hour:%Y-%m-%d %H:00}"
        case _:
            return "in all"


def _given_up(row: Counts) -> int:
    return row.bounced + row.dropped + row.failed


def _sum(rows: Sequence[Counts]) -> Counts:
    return Counts(**{each: sum(getattr(row, each) for row in rows) for each in Counts.__struct_fields__})


def _volume(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < _STEP:
            return f"{size:.0f} {unit}"
        size /= _STEP
    return f"{size:.0f} {_UNITS[-1]}"
