"""Dead letters: taken out of the queue without loss, kept exactly, and sent again or refused with a reason."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import psycopg
import pytest
from aio_pika.abc import AbstractIncomingMessage
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from psycopg import sql

from deploy.local.services import RabbitMQ
from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import Publisher, writable
from shared.broker.settle import Settler
from shared.fleet import dead as dead_module
from shared.fleet.dead import Collected, NoLetterError, Requeued, collect, discard, requeue
from shared.fleet.letter import Opened, opened, plain
from shared.fleet.resend import StaysDeadError
from shared.fleet.waiting import Who
from shared.mail import codec
from shared.mail.event import Event
from shared.mail.reply import Reply
from shared.mail.retry import Schedule, parse_waits
from shared.runtime.errors import BrokerUnavailable, StoreUnavailable
from shared.store.bodies import Bodies
from shared.store.dead import DeadLetters, Letter, Look, Stored
from shared.store.deferred import Deferred
from shared.store.pool import Pool
from tests.integration.conftest import MESSAGE, Queues, Wire, delivery, through, until
from tests.unit.strategies import hostile_text

pytestmark = [pytest.mark.anyio, pytest.mark.services]

WHO = Who(actor="ann", via="cli")
GOOD = {"mail_from": "a@from.example", "rcpt_to": ["b@a.example"]}
ALIKE = {"reason": "r"}  # without one, an id that our library makes up would tell them apart
STRANGE = {
    "bytes": b"\x00\xff\xfe",
    "time": datetime(2026, 6, 1, 12, 0, tzinfo=UTC),
    "decimal": Decimal("12.50"),
    "nested": {"list": [1, -1, None, True, b"\xff", {"deep": [Decimal("0.1")]}]},
    "text": "nul \x00, esc \x1b, \U0001f600",
    "big": 2**62,
    "float": 0.5,
    "empty": {},
}


@pytest.fixture
def dead(pool: Pool) -> DeadLetters:
    """The table of dead letters, empty."""
    return DeadLetters(pool)


async def only(dead: DeadLetters) -> Stored:
    """Return the one letter there is, whole."""
    [found] = await dead.page()
    letter = await dead.get(found.id)
    assert letter is not None
    return letter


async def kept(dead: DeadLetters, data: bytes, headers: Mapping[str, object] | None = None, reason: str = "r") -> int:
    """Keep a letter; return its id."""
    headers = headers or {}
    content_type = "message/rfc822"
    assert 1 == await dead.keep([Letter(headers=headers, data=data, reason=reason, content_type=content_type)])
    return (await dead.page(limit=1))[0].id


@contextlib.contextmanager
def reading_only(url: str) -> Iterator[None]:
    """Let the database only be read by those who connect meanwhile."""
    with psycopg.connect(url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        try:
            yield
        finally:
            connection.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))


def sent_headers(message: AbstractIncomingMessage) -> dict[str, object]:
    """Return the headers of a message without the broker's own."""
    return {name: value for name, value in message.headers.items() if name != "x-delivery-count"}


async def audited(pool: Pool) -> list[tuple[str, ...]]:
    """Return what stands in the audit log."""
    async with pool.statement() as connection:
        found = await connection.execute("SELECT actor, via, action, object, detail FROM audit ORDER BY id")
        return await found.fetchall()


