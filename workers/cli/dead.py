"""`pushpush dead ...`: what could not be read, or was handed out too often."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from shared.fleet import dead
from shared.fleet.dead import NoLetterError, Requeued
from shared.fleet.letter import opened, plain
from shared.fleet.resend import QUEUES, StaysDeadError
from shared.fleet.waiting import Who
from shared.mail.event import Event
from shared.runtime.errors import FleetError
from shared.store.dead import DeadLetters, Stored
from shared.store.pool import Pool
from workers.cli.change import Actor
from workers.cli.confirm import Yes, confirm
from workers.cli.frame import (
    REFUSED,
    Fleet,
    Json,
    Refusal,
    Result,
    actor,
    ago,
    counted,
    one_line,
    printable,
    run,
    table,
)
from workers.cli.journal import WAIT, Telling

app = typer.Typer(no_args_is_help=True, help="Dead letters: what could not be read, and what to do about it.")

_HIGHEST = 2**63 - 1  # that the store has a number for
Ids = Annotated[
    list[int] | None,
    typer.Argument(metavar="[ID]...", min=1, max=_HIGHEST, help="Letters, as `dead list` numbers them."),
]
Search = Annotated[str | None, typer.Option(help="Only those with this in their reason, message id or queue.")]
Every = Annotated[bool, typer.Option("--all", help="All letters.")]

_LONGEST = 1_000  # characters of what is searched for
_AT_ONCE = 100_000  # letters that one command is about


@app.command("list", epilog="Example: pushpush dead list --search body")
def list_(
    search: Search = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    json: Json = False,
) -> None:
    """Show dead letters, the latest first. Takes what is in `mail.undecodable` into the store first."""

    async def work(fleet: Fleet) -> Result:
        letters = DeadLetters(await fleet.pool())
        told, left = await _collected(fleet, letters)
        words = _words(search)
        found = await letters.page(limit=limit, search=words)
        total = await letters.count(search=words)
        shown = table("id", "since", "message", "queue", "bytes", "reason")
        for each in found:
            shown.add_row(
                str(each.id),
                ago(each.taken_at),
                printable(each.message_id) or "unknown",
                printable(each.queue) or "unknown",
                str(each.size),
                printable(each.reason),
            )
        warnings = told + ((f"shown are {len(found)} of {total}",) if total > len(found) else ())
        data = {"letters": found, "total": total, "in_queue": left, "warnings": list(warnings)}
        return Result(data=data, text=shown if found else "there are no dead letters", warnings=warnings)

    run("dead list", work, json=json)


@app.command("show", epilog="Example: pushpush dead show 7 --raw >letter")
def show(
    number: Annotated[
        int, typer.Argument(metavar="ID", min=1, max=_HIGHEST, help="The letter's number, as `dead list` shows it.")
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Write its bytes as they are; with --json, in base64.")] = False,
    json: Json = False,
) -> None:
    """Show one dead letter: why it is dead, whose mail it is, its AMQP headers; or, with --raw, its bytes."""

    async def work(fleet: Fleet) -> Result:
        letter = await DeadLetters(await fleet.pool()).get(number)
        if letter is None:
            raise Refusal(f"there is no dead letter {number}; `pushpush dead list` shows them")
        about = msgspec.structs.asdict(letter)
        del about["data"]
        data = about | {"headers": plain(letter.headers), "opened": opened(letter)}
        data |= {"data": plain(letter.data)} if raw else {}
        return Result(data=data, text=letter.data if raw else _shown(letter))

    run("dead show", work, json=json)


@app.command("requeue", epilog="Example: pushpush dead requeue 7 --from you@x.example --to someone@a.com")
def requeue(
    ids: Ids = None,
    search: Search = None,
    everything: Every = False,
    queue: Annotated[str | None, typer.Option(help=f"Where to: {' or '.join(QUEUES)}; default: what takes it.")] = None,
    mail_from: Annotated[str | None, typer.Option("--from", help="The reverse-path, in place of what it says.")] = None,
    rcpt_to: Annotated[list[str] | None, typer.Option("--to", help="A recipient, in place of what it says.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Send it though it would come back at once.")] = False,
    who: Actor = None,
    json: Json = False,
) -> None:
    """Send dead letters again, and forget them. One that would come back at once is refused, with the reason."""

    async def work(fleet: Fleet) -> Result:
        ours = Who(actor=actor(who), via="cli")
        pool = await fleet.pool()
        chosen = await _chosen(ids, search, pool, everything=everything)
        if len(chosen) > 1 and (mail_from is not None or rcpt_to):
            raise Refusal("--from and --to are for one letter")
        publisher = await fleet.publisher()
        sent: list[Requeued] = []
        refused: dict[int, str] = {}
        for each in chosen:
            try:
                sent.append(
                    await dead.requeue(
                        each,
                        pool,
                        publisher,
                        who=ours,
                        queue=queue,
                        mail_from=mail_from,
                        rcpt_to=rcpt_to or None,
                        force=force,
                    )
                )
            except (NoLetterError, StaysDeadError) as error:
                refused[each] = str(error)
        return _sent(sent, refused)

    run("dead requeue", work, json=json)


@app.command("discard", epilog="Example: pushpush dead discard 7 8")
def discard(
    ids: Ids = None,
    search: Search = None,
    everything: Every = False,
    yes: Annotated[bool, Yes] = False,
    who: Actor = None,
    json: Json = False,
) -> None:
    """Throw dead letters away for good. Asks first, with the count."""

    async def work(fleet: Fleet) -> Result:
        ours = Who(actor=actor(who), via="cli")
        pool = await fleet.pool()
        chosen = await _chosen(ids, search, pool, everything=everything)
        if there := await DeadLetters(pool).known(chosen):
            confirm(f"throw {counted(len(there), 'dead letter', 'dead letters')} away for good", yes=yes, json=json)
        told: list[Event] = []
        gone = await dead.discard(chosen, pool, who=ours, emit=told.extend)
        warnings = await _published(fleet, told)
        missing = sorted(set(chosen) - set(gone))
        named = ", ".join(map(str, missing))
        fault = f"there is no dead letter {named}, or somebody is just sending it again" if missing else ""
        words = f"{counted(len(gone), 'letter', 'letters')} thrown away"
        data = {"discarded": gone, "missing": missing, "warnings": list(warnings)}
        text = "; ".join(filter(None, (words, fault)))
        return Result(data=data, text=text, code=REFUSED * bool(fault), fault=fault, warnings=warnings)

    run("dead discard", work, json=json)


async def _published(fleet: Fleet, events: Sequence[Event]) -> tuple[str, ...]:
    """Tell the journal; return what to warn of. Without events the broker is not needed."""
    telling = Telling()
    if events:
        async with telling.on(await fleet.link(wait=WAIT)) as emit:
            emit(events)
    return telling.warnings


async def _collected(fleet: Fleet, letters: DeadLetters) -> tuple[tuple[str, ...], int | None]:
    """Take letters in; return what to warn of, and how many are left in the queue, None when it cannot be seen."""
    try:
        collected = await dead.collect(await fleet.link(), letters)
    except FleetError as error:
        return (f"what is still in the queue is not shown: {error}",), None
    left = collected.left
    return ((f"{counted(left, 'letter is', 'letters are')} still in the queue: look again",) if left else ()), left


async def _chosen(ids: Sequence[int] | None, search: str | None, pool: Pool, *, everything: bool) -> list[int]:
    """Return the letters that a command is about.

    Raises:
        Refusal: It was not said which.
    """
    if (bool(ids), bool(search), everything).count(True) != 1:
        raise Refusal("say which letters: one or more IDs, or --search, or --all")
    if ids:
        return sorted(set(ids))
    found = await DeadLetters(pool).page(limit=_AT_ONCE, search=_words(search))
    return sorted(each.id for each in found)


def _words(search: str | None) -> str:
    return "" if search is None else one_line("what is searched for", search, _LONGEST)


def _shown(letter: Stored) -> str:
    """Return a letter in lines; whatever a stranger wrote is inert."""
    seen = opened(letter)
    lines = {
        "id": letter.id,
        "taken at": letter.taken_at,
        "reason": letter.reason,
        "queue": letter.queue or "unknown",
        "message id": letter.message_id or "unknown",
        "content type": letter.content_type or "none",
        "bytes": letter.size,
        "it is": f"a delivery, tried {seen.attempts} times" if seen.kind == "delivery" else "a message from outside",
        "from": "unknown" if seen.mail_from is None else seen.mail_from or "<>",
        "to": ", ".join(seen.rcpt_to) or "unknown",
    }
    lines |= {f"field {name}": value for name, value in seen.fields.items()}
    lines |= {f"header {name}": value for name, value in letter.headers.items()}
    return "\n".join(f"{printable(name)}: {printable(str(value))}" for name, value in lines.items())


def _sent(sent: list[Requeued], refused: dict[int, str]) -> Result:
    words = [f"letter {each.id} sent to {each.queue} as {each.message_id or 'a new message'}" for each in sent]
    faults = [f"letter {number}: {why}" for number, why in refused.items()]
    warnings = tuple(
        f"letter {each.id} went without headers that cannot be written: {', '.join(each.dropped)}"
        for each in sent
        if each.dropped
    )
    if faults and not sent:
        raise Refusal("\n".join(faults))
    data = {
        "sent": sent,
        "refused": [{"id": number, "reason": why} for number, why in refused.items()],
        "warnings": list(warnings),
    }
    text = "\n".join(map(printable, words + faults)) or "there are no dead letters"
    return Result(data=data, text=text, code=REFUSED if faults else 0, fault="; ".join(faults), warnings=warnings)
