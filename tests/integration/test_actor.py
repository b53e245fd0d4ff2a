"""One delivery through a delivery room: decode, deliver, decide, settle; with a real broker and store."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timedelta

import pytest

from shared.broker import topology
from shared.broker.dramatiq_broker import Job
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.delivery.actor import Actor, Transport
from shared.mail import codec
from shared.mail.envelope import Delivery
from shared.mail.outcome import Deferred as NotNow
from shared.mail.outcome import Delivered, Failed, Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.retry import Schedule, parse_waits
from shared.mail.route import Route
from shared.runtime.clock import now
from shared.runtime.errors import BrokerUnavailable
from shared.store.bodies import Bodies
from shared.store.deferred import Deferred
from shared.store.pool import Pool
from tests.integration.conftest import MESSAGE, NOON, Queues, Wire, delivery, through, until

pytestmark = [pytest.mark.anyio, pytest.mark.services]

HOSTNAME = "mail.pushpush.example"
SCHEDULE = Schedule(waits=parse_waits("1m,5m"))
OK = Delivered(Reply(code=250, text="queued", mta="mx.a.example"))
LATER = NotNow(Reply(code=451, enhanced="4.7.1", text="greylisted", mta="mx.a.example"))
NEVER = Failed(Reply(code=550, enhanced="5.1.1", text="no such user", mta="mx.a.example"))


class Scripted:
    """A transport that answers as a test says."""

    def __init__(self, answer: Callable[[str], Outcome]) -> None:
        self.answer = answer
        self.messages: list[bytes] = []

    async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """Answer for each recipient."""
        await asyncio.sleep(0)
        self.messages.append(message)
        return {each: self.answer(each) for each in delivery.envelope.rcpt_to}


class Room:
    """Makes actors for a transport."""

    def __init__(self, publisher: Publisher, pool: Pool) -> None:
        self.publisher = publisher
        self.pool = pool

    def actor(self, transport: Scripted, by: Transport = "smtp") -> Actor:
        """Return an actor whose clock stands at noon, and whose dice differ with each throw."""
        settler = Settler(self.publisher, Deferred(self.pool), hostname=HOSTNAME, schedule=SCHEDULE, clock=lambda: NOON)
        throws = iter([0.0, 0.5, 1.0, -1.0, -0.5] * 20)
        return Actor(
            by,
            transport,
            settler,
            Bodies(self.pool),
            hostname=HOSTNAME,
            schedule=SCHEDULE,
            clock=lambda: NOON,
            dice=lambda: next(throws),
        )


@pytest.fixture
def room(publisher: Publisher, pool: Pool) -> Room:
    """A room with broker and store."""
    return Room(publisher, pool)


@pytest.fixture
async def storeless(publisher: Publisher, store_wire: Wire, database: str) -> AsyncIterator[Room]:
    """A room whose store is away."""
    await store_wire.cut()
    pool = Pool(through(database, store_wire), name="test", timeout=0.2)
    await pool.open()
    yield Room(publisher, pool)
    await pool.close()


def job(part: Delivery, body: bytes = MESSAGE, *, stale: Callable[[], bool] = lambda: False) -> Job:
    """Return the job that a delivery comes as."""
    return Job(body=codec.encode(part, body), message_id="", stale=stale)


def always(outcome: Outcome) -> Scripted:
    """Return a transport with one answer."""
    return Scripted(lambda _: outcome)


async def test_delivered_leaves_nothing_and_signs_on_top(room: Room, queues: Queues, pool: Pool) -> None:
    """Our Received field stands above the message, whose bytes are untouched."""
    transport = always(OK)
    await room.actor(transport)(job(delivery()))
    [sent] = transport.messages
    assert sent.startswith(b"Received: by mail.pushpush.example (pushpush)\r\n\tid m1")
    assert sent.endswith(b"\r\n" + MESSAGE)
    assert 0 == sum([await queues.depth(name) for name in topology.QUEUES])
    assert [] == await Deferred(pool).matching()


async def test_recipients_with_the_same_outcome_stay_together(room: Room, pool: Pool, queues: Queues) -> None:
    """Two of three are deferred by one answer: they wait as one delivery, not as one each with a body each."""
    transport = Scripted(lambda each: NEVER if each.startswith("n") else LATER)
    await room.actor(transport)(job(delivery("b@a.example", "n@a.example", "c@a.example")))
    assert [["b@a.example", "c@a.example"]] == [each.rcpt_to for each in await Deferred(pool).matching()]
    assert 1 == await queues.depth(topology.OUTBOUND)


async def test_what_cannot_be_read_is_set_aside(room: Room, queues: Queues) -> None:
    """Bytes that are no delivery are kept with the reason; the job is done."""
    transport = always(OK)
    await room.actor(transport)(Job(body=b"\x63nothing"))
    message = await queues.take(topology.UNDECODABLE)
    assert (b"\x63nothing", "wire version 99 is not known, 1 is") == (message.body, message.headers["reason"])
    assert [] == transport.messages


async def test_a_stored_body_is_sent(room: Room, pool: Pool) -> None:
    """A delivery with a reference is sent with the body from the store."""
    await Bodies(pool).put("one", MESSAGE)
    transport = always(OK)
    await room.actor(transport)(job(delivery(body_ref="one")))
    assert transport.messages[0].endswith(MESSAGE)


async def test_a_missing_body_is_set_aside(room: Room, queues: Queues) -> None:
    """A reference to nothing cannot be delivered: kept for people to see, and nothing is sent."""
    transport = always(OK)
    await room.actor(transport)(job(delivery(body_ref="one")))
    message = await queues.take(topology.UNDECODABLE)
    assert (codec.encode(delivery(body_ref="one"), b""), "body one is not in the store") == (
        message.body,
        message.headers["reason"],
    )
    assert [] == transport.messages


async def test_a_stored_body_waits_in_limbo_while_the_store_is_away(storeless: Room, queues: Queues) -> None:
    """It is no attempt: nothing counts, and it comes back in a minute."""
    transport = always(OK)
    await storeless.actor(transport)(job(delivery(body_ref="one", attempts=2)))
    at = NOON + timedelta(minutes=1)
    assert (delivery(body_ref="one", attempts=2, retry_at=at), b"") == await queues.delivery(topology.LIMBO)
    assert [] == transport.messages


async def test_a_fault_of_our_own_is_temporary(room: Room, pool: Pool, queues: Queues) -> None:
    """A transport that breaks defers all its recipients; it bounces nobody's mail."""

    def broken(_: str) -> Outcome:
        raise ZeroDivisionError

    await room.actor(Scripted(broken))(job(delivery("b@a.example", "c@a.example")))
    [waiting] = await Deferred(pool).matching()
    assert (["b@a.example", "c@a.example"], 1) == (waiting.rcpt_to, waiting.attempts)
    assert 0 == await queues.depth(topology.OUTBOUND)