class TestCollecting:
    """`collect`."""

    async def test_a_letter_is_kept_as_it_came(self, link: Link, dead: DeadLetters, queues: Queues) -> None:
        """Bytes, headers of every kind, reason, id and type; the queue is empty afterwards."""
        data = bytes(range(256)) * 1000
        headers = {**STRANGE, "reason": "no \x1b sense", "message_id": "m1"}
        await queues.put(topology.UNDECODABLE, data, headers=writable(headers), content_type="text/x")
        assert Collected(kept=1, left=0) == await collect(link, dead)
        letter = await only(dead)
        assert (data, headers) == (letter.data, letter.headers)
        assert ("no \x1b sense", "", "m1", "text/x", len(data)) == (
            letter.reason,
            letter.queue,
            letter.message_id,
            letter.content_type,
            letter.size,
        )
        assert 0 == await queues.depth(topology.UNDECODABLE)

    async def test_what_the_rooms_set_aside(
        self, link: Link, dead: DeadLetters, publisher: Publisher, pool: Pool
    ) -> None:
        """Its reason and its id are those that the room gave."""
        settler = Settler(publisher, Deferred(pool), hostname="x.example", schedule=Schedule(waits=parse_waits("1m")))
        await settler.set_aside(MESSAGE, "rcpt_to is missing", {"mail_from": "a@x.example"}, "m7", "message/rfc822")
        await collect(link, dead)
        letter = await only(dead)
        assert ("rcpt_to is missing", "m7", "message/rfc822") == (letter.reason, letter.message_id, letter.content_type)

    async def test_what_the_broker_gave_up(self, link: Link, dead: DeadLetters, queues: Queues) -> None:
        """A message that was handed out too often says in which queue."""
        await queues.put(topology.REROUTE, codec.encode(delivery(), MESSAGE))
        queue = await queues.channel.get_queue(topology.REROUTE, ensure=False)
        for _ in range(topology.DELIVERY_LIMIT + 2):
            message = await queue.get(fail=False)
            if message is None:
                break
            await message.nack(requeue=True)
        await until(lambda: _one_is_dead(queues))
        await collect(link, dead)
        letter = await only(dead)
        assert topology.REROUTE == letter.queue
        assert "handed out too often in mail.reroute" in letter.reason
        assert Opened(
            kind="delivery",
            mail_from="a@from.example",
            rcpt_to=["b@a.example"],
            fields={"From": "a@from.example", "To": "b@a.example", "Subject": "hello"},
            attempts=0,
        ) == opened(letter)

    async def test_no_more_than_asked_and_the_rest_the_next_time(
        self, link: Link, dead: DeadLetters, queues: Queues
    ) -> None:
        """Each look is bounded; the oldest come first."""
        for number in range(250):
            await queues.put(topology.UNDECODABLE, str(number).encode())
        assert Collected(kept=210, left=40) == await collect(link, dead, limit=210)
        assert Collected(kept=40, left=0) == await collect(link, dead, limit=210)
        assert Collected(kept=0, left=0) == await collect(link, dead)
        assert 250 == await dead.count()
        first, second = (
            await dead.page(limit=200),
            await dead.page(limit=200, after=(await dead.page(limit=200))[-1].id),
        )
        assert 250 == len({each.id for each in first + second})
        oldest, *_ = sorted(each.id for each in second)
        assert b"0" == (await dead.get(oldest) or _none()).data

    async def test_two_at_once_keep_each_letter_once(self, link: Link, dead: DeadLetters, queues: Queues) -> None:
        """Operators look at the same time."""
        for number in range(120):
            await queues.put(topology.UNDECODABLE, str(number).encode())
        both = await asyncio.gather(collect(link, dead), collect(link, dead))
        assert 120 == sum(each.kept for each in both) == await dead.count()

    async def test_an_ack_that_is_lost_doubles_nothing(
        self, rabbitmq: RabbitMQ, broker_wire: Wire, dead: DeadLetters, queues: Queues, link: Link
    ) -> None:
        """The broker goes between commit and ack: it hands the letter out again, and its digest tells."""
        await queues.put(topology.UNDECODABLE, b"x", headers=writable(STRANGE))
        async with Link(through(rabbitmq.url, broker_wire), name="test") as away:
            await away.wait_up()

            with pytest.raises(BrokerUnavailable):
                await collect(away, ThenLetters(dead, broker_wire.cut))
        assert 1 == await dead.count()
        await until(lambda: _one_is_dead(queues))
        assert Collected(kept=0, left=0) == await collect(link, dead)
        assert 1 == await dead.count()

    async def test_the_broker_is_killed_between_commit_and_ack(self, dead: DeadLetters, tmp_path: Path) -> None:
        """After its restart every letter is there, once: some in the store, the others in the queue."""
        with RabbitMQ(tmp_path / "rabbit") as own:
            async with Link(own.url, name="test") as link:
                await link.wait_up()
                await asyncio.sleep(3)  # so long a power cut undoes the declaration of a queue (ra_directory)
                for number in range(130):
                    await Publisher(link).raw(topology.UNDECODABLE, str(number).encode(), headers={"reason": "r"})
                kill = ThenLetters(dead, lambda: asyncio.to_thread(own.kill), after=2)
                with pytest.raises(BrokerUnavailable):
                    await collect(link, kill)
                assert 101 == await dead.count()
                await asyncio.to_thread(own.start)
                await link.wait_up()
                assert link.channel is not None
                queues = Queues(link.channel)
                await until(lambda: _as_deep_as(queues, 129), within=30)  # it takes a while to find what it had
                assert Collected(kept=29, left=0) == await collect(link, dead)
        found = [await dead.get(each.id) or _none() for each in await dead.page(limit=200)]
        assert sorted(str(number).encode() for number in range(130)) == sorted(each.data for each in found)

    async def test_what_was_sent_twice_is_two_letters(self, link: Link, dead: DeadLetters, queues: Queues) -> None:
        """They are alike, and each may be mail that somebody waits for."""
        await queues.put(topology.UNDECODABLE, b"x", headers=ALIKE)
        await queues.put(topology.UNDECODABLE, b"x", headers=ALIKE)
        assert 2 == (await collect(link, dead)).kept

    async def test_two_alike_that_come_again_are_two_letters(
        self, link: Link, dead: DeadLetters, queues: Queues
    ) -> None:
        """A look that broke had them both in hand and kept neither; so had another one, later."""
        for _ in range(2):
            for _ in range(2):
                await queues.put(topology.UNDECODABLE, b"x", headers=ALIKE)
            await _handed_back(queues, 2)
            assert Collected(kept=2, left=0) == await collect(link, dead)
        assert 4 == await dead.count()

    @pytest.mark.parametrize("after", [1, 2])
    async def test_of_alike_letters_each_is_kept_once(  # noqa: PLR0917 - fixtures
        self,
        rabbitmq: RabbitMQ,
        broker_wire: Wire,
        dead: DeadLetters,
        queues: Queues,
        link: Link,
        after: int,
    ) -> None:
        """Of three that are alike the ack of one or of two is lost; the next look keeps the others, and only these."""
        for _ in range(3):
            await queues.put(topology.UNDECODABLE, b"x", headers=ALIKE)
        async with Link(through(rabbitmq.url, broker_wire), name="test") as away:
            await away.wait_up()
            with pytest.raises(BrokerUnavailable):
                await collect(away, ThenLetters(dead, broker_wire.cut, after=after))
        await until(lambda: _as_deep_as(queues, 3 if after == 1 else 2))
        await _handed_back(queues, 3 if after == 1 else 2)
        assert Collected(kept=2 if after == 1 else 0, left=0) == await collect(link, dead)
        assert 3 == await dead.count()

    async def test_a_store_that_only_reads_costs_no_letter_a_delivery(
        self, link: Link, database: str, queues: Queues
    ) -> None:
        """It answers, and keeps nothing."""
        await queues.put(topology.UNDECODABLE, b"x")
        with reading_only(database):
            pool = Pool(database, name="test")
            await pool.open()
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match="read-only"):
                    await collect(link, DeadLetters(pool))
            await pool.close()
        assert not (await queues.take(topology.UNDECODABLE)).redelivered

    async def test_a_letter_that_cannot_be_kept_costs_no_other_one_a_delivery(
        self, link: Link, pool: Pool, dead: DeadLetters, queues: Queues
    ) -> None:
        """It is tried alone, before there is a batch."""
        for number in range(3):
            await queues.put(topology.UNDECODABLE, b"%d" % number)
        async with pool.transaction() as connection:
            await connection.execute("ALTER TABLE dead_letters ADD CONSTRAINT full_disk CHECK (size > 1)")
        try:
            with pytest.raises(StoreUnavailable, match="full_disk"):
                await collect(link, dead)
        finally:
            async with pool.transaction() as connection:
                await connection.execute("ALTER TABLE dead_letters DROP CONSTRAINT full_disk")
        taken = [await queues.take(topology.UNDECODABLE) for _ in range(3)]
        assert {b"0": True, b"1": False, b"2": False} == {each.body: bool(each.redelivered) for each in taken}

    async def test_to_make_sure_leaves_nothing_behind(self, link: Link, dead: DeadLetters, queues: Queues) -> None:
        """Neither a letter nor a number that is missing; several may do it at once."""
        await asyncio.gather(*(dead.ready() for _ in range(6)))
        await queues.put(topology.UNDECODABLE, b"1")
        await collect(link, dead)
        first = (await only(dead)).id
        await dead.ready()
        assert first + 1 == await kept(dead, b"2")

    async def test_while_the_store_is_away_no_letter_is_touched(
        self, link: Link, database: str, store_wire: Wire, queues: Queues
    ) -> None:
        """RabbitMQ 4 would drop a letter that was looked at and given back too often."""
        await queues.put(topology.UNDECODABLE, b"x")
        await store_wire.cut()
        pool = Pool(through(database, store_wire), name="test", timeout=0.2)
        await pool.open()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await collect(link, DeadLetters(pool))
        await pool.close()
        assert not (await queues.take(topology.UNDECODABLE)).redelivered

    async def test_the_broker_is_away(self, dead: DeadLetters) -> None:
        """It is said; nothing is raised that a command does not know."""
        async with Link("amqp://guest:guest@127.0.0.1:1/", name="test") as link:
            with pytest.raises(BrokerUnavailable):
                await collect(link, dead)

    @pytest.mark.parametrize("after", [0, 1])
    async def test_a_broker_that_does_not_answer(  # noqa: PLR0917 - fixtures and parameters
        self,
        rabbitmq: RabbitMQ,
        broker_wire: Wire,
        dead: DeadLetters,
        queues: Queues,
        monkeypatch: pytest.MonkeyPatch,
        after: int,
    ) -> None:
        """Frozen before a look or within: nobody waits for ever, and on the same connection the next finds the rest."""
        monkeypatch.setattr(dead_module, "_WAIT", 0.5)
        for number in range(3):
            await queues.put(topology.UNDECODABLE, str(number).encode())

        async def freeze() -> None:
            broker_wire.passing.clear()

        async with Link(through(rabbitmq.url, broker_wire), name="test") as link:
            await link.wait_up()
            publishing = link.publishing
            if not after:
                await freeze()
            async with asyncio.timeout(5):
                with pytest.raises(BrokerUnavailable, match="did not give its dead letters"):
                    await collect(link, ThenLetters(dead, freeze, after=after))
            assert after == await dead.count()
            broker_wire.passing.set()
            monkeypatch.setattr(dead_module, "_WAIT", 10.0)
            assert 3 - after == (await collect(link, dead)).kept
            assert publishing is link.publishing
        assert 3 == await dead.count()

    async def test_a_header_of_a_thousand_brackets(self, link: Link, dead: DeadLetters, queues: Queues) -> None:
        """It is named in place of being kept, and the letters behind it come through."""
        deep: list[object] = []
        for _ in range(150):
            deep = [deep]
        await queues.put(topology.UNDECODABLE, b"x", headers={"deep": deep, "own": "x"})
        await queues.put(topology.UNDECODABLE, b"y")
        assert Collected(kept=2, left=0) == await collect(link, dead)
        letter = await dead.get((await dead.page())[-1].id)
        assert letter is not None
        assert {"deep": "nested too deeply to be kept", "own": "x"} == letter.headers

    async def test_unreadable_properties(self, link: Link, dead: DeadLetters, queues: Queues) -> None:
        """What not even AMQP has sense for is kept with the raw bytes of its properties."""
        await queues.put(topology.UNDECODABLE, b"x", headers=writable({"unreadable": b"\xff\x00", "reason": "r"}))
        await collect(link, dead)
        assert b"\xff\x00" == (await only(dead)).headers["unreadable"]


