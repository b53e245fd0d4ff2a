"""Dead letters for operators: taken out of `mail.undecodable` when somebody looks, sent again, or thrown away.

Everything is safe in the next place before it leaves the last one: a letter is committed and then acked, published and
then deleted. A crash between the two leaves two, of which one is found to be a double where that can be told.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import cast

import msgspec
import structlog
from aiormq import Channel
from aiormq.abc import DeliveredMessage

from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import Publisher, lost
from shared.fleet.ended import events_of, without_ended
from shared.fleet.resend import StaysDeadError, plan_for
from shared.fleet.turns import turn
from shared.fleet.waiting import Who
from shared.mail import codec
from shared.mail.event import Emit, Event, to_nobody
from shared.runtime.clock import now
from shared.runtime.errors import BrokerUnavailable, StoreUnavailable
from shared.store.audit import Audit
from shared.store.bodies import Bodies
from shared.store.dead import DeadLetters, Gone, Letter, Look, Stored
from shared.store.pool import Connection, Pool

log = structlog.get_logger()

LOOK = 1_000  # letters taken out of the queue when somebody looks
_BATCH = 100  # letters kept in one transaction,
_BYTES = 16 * 1024**2  # or so many bytes of them
_COUNTERS = ("x-delivery-count", "x-acquired-count")  # headers of the broker's, of how often it handed it out
_WAIT = 10.0  # seconds for the broker's word; a person waits for it
_CLOSING = 2.0  # seconds for its word on a channel that we are done with; it hears that we are in any case


class NoLetterError(LookupError):
    """There is no dead letter of this id, or somebody is just sending it again."""


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What a look into `mail.undecodable` brought.

    Attributes:
        kept: Letters that are new in the store.
        left: Letters that are still in the queue, for the next look.
    """

    kept: int
    left: int


class Requeued(msgspec.Struct, frozen=True, kw_only=True):
    """How a letter was sent again.

    Attributes:
        id: It was.
        queue: Where to.
        message_id: The queue id of the message.
        dropped: Names of headers that cannot be written as they came, and went missing; the contract knows none.
    """

    id: int
    queue: str
    message_id: str
    dropped: list[str]


async def collect(link: Link, dead: DeadLetters, *, limit: int = LOOK) -> Collected:
    """Take what is in `mail.undecodable` into the store, the oldest first.

    Raises:
        BrokerUnavailable: RabbitMQ is away; what was taken before is kept.
        StoreUnavailable: PostgreSQL is away, or keeps nothing: its disk is full, or it only reads. Nothing is lost.
    """
    # Whoever takes letters and cannot keep them gives them back, and RabbitMQ 4 drops what came back too often.
    await dead.ready()
    ours = link.publishing
    if ours is None:
        raise BrokerUnavailable("RabbitMQ is away")
    try:
        async with asyncio.timeout(_WAIT):
            channel = cast("Channel", await ours.connection.channel())
        try:
            return await _emptied(channel, dead, limit)
        finally:
            async with asyncio.timeout(_CLOSING):
                await channel.close()
    except BaseException as error:
        if not lost(error, ours):
            raise
        raise BrokerUnavailable(f"RabbitMQ did not give its dead letters: {error!r}") from error


async def requeue(
    id: int,  # noqa: A002 - the column's name
    pool: Pool,
    publisher: Publisher,
    *,
    who: Who,
    queue: str | None = None,
    mail_from: str | None = None,
    rcpt_to: Sequence[str] | None = None,
    force: bool = False,
) -> Requeued:
    """Send a letter again, and forget it once the broker has it.

    Args:
        id: Of the letter.
        pool: The store.
        publisher: To the broker.
        who: Stands in the audit log.
        queue: One of `QUEUES`; None for `mail.reroute` when it is a delivery, else `mail.outbound`.
        mail_from: The reverse-path, in place of the header that cannot be read.
        rcpt_to: The recipients, in place of the header that cannot be read.
        force: Send it though it would come back at once.

    Raises:
        NoLetterError: There is none.
        StaysDeadError: It would come back at once.
        BrokerUnavailable: It was not confirmed, and is kept; it may be in the queue all the same.
        StoreUnavailable: It may be sent and kept.
    """
    done: list[Requeued] = []

    async def give(letter: Stored, connection: Connection) -> None:
        plan = await plan_for(letter, Bodies(pool), queue=queue, mail_from=mail_from, rcpt_to=rcpt_to)
        if plan.fault and not force:
            raise StaysDeadError(f"it would come back at once: {plan.fault}")
        await Audit(pool).record(
            actor=who.actor, via=who.via, action="dead requeue", object=str(id), detail=plan.queue, on=connection
        )
        name = plan.envelope.id if plan.envelope else letter.message_id
        # A delivery has its id inside only, as the publisher says.
        own = (name or None) if plan.queue == topology.OUTBOUND else None
        await publisher.raw(
            plan.queue, letter.data, message_id=own, content_type=plan.content_type, headers=plan.headers
        )
        done.append(Requeued(id=id, queue=plan.queue, message_id=name, dropped=list(plan.dropped)))

    async with turn(pool):
        given = await DeadLetters(pool).hand_over(id, give)
    if not given:
        raise NoLetterError(f"there is no dead letter {id}, or somebody is just sending it again")
    log.info("dead letter sent again", letter=id, queue=done[0].queue, id=done[0].message_id, actor=who.actor)
    return done[0]


