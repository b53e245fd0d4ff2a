"""One delivery through a delivery room: decode, deliver, decide, settle; with a real broker and store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timedelta

import msgspec
import pytest

from shared.broker import topology
from shared.broker.dramatiq_broker import Job
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.delivery.actor import Actor, Transport
from shared.delivery.large import COPIES, Large, NoRoomError
from shared.mail import codec
from shared.mail.envelope import Delivery
from shared.mail.outcome import Deferred as NotNow
from shared.mail.outcome import Delivered, Failed, Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.retry import Schedule, parse_waits
from shared.mail.route import Route
from shared.runtime.chance import new_id
from shared.runtime.clock import Clock, now
from shared.runtime.errors import BrokerUnavailable, StoreUnavailable
from shared.store.bodies import FREED, Bodies, Freed
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

    def actor(
        self,
        transport: Scripted,
        by: Transport = "smtp",
        *,
        bodies: Bodies | None = None,
        large: Large | None = None,
        clock: Clock = lambda: NOON,
    ) -> Actor:
        """Return an actor whose clock stands at noon, and whose dice differ with each throw."""
        settler = Settler(self.publisher, Deferred(self.pool), hostname=HOSTNAME, schedule=SCHEDULE, clock=lambda: NOON)
        throws = iter([0.0, 0.5, 1.0, -1.0, -0.5] * 20)
        return Actor(
            by,
            transport,
            settler,
            bodies or Bodies(self.pool),
            hostname=HOSTNAME,
            schedule=SCHEDULE,
            clock=clock,
            dice=lambda: next(throws),
            large=large,
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


async def test_hosts_that_name_the_recipient_do_not_split_a_delivery(room: Room, pool: Pool, queues: Queues) -> None:
    """A hundred greylisted recipients are one delivery that waits, and a hundred refused ones one report."""
    names = [f"r{number}@a.example" for number in range(100)]

    def answer(recipient: str) -> Outcome:
        kind, reply = (NotNow, LATER.reply) if recipient < "r5" else (Failed, NEVER.reply)
        return kind(msgspec.structs.replace(reply, text=f"<{recipient}> {reply.text}"))

    await room.actor(Scripted(answer))(job(delivery(*names)))
    (waiting,) = await Deferred(pool).matching()
    report = (await queues.take(topology.OUTBOUND)).body.decode()
    late = [each for each in names if each < "r5"]
    assert (late, 0) == (waiting.rcpt_to, await queues.depth(topology.OUTBOUND))
    assert [f"smtp; 550 5.1.1 <{each}> no such user" in report for each in names] == [
        each not in late for each in names
    ]


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
    part, body = await queues.delivery(topology.LIMBO)
    assert ("the store of large messages is away", b"") == (part.reply.text if part.reply else "", body)
    expected = delivery(body_ref="one", attempts=2, retry_at=at, put_off="smtp", reply=part.reply)
    assert expected == part
    assert [] == transport.messages


async def test_nothing_is_given_up_while_the_store_is_away(storeless: Room, queues: Queues) -> None:
    """However old: nobody can say who has it already."""
    await storeless.actor(always(OK), clock=lambda: NOON + 3 * SCHEDULE.max_age)(job(delivery(body_ref="one")))
    assert "one" == (await queues.delivery(topology.LIMBO))[0].envelope.body_ref
    assert 0 == await queues.depth(topology.OUTBOUND)


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


class TestStored:
    """Deliveries whose body is stored: freed when the last one has ended, never before."""

    async def stored(self, pool: Pool, *recipients: str, body: bytes = MESSAGE) -> Delivery:
        """Store a body, and return the delivery that refers to it."""
        part = delivery(*recipients, body_ref=new_id())
        assert part.envelope.body_ref is not None
        await Bodies(pool).put(part.envelope.body_ref, body, message_id=part.id, recipients=part.envelope.rcpt_to)
        return part

    async def body(self, pool: Pool, part: Delivery) -> bytes | Freed | None:
        """Return what there is of its body."""
        assert part.envelope.body_ref is not None
        return await Bodies(pool).get(part.envelope.body_ref)

    async def idle(self, queues: Queues, pool: Pool) -> bool:
        """Say whether no queue has a message, and nothing waits."""
        depths = [await queues.depth(name) for name in topology.QUEUES]
        return not any(depths) and not await Deferred(pool).matching()

    async def test_delivered(self, room: Room, pool: Pool, queues: Queues) -> None:
        """With two deliveries the second one frees the body."""
        part = await self.stored(pool, "b@a.example", "c@a.example")
        transport = always(OK)
        await room.actor(transport)(job(part.only(("b@a.example",))))
        assert MESSAGE == await self.body(pool, part)
        await room.actor(transport)(job(part.only(("c@a.example",))))
        assert FREED is await self.body(pool, part)
        assert [MESSAGE, MESSAGE] == [each.partition(b"2026 12:00:00 +0000\r\n")[2] for each in transport.messages]
        assert await self.idle(queues, pool)

    async def test_refused_and_reported(self, room: Room, pool: Pool, queues: Queues) -> None:
        """The report gives back the stored header; only when it is confirmed the body is freed."""
        part = await self.stored(pool)
        await queues.channel.queue_delete(topology.OUTBOUND)
        settling = asyncio.create_task(room.actor(always(NEVER))(job(part)))
        await asyncio.sleep(0.5)  # it has been tried by now; nothing tells of it
        assert MESSAGE == await self.body(pool, part)
        await topology.declare(queues.channel)
        await asyncio.wait_for(settling, 5)
        assert b"\r\nSubject: hello\r\n" in (await queues.take(topology.OUTBOUND)).body
        assert FREED is await self.body(pool, part)

    async def test_refused_and_dropped(self, room: Room, pool: Pool, queues: Queues) -> None:
        """A report that cannot be delivered ends in silence, and frees its body too."""
        part = await self.stored(pool)
        report = part.but(envelope=msgspec.structs.replace(part.envelope, mail_from=""))
        await room.actor(always(NEVER))(job(report))
        assert FREED is await self.body(pool, part)
        assert await self.idle(queues, pool)

    async def test_deferred_and_handed_on(self, room: Room, pool: Pool, queues: Queues) -> None:
        """Who waits, or is handed to SMTP, or to the next target, needs the body still."""
        part = await self.stored(pool)
        await room.actor(always(LATER))(job(part))
        assert MESSAGE == await self.body(pool, part)
        unsuited = always(Unsuited(Reply(code=450, text="nobody there")))
        ruled = part.but(route=Route(version=1, key="a.example", targets=("b.example", "c.example")))
        await room.actor(unsuited, "https")(job(ruled))
        await room.actor(unsuited, "smtp")(job(ruled))
        assert (b"", b"") == (
            (await queues.delivery(topology.SMTP))[1],
            (await queues.delivery(topology.HTTPS))[1],
        )
        assert MESSAGE == await self.body(pool, part)
        await room.actor(always(OK))(job(part.but(attempts=1)))
        assert FREED is await self.body(pool, part)

    async def test_some_end_and_some_do_not(self, room: Room, pool: Pool, queues: Queues) -> None:
        """Delivered, refused and deferred at once: the deferred one keeps the body until it ends."""
        part = await self.stored(pool, "o@a.example", "n@a.example", "l@a.example")
        answers: dict[str, Outcome] = {"o@a.example": OK, "n@a.example": NEVER, "l@a.example": LATER}
        await room.actor(Scripted(answers.__getitem__))(job(part))
        assert MESSAGE == await self.body(pool, part)
        [waiting] = await Deferred(pool).matching()
        whole = await Deferred(pool).message(waiting.id)
        assert whole is not None
        await room.actor(always(OK))(job(whole[0]))
        assert FREED is await self.body(pool, part)
        assert 1 == await queues.depth(topology.OUTBOUND)

    async def test_a_double_after_the_end_is_done(self, room: Room, pool: Pool, queues: Queues) -> None:
        """A worker died between settling and its ack, the job is handed out again: nothing is sent or set aside."""
        part = await self.stored(pool)
        transport = always(OK)
        for _ in range(3):
            await room.actor(transport)(job(part))
        assert 1 == len(transport.messages)
        assert await self.idle(queues, pool)

    async def test_a_double_of_a_part_is_sent_to_the_rest(self, room: Room, pool: Pool) -> None:
        """Who has it does not get it again, though the body is there for the others."""
        part = await self.stored(pool, "b@a.example", "c@a.example", "d@a.example")
        await room.actor(always(OK))(job(part.only(("c@a.example",))))
        seen: list[str] = []

        def answer(recipient: str) -> Outcome:
            seen.append(recipient)
            return OK

        await room.actor(Scripted(answer))(job(part))
        assert ["b@a.example", "d@a.example"] == seen
        assert FREED is await self.body(pool, part)

    async def test_a_freed_body_that_is_still_needed_is_told_loudly(
        self, room: Room, pool: Pool, queues: Queues
    ) -> None:
        """Recipients that have not ended, named or not, are set aside: it must not be taken for a double."""
        part = await self.stored(pool, "b@a.example", "c@a.example")
        reference = str(part.envelope.body_ref)
        await Bodies(pool).end(reference, part.id, ["b@a.example"])
        async with pool.transaction() as connection:
            await connection.execute("UPDATE bodies SET body = NULL, freed_at = now() WHERE id = %s", (reference,))
        transport = always(OK)
        both = delivery("b@a.example", "c@a.example", "stranger@a.example", body_ref=reference)
        await room.actor(transport)(job(both))
        kept = await queues.take(topology.UNDECODABLE)
        assert ("c@a.example", "stranger@a.example") == codec.decode(kept.body)[0].envelope.rcpt_to
        assert "was freed before these had ended" in str(kept.headers["reason"])
        assert [] == transport.messages

    async def test_the_store_goes_away_before_the_end(
        self, publisher: Publisher, store_wire: Wire, database: str, pool: Pool, queues: Queues
    ) -> None:
        """The mail is delivered: it is not held, nor delivered again, for the sake of its body."""
        part = await self.stored(pool)
        own = Pool(through(database, store_wire), name="test", timeout=0.2)
        await own.open()

        class Cutting(Scripted):
            async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
                await store_wire.cut()
                return await super().deliver(delivery, message)

        await asyncio.wait_for(Room(publisher, own).actor(Cutting(lambda _: OK))(job(part)), 5)
        assert await self.idle(queues, pool)
        assert MESSAGE == await self.body(pool, part)
        await own.close()

    async def test_a_message_that_travels_along_never_asks_the_store(self, room: Room) -> None:
        """Most mail is small, and must not pay for what is not."""

        class Untouched(Bodies):
            def __getattribute__(self, name: str) -> object:
                raise AssertionError(name)

        untouched = Untouched(room.pool)
        transport = always(OK)
        await room.actor(transport, bodies=untouched, large=Large(Bodies(room.pool)))(job(delivery()))
        assert 1 == len(transport.messages)


class Damaged(Bodies):
    """Says everything of bodies, but cannot read them."""

    def __init__(self, pool: Pool, *, reported: bool = False) -> None:
        super().__init__(pool)
        self._reported = reported

    async def get(self, id: str) -> bytes | Freed | None:  # noqa: A002
        """Fail as PostgreSQL does."""
        raise StoreUnavailable(f"PostgreSQL is away, or refuses: missing chunk number 0 for toast value {id}")

    async def reported(self, id: str) -> bytes:  # noqa: A002
        """Read the beginning, or fail."""
        if not self._reported:
            await self.get(id)
        return await super().reported(id)


class TestUnread:
    """Bodies that are there and cannot be read."""

    async def test_it_waits_and_the_reason_is_shown(self, room: Room, pool: Pool) -> None:
        """No attempt is counted."""
        part = await TestStored().stored(pool)
        await room.actor(always(OK), bodies=Damaged(pool))(job(part))
        [waiting] = await Deferred(pool).matching()
        assert (0, "could not be read" in waiting.reply) == (waiting.attempts, True)
        assert 60 == (waiting.next_attempt_at - NOON).total_seconds()

    @pytest.mark.parametrize("readable", [False, True])
    async def test_in_the_end_the_sender_is_told(self, room: Room, pool: Pool, queues: Queues, readable: bool) -> None:
        """Not for one fault, which may be the store's: for the second in a row; with the header, if there is one."""
        part = await TestStored().stored(pool)
        bodies = Damaged(pool, reported=readable)
        actor = room.actor(always(OK), bodies=bodies, clock=lambda: NOON + SCHEDULE.max_age)
        await actor(job(part))
        assert 0 == await queues.depth(topology.OUTBOUND)
        [waiting] = await Deferred(pool).matching()
        whole = await Deferred(pool).message(waiting.id)
        assert whole is not None
        await actor(job(whole[0]))
        report = (await queues.take(topology.OUTBOUND)).body
        assert (True, readable) == (b"4.4.7" in report, b"\r\nSubject: hello\r\n" in report)
        assert FREED is await TestStored().body(pool, part)