class TestRequeueing:
    """`requeue`."""

    async def test_a_message_goes_to_the_front_door_as_it_came(
        self, pool: Pool, dead: DeadLetters, publisher: Publisher, queues: Queues
    ) -> None:
        """With its headers and its id, without what was written on it when it was set aside."""
        added = {"reason": "r", "message_id": "m1", "x-death": [{"queue": "q"}], "x-first-death-queue": "q"}
        headers = {**GOOD, "own": {"a": [b"\xff"]}, **added}
        letter = Letter(headers=headers, data=MESSAGE, reason="r", message_id="m1", content_type="message/rfc822")
        await dead.keep([letter])
        [found] = await dead.page()
        sent = await requeue(found.id, pool, publisher, who=WHO)
        assert Requeued(id=found.id, queue=topology.OUTBOUND, message_id="m1", dropped=[]) == sent
        message = await queues.take(topology.OUTBOUND)
        assert {**GOOD, "own": {"a": [b"\xff"]}} == sent_headers(message)
        assert (MESSAGE, "m1", "message/rfc822") == (message.body, message.message_id, message.content_type)
        assert 0 == await dead.count()
        assert [("ann", "cli", "dead requeue", str(found.id), topology.OUTBOUND)] == await audited(pool)

    async def test_a_delivery_is_routed_anew(
        self, pool: Pool, dead: DeadLetters, publisher: Publisher, queues: Queues
    ) -> None:
        """What was on its way between the rooms goes back to the router."""
        number = await kept(dead, codec.encode(delivery(attempts=3), MESSAGE))
        assert topology.REROUTE == (await requeue(number, pool, publisher, who=WHO)).queue
        assert (delivery(attempts=3), MESSAGE) == await queues.delivery(topology.REROUTE)

    @pytest.mark.parametrize(
        ("data", "headers", "options", "reason"),
        [
            (MESSAGE, {"mail_from": "a@x.example"}, {}, "rcpt_to is missing"),
            (MESSAGE, {**GOOD, "mail_from": b"\xff"}, {}, "mail_from is of type bytes"),
            (b"", GOOD, {}, "the body is empty"),
            (MESSAGE, GOOD, {"queue": "mail.reroute"}, "wire version"),
            (MESSAGE, GOOD, {"queue": "deliver.smtp"}, "deliver.smtp is none of"),
            (b"", {**GOOD, "body_ref": "gone"}, {}, "its stored body gone is gone"),
            (MESSAGE, {}, {"mail_from": "a@x.example", "rcpt_to": ["nobody"]}, "'nobody' has no domain"),
        ],
    )
    async def test_what_would_come_back_is_refused(  # noqa: PLR0917 - fixtures and parameters
        self,
        pool: Pool,
        dead: DeadLetters,
        publisher: Publisher,
        queues: Queues,
        data: bytes,
        headers: dict[str, object],
        options: dict[str, object],
        reason: str,
    ) -> None:
        """The reason is a sentence, the letter stays, and nothing is sent."""
        number = await kept(dead, data, headers)
        with pytest.raises(StaysDeadError, match=reason):
            await requeue(number, pool, publisher, who=WHO, **options)  # type: ignore[arg-type] # by name
        assert [number] == [each.id for each in await dead.page()]
        assert [] == await audited(pool)
        assert [0, 0] == [await queues.depth(name) for name in (topology.OUTBOUND, topology.REROUTE)]

    async def test_force_sends_it_all_the_same(
        self, pool: Pool, dead: DeadLetters, publisher: Publisher, queues: Queues
    ) -> None:
        """Whoever knows better."""
        number = await kept(dead, MESSAGE, {"own": "x"})
        assert "" == (await requeue(number, pool, publisher, who=WHO, force=True)).message_id
        assert {"own": "x"} == sent_headers(await queues.take(topology.OUTBOUND))

    async def test_an_operator_says_who_sends_it_to_whom(
        self, pool: Pool, dead: DeadLetters, publisher: Publisher, queues: Queues
    ) -> None:
        """Then it is a message, whatever it said it was; the router can read it."""
        await dead.keep([Letter(headers={"rcpt_to": 5}, data=MESSAGE, reason="r", content_type="text/plain")])
        [found] = await dead.page()
        sent = await requeue(found.id, pool, publisher, who=WHO, mail_from="", rcpt_to=["b@a.example"])
        message = await queues.take(topology.OUTBOUND)
        assert ("message/rfc822", sent.message_id) == (message.content_type, message.message_id)
        assert {"mail_from": "", "rcpt_to": ["b@a.example"]} == sent_headers(message)

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("version", [codec.VERSION, codec.VERSION + 1])
    async def test_a_delivery_is_never_sent_as_a_message(  # noqa: PLR0917 - fixtures and parameters
        self, pool: Pool, dead: DeadLetters, publisher: Publisher, queues: Queues, force: bool, version: int
    ) -> None:
        """Its bytes begin with a header of our own: nobody is sent that as mail, whatever an operator says."""
        number = await kept(dead, version.to_bytes(1) + codec.encode(delivery(), MESSAGE)[1:])
        with pytest.raises(StaysDeadError, match=r"mail\.reroute alone takes it"):
            await requeue(
                number,
                pool,
                publisher,
                who=WHO,
                queue=topology.OUTBOUND,
                mail_from="a@x.example",
                rcpt_to=["b@y.example"],
                force=force,
            )
        assert (1, 0) == (await dead.count(), await queues.depth(topology.OUTBOUND))

    async def test_several_with_stored_bodies_at_once(
        self, pool: Pool, dead: DeadLetters, publisher: Publisher, database: str
    ) -> None:
        """More than there are connections: they take turns."""
        await Bodies(pool).put("big", MESSAGE)
        letters = [await kept(dead, b"", {**GOOD, "body_ref": "big", "n": n}) for n in range(8)]
        few = Pool(database, name="panel", size=4, timeout=1)
        await few.open()
        await asyncio.gather(*(requeue(number, few, publisher, who=WHO) for number in letters))
        await few.close()
        assert 0 == await dead.count()

    async def test_headers_that_cannot_be_written_are_named(
        self, pool: Pool, dead: DeadLetters, publisher: Publisher, queues: Queues
    ) -> None:
        """A decimal that the protocol can carry and the library cannot write does not keep mail dead."""
        number = await kept(dead, MESSAGE, {**GOOD, "large": Decimal(4_000_000_000), "far": 1e300})
        assert ["far", "large"] == sorted((await requeue(number, pool, publisher, who=WHO)).dropped)
        assert GOOD == sent_headers(await queues.take(topology.OUTBOUND))

    async def test_a_stored_body_that_is_there(
        self, pool: Pool, dead: DeadLetters, publisher: Publisher, queues: Queues
    ) -> None:
        """A reference to a body that has come meanwhile is good."""
        await Bodies(pool).put("big", MESSAGE)
        number = await kept(dead, b"", {**GOOD, "body_ref": "big"})
        await requeue(number, pool, publisher, who=WHO)
        assert "big" == sent_headers(await queues.take(topology.OUTBOUND))["body_ref"]

    async def test_two_at_once_send_it_once(
        self, pool: Pool, dead: DeadLetters, publisher: Publisher, queues: Queues
    ) -> None:
        """Two operators press the same button."""
        number = await kept(dead, MESSAGE, GOOD)
        results = await asyncio.gather(
            *(requeue(number, pool, publisher, who=WHO) for _ in range(4)), return_exceptions=True
        )
        assert [NoLetterError] * 3 + [Requeued] == sorted(map(type, results), key=lambda kind: kind.__name__)
        assert 1 == await queues.depth(topology.OUTBOUND)

    async def test_while_the_broker_is_away_the_letter_stays(
        self, pool: Pool, dead: DeadLetters, rabbitmq: RabbitMQ, broker_wire: Wire
    ) -> None:
        """It is forgotten only once the broker has it."""
        number = await kept(dead, MESSAGE, GOOD)
        async with Link(through(rabbitmq.url, broker_wire), name="test") as link:
            await link.wait_up()
            await broker_wire.cut()
            with pytest.raises(BrokerUnavailable):
                await requeue(number, pool, Publisher(link, timeout=1), who=WHO)
        assert 1 == await dead.count()
        assert [] == await audited(pool)

    async def test_a_commit_that_fails_doubles_and_never_loses(
        self, dead: DeadLetters, publisher: Publisher, database: str, store_wire: Wire, queues: Queues
    ) -> None:
        """The store goes between publish and commit: the letter is sent, and still here."""
        number = await kept(dead, MESSAGE, GOOD)
        pool = Pool(through(database, store_wire), name="test")
        await pool.open()

        class Cutting(Publisher):
            async def raw(self, *given, **named):  # type: ignore[no-untyped-def] # noqa: ANN002, ANN003, ANN202
                await publisher.raw(*given, **named)
                await store_wire.cut()

        with pytest.raises(StoreUnavailable):
            await requeue(number, pool, Cutting(publisher._link), who=WHO)
        await pool.close()
        assert (1, 1) == (await dead.count(), await queues.depth(topology.OUTBOUND))

    async def test_there_is_none(self, pool: Pool, publisher: Publisher) -> None:
        """An id that no letter has."""
        with pytest.raises(NoLetterError):
            await requeue(4711, pool, publisher, who=WHO)


