"""Measurements of events: what telling of mail costs the rooms that deliver it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from bench.measure import MESSAGE, Figure, Site
from shared.broker import events, topology
from shared.broker.link import Link
from shared.mail import event, trace
from shared.mail.disposition import Done
from shared.mail.envelope import Delivery, Envelope
from shared.mail.event import Event
from shared.mail.reply import Reply
from shared.mail.route import Route
from shared.runtime.clock import now

EMITTED = 20_000  # events, one a message
_AT_ONCE = 400  # messages between two looks at the loop: so many are settled in an interval by a busy worker


async def events_cost(site: Site) -> list[Figure]:
    """CPU of a worker and of a router for the events of one message: made, batched, published and confirmed."""
    delivery = Delivery(
        envelope=Envelope(
            id="f" * 32, mail_from="a@x.example", rcpt_to=("b@a.example",), accepted_at=datetime.now(UTC)
        ),
        domain="a.example",
        route=Route(version=7, key="a.example", targets=("b.example:2525",)),
    )
    verdicts = {"b@a.example": Done(Reply(code=250, enhanced="2.0.0", text="Ok: queued as 4f1c", mta="b.example"))}

    def worker() -> Sequence[Event]:
        return event.settled(delivery, verdicts, at=now(), room="smtp", ms=12, size=len(MESSAGE))

    def router() -> Sequence[Event]:
        header_id = trace.message_id(MESSAGE)
        return event.routed(delivery, at=now(), again=False, size=len(MESSAGE), header_id=header_id)

    figures = []
    for name, make in (("smtp", worker), ("router", router)):
        cost = await _cost(site, make)
        detail = f"{EMITTED:,} events in batches of {_AT_ONCE}, by a real broker"
        figures.append(
            Figure(what=f"events of the {name} room", value=cost, unit="ms CPU", goal="below 0.05", detail=detail)
        )
    return figures


async def _cost(site: Site, make: Callable[[], Sequence[Event]]) -> float:
    """Return milliseconds of CPU a message."""
    async with Link(site.services.amqp_url, name="bench") as link:
        await link.wait_up()
        emit = events.Events(link, room="bench")
        emitting = asyncio.create_task(emit.run())
        emit(make())
        await _recorded(site)
        began = time.process_time()
        for _ in range(EMITTED // _AT_ONCE):
            for _ in range(_AT_ONCE):
                emit(make())
            await asyncio.sleep(events.INTERVAL)
        emitting.cancel()
        await asyncio.gather(emitting, return_exceptions=True)
        await emit.close()
        cost = (time.process_time() - began) * 1000 / EMITTED
    await site.channel.queue_purge(topology.JOURNAL)
    return cost


async def _recorded(site: Site) -> None:
    """Wait until the exchange and its queue are there, and the first batch."""
    await asyncio.sleep(events.INTERVAL * 4)
    await site.channel.queue_declare(topology.JOURNAL, passive=True)
