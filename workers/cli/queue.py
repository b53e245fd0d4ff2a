"""`pushpush queue ...`: mail that waits, in the broker and in the store."""

from typing import Annotated

import msgspec
import typer

from shared.broker.depths import Depths
from shared.runtime.clock import now
from shared.store.audit import Audit
from shared.store.dead import DeadLetters
from shared.store.deferred import Deferred, Waiting
from shared.store.hops import NextHops
from shared.store.selection import Selection
from shared.store.waiting import By, WaitingMail
from workers.cli import ending, top
from workers.cli.change import Actor
from workers.cli.frame import Fleet, Json, Refusal, Result, actor, ago, counted, printable, run, table
from workers.cli.which import All, Domain, Error, Id, Older, Target, not_by_chance, privacy, selection

app = typer.Typer(no_args_is_help=True, help="Waiting mail: what, for whom, why, and until when.")
ending.register(app)
top.register(app)

_HINT = "`pushpush queue list` shows what waits"
_DOMAINS = 50  # shown by `status`; `stats` shows more
_SHOWN = 100_000  # deliveries of one message that `show` shows
_COUNTED = 100_000  # matching deliveries that `list` counts


@app.command("status", epilog="Example: pushpush queue status")
def status(json: Json = False) -> None:
    """Show how many messages are in each queue, what waits for which domain, and which next hops are left alone."""

    async def work(fleet: Fleet) -> Result:
        depths = await Depths(await fleet.link()).all()
        pool = await fleet.pool()
        totals = await Deferred(pool).totals()
        hops = await NextHops(pool).current()
        dead = await DeadLetters(pool).count()
        shown = table("queue", "messages")
        for name, depth in depths.items():
            shown.add_row(name, str(depth))
        shown.add_row("dead letters in the store", str(dead))
        for each in totals[:_DOMAINS]:
            where = f" at {each.target}" if each.target else ""
            put_off = f", {each.put_off} of them put off for want of room" if each.put_off else ""
            shown.add_row(
                f"waiting for {each.domain}{where}",
                f"{each.deliveries}, oldest {ago(each.oldest)}, next try {ago(each.next_attempt_at)}{put_off}",
            )
        if len(totals) > _DOMAINS:
            shown.add_row("waiting for others", str(sum(each.deliveries for each in totals[_DOMAINS:])))
        for hop in hops:
            shown.add_row(f"{printable(hop.hop)} is {hop.state}", f"ends {ago(hop.until)}: {printable(hop.reason)}")
        waiting = sum(each.deliveries for each in totals)
        shown.add_row("waiting in all", str(waiting))
        data = {
            "queues": depths,
            "waiting": waiting,
            "put_off": sum(each.put_off for each in totals),
            "domains": totals,
            "dead_letters": dead,
            "suspended": [each for each in hops if each.state == "suspended"],
            "without_mxdeliv": [each for each in hops if each.state == "without mxdeliv"],
        }
        return Result(data=data, text=shown)

    run("queue status", work, json=json)


@app.command("list", epilog="Example: pushpush queue list --domain a.com")
def list_(
    message: Id = None,
    domain: Domain = None,
    target: Target = None,
    older: Older = None,
    error: Error = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    json: Json = False,
) -> None:
    """Show waiting deliveries, those due first."""

    async def work(fleet: Fleet) -> Result:
        deferred = Deferred(await fleet.pool())
        chosen = selection(message, domain=domain, target=target, older=older, error=error)
        waiting = await deferred.matching(chosen, limit=limit)
        total = len(waiting) if len(waiting) < limit else await deferred.count(chosen, at_most=_COUNTED)
        shown = table("message", "from", "to", "attempts", "next try", "last answer")
        for each in waiting:
            shown.add_row(
                printable(each.message_id),
                printable(each.mail_from) or "<>",
                printable(", ".join(each.rcpt_to)),
                str(each.attempts),
                ago(each.next_attempt_at),
                printable(each.reply),
            )
        at_least = "at least " * (total == _COUNTED)
        warnings = (f"shown are {len(waiting)} of {at_least}{total}",) if total > len(waiting) else ()
        data = {"waiting": waiting, "total": total}
        return Result(data=data, text=shown if waiting else "nothing waits", warnings=warnings)

    run("queue list", work, json=json)