async def discard(ids: Sequence[int], pool: Pool, *, who: Who, emit: Emit = to_nobody) -> list[int]:
    """Throw letters away for good; return the ids of those that were there.

    Args:
        ids: Of the letters.
        pool: The store.
        who: Stands in the audit log and in the events.
        emit: Takes on the events of the deliveries among them: what was set aside is no longer.

    Raises:
        StoreUnavailable: They may or may not be there.
    """

    async def record(gone: list[int], connection: Connection) -> None:
        letters = f"{len(gone)} {'letter' if len(gone) == 1 else 'letters'}"
        named = ", ".join(map(str, gone))
        await Audit(pool).record(
            actor=who.actor, via=who.via, action="dead discard", object=letters, detail=named, on=connection
        )

    gone = await DeadLetters(pool).delete(ids, also=record)
    at = now()
    emit([event for each in gone for event in await _removed(each, Bodies(pool), who, at)])
    return [each.id for each in gone]


async def _removed(gone: Gone, bodies: Bodies, who: Who, at: datetime) -> list[Event]:
    """Return what is told of the recipients of a letter that was thrown away; of what is no delivery nothing is.

    It is gone by now, so nothing is raised for these.
    """
    try:
        delivery = await without_ended(codec.decode(gone.wire)[0], bodies)
    except codec.DecodeError:
        return []
    except StoreUnavailable as error:
        log.warning("store away, nothing is told of a letter thrown away", letter=gone.id, error=str(error))
        return []
    return events_of(delivery, "removed", at=at, actor=who.actor)


async def _emptied(channel: Channel, dead: DeadLetters, limit: int) -> Collected:
    look = Look()
    kept = taken = 0
    while taken < limit:
        # The first one alone: a store that cannot keep it after all costs no other letter one of its deliveries.
        letters, tag = await _batch(channel, min(_BATCH if taken else 1, limit - taken))
        if not letters:
            await dead.end(look)
            return Collected(kept=kept, left=0)
        kept += await dead.keep(letters, look)
        taken += len(letters)
        await channel.basic_ack(tag, multiple=True)
    # RabbitMQ 3.10 may forget the acks of a channel that closes; a get goes through the queue behind them.
    got = await channel.basic_get(topology.UNDECODABLE, timeout=_WAIT)
    if got.delivery_tag is not None:
        await channel.basic_nack(got.delivery_tag, requeue=True)
    await dead.end(look)
    return Collected(kept=kept, left=0 if got.delivery_tag is None else 1 + (got.message_count or 0))


async def _batch(channel: Channel, most: int) -> tuple[list[Letter], int]:
    """Take letters out of the queue until there are enough; return the last one's tag with them."""
    letters: list[Letter] = []
    size = tag = 0
    while len(letters) < most and size < _BYTES:
        got = await channel.basic_get(topology.UNDECODABLE, timeout=_WAIT)
        if got.delivery_tag is None:
            break
        letter = _letter(got)
        letters.append(letter)
        size += len(letter.data)
        tag = got.delivery_tag
    return letters, tag


def _letter(got: DeliveredMessage) -> Letter:
    properties = got.header.properties
    came = cast("Mapping[str, object]", properties.headers or {})
    headers = {name: value for name, value in came.items() if name not in _COUNTERS}
    queue, killed = _death(headers)
    told = headers.get("reason")
    return Letter(
        headers=headers,
        data=got.body,
        reason=killed or (told if isinstance(told, str) else "nobody said why"),
        queue=queue,
        message_id=_id(got.body, headers, properties.message_id),
        content_type=properties.content_type,
        redelivered=bool(got.redelivered),
    )


def _id(data: bytes, headers: Mapping[str, object], property_: str | None) -> str:
    """Return the queue id of the message; "" when it is not known.

    A delivery has it inside, and what a room set aside in a header. The property is the sender's own only where the
    broker moved the message: our library makes one up for each publish.
    """
    try:
        return codec.decode(data)[0].id
    except codec.DecodeError:
        named = headers.get("message_id")
        if isinstance(named, str):
            return named
        return "" if "reason" in headers else property_ or ""


def _death(headers: Mapping[str, object]) -> tuple[str, str]:
    """Return where the broker gave up handing it out, and in which words; both are empty when it did not."""
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    if not isinstance(last, dict) or last.get("reason") != "delivery_limit":
        return "", ""
    queue = str(last.get("queue", ""))
    return queue, f"handed out too often in {queue}, and never finished: look for what ended its workers"
