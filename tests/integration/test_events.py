"""Events: told when they are true, beside the mail, and never in its way; with a real broker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
from aio_pika import ExchangeType

from deploy.local.services import RabbitMQ
from shared.broker import events as emitting
from shared.broker import topology
from shared.broker.events import Events
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.delivery.actor import Actor, Transport
from shared.mail import codec, event
from shared.mail.event import Batch, Event
from shared.mail.outcome import Busy, Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.route import Route
from shared.mail.rule import make_rule
from shared.runtime.settings import Settings
from shared.store.bodies import Bodies
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from tests.integration.conftest import MESSAGE, NOON, Queues, Wire, delivery, through, until
from tests.integration.rooms import running
from tests.integration.test_actor import HOSTNAME, LATER, NEVER, OK, SCHEDULE, Scripted, job

pytestmark = [pytest.mark.anyio, pytest.mark.services]


def happened(count: int, *, first: int = 0) -> list[Event]:
    """Return numbered events."""
    return [
        Event(
            at=NOON, kind="delivered", id=str(first + number), recipient="b@a.example", domain="a.example", room="smtp"
        )
        for number in range(count)
    ]


async def batch(queues: Queues) -> Batch:
    """Take the next batch from the journal's queue."""
    return event.decode((await queues.take(topology.JOURNAL)).body)


@contextlib.asynccontextmanager
async def emitted(link: Link) -> AsyncIterator[Events]:
    """Emit in the background, and at the end all that is left."""
    events = Events(link, room="smtp")
    task = asyncio.create_task(events.run())
    yield events
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await events.close()


async def test_events_travel_in_numbered_batches(link: Link, queues: Queues) -> None:
    """A batch says how many events its source has emitted up to its end."""
    async with emitted(link) as events:
        events(happened(emitting.BATCH + 2))
        first, second = await batch(queues), await batch(queues)
    assert (1, emitting.BATCH, emitting.BATCH) == (first.number, first.emitted, len(first.events))
    assert (2, emitting.BATCH + 2, 2) == (second.number, second.emitted, len(second.events))
    assert (first.source, happened(1)[0]) == (second.source, first.events[0])


async def test_what_is_left_goes_out_at_the_end(link: Link, queues: Queues) -> None:
    """A room that is stopped loses no events."""
    events = Events(link, room="smtp")
    events(happened(1))
    await events.close()
    assert tuple(happened(1)) == (await batch(queues)).events


async def test_the_oldest_make_room_while_the_broker_is_away(
    rabbitmq: RabbitMQ, broker_wire: Wire, queues: Queues
) -> None:
    """Memory is bounded, and what was lost shows in the count of what was emitted."""
    async with Link(through(rabbitmq.url, broker_wire), name="test") as link:
        await link.wait_up()
        async with emitted(link) as events:
            events(happened(1))
            assert 1 == (await batch(queues)).emitted
            await broker_wire.cut()
            await until(lambda: not link.is_up)
            events(happened(emitting.MOST + 7, first=1))
            await broker_wire.mend()
            second = await batch(queues)
    assert 2 == second.number
    assert "8" == second.events[0].id
    assert 1 + 7 + len(second.events) == second.emitted


async def test_a_batch_whose_confirm_was_lost_comes_again_under_its_number(
    rabbitmq: RabbitMQ, broker_wire: Wire, queues: Queues
) -> None:
    """So that whoever records it can tell that it is a double."""
    async with Link(through(rabbitmq.url, broker_wire), name="test") as link:
        await link.wait_up()
        async with emitted(link) as events:
            events(happened(1))
            assert 1 == (await batch(queues)).number
            assert link.publishing is not None
            channels = len(link.publishing.connection.channels)
            broker_wire.passing.clear()  # it cannot be published, nor confirmed, as with a broker short of memory
            events(happened(1, first=1))
            await asyncio.sleep(emitting.INTERVAL * 8)
            # Each try on a channel of its own would use them up, and the mail's connection with them.
            assert channels == len(link.publishing.connection.channels)
            await broker_wire.cut()
            broker_wire.passing.set()
            await broker_wire.mend()
            again = await batch(queues)
    assert (2, ("1",)) == (again.number, tuple(each.id for each in again.events))


