"""Waiting mail ended by operators: told truthfully, ended once, and never lost, whatever breaks on the way."""

import asyncio
import email
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from deploy.local.services import RabbitMQ
from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.fleet.turns import turn
from shared.fleet.waiting import BATCH, Ended, Who, bounce, remove
from shared.mail import codec
from shared.mail.event import Event
from shared.mail.privacy import Privacy
from shared.mail.reply import Reply
from shared.mail.retry import Schedule, parse_waits
from shared.mail.route import Route
from shared.runtime.clock import now
from shared.runtime.errors import BrokerUnavailable, StoreUnavailable
from shared.store.bodies import FREED, Bodies
from shared.store.deferred import Deferred
from shared.store.pool import Pool
from shared.store.selection import EVERYTHING, Selection
from shared.store.waiting import AGES, DomainAges, WaitingMail
from tests.integration.conftest import MESSAGE, NOON, Queues, Wire, delivery, through

pytestmark = [pytest.mark.anyio, pytest.mark.services]

ROOT = Path(__file__).parent.parent.parent
LATER = datetime.now(UTC) + timedelta(hours=1)
GREYLISTED = Reply(code=451, enhanced="4.7.1", text="greylisted", mta="mx.a.example")
WHO = Who(actor="ann", via="cli")
# Each delivery that is made due waits anew at once, up to ten.
_FAILS_AGAIN = """
    CREATE FUNCTION fails_again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO deferred (message_id, mail_from, rcpt_to, domain, target, accepted_at, next_attempt_at, attempts,
            reply, size, delivery)
        SELECT message_id, mail_from, rcpt_to, domain, target, accepted_at, OLD.next_attempt_at, attempts,
            reply, size, delivery
        FROM deferred WHERE id = NEW.id AND (SELECT count(*) FROM deferred) < 10;
        RETURN NULL;
    END $$;
    CREATE TRIGGER fails_again AFTER UPDATE ON deferred FOR EACH ROW EXECUTE FUNCTION fails_again()
"""
SCHEDULE = Schedule(waits=parse_waits("1m"))


@pytest.fixture
def deferred(pool: Pool) -> Deferred:
    """Waiting mail, none yet."""
    return Deferred(pool)


@pytest.fixture
def events() -> list[Event]:
    """The events that were emitted."""
    return []


def settler_on(publisher: Publisher, pool: Pool) -> Settler:
    """Return a settler as the command line makes it."""
    return Settler(publisher, Deferred(pool), hostname="mail.pushpush.example", schedule=SCHEDULE)


@pytest.fixture
def settler(publisher: Publisher, pool: Pool) -> Settler:
    """Makes the reports."""
    return settler_on(publisher, pool)


async def report(queues: Queues) -> tuple[str | None, Message, str]:
    """Take a report from `mail.outbound`; return to whom it goes, the message, and its words for people."""
    taken = await queues.take(topology.OUTBOUND)
    assert "" == taken.headers["mail_from"]
    rcpt_to = taken.headers["rcpt_to"]
    assert isinstance(rcpt_to, list)
    assert 1 == len(rcpt_to)
    message = email.message_from_bytes(taken.body)
    words = next(part.get_payload() for part in message.walk() if part.get_content_type() == "text/plain")
    return str(rcpt_to[0]), message, " ".join(str(words).split())


def about_first(message: Message) -> Message:
    """Return what a report says for machines about its first recipient."""
    [status] = [part for part in message.walk() if part.get_content_type() == "message/delivery-status"]
    return list(status.walk())[2]


async def audited(pool: Pool) -> list[tuple[str, ...]]:
    """Return what stands in the audit log."""
    async with pool.statement() as connection:
        found = await connection.execute("SELECT actor, via, action, object, detail FROM audit ORDER BY id")
        return await found.fetchall()