@app.command("show", epilog="Example: pushpush queue show 4f1c...")
def show(
    message: Annotated[str, typer.Argument(metavar="ID", help="The message's id, as `queue list` shows it.")],
    json: Json = False,
) -> None:
    """Show one waiting message with all its waiting recipients."""

    async def work(fleet: Fleet) -> Result:
        deferred, chosen = Deferred(await fleet.pool()), selection(message)
        waiting = await deferred.matching(chosen, limit=_SHOWN)
        if not waiting:
            raise Refusal(f"no message {message} waits; {_HINT}")
        total = len(waiting) if len(waiting) < _SHOWN else await deferred.count(chosen)
        warnings = (f"shown are {len(waiting)} of {total}",) if total > len(waiting) else ()
        data = {"waiting": waiting, "total": total}
        return Result(data=data, text="\n\n".join(_words(each) for each in waiting), warnings=warnings)

    run("queue show", work, json=json)


@app.command("stats", epilog="Example: pushpush queue stats --by answer")
def stats(
    by: Annotated[By, typer.Option(help="Put together what has the same domain, target or answer.")] = "domain",
    domain: Domain = None,
    target: Target = None,
    older: Older = None,
    error: Error = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 20,
    json: Json = False,
) -> None:
    """Count waiting deliveries by domain, by target, or by what was answered last; the most first."""

    async def work(fleet: Fleet) -> Result:
        chosen = selection(domain=domain, target=target, older=older, error=error)
        shares = await WaitingMail(await fleet.pool()).stats(by=by, selection=chosen, limit=limit)
        shown = table(by, "deliveries", "bytes", "oldest", "next try")
        for each in shares:
            name = printable(each.name) or ("the MX hosts" if by == "target" else "nothing")
            shown.add_row(name, str(each.deliveries), str(each.bytes), ago(each.oldest), ago(each.next_attempt_at))
        return Result(data={"by": by, "shares": shares}, text=shown if shares else "nothing waits")

    run("queue stats", work, json=json)


@app.command("retry", epilog="Example: pushpush queue retry --domain a.com")
def retry(
    message: Id = None,
    domain: Domain = None,
    target: Target = None,
    older: Older = None,
    error: Error = None,
    everything: All = False,
    who: Actor = None,
    json: Json = False,
) -> None:
    """Make waiting mail due at once; the rules of this moment apply to it."""

    async def work(fleet: Fleet) -> Result:
        chosen = selection(message, domain=domain, target=target, older=older, error=error)
        not_by_chance(chosen, everything=everything)
        pool = await fleet.pool()
        count, due = await _made_due(Deferred(pool), chosen)
        words = f"{counted(count, 'delivery', 'deliveries')} made due"
        words += f"; {counted(due, 'was', 'were')} due already" if due else ""
        told = chosen.told(privacy(fleet.settings))
        await Audit(pool).record(actor=actor(who), via="cli", action="queue retry", object=told, detail=words)
        return Result(data={"retried": count, "due_already": due}, text=words)

    run("queue retry", work, json=json)


async def _made_due(deferred: Deferred, chosen: Selection) -> tuple[int, int]:
    """Make deliveries due; return how many these are, and how many were due already.

    Raises:
        Refusal: The message does not wait.
    """
    at = now()
    chosen = chosen.as_of(at, await deferred.newest())
    if chosen.message_id is not None and not await deferred.count(chosen, at_most=1):
        raise Refusal(f"no message {chosen.message_id} waits like that; {_HINT}")
    due = await deferred.due(chosen, now=at)
    return await deferred.retry(chosen, now=at), due


def _words(waiting: Waiting) -> str:
    fields = msgspec.structs.asdict(waiting)
    fields["mail_from"] = waiting.mail_from or "<>"
    fields["rcpt_to"] = ", ".join(waiting.rcpt_to)
    fields["target"] = waiting.target or f"the MX hosts of {waiting.domain}"
    fields["put_off"] = f"by {waiting.put_off}, which had no room for it" if waiting.put_off else "no"
    return "\n".join(f"{name}: {printable(str(value))}" for name, value in fields.items())