async def test_without_the_exchange_mail_is_published_all_the_same(
    link: Link, publisher: Publisher, queues: Queues
) -> None:
    """Publishing to an exchange that is gone ends the channel: not the one of the mail."""
    channel = link.publishing
    async with emitted(link) as events:
        events(happened(1))
        await batch(queues)
        await (await queues.channel.get_exchange(topology.EVENTS, ensure=False)).delete()
        events(happened(1))
        for _ in range(50):
            await publisher.delivery(topology.SMTP, delivery(), MESSAGE)
            await asyncio.sleep(0.01)
        # It is made anew, and the batch follows.
        assert 2 == (await batch(queues)).number
    assert link.publishing is channel
    assert 50 == await queues.depth(topology.SMTP)


async def test_an_exchange_of_another_type_stops_no_mail(link: Link, publisher: Publisher, queues: Queues) -> None:
    """What is declared otherwise by another release or by hand concerns events only."""
    await (await queues.channel.get_exchange(topology.EVENTS, ensure=False)).delete()
    other = await queues.channel.declare_exchange(topology.EVENTS, ExchangeType.FANOUT, durable=True)
    channel = link.publishing
    async with emitted(link) as events:
        events(happened(1))
        await asyncio.sleep(emitting.INTERVAL * 2)
        await publisher.delivery(topology.SMTP, delivery(), MESSAGE)
        assert 0 == await queues.depth(topology.JOURNAL)
        await other.delete()
        assert tuple(happened(1)) == (await batch(queues)).events
    assert link.publishing is channel


class Told:
    """Keeps what was emitted."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, events: Sequence[Event]) -> None:
        """Keep them."""
        self.events += events

    def kinds(self) -> list[tuple[str, str]]:
        """Return kinds and recipients in the order they were told."""
        return [(each.kind, each.recipient) for each in self.events]


def actor(publisher: Publisher, pool: Pool, answer: dict[str, Outcome], told: Told, by: Transport = "smtp") -> Actor:
    """Return an actor whose transport answers by recipient."""
    settler = Settler(
        publisher,
        Deferred(pool),
        hostname=HOSTNAME,
        schedule=SCHEDULE,
        clock=lambda: NOON,
        emit=told,
    )
    return Actor(
        by,
        Scripted(lambda recipient: answer[recipient]),
        settler,
        Bodies(pool),
        hostname=HOSTNAME,
        schedule=SCHEDULE,
        clock=lambda: NOON,
        dice=lambda: 0.0,
        emit=told,
    )


async def test_each_recipient_of_an_attempt_has_an_event(publisher: Publisher, pool: Pool, queues: Queues) -> None:
    """What became of it, who said so, and when it is tried next."""
    told = Told()
    busy = Busy(Reply(code=451, enhanced="4.3.2", text="no room"), 5.0)
    answer: dict[str, Outcome] = {
        "ok@a.example": OK,
        "later@a.example": LATER,
        "never@a.example": NEVER,
        "busy@a.example": busy,
    }
    part = delivery(*answer, route=Route(version=3, key="a.example", targets=("b.example",)), attempts=2)
    await actor(publisher, pool, answer, told)(job(part))
    by_recipient = {each.recipient: each for each in told.events if each.kind != "reported"}
    assert {
        "ok@a.example": "delivered",
        "later@a.example": "deferred",
        "never@a.example": "bounced",
        "busy@a.example": "postponed",
    } == {recipient: each.kind for recipient, each in by_recipient.items()}
    later = by_recipient["later@a.example"]
    assert ("m1", "a.example", "smtp", 3, "a.example", 3, "b.example") == (
        later.id, later.domain, later.room, later.attempt, later.rule, later.version, later.target,
    )  # fmt: skip
    assert ("mx.a.example", 451, "4.7.1", "greylisted") == (later.mta, later.code, later.enhanced, later.reply)
    assert NOON + timedelta(minutes=5) == later.until
    assert 0 == by_recipient["busy@a.example"].attempt
    assert len(MESSAGE) == by_recipient["ok@a.example"].size
    (report,) = [each for each in told.events if each.kind == "reported"]
    assert ("never@a.example", "failed") == (report.recipient, report.reply)
    assert (await queues.take(topology.OUTBOUND)).message_id == report.report


async def test_a_fallback_is_told(publisher: Publisher, pool: Pool) -> None:
    """Who follows a message sees why SMTP had its turn."""
    told = Told()
    part = delivery(route=Route(version=1, key="a.example", targets=("b.example",)))
    answer: dict[str, Outcome] = {"b@a.example": Unsuited(Reply(code=404, text="no mxdeliv"), "https://b.example/")}
    await actor(publisher, pool, answer, told, by="https")(job(part))
    assert [("fallback", "b@a.example")] == told.kinds()


async def test_what_cannot_be_settled_is_told_as_failed(
    publisher: Publisher, pool: Pool, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in mail.undecodable, and its trace says so."""
    told = Told()
    work = actor(publisher, pool, {"b@a.example": LATER}, told)

    async def broken(*_: object) -> None:
        raise ValueError("a fault of our own")

    monkeypatch.setattr(Deferred, "defer", broken)
    await work(job(delivery()))
    assert [("failed", "b@a.example")] == told.kinds()
    assert "a fault of our own" in told.events[0].reply
    assert 1 == await queues.depth(topology.UNDECODABLE)