class TestKeeping:
    """The table."""

    async def test_discarding(self, pool: Pool, dead: DeadLetters) -> None:
        """Only what was named goes, and the audit log says so."""
        first, second = await kept(dead, b"1"), await kept(dead, b"2")
        assert [second] == await discard([second, 4711], pool, who=WHO)
        assert [first] == [each.id for each in await dead.page()]
        assert [("ann", "cli", "dead discard", "1 letter", str(second))] == await audited(pool)
        assert [] == await discard([second], pool, who=WHO)
        assert 1 == len(await audited(pool))

    async def test_what_is_told_of_deliveries_that_are_discarded(self, pool: Pool, dead: DeadLetters) -> None:
        """They are set aside no longer; of who has the message, and of what is no delivery, nothing is told."""
        await Bodies(pool).put("big", MESSAGE, message_id="m2", recipients=["b@a.example", "c@a.example"])
        await Bodies(pool).end("big", "m2", ["c@a.example"])
        part = delivery("b@a.example", "c@a.example", id="m1", reply=Reply(code=451, text="later"))
        stored = delivery("b@a.example", "c@a.example", id="m2", body_ref="big")
        letters = [
            await kept(dead, data)
            for data in (
                codec.encode(part, MESSAGE * 9),
                codec.encode(stored, b""),
                MESSAGE,
                b"",
                b"\x01",
                b"\x01\xff" * 9,
            )
        ]
        told: list[Event] = []
        assert letters == await discard(letters, pool, who=WHO, emit=told.extend)
        assert [("m1", "b@a.example", 451), ("m1", "c@a.example", 451), ("m2", "b@a.example", 0)] == [
            (each.id, each.recipient, each.code) for each in told
        ]
        assert {("removed", "operator", "ann", "a.example")} == {
            (each.kind, each.room, each.actor, each.domain) for each in told
        }

    async def test_searching(self, dead: DeadLetters) -> None:
        """By reason, id and queue, and every character stands for itself."""
        await kept(dead, b"1", reason="100% wrong")
        await kept(dead, b"2", reason="a_b")
        found = {text: len(await dead.page(search=text)) for text in ("100% W", "A_B", "a%b", "")}
        assert {"100% W": 1, "A_B": 1, "a%b": 0, "": 2} == found
        assert 1 == await dead.count(search="_")

    @given(
        st.recursive(
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(-(2**63), 2**63 - 1),
                st.floats(allow_nan=False),
                st.text(),
                st.binary(),
                st.decimals(allow_nan=False, allow_infinity=False),
                st.datetimes(timezones=st.just(UTC)),
            ),
            lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
            max_leaves=8,
        ),
        st.text(),
        st.binary(max_size=300),
    )
    @profile(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    async def test_whatever_it_is_it_comes_back(self, dead: DeadLetters, value: object, text: str, data: bytes) -> None:
        """Headers of any value, text of any character, and any bytes; to open it never fails."""
        headers = {"x": value, text: "y"}
        letter = Letter(headers=headers, data=data, reason=text, queue=text, message_id=text, content_type=text)
        await dead.keep([letter])
        stored = await dead.get((await dead.page(limit=1))[0].id)
        assert stored is not None
        assert (headers, data) == (stored.headers, stored.data)
        opened(stored)
        msgspec.json.encode(plain(stored.headers))


@given(hostile_text, st.binary(max_size=60), st.sampled_from(["utf-8", "x-none", "base64", "punycode", "utf-7"]))
@profile(max_examples=200, deadline=None)
def test_whatever_its_fields_say_it_can_be_opened(text: str, data: bytes, charset: str) -> None:
    """Encoded words that are none, charsets that are none, and bytes of any kind."""
    subject = f"=?{charset}?q?{text}?= =?{charset}?b?{text}?=".encode("utf-8", "surrogatepass")
    for message in (b"Subject: " + subject + data, b"Subject: " + data, data, b"From: " + data + subject):
        seen = opened(
            Stored(
                id=1,
                taken_at=datetime.now(UTC),
                reason="",
                queue="",
                message_id="",
                content_type=None,
                size=0,
                headers={"mail_from": data, "rcpt_to": [data, text]},
                data=message,
            )
        )
        assert all(isinstance(value, str) for value in seen.fields.values())


class ThenLetters(DeadLetters):
    """The table, after so many commits of which something happens."""

    def __init__(self, dead: DeadLetters, happens: Callable[[], Awaitable[None]], *, after: int = 1) -> None:
        super().__init__(dead._pool)
        self._happens = happens
        self._left = after

    async def keep(self, letters: Sequence[Letter], look: Look | None = None) -> int:
        """Keep letters, and let it happen."""
        kept = await super().keep(letters, look)
        self._left -= 1
        if not self._left:
            await self._happens()
        return kept


async def _handed_back(queues: Queues, letters: int) -> None:
    """Take letters out of the queue and give them back, as a look does that breaks."""
    queue = await queues.channel.get_queue(topology.UNDECODABLE, ensure=False)
    for message in [await queue.get() for _ in range(letters)]:
        assert message is not None
        await message.nack(requeue=True)


async def _one_is_dead(queues: Queues) -> bool:
    return await _as_deep_as(queues, 1)


async def _as_deep_as(queues: Queues, letters: int) -> bool:
    return await queues.depth(topology.UNDECODABLE) == letters


def _none() -> Stored:
    raise AssertionError("there is no letter")