class TestBounce:
    """`bounce`."""

    async def test_the_sender_is_told_the_truth(
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues, events: list[Event]
    ) -> None:
        """Who gave it up, after how long, what the host had said, and when it was tried last; then it waits no more."""
        part = delivery(
            "b@a.example", "c@a.example", attempts=2, reply=GREYLISTED, accepted_at=now() - timedelta(hours=3)
        )
        await deferred.defer(part, MESSAGE, LATER)
        [waiting] = await deferred.matching()
        ended = await bounce(Selection(domain="a.example"), pool, settler, who=WHO, emit=events.extend)
        assert Ended(deliveries=1, recipients=2, reports=1) == ended
        to, message, words = await report(queues)
        assert "a@from.example" == to
        assert "Those who run this mail service gave your message up after 3 hours. It was not delivered to:" in words
        assert "451 4.7.1 greylisted" in words
        assert "It will not be tried again." in words
        first = about_first(message)
        assert ("failed", "4.7.1") == (first["Action"], first["Status"])
        tried = email.utils.parsedate_to_datetime(first["Last-Attempt-Date"])
        assert abs(tried - waiting.deferred_at) <= timedelta(seconds=1)
        assert [] == await deferred.matching()
        assert 0 == await queues.depth(topology.OUTBOUND)
        assert [("bounced", "b@a.example"), ("bounced", "c@a.example")] == [(e.kind, e.recipient) for e in events]
        assert {("operator", "ann", "m1", 451)} == {(e.room, e.actor, e.id, e.code) for e in events}
        assert [("ann", "cli", "queue bounce", "domain a.example", "1 waiting delivery")] == await audited(pool)

    async def test_mail_that_was_never_tried(
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues, events: list[Event]
    ) -> None:
        """Nothing is said of an answer or an attempt that never was."""
        await deferred.defer(delivery(accepted_at=now()), MESSAGE, LATER)
        await bounce(EVERYTHING, pool, settler, who=WHO, emit=events.extend)
        _, message, words = await report(queues)
        assert "after less than an hour" in words
        assert "said:" not in words
        assert "What happened:" not in words
        fields = about_first(message)
        assert ("4.0.0", None, None) == (fields["Status"], fields["Last-Attempt-Date"], fields["Diagnostic-Code"])

    async def test_nobody_is_told_of_a_report_or_against_the_senders_wish(
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues, events: list[Event]
    ) -> None:
        """Mail from the null reverse-path, and with NOTIFY=NEVER or only SUCCESS, ends in silence."""
        await deferred.defer(delivery(mail_from=""), MESSAGE, LATER)
        await deferred.defer(delivery(id="m2", notify="NEVER"), MESSAGE, LATER)
        await deferred.defer(delivery(id="m3", notify="SUCCESS"), MESSAGE, LATER)
        await deferred.defer(delivery(id="m4", notify="FAILURE"), MESSAGE, LATER)
        ended = await bounce(EVERYTHING, pool, settler, who=WHO, emit=events.extend)
        assert Ended(deliveries=4, recipients=4, reports=1, silent=3) == ended
        await report(queues)
        assert 0 == await queues.depth(topology.OUTBOUND)
        assert ["dropped", "dropped", "dropped", "bounced"] == [each.kind for each in events]

    async def test_only_what_was_chosen_ends(
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """Each part of a selection narrows it; what began to wait after the count stays."""
        ruled = Route(version=1, key="a.example", targets=("x.example",))
        old = now() - timedelta(hours=2)
        await deferred.defer(delivery(id="m1", accepted_at=old, route=ruled, reply=GREYLISTED), MESSAGE, LATER)
        for other in (
            delivery(id="m1", accepted_at=old, route=ruled, reply=GREYLISTED, domain="b.example"),
            delivery(id="m1", accepted_at=old, reply=GREYLISTED),
            delivery(id="m1", accepted_at=now(), route=ruled, reply=GREYLISTED),
            delivery(id="m1", accepted_at=old, route=ruled, reply=Reply(code=451, text="50% full_")),
            delivery(id="m2", accepted_at=old, route=ruled, reply=GREYLISTED),
        ):
            await deferred.defer(other, MESSAGE, LATER)
        chosen = Selection(
            message_id="m1", domain="a.example", target="x.example", older=timedelta(hours=1), error="GreyL"
        )
        assert 1 == await deferred.count(chosen)
        assert 1 == await deferred.count(Selection(error="0% FULL_"))
        assert 0 == await deferred.count(Selection(error="_%"))
        counted = chosen.as_of(now(), await deferred.newest())
        await deferred.defer(delivery(id="m1", accepted_at=old, route=ruled, reply=GREYLISTED), MESSAGE, LATER)
        ended = await bounce(counted, pool, settler, who=WHO, emit=_ignore)
        assert Ended(deliveries=1, recipients=1, reports=1) == ended
        assert 6 == await deferred.count()
        assert 1 == await queues.depth(topology.OUTBOUND)

    async def test_more_than_a_batch(
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues, events: list[Event]
    ) -> None:
        """Every delivery is told of once, and whoever watches sees it grow."""
        count = 2 * BATCH + 50
        await asyncio.gather(*(deferred.defer(delivery(id=f"m{n}"), MESSAGE, LATER) for n in range(count)))
        seen: list[int] = []
        ended = await bounce(
            EVERYTHING,
            pool,
            settler,
            who=WHO,
            emit=events.extend,
            progress=lambda so_far: seen.append(so_far.deliveries),
        )
        assert Ended(deliveries=count, recipients=count, reports=count) == ended
        assert [BATCH, 2 * BATCH, count] == seen
        assert count == await queues.depth(topology.OUTBOUND)
        assert {f"m{n}" for n in range(count)} == {each.id for each in events}
        assert 0 == await deferred.count()

    async def test_what_a_scheduler_has_in_hand_is_passed_over(
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """It is being tried: to bounce it would tell the sender that mail failed which is delivered a second later."""
        await deferred.defer(delivery(id="tried"), MESSAGE, NOON)
        await deferred.defer(delivery(id="waits"), MESSAGE, LATER)
        ended: list[Ended] = []

        async def publish(due: Sequence[bytes]) -> None:
            assert 1 == len(due)
            ended.append(await bounce(EVERYTHING, pool, settler, who=WHO, emit=_ignore))

        assert 1 == await deferred.wake(now=now(), limit=10, publish=publish)
        assert [Ended(deliveries=1, recipients=1, reports=1, left=1)] == ended
        assert 1 == await queues.depth(topology.OUTBOUND)

    async def test_what_is_being_bounced_is_not_woken_or_made_due(self, pool: Pool, deferred: Deferred) -> None:
        """A scheduler and an operator's retry pass over what is held, and do not wait for it."""
        await deferred.defer(delivery(), MESSAGE, LATER)
        await deferred.defer(delivery(id="m2"), MESSAGE, LATER)
        async with WaitingMail(pool).hold(Selection(message_id="m1"), limit=10) as hold:
            assert 1 == await deferred.retry(now=now())
            woken: list[bytes] = []

            async def publish(due: Sequence[bytes]) -> None:
                woken.extend(due)

            assert 1 == await deferred.wake(now=LATER + timedelta(hours=1), limit=10, publish=publish)
            await hold.delete([hold.held[0].id])
        assert 0 == await deferred.count()

    async def test_a_stored_body_is_given_back_and_freed(
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """The report has the header of the body in the store; with the last recipient the body goes."""
        bodies = Bodies(pool)
        await bodies.put("big", MESSAGE, message_id="m1", recipients=["b@a.example", "c@b.example"])
        await deferred.defer(delivery("b@a.example", body_ref="big"), b"", LATER)
        await deferred.defer(delivery("c@b.example", body_ref="big", domain="b.example"), b"", LATER)
        await bounce(Selection(domain="a.example"), pool, settler, who=WHO, emit=_ignore)
        _, message, _ = await report(queues)
        assert "Subject: hello" in message.as_string()
        assert MESSAGE == await bodies.get("big")
        await remove(EVERYTHING, pool, who=WHO, emit=_ignore)
        assert FREED is await bodies.get("big")

    async def test_a_double_of_what_has_ended_is_not_reported(
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues, events: list[Event]
    ) -> None:
        """A recipient who has a stored message is not told of as failed, though a crash left its delivery waiting."""
        bodies = Bodies(pool)
        await bodies.put("big", MESSAGE, message_id="m1", recipients=["b@a.example", "c@a.example", "d@a.example"])
        await deferred.defer(delivery("b@a.example", "c@a.example", body_ref="big"), b"", LATER)
        await deferred.defer(delivery("c@a.example", body_ref="big"), b"", LATER)
        await bodies.end("big", "m1", ["c@a.example"])
        ended = await bounce(EVERYTHING, pool, settler, who=WHO, emit=events.extend)
        assert Ended(deliveries=2, recipients=1, reports=1, doubles=1) == ended
        _, _, words = await report(queues)
        assert ("b@a.example" in words, "c@a.example" in words) == (True, False)
        assert ["b@a.example"] == [each.recipient for each in events]
        assert 0 == await queues.depth(topology.OUTBOUND)
        assert 0 == await deferred.count()

    async def test_several_at_once_take_turns(
        self, database: str, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """More operators than connections bounce stored mail: nobody is told that the store is away."""
        for number in range(8):
            body, name = f"big{number}", f"m{number}"
            await Bodies(deferred._pool).put(body, MESSAGE, message_id=name, recipients=["b@a.example"])
            await deferred.defer(delivery(id=name, body_ref=body), b"", LATER)
        pool = Pool(database, name="panel", size=4, timeout=1)
        await pool.open()
        ended = await asyncio.gather(
            *(bounce(Selection(message_id=f"m{n}"), pool, settler, who=WHO, emit=_ignore) for n in range(8))
        )
        await pool.close()
        assert [Ended(deliveries=1, recipients=1, reports=1)] * 8 == ended
        assert 8 == await queues.depth(topology.OUTBOUND)

    async def test_who_waits_for_a_turn_can_be_told_to_stop(
        self, pool: Pool, settler: Settler, deferred: Deferred
    ) -> None:
        """Nothing was begun, so there is nothing to finish."""
        await deferred.defer(delivery(), MESSAGE, LATER)
        async with turn(pool):
            waits = asyncio.create_task(bounce(EVERYTHING, pool, settler, who=WHO, emit=_ignore))
            await asyncio.sleep(0.3)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
        assert 1 == await deferred.count()

    async def test_the_audit_log_keeps_no_address_that_is_not_kept(
        self, pool: Pool, settler: Settler, deferred: Deferred
    ) -> None:
        """Words of an answer that were searched for may name somebody."""
        del deferred
        chosen = Selection(error="<bob@secret.example> is full", domain="a.example")
        hidden = Privacy(mode="domain")
        await bounce(chosen, pool, settler, who=WHO, emit=_ignore, privacy=hidden)
        await remove(chosen, pool, who=WHO, emit=_ignore, privacy=hidden)
        words = "domain a.example; answer with '<@secret.example> is full'"
        assert [words, words] == [each[3] for each in await audited(pool)]

    async def test_a_body_that_is_gone(self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues) -> None:
        """The sender is told all the same; there is only nothing to give back."""
        await deferred.defer(delivery(body_ref="gone"), b"", LATER)
        assert 1 == (await bounce(EVERYTHING, pool, settler, who=WHO, emit=_ignore)).reports
        await report(queues)

    async def test_what_cannot_be_read_waits_on(
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues, events: list[Event]
    ) -> None:
        """A delivery of a release to come keeps nothing else from being ended; it can be removed."""
        for name in ("m1", "m2", "m3"):
            await deferred.defer(delivery(id=name), MESSAGE, LATER)
        async with pool.transaction() as connection:
            await connection.execute("UPDATE deferred SET delivery = '\\x09' WHERE message_id = 'm2'")
        ended = await bounce(EVERYTHING, pool, settler, who=WHO, emit=events.extend)
        assert Ended(deliveries=2, recipients=2, reports=2, left=1, unreadable=1) == ended
        assert ["m2"] == [each.message_id for each in await deferred.matching()]
        assert Ended(deliveries=1, recipients=1, silent=1) == await remove(
            EVERYTHING, pool, who=WHO, emit=events.extend
        )
        assert ("removed", "m2", "b@a.example") == (events[-1].kind, events[-1].id, events[-1].recipient)
        assert 2 == await queues.depth(topology.OUTBOUND)

    async def test_while_a_scheduler_runs_each_is_either_tried_or_reported(
        self, pool: Pool, settler: Settler, deferred: Deferred, events: list[Event]
    ) -> None:
        """Three schedulers wake what two operators bounce: nothing has both fates, and nothing has none."""
        count = 600
        await asyncio.gather(*(deferred.defer(delivery(id=f"m{n}"), MESSAGE, NOON) for n in range(count)))
        woken: list[str] = []

        async def publish(due: Sequence[bytes]) -> None:
            await asyncio.sleep(0.002)
            woken.extend(codec.decode(wire)[0].id for wire in due)

        async def schedule() -> None:
            while await deferred.wake(now=now(), limit=7, publish=publish):
                await asyncio.sleep(0.001)

        operators = (bounce(EVERYTHING, pool, settler, who=WHO, emit=events.extend) for _ in range(2))
        await asyncio.gather(*operators, *(schedule() for _ in range(3)))
        await bounce(EVERYTHING, pool, settler, who=WHO, emit=events.extend)
        assert sorted(f"m{n}" for n in range(count)) == sorted([*woken, *(each.id for each in events)])
        assert woken
        assert events


class TestFaults:
    """What breaks between one step and the next."""

    async def test_killed_between_publish_and_commit(  # noqa: PLR0917 - fixtures
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues, rabbitmq: RabbitMQ, database: str
    ) -> None:
        """Nothing is lost: what was reported and not committed waits on, and is reported once more, a batch at most."""
        count = BATCH + 20
        await asyncio.gather(*(deferred.defer(delivery(id=f"m{n}"), MESSAGE, LATER) for n in range(count)))
        command = (sys.executable, "-m", "tests.integration.test_waiting", rabbitmq.url, database, str(BATCH + 10))
        died = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, cwd=ROOT)
        assert -signal.SIGKILL == died.returncode, died.stderr.decode()
        left = await deferred.count()
        assert count - BATCH == left
        ended = await bounce(EVERYTHING, pool, settler, who=WHO, emit=_ignore)
        assert Ended(deliveries=left, recipients=left, reports=left) == ended
        told = [str((await report(queues))[1]) for _ in range(await queues.depth(topology.OUTBOUND))]
        assert count <= len(told) <= count + BATCH
        assert 2 == len(await audited(pool))

    async def test_the_store_goes_between_publish_and_commit(
        self, deferred: Deferred, queues: Queues, publisher: Publisher, database: str, store_wire: Wire
    ) -> None:
        """The operator is told that senders may have been told, and what to do; the mail waits on."""
        await deferred.defer(delivery(), MESSAGE, LATER)
        pool = Pool(through(database, store_wire), name="test", timeout=1)
        await pool.open()

        async def cut() -> None:
            await store_wire.cut()

        cutting = settler_on(Then(publisher, cut, after=1), pool)
        with pytest.raises(StoreUnavailable, match="senders may have been told all the same, so bounce them again"):
            await bounce(EVERYTHING, pool, cutting, who=WHO, emit=_ignore)
        await pool.close()
        assert (1, 1) == (await deferred.count(), await queues.depth(topology.OUTBOUND))

    async def test_the_broker_is_away(
        self, pool: Pool, deferred: Deferred, rabbitmq: RabbitMQ, broker_wire: Wire
    ) -> None:
        """Nothing is deleted that was not reported."""
        await deferred.defer(delivery(), MESSAGE, LATER)
        await broker_wire.cut()
        async with Link(through(rabbitmq.url, broker_wire), name="test") as link:
            settler = settler_on(Publisher(link, timeout=1), pool)
            with pytest.raises(BrokerUnavailable, match="0 deliveries were ended before, the rest waits on"):
                await bounce(EVERYTHING, pool, settler, who=WHO, emit=_ignore)
        assert 1 == await deferred.count()

    async def test_the_broker_dies_in_a_batch(self, pool: Pool, deferred: Deferred, tmp_path: Path) -> None:
        """What was confirmed is done; the rest waits on, and is reported when the broker is back. None is missing."""
        count = 60
        await asyncio.gather(*(deferred.defer(delivery(id=f"m{n}"), MESSAGE, LATER) for n in range(count)))
        emitted: list[Event] = []
        with RabbitMQ(tmp_path / "rabbit") as own:
            async with Link(own.url, name="test") as link:
                await link.wait_up()
                await asyncio.sleep(3)  # so long a power cut undoes the declaration of a queue (ra_directory)

                async def kill() -> None:
                    await asyncio.to_thread(own.kill)

                dying = settler_on(Then(Publisher(link, timeout=5), kill, after=20), pool)
                with pytest.raises(BrokerUnavailable):
                    await bounce(EVERYTHING, pool, dying, who=WHO, emit=emitted.extend)
                left = {each.message_id for each in await deferred.matching()}
                assert left
                assert {f"m{n}" for n in range(count)} - left == {each.id for each in emitted}
                await asyncio.to_thread(own.start)
                await link.wait_up()
                await bounce(EVERYTHING, pool, settler_on(Publisher(link), pool), who=WHO, emit=emitted.extend)
                assert link.channel is not None
                queues = Queues(link.channel)
                assert count <= await queues.depth(topology.OUTBOUND) <= count + len(left)
        assert sorted(f"m{n}" for n in range(count)) == sorted(each.id for each in emitted)
        assert 0 == await deferred.count()

    async def test_interrupted_in_a_batch(
        self, pool: Pool, publisher: Publisher, deferred: Deferred, queues: Queues, events: list[Event]
    ) -> None:
        """Ctrl-C ends after the batch: half of it would be reported twice."""
        count = BATCH + 1
        await asyncio.gather(*(deferred.defer(delivery(id=f"m{n}"), MESSAGE, LATER) for n in range(count)))

        async def interrupt() -> None:
            running.cancel()
            await asyncio.sleep(0.1)

        settler = settler_on(Then(publisher, interrupt, after=5), pool)
        running = asyncio.create_task(bounce(EVERYTHING, pool, settler, who=WHO, emit=events.extend))
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (1, BATCH, BATCH) == (await deferred.count(), await queues.depth(topology.OUTBOUND), len(events))

    async def test_bodies_cannot_be_read(
        self, pool: Pool, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """Nobody is told of a failure while it is not known who has the message already."""
        await deferred.defer(delivery(body_ref="big"), b"", LATER)
        async with pool.transaction() as connection:
            await connection.execute("ALTER TABLE body_uses RENAME TO gone")
        try:
            with pytest.raises(StoreUnavailable):
                await bounce(EVERYTHING, pool, settler, who=WHO, emit=_ignore)
        finally:
            async with pool.transaction() as connection:
                await connection.execute("ALTER TABLE gone RENAME TO body_uses")
        assert (1, 0) == (await deferred.count(), await queues.depth(topology.OUTBOUND))


class TestRemove:
    """`remove`."""

    async def test_nobody_is_told(self, pool: Pool, deferred: Deferred, queues: Queues, events: list[Event]) -> None:
        """The mail is gone, the audit log and the events say who did it, and no report is sent."""
        await deferred.defer(delivery("b@a.example", "c@a.example", reply=GREYLISTED), MESSAGE, LATER)
        await deferred.defer(delivery(id="m2", domain="b.example"), MESSAGE, LATER)
        ended = await remove(Selection(domain="a.example"), pool, who=WHO, emit=events.extend)
        assert Ended(deliveries=1, recipients=2, silent=1) == ended
        assert ["m2"] == [each.message_id for each in await deferred.matching()]
        assert 0 == await queues.depth(topology.OUTBOUND)
        assert [("removed", "b@a.example", "ann"), ("removed", "c@a.example", "ann")] == [
            (each.kind, each.recipient, each.actor) for each in events
        ]
        assert [("ann", "cli", "queue remove", "domain a.example", "1 waiting delivery")] == await audited(pool)

    async def test_nothing_is_told_of_who_has_the_message(
        self, pool: Pool, deferred: Deferred, events: list[Event]
    ) -> None:
        """A double that a crash had left goes in silence: it was delivered, and not removed."""
        await Bodies(pool).put("big", MESSAGE, message_id="m1", recipients=["b@a.example", "c@a.example"])
        await deferred.defer(delivery("b@a.example", "c@a.example", body_ref="big"), b"", LATER)
        await deferred.defer(delivery("b@a.example", body_ref="big"), b"", LATER)
        await Bodies(pool).end("big", "m1", ["b@a.example"])
        ended = await remove(EVERYTHING, pool, who=WHO, emit=events.extend)
        assert Ended(deliveries=2, recipients=1, silent=1, doubles=1) == ended
        assert ["c@a.example"] == [each.recipient for each in events]


class TestRetry:
    """`Deferred.retry`."""

    async def test_what_fails_again_meanwhile_has_had_its_turn(
        self, pool: Pool, deferred: Deferred, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A long retry ends, though what it made due is tried and waits anew before it is done."""
        monkeypatch.setattr("shared.store.deferred._DUE_AT_ONCE", 1)
        for name in ("m1", "m2"):
            await deferred.defer(delivery(id=name), MESSAGE, LATER)
        async with pool.transaction() as connection:
            await connection.execute(_FAILS_AGAIN)
        try:
            assert 2 == await deferred.retry(now=now())
        finally:
            async with pool.transaction() as connection:
                await connection.execute("DROP FUNCTION fails_again CASCADE")
        assert (2, 2) == (await deferred.due(now=now()), await deferred.count() - 2)


class TestLooking:
    """What operators see."""

    async def test_ages_by_domain(self, pool: Pool, deferred: Deferred) -> None:
        """As qshape has them: how many are younger than each border, the domain with the most first."""
        for number, (domain, minutes) in enumerate(
            [("a.example", 1), ("a.example", 4), ("a.example", 6), ("a.example", 2_000), ("b.example", 30)]
        ):
            part = delivery(id=f"m{number}", domain=domain, accepted_at=NOON - timedelta(minutes=minutes))
            await deferred.defer(part, MESSAGE, LATER)
        oldest = NOON - timedelta(minutes=2_000)
        first = DomainAges(domain="a.example", deliveries=4, oldest=oldest, counts=[2, 1, 0, 0, 0, 0, 0, 0, 0, 1])
        second = DomainAges(
            domain="b.example",
            deliveries=1,
            oldest=NOON - timedelta(minutes=30),
            counts=[0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        )
        assert [first, second] == await WaitingMail(pool).ages(NOON)
        assert [first] == await WaitingMail(pool).ages(NOON, limit=1)
        assert [second] == await WaitingMail(pool).ages(NOON, selection=Selection(domain="b.example"))
        assert len(AGES) + 1 == len(first.counts)

    async def test_stats(self, pool: Pool, deferred: Deferred) -> None:
        """Answers that differ in the recipient's address alone are one."""
        for number in range(3):
            reply = Reply(code=451, enhanced="4.7.1", text=f"<u{number}@a.example>: later")
            await deferred.defer(delivery(id=f"m{number}", reply=reply), b"12345", LATER)
        await deferred.defer(delivery(id="m9", domain="b.example"), b"1", LATER)
        shares = await WaitingMail(pool).stats(by="answer")
        assert [("451 4.7.1 <address>: later", 3, 15), ("", 1, 1)] == [
            (each.name, each.deliveries, each.bytes) for each in shares
        ]
        assert ["a.example", "b.example"] == [each.name for each in await WaitingMail(pool).stats(by="domain")]
        assert [""] == [each.name for each in await WaitingMail(pool).stats(by="target")]

    async def test_paging_shows_each_once(self, deferred: Deferred) -> None:
        """Many that are due at the same time; the next page begins where the one before ended."""
        await asyncio.gather(*(deferred.defer(delivery(id=f"m{n}"), MESSAGE, LATER) for n in range(25)))
        seen, cursor = [], None
        while page := await deferred.matching(limit=10, after=cursor):
            seen += [each.message_id for each in page]
            cursor = page[-1].cursor
        assert sorted(f"m{n}" for n in range(25)) == sorted(seen)
        assert (25, 10) == (await deferred.count(), await deferred.count(at_most=10))


class Then(Publisher):
    """A publisher after so many of whose confirms something happens, while others wait."""

    def __init__(self, publisher: Publisher, happens: Callable[[], Awaitable[None]], *, after: int) -> None:
        super().__init__(publisher._link, timeout=publisher._timeout)
        self._happens = happens
        self._left = after
        self._over = asyncio.Event()
        self._over.set()

    async def raw(self, queue: str, body: bytes, **properties: Any) -> None:
        """Publish, and let it happen."""
        await self._over.wait()
        await super().raw(queue, body, **properties)
        self._left -= 1
        if self._left == 0:
            self._over.clear()
            await self._happens()
            self._over.set()


async def _killed(url: str, database: str, after: int) -> None:
    """Bounce everything, and die once so many reports are confirmed."""

    async def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    pool = Pool(database, name="dying")
    await pool.open()
    async with Link(url, name="dying") as link:
        await link.wait_up()
        await bounce(EVERYTHING, pool, settler_on(Then(Publisher(link), die, after=after), pool), who=WHO, emit=_ignore)


def _ignore(events: Sequence[Event]) -> None:
    del events


if __name__ == "__main__":
    asyncio.run(_killed(sys.argv[1], sys.argv[2], int(sys.argv[3])))
