"""`pushpush trace`: what became of a message, and where it is now."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Annotated

import typer

from shared.mail.event import Event
from shared.mail.privacy import Privacy
from shared.mail.standing import Standing, standings
from shared.runtime.clock import now
from shared.store.traces import Awaited, Found, Traces
from workers.cli.frame import Fleet, Json, Refusal, Result, ago, counted, duration, printable, run, table

MOST = 5_000  # events shown of one message
_LONG = timedelta(hours=1)  # on its way, after which the queues are worth a look


def trace(
    word: Annotated[
        str, typer.Argument(metavar="ID|MESSAGE-ID|ADDRESS", help="A queue id, a Message-ID, a recipient or sender.")
    ],
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many messages.")] = 50,
    json: Json = False,
) -> None:
    """Show what happened to a message, and where it is now; or which messages an address has."""

    async def work(fleet: Fleet) -> Result:
        settings = fleet.settings
        privacy = Privacy(mode=settings.journal_addresses, key=settings.journal_key or "")
        traces = Traces(await fleet.pool(), privacy)
        found = await traces.find(word, limit=limit)
        meant = [each for each in found if each.id == word.strip()] or found
        if len(meant) > 1:
            return _listed(meant, limit)
        id_ = meant[0].id if meant else word.strip()
        events, waiting = await traces.timeline(id_, limit=MOST), await traces.waiting(id_)
        if not events and not waiting:
            days = settings.journal_retention.days
            raise Refusal(
                f"nothing is known of {word}; events are kept for {counted(days, 'day', 'days')}, "
                "and those of the last seconds may be on their way to the journal"
            )
        return _told(id_, meant[0] if meant else None, events, waiting)

    run("trace", work, json=json)


def _listed(found: Sequence[Found], limit: int) -> Result:
    shown = table("message", "accepted", "from", "to", "state", "last event")
    for each in found:
        unnamed = each.recipient_count - len(each.recipients)
        shown.add_row(
            printable(each.id),
            "?" if each.accepted_at is None else ago(each.accepted_at),
            _sender(each.sender),
            printable(", ".join(each.recipients)) + (f" and {unnamed} more" if unnamed > 0 else ""),
            ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in sorted(each.states.items())),
            ago(each.last_at),
        )
    more = f"; there may be more than these {len(found)}: --limit shows more" if len(found) >= limit else ""
    shown.caption, shown.caption_justify = f"`pushpush trace ID` shows what happened to one of them{more}", "left"
    return Result(data=_data(messages=found), text=shown)


def _told(id_: str, found: Found | None, events: Sequence[Event], waiting: Sequence[Awaited]) -> Result:
    stand = standings(events, {each: some.next_attempt_at for some in waiting for each in some.recipients})
    lines = [*_head(id_, found), "", *(f"{_time(each)}  {_line(each)}" for each in events)]
    if len(events) >= MOST:
        lines.append(f"only the newest {MOST} events are shown")
    lines += ["", "now:", *(f"  {_name(each)} {_now(each)}" for each in stand)]
    data = _data(messages=[] if found is None else [found], events=events, waiting=waiting, now=stand)
    return Result(data=data, text="\n".join(map(printable, lines)))


def _data(
    *,
    messages: Sequence[Found] = (),
    events: Sequence[Event] = (),
    waiting: Sequence[Awaited] = (),
    now: Sequence[Standing] = (),
) -> dict[str, object]:
    return {"messages": messages, "events": events, "waiting": waiting, "now": now}


def _head(id_: str, found: Found | None) -> Iterator[str]:
    yield f"message {id_}"
    if found is None:
        yield "  the journal has no event of it"
        return
    if found.accepted_at is None:
        yield "  its beginning is not in the journal"
    else:
        size = f", {found.size} bytes" if found.size else ""
        yield f"  from {_sender(found.sender)}, accepted {found.accepted_at:%Y-%m-%d %H:%M:%SZ}{size}"
    if found.header_id:
        yield f"  Message-ID: {found.header_id}"


def _sender(sender: str | None) -> str:
    if sender is None:
        return "?"
    return printable(sender) or "<>"


def _time(event: Event) -> str:
    return f"{event.at:%Y-%m-%d %H:%M:%S}.{event.at.microsecond // 1000:03}Z"


def _line(event: Event) -> str:
    return f"{event.kind:<9}  {event.recipient}: {'; '.join(filter(None, _parts(event)))}"


def _parts(event: Event) -> Iterator[str]:
    match event.kind:
        case "routed" | "rerouted":
            where = event.target or f"the MX hosts of {event.domain}"
            yield f"to {where}, by {f'rule {event.rule}' if event.rule else 'no rule'} (version {event.version})"
        case "reported":
            yield f"the sender was told, report {event.report}"
        case "removed":
            yield f"by {event.actor or 'an operator'}, and nobody is told"
        case _:
            yield _attempt(event)
            yield _answer(event)
            if event.kind == "dropped":
                yield "nobody is told"
            if event.kind == "fallback":
                yield "the other transport, or the next target, has its turn"
    if event.until is not None:
        yield f"next try {event.until:%Y-%m-%d %H:%M:%SZ}"


def _attempt(event: Event) -> str:
    if event.actor:
        return f"by {event.actor}"
    if not event.attempt:
        return f"not tried by {event.room}"
    at = f" at {event.mta}" if event.mta else f" for {event.target}" if event.target else ""
    return f"attempt {event.attempt} by {event.room}{at}"


def _answer(event: Event) -> str:
    code = str(event.code) if event.code else ""
    words = " ".join(filter(None, (code, event.enhanced, event.reply)))
    return f"{words} ({event.ms} ms)" if event.ms else words


def _name(standing: Standing) -> str:
    return f"recipients at {standing.recipient}:" if standing.tally else standing.recipient


def _now(standing: Standing) -> str:
    last = standing.last
    told = f"; the sender was told, report {standing.report}" if standing.report else ""
    match standing.state:
        case "waits":
            assert standing.until is not None
            return f"waits in the store, is tried {ago(standing.until)}{told}"
        case "not told apart":
            waits = f"; what waits in the store is tried {ago(standing.until)}" if standing.until else ""
            return f"{', '.join(f'{count} {kind}' for kind, count in standing.tally.items())}{waits}{told}"
        case "on its way":
            age = timedelta() if last is None else now() - last.at
            since = f" for {duration(age)}" if age else ""
            hint = "; `pushpush queue status` shows whether the broker's queues stand still" if age > _LONG else ""
            return f"is on its way, in a queue of the broker or being tried{since}{told}{hint}"
        case "set aside":
            return "could not be settled and was set aside: `pushpush dead list`"
        case _:
            assert last is not None
            return f"{_ENDS[standing.state]} {ago(last.at)}{told or _untold(last)}"


_ENDS = {"delivered": "was delivered", "given up": "was given up", "removed": "was removed"}


def _untold(last: Event) -> str:
    if last.kind == "bounced":
        return "; no report to the sender is known of"
    return "; nobody was told" if last.kind == "dropped" else ""
