"""`pushpush queue ...`: mail that waits, in the broker and in the store."""

from typing import Annotated

import msgspec
import typer

from shared.broker import topology
from shared.broker.link import FAULTS, Link
from shared.mail.domain import normalise
from shared.runtime.clock import now
from shared.runtime.errors import BrokerUnavailable
from shared.store.deferred import Deferred, Waiting
from workers.cli.frame import Fleet, Json, Refusal, Result, ago, run, table

app = typer.Typer(no_args_is_help=True, help="Waiting mail: what, for whom, why, and until when.")

Domain = Annotated[str | None, typer.Option(help="Only mail to this domain.")]
Target = Annotated[str | None, typer.Option(help="Only mail last tried at this target of a rule.")]
_HINT = "`pushpush queue list` shows what waits"


@app.command("status", epilog="Example: pushpush queue status")
def status(json: Json = False) -> None:
    """Show how many messages are in each queue, and what waits for which domain."""

    async def work(fleet: Fleet) -> Result:
        depths = await _depths(await fleet.link())
        totals = await Deferred(await fleet.pool()).totals()
        shown = table("queue", "messages")
        for name, depth in depths.items():
            shown.add_row(name, str(depth))
        for each in totals:
            where = f" at {each.target}" if each.target else ""
            shown.add_row(
                f"waiting for {each.domain}{where}",
                f"{each.deliveries}, oldest {ago(each.oldest)}, next try {ago(each.next_attempt_at)}",
            )
        waiting = sum(each.deliveries for each in totals)
        shown.add_row("waiting in all", str(waiting))
        return Result(data={"queues": depths, "waiting": waiting, "domains": totals}, text=shown)

    run("queue status", work, json=json)


@app.command("list", epilog="Example: pushpush queue list --domain a.com")
def list_(
    domain: Domain = None,
    target: Target = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    json: Json = False,
) -> None:
    """Show waiting deliveries, those due first."""

    async def work(fleet: Fleet) -> Result:
        deferred = Deferred(await fleet.pool())
        waiting = await deferred.matching(domain=_normal(domain), target=target, limit=limit)
        shown = table("message", "from", "to", "attempts", "next try", "last answer")
        for each in waiting:
            shown.add_row(
                each.message_id,
                each.mail_from or "<>",
                ", ".join(each.rcpt_to),
                str(each.attempts),
                ago(each.next_attempt_at),
                each.reply,
            )
        return Result(data={"waiting": waiting}, text=shown if waiting else "nothing waits")

    run("queue list", work, json=json)


@app.command("show", epilog="Example: pushpush queue show 4f1c...")
def show(
    message: Annotated[str, typer.Argument(metavar="ID", help="The message's id, as `queue list` shows it.")],
    json: Json = False,
) -> None:
    """Show one waiting message with all its waiting recipients."""

    async def work(fleet: Fleet) -> Result:
        waiting = await Deferred(await fleet.pool()).matching(message_id=message)
        if not waiting:
            raise Refusal(f"no message {message} waits; {_HINT}")
        return Result(data={"waiting": waiting}, text="\n\n".join(_words(each) for each in waiting))

    run("queue show", work, json=json)


@app.command("retry", epilog="Example: pushpush queue retry --domain a.com")
def retry(
    message: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only this message.")] = None,
    domain: Domain = None,
    target: Target = None,
    everything: Annotated[bool, typer.Option("--all", help="All that waits.")] = False,
    json: Json = False,
) -> None:
    """Make waiting mail due at once; the rules of this moment apply to it."""

    async def work(fleet: Fleet) -> Result:
        if everything == any((message, domain, target)):
            raise Refusal("say which mail: an ID, --domain, --target, or --all for all that waits")
        deferred = Deferred(await fleet.pool())
        count = await deferred.retry(now=now(), domain=_normal(domain), target=target, message_id=message)
        return Result(
            data={"retried": count}, text=f"{count} {'delivery is' if count == 1 else 'deliveries are'} due now"
        )

    run("queue retry", work, json=json)


async def _depths(link: Link) -> dict[str, int]:
    if link.channel is None:
        raise BrokerUnavailable("RabbitMQ is away, so its queues cannot be counted")
    try:
        depths = {}
        for name in topology.QUEUES:
            queue = await link.channel.declare_queue(name, passive=True)
            depths[name] = queue.declaration_result.message_count or 0
    except FAULTS as error:
        raise BrokerUnavailable(f"RabbitMQ did not count its queues: {error!r}") from error
    return depths


def _normal(domain: str | None) -> str | None:
    return None if domain is None else normalise(domain)


def _words(waiting: Waiting) -> str:
    fields = msgspec.structs.asdict(waiting)
    fields["mail_from"] = waiting.mail_from or "<>"
    fields["rcpt_to"] = ", ".join(waiting.rcpt_to)
    fields["target"] = waiting.target or f"the MX hosts of {waiting.domain}"
    return "\n".join(f"{name}: {value}" for name, value in fields.items())