class Slow(Scripted):
    """Takes its time, and counts how many it has at once."""

    def __init__(self) -> None:
        super().__init__(lambda _: OK)
        self.go = asyncio.Event()
        self.now = self.most = 0

    async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """Answer when told."""
        self.now += 1
        self.most = max(self.most, self.now)
        await self.go.wait()
        self.now -= 1
        return await super().deliver(delivery, message)


class Counting(Bodies):
    """Counts the whole bodies that are read."""

    reads = 0

    async def get(self, id: str) -> bytes | Freed | None:  # noqa: A002
        """Read one."""
        self.reads += 1
        return await super().get(id)


class TestMemory:
    """How much of stored bodies a worker has in hand."""

    async def test_many_deliveries_of_one_body_share_it(self, room: Room, pool: Pool) -> None:
        """Fifty at once read it once; when all are through it is dropped, and freed."""
        recipients = [f"r{number}@a.example" for number in range(50)]
        part = await TestStored().stored(pool, *recipients)
        bodies, slow = Counting(pool), Slow()
        actor = room.actor(slow, bodies=bodies)
        running = [asyncio.create_task(actor(job(part.only((each,))))) for each in recipients]
        await until(lambda: slow.now == 50)
        slow.go.set()
        await asyncio.gather(*running)
        assert 1 == bodies.reads
        assert FREED is await TestStored().body(pool, part)
        other = await TestStored().stored(pool)
        await actor(job(other))
        assert 2 == bodies.reads

    async def test_those_without_room_are_put_back_untried(self, room: Room, pool: Pool, queues: Queues) -> None:
        """Room for two of four: two are sent, two wait a moment in the store, and no attempt is counted."""
        recipients = [f"r{number}@a.example" for number in range(4)]
        part = await TestStored().stored(pool, *recipients)
        slow = Slow()
        large = Large(Bodies(pool), room=len(MESSAGE) * (1 + 2 * COPIES), patience=0.1)
        actor = room.actor(slow, large=large)
        running = [asyncio.create_task(actor(job(part.only((each,)).but(attempts=1)))) for each in recipients]
        await until(lambda: sum(each.done() for each in running) == 2)
        slow.go.set()
        await asyncio.gather(*running)
        waiting = await Deferred(pool).matching()
        assert (2, 2, [1, 1]) == (slow.most, len(slow.messages), [each.attempts for each in waiting])
        assert all(0.9 <= (each.next_attempt_at - NOON).total_seconds() <= 2 for each in waiting)
        assert MESSAGE == await TestStored().body(pool, part)
        for each in waiting:
            whole = await Deferred(pool).message(each.id)
            assert whole is not None
            await actor(job(whole[0]))
        assert FREED is await TestStored().body(pool, part)
        assert 0 == await queues.depth(topology.UNDECODABLE)

    async def test_what_fits_does_not_wait_behind_a_larger_one(self, pool: Pool) -> None:
        """A small body is let in while a large one waits for room."""
        small, large = [(await TestStored().stored(pool)).envelope.body_ref or "" for _ in range(2)]
        bodies = Large(Bodies(pool), room=100 * len(MESSAGE), patience=5)
        async with contextlib.AsyncExitStack() as first:
            await first.enter_async_context(bodies.hold(small, len(MESSAGE)))
            waiting = asyncio.create_task(_held(bodies, large, 25 * len(MESSAGE)))
            await asyncio.sleep(0.05)
            assert MESSAGE == await asyncio.wait_for(_held(bodies, small, len(MESSAGE)), 1)
            assert not waiting.done()
        assert MESSAGE == await asyncio.wait_for(waiting, 1)

    async def test_those_without_room_take_places_in_a_row(self, pool: Pool) -> None:
        """Each comes back later than the one before, as deliveries take; none later than in five minutes."""
        one, other = [(await TestStored().stored(pool)).envelope.body_ref or "" for _ in range(2)]
        time = 0.0
        bodies = Large(Bodies(pool), room=10 * len(MESSAGE), patience=0.001, clock=lambda: time)
        seconds = []
        async with bodies.hold(one, 2 * len(MESSAGE)):
            time = 10.0
            for _ in range(60):
                with pytest.raises(NoRoomError) as caught:
                    await _held(bodies, other, len(MESSAGE))
                seconds.append(caught.value.seconds)
        # It is taken to last twice as long as it has, and each needs four tenths of the room.
        assert pytest.approx([8.0, 16.0, 24.0]) == seconds[:3]
        assert [300.0] == sorted(set(seconds[38:]))

    async def test_room_comes_back(self, room: Room, pool: Pool) -> None:
        """Different bodies, room for one: they go one after the other, the largest of them too."""
        bodies = [MESSAGE, MESSAGE * 50, MESSAGE * 2, MESSAGE]
        parts = [await TestStored().stored(pool, body=body) for body in bodies]
        slow = Slow()
        slow.go.set()
        actor = room.actor(slow, large=Large(Bodies(pool), room=1))
        await asyncio.gather(*(actor(job(each)) for each in parts))
        assert (1, 4) == (slow.most, len(slow.messages))

    async def test_who_never_found_room_is_reported_in_the_end(self, room: Room, pool: Pool, queues: Queues) -> None:
        """Its time is over: the sender gets the stored header back, and the body is freed."""
        first, second = [await TestStored().stored(pool) for _ in range(2)]
        slow = Slow()
        large = Large(Bodies(pool), room=1, patience=0.1)
        running = asyncio.create_task(room.actor(slow, large=large)(job(first)))
        await until(lambda: slow.now == 1)
        await room.actor(slow, large=large, clock=lambda: NOON + SCHEDULE.max_age)(job(second))
        assert b"\r\nSubject: hello\r\n" in (await queues.take(topology.OUTBOUND)).body
        assert FREED is await TestStored().body(pool, second)
        slow.go.set()
        await running

    async def test_a_cancelled_delivery_leaves_the_body_to_the_others(self, room: Room, pool: Pool) -> None:
        """A room that stops cancels what still runs; what was read is kept for who still wants it, and then dropped."""
        part = await TestStored().stored(pool, "b@a.example", "c@a.example")
        bodies, slow = Counting(pool), Slow()
        actor = room.actor(slow, bodies=bodies, large=Large(bodies, room=len(MESSAGE) * (1 + 2 * COPIES)))
        one, other = [asyncio.create_task(actor(job(part.only((each,))))) for each in part.envelope.rcpt_to]
        await until(lambda: slow.now == 2)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        third = asyncio.create_task(actor(job(part.only(("b@a.example",)))))
        await until(lambda: slow.now == 3)  # the cancelled one did not count down
        slow.go.set()
        await asyncio.gather(other, third)
        assert 1 == bodies.reads
        assert FREED is await TestStored().body(pool, part)


async def _held(bodies: Large, reference: str, size: int) -> bytes | Freed | None:
    async with bodies.hold(reference, size) as body:
        return body