async def test_https_tries_quickly_and_then_falls_back(room: Room, pool: Pool, queues: Queues) -> None:
    """A peer that says "later" is asked again in seconds, twice; then SMTP has its turn, in the same attempt."""
    ruled = delivery(route=Route(version=1, key="a.example", targets=("b.example",)))
    actor = room.actor(always(LATER), "https")
    await actor(job(ruled))
    await actor(job(ruled.but(quick=1)))
    await actor(job(ruled.but(quick=2)))
    assert [2, 10] == [(each.next_attempt_at - NOON).total_seconds() for each in await Deferred(pool).matching()]
    assert (ruled.but(reply=LATER.reply), MESSAGE) == await queues.delivery(topology.SMTP)


async def test_where_no_mxdeliv_is_smtp_follows_at_once(room: Room, queues: Queues) -> None:
    """No quick tries at a host that does not speak mxdeliv; a rule for HTTPS alone waits instead."""
    unsuited = Unsuited(Reply(code=450, text="no mxdeliv"))
    ruled = delivery(route=Route(version=1, key="a.example", targets=("b.example",)))
    await room.actor(always(unsuited), "https")(job(ruled))
    assert (ruled.but(reply=unsuited.reply), MESSAGE) == await queues.delivery(topology.SMTP)
    only = delivery(route=Route(version=1, key="a.example", targets=("b.example",), transport="https"))
    await room.actor(always(unsuited), "https")(job(only))
    assert 0 == await queues.depth(topology.SMTP)
    assert 1 == len(await Deferred(room.pool).matching())


async def test_settling_is_tried_until_the_broker_takes_it(room: Room, queues: Queues, pool: Pool) -> None:
    """A broker that refuses does not cause a second delivery; and what was settled already is not done again."""
    await queues.channel.queue_delete(topology.OUTBOUND)
    answers: dict[str, Outcome] = {"b@a.example": LATER, "n@a.example": NEVER, "o@a.example": OK}
    transport = Scripted(answers.__getitem__)
    settling = asyncio.create_task(room.actor(transport)(job(delivery("b@a.example", "n@a.example", "o@a.example"))))
    await until(lambda: _waits(pool))
    await asyncio.sleep(1.2)  # longer than the pause between two tries
    assert not settling.done()
    await topology.declare(queues.channel)
    await asyncio.wait_for(settling, 5)
    assert 1 == await queues.depth(topology.OUTBOUND)
    assert [["b@a.example"]] == [each.rcpt_to for each in await Deferred(pool).matching()]
    assert 1 == len(transport.messages)


async def test_a_job_that_is_no_longer_ours_is_given_up(pool: Pool, queues: Queues) -> None:
    """When its connection is gone the broker hands the job out again: settling here as well would only double it."""
    del queues
    async with Link("amqp://guest:guest@127.0.0.1:1/", name="test") as link:
        actor = Room(Publisher(link), pool).actor(always(NEVER))
        with pytest.raises(BrokerUnavailable):
            await actor(job(delivery(), stale=lambda: True))


async def test_a_delivered_job_needs_no_broker(pool: Pool) -> None:
    """Nothing is to be published for mail that arrived, so it is settled while the broker is away."""
    async with Link("amqp://guest:guest@127.0.0.1:1/", name="test") as link:
        await Room(Publisher(link), pool).actor(always(OK))(job(delivery()))


async def _waits(pool: Pool) -> bool:
    return bool(await Deferred(pool).matching())


async def test_a_fault_while_settling_sets_aside_only_whom_it_concerns(
    publisher: Publisher, queues: Queues, pool: Pool
) -> None:
    """To put the delivery back would send the message again to those who have it, fifty times over."""

    class Broken(Deferred):
        async def defer(self, delivery: Delivery, body: bytes, at: datetime) -> None:
            del delivery, body, at
            raise ValueError("a fault of our own")

    settler = Settler(publisher, Broken(pool), hostname=HOSTNAME, schedule=SCHEDULE)
    transport = Scripted(lambda each: LATER if each == "later@a.example" else OK)
    actor = Actor("smtp", transport, settler, Bodies(pool), hostname=HOSTNAME, schedule=SCHEDULE)
    fresh = delivery("ok@a.example", "later@a.example", accepted_at=now())
    await actor(job(fresh))
    kept = await queues.take(topology.UNDECODABLE)
    assert ("later@a.example",) == codec.decode(kept.body)[0].envelope.rcpt_to
    assert MESSAGE == codec.decode(kept.body)[1]
    assert "a fault of our own" in str(kept.headers["reason"])
