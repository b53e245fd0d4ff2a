"""`pushpush queue bounce` and `pushpush queue remove`: end waiting mail by hand."""

import sys
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
import typer

from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.fleet import waiting
from shared.fleet.waiting import Ended, Progress, Who
from shared.runtime.clock import now
from shared.store.deferred import Deferred
from shared.store.pool import Pool
from shared.store.selection import Selection
from workers.cli.change import Actor
from workers.cli.confirm import Yes, confirm
from workers.cli.frame import CONFIRM, REFUSED, Fleet, Json, Refusal, Result, actor, counted, run
from workers.cli.journal import WAIT, Telling
from workers.cli.which import All, Domain, Error, Id, Older, Target, not_by_chance, privacy, selection

End = Callable[[Selection, Pool, Progress], Awaitable[Ended]]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("bounce", epilog="Example: pushpush queue bounce --domain a.com --older 2d")(bounce)
    app.command("remove", epilog="Example: pushpush queue remove --error 'mailbox full'")(remove)
    app.command("delete", hidden=True)(remove)


def bounce(
    message: Id = None,
    domain: Domain = None,
    target: Target = None,
    older: Older = None,
    error: Error = None,
    everything: All = False,
    yes: Annotated[bool, Yes] = False,
    who: Actor = None,
    json: Json = False,
) -> None:
    """Give up waiting mail and tell its senders. Asks first, with the count. What is just being tried is left alone."""

    async def work(fleet: Fleet) -> Result:
        chosen = selection(message, domain=domain, target=target, older=older, error=error)
        not_by_chance(chosen, everything=everything)
        ours = Who(actor=actor(who), via="cli")

        telling = Telling()

        async def end(counted_as: Selection, pool: Pool, progress: Progress) -> Ended:
            link = await fleet.link()
            async with telling.on(link) as emit:
                settler = Settler(
                    Publisher(link, timeout=CONFIRM),
                    Deferred(pool),
                    hostname=fleet.settings.hostname,
                    schedule=fleet.settings.schedule,
                    emit=emit,
                    room="operator",
                )
                return await waiting.bounce(
                    counted_as,
                    pool,
                    settler,
                    who=ours,
                    emit=emit,
                    progress=progress,
                    privacy=privacy(fleet.settings),
                )

        return await _ended(fleet, "bounce", "bounced", chosen, end, telling, yes=yes, json=json)

    run("queue bounce", work, json=json)


def remove(
    message: Id = None,
    domain: Domain = None,
    target: Target = None,
    older: Older = None,
    error: Error = None,
    everything: All = False,
    yes: Annotated[bool, Yes] = False,
    who: Actor = None,
    json: Json = False,
) -> None:
    """Take waiting mail out for good, and tell nobody. Asks first, with the count."""

    async def work(fleet: Fleet) -> Result:
        chosen = selection(message, domain=domain, target=target, older=older, error=error)
        not_by_chance(chosen, everything=everything)
        ours = Who(actor=actor(who), via="cli")

        telling = Telling()

        async def end(counted_as: Selection, pool: Pool, progress: Progress) -> Ended:
            async with telling.on(await fleet.link(wait=WAIT)) as emit:
                return await waiting.remove(
                    counted_as, pool, who=ours, emit=emit, progress=progress, privacy=privacy(fleet.settings)
                )

        return await _ended(fleet, "remove", "removed", chosen, end, telling, yes=yes, json=json)

    run("queue remove", work, json=json)


async def _ended(
    fleet: Fleet, verb: str, done: str, chosen: Selection, end: End, telling: Telling, *, yes: bool, json: bool
) -> Result:
    """Count, ask, end, and tell."""
    pool = await fleet.pool()
    deferred = Deferred(pool)
    counted_as = chosen.as_of(now(), await deferred.newest())
    count = await deferred.count(counted_as)
    if not count and chosen.message_id is not None:
        raise Refusal(f"no message {chosen.message_id} waits like that; `pushpush queue list` shows what waits")
    if not count:
        return Result(data={"matched": 0, done: 0, "warnings": []}, text="nothing that waits matches")
    told = "and tell their senders" if verb == "bounce" else "and tell nobody"
    confirm(f"{verb} {counted(count, 'delivery', 'deliveries')} ({chosen}), {told}", yes=yes, json=json)
    ended = await end(counted_as, pool, _progress(done, count, json=json))
    fault = "" if not ended.unreadable else f"{counted(ended.unreadable, 'delivery', 'deliveries')} could not be read"
    warnings = telling.warnings
    data = {"matched": count, done: ended.deliveries, **msgspec.structs.asdict(ended), "warnings": list(warnings)}
    text = _words(verb, done, ended)
    return Result(data=data, text=text, code=REFUSED if fault else 0, fault=fault, warnings=warnings)


def _words(verb: str, done: str, ended: Ended) -> str:
    words = [f"{counted(ended.deliveries, 'delivery', 'deliveries')} {done}"]
    if verb == "bounce":
        words.append(counted(ended.reports, "report sent", "reports sent"))
        if ended.silent:
            words.append(f"{ended.silent} ended in silence: reports themselves, or their senders want none")
    if ended.doubles:
        words.append(f"{counted(ended.doubles, 'was a double', 'were doubles')} of mail that has ended already")
    if busy := ended.left - ended.unreadable:
        words.append(f"{counted(busy, 'was', 'were')} just being tried, and left alone")
    if ended.unreadable:
        words.append(f"{counted(ended.unreadable, 'waits', 'wait')} on: not readable here, see the log")
    return "; ".join(words)


def _progress(done: str, count: int, *, json: bool) -> Progress:
    def show(ended: Ended) -> None:
        if not json and sys.stderr.isatty() and count > waiting.BATCH:
            print(f"{done} {ended.deliveries} of {count}", file=sys.stderr)  # noqa: T201

    return show