async def test_nothing_is_told_before_it_is_true(pool: Pool, queues: Queues) -> None:
    """A job that could not be settled and is no longer ours has told nothing: another worker tells of it."""
    del queues
    told = Told()
    gone = Publisher(Link("amqp://unused", name="never connected"))
    work = actor(gone, pool, {"b@a.example": NEVER}, told)
    with pytest.raises(Exception, match="RabbitMQ is away"):
        await work(job(delivery(), stale=lambda: True))
    assert [] == told.events


async def test_the_router_tells_of_each_route(settings: Settings, pool: Pool, queues: Queues) -> None:
    """With what makes a message findable: its sender and its Message-ID, and the version of the rules."""
    saved = await Overrides(pool).set(make_rule("a.example", "b.example"), actor="test", release=True)
    async with running(settings):
        body = b"Message-ID:\r\n <x1@from.example>\r\nSubject: hello\r\n\r\nHello.\r\n"
        await queues.send("b@a.example", "d@c.example", body=body)
        found = {each.recipient: each for each in (await batch(queues)).events}
    ruled, free = found["b@a.example"], found["d@c.example"]
    assert ("routed", "router", "a.example", saved.version, "b.example") == (
        ruled.kind, ruled.room, ruled.rule, ruled.version, ruled.target,
    )  # fmt: skip
    assert ("a@from.example", "x1@from.example", len(body)) == (ruled.sender, ruled.header_id, ruled.size)
    assert ruled.id == free.id
    assert ("", "") == (free.rule, free.target)


async def test_a_message_that_comes_again_is_rerouted(settings: Settings, queues: Queues) -> None:
    """A trace shows which rules had which attempt."""
    async with running(settings):
        await queues.put(topology.REROUTE, codec.encode(delivery(attempts=1), MESSAGE))
        (again,) = (await batch(queues)).events
    assert ("rerouted", "m1", None) == (again.kind, again.id, again.sender)


async def test_a_message_without_its_body_is_told_as_failed(settings: Settings, queues: Queues) -> None:
    """It is set aside before it has a route, and its trace begins and ends there."""
    async with running(settings):
        headers = {"mail_from": "a@from.example", "rcpt_to": ["b@a.example"], "body_ref": "nowhere"}
        await queues.put(topology.OUTBOUND, b"", headers=headers, content_type="message/rfc822", message_id="q1")
        (failed,) = (await batch(queues)).events
    assert ("failed", "q1", "b@a.example", "a@from.example") == (
        failed.kind, failed.id, failed.recipient, failed.sender,
    )  # fmt: skip
    assert "not in the store" in failed.reply


async def test_a_message_that_is_refused_at_once_is_told_whole(settings: Settings, queues: Queues) -> None:
    """It came in, it was given up, and the sender was told why."""
    async with running(settings):
        hops = b"".join(b"Received: by hop%d.example\r\n" % number for number in range(60))
        await queues.send("b@a.example", body=hops + MESSAGE)
        told: list[Event] = []
        while {"routed", "bounced", "reported"} - {each.kind for each in told}:
            told += (await batch(queues)).events
    (bounced,) = [each for each in told if each.kind == "bounced"]
    assert ("router", 554, "5.4.6") == (bounced.room, bounced.code, bounced.enhanced)


def test_a_batch_keeps_its_form_on_the_wire() -> None:
    """Events of a release before are read by the journal of the next."""
    given = Batch(source="smtp-1", number=1, emitted=1, events=tuple(happened(1)))
    assert given == event.decode(event.encode(given))
