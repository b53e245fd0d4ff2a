"""Dispositions made true on a real broker and a real store."""

import email
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.message import Message

import pytest
from aio_pika.abc import AbstractIncomingMessage
from pamqp.common import FieldTable

from shared.broker import topology
from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.mail import codec
from shared.mail.disposition import Bounce, Disposition, Done, Drop, FallBack, NextTarget, RetryAt, Wait
from shared.mail.envelope import Delivery
from shared.mail.reply import Reply
from shared.mail.retry import Schedule, parse_waits
from shared.mail.route import Route
from shared.runtime.errors import BrokerUnavailable
from shared.store.deferred import Deferred
from shared.store.pool import Pool
from tests.integration.conftest import MESSAGE, NOON, Queues, Wire, delivery, through

pytestmark = [pytest.mark.anyio, pytest.mark.services]

AT = NOON + timedelta(minutes=5)
SCHEDULE = Schedule(waits=parse_waits("1m"))
LATER = Reply(code=451, enhanced="4.7.1", text="greylisted", mta="mx.a.example")
NEVER = Reply(code=550, enhanced="5.1.1", text="no such user", mta="mx.a.example")
HOSTNAME = "mail.pushpush.example"


@pytest.fixture
def deferred(pool: Pool) -> Deferred:
    """Waiting mail, none yet."""
    return Deferred(pool)


@pytest.fixture
def settler(publisher: Publisher, deferred: Deferred) -> Settler:
    """A settler whose clock stands at noon."""
    return Settler(publisher, deferred, hostname=HOSTNAME, schedule=SCHEDULE, clock=lambda: NOON)


@pytest.fixture
async def away(store_wire: Wire, database: str) -> AsyncIterator[Deferred]:
    """A store that cannot be reached."""
    await store_wire.cut()
    pool = Pool(through(database, store_wire), name="test", timeout=0.2)
    await pool.open()
    yield Deferred(pool)
    await pool.close()


async def settle(settler: Settler, part: Delivery, verdict: Disposition, body: bytes = MESSAGE) -> list[str]:
    """Settle with one verdict for all recipients; return those for whom that was the end."""
    return await settler.settle(part, body, dict.fromkeys(part.envelope.rcpt_to, verdict))


async def waits(deferred: Deferred) -> list[tuple[Delivery, bytes, datetime]]:
    """Return what waits, whole, and until when."""
    found = []
    for each in await deferred.matching():
        whole = await deferred.message(each.id)
        assert whole is not None
        found.append((*whole, each.next_attempt_at))
    return found


async def depths(queues: Queues) -> dict[str, int]:
    """Return the queues that are not empty."""
    found = {name: await queues.depth(name) for name in topology.QUEUES}
    return {name: depth for name, depth in found.items() if depth}


class Report:
    """A report as the ingress contract and RFC 3464 have it."""

    def __init__(self, message: AbstractIncomingMessage) -> None:
        self.envelope = codec.from_ingress(
            message.body,
            message.headers,
            content_type=message.content_type,
            message_id=message.message_id,
            new_id="not used",
            now=datetime.now(UTC),
        )
        self.mail = email.message_from_bytes(message.body)
        parts = [part for part in self.mail.walk() if part.get_content_type() == "message/delivery-status"]
        self.blocks: list[Message] = list(parts[0].walk())[1:]


class TestVerdicts:
    """Each disposition, one by one."""

    @pytest.mark.parametrize("verdict", [Done(Reply(code=250)), Drop(NEVER), Drop(LATER, expired=True)])
    async def test_nothing_is_left_to_do(
        self, settler: Settler, deferred: Deferred, queues: Queues, verdict: Disposition
    ) -> None:
        """Delivered, or given up in silence: nothing is stored and nothing published."""
        await settle(settler, delivery(), verdict)
        assert ({}, []) == (await depths(queues), await waits(deferred))

    async def test_a_quick_retry_keeps_the_attempt_open(self, settler: Settler, deferred: Deferred) -> None:
        """`quick` counts, `attempts` does not, and the last answer is kept."""
        await settle(settler, delivery(attempts=2, quick=1), RetryAt(AT, LATER, quick=True))
        assert [(delivery(attempts=2, quick=2, reply=LATER), MESSAGE, AT)] == await waits(deferred)

    async def test_a_retry_ends_the_attempt(self, settler: Settler, deferred: Deferred, queues: Queues) -> None:
        """`attempts` counts, `quick` starts anew, nobody is told."""
        await settle(settler, delivery(attempts=2, quick=1), RetryAt(AT, LATER))
        assert [(delivery(attempts=3, reply=LATER), MESSAGE, AT)] == await waits(deferred)
        assert {} == await depths(queues)

    async def test_a_retry_with_a_warning_tells_the_sender_once(
        self, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """The sender gets a report of the delay; the delivery remembers that it was warned of."""
        await settle(settler, delivery(attempts=9), RetryAt(AT, LATER, warn=True))
        assert [(delivery(attempts=10, reply=LATER, warned=True), MESSAGE, AT)] == await waits(deferred)
        report = Report(await queues.take(topology.OUTBOUND))
        assert ("", ("a@from.example",)) == (report.envelope.mail_from, report.envelope.rcpt_to)
        assert ("delayed", "4.7.1") == (report.blocks[1]["Action"], report.blocks[1]["Status"])
        assert report.blocks[1]["Will-Retry-Until"]

    async def test_falling_back_hands_it_to_the_smtp_workers(self, settler: Settler, queues: Queues) -> None:
        """The same attempt goes on by SMTP, with the whole message."""
        await settle(settler, delivery(attempts=2, quick=2), FallBack(LATER))
        assert (delivery(attempts=2, reply=LATER), MESSAGE) == await queues.delivery(topology.SMTP)

    async def test_the_next_target_is_handed_to_the_https_workers(
        self, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """The same attempt goes on at the next target, with the whole message and only there."""
        route = Route(version=1, key="a.example", targets=("b.example", "c.example", "d.example"))
        left = Route(version=1, key="a.example", targets=("c.example", "d.example"))
        await settle(settler, delivery(attempts=2, quick=2, route=route), NextTarget(LATER))
        assert (delivery(attempts=2, reply=LATER, route=left), MESSAGE) == await queues.delivery(topology.HTTPS)
        assert ({}, []) == (await depths(queues), await waits(deferred))

    async def test_falling_back_and_quick_tries_stay_at_their_target(
        self, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """It is the same attempt; a retry is the next one, and the router has it begin at the first target."""
        rule = Route(version=1, key="a.example", targets=("b.example", "c.example"))
        part = delivery(route=rule).at_next_target()
        await settle(settler, part, FallBack(LATER))
        assert (part.but(reply=LATER), MESSAGE) == await queues.delivery(topology.SMTP)
        await settle(settler, part, RetryAt(AT, LATER, quick=True))
        await settle(settler, part, RetryAt(AT, LATER))
        assert [(("c.example",), 0, 1), (("b.example", "c.example"), 1, 0)] == [
            (each.rerouted(rule).route.targets, each.attempts, each.quick) for each, _, _ in await waits(deferred)
        ]

    async def test_a_stored_body_does_not_travel(self, settler: Settler, deferred: Deferred, queues: Queues) -> None:
        """A delivery with a body reference stays small, in the queue and in the table."""
        part = delivery(body_ref="one")
        await settle(settler, part, FallBack(LATER))
        await settle(settler, part, RetryAt(AT, LATER))
        assert (part.but(reply=LATER), b"") == await queues.delivery(topology.SMTP)
        assert [(part.but(reply=LATER, attempts=1), b"", AT)] == await waits(deferred)

    async def test_a_bounce_goes_back_as_a_report(self, settler: Settler, queues: Queues) -> None:
        """From the null reverse-path, through `mail.outbound` by its contract, with the recipients and the reason."""
        part = delivery("b@a.example", "c@a.example", envid="QQ314159")
        await settle(settler, part, Bounce(NEVER))
        report = Report(await queues.take(topology.OUTBOUND))
        assert ("", ("a@from.example",)) == (report.envelope.mail_from, report.envelope.rcpt_to)
        assert report.envelope.is_report
        assert "multipart/report" == report.mail.get_content_type()
        assert "QQ314159" == report.blocks[0]["Original-Envelope-Id"]
        assert [
            ("rfc822; b@a.example", "failed", "5.1.1"),
            ("rfc822; c@a.example", "failed", "5.1.1"),
        ] == [(each["Final-Recipient"], each["Action"], each["Status"]) for each in report.blocks[1:]]
        assert {} == await depths(queues)

    async def test_an_expired_bounce_says_that_time_ran_out(self, settler: Settler, queues: Queues) -> None:
        """4.4.7, with the last answer beside it."""
        await settle(settler, delivery(), Bounce(LATER, expired=True))
        block = Report(await queues.take(topology.OUTBOUND)).blocks[1]
        assert "4.4.7" == block["Status"]
        assert "greylisted" in block["Diagnostic-Code"]

    async def test_each_recipient_gets_its_own_verdict(
        self, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """Delivered, deferred and refused in one delivery: one row for the deferred, one report for the refused."""
        part = delivery("ok@a.example", "later@a.example", "never@a.example", "later2@a.example")
        later = RetryAt(AT, LATER)
        ended = await settler.settle(
            part,
            MESSAGE,
            {
                "ok@a.example": Done(Reply(code=250)),
                "later@a.example": later,
                "never@a.example": Bounce(NEVER),
                "later2@a.example": later,
            },
        )
        [(waiting, _, _)] = await waits(deferred)
        assert ["ok@a.example", "never@a.example"] == ended
        assert ("later@a.example", "later2@a.example") == waiting.envelope.rcpt_to
        report = Report(await queues.take(topology.OUTBOUND))
        assert ["rfc822; never@a.example"] == [each["Final-Recipient"] for each in report.blocks[1:]]
        assert {} == await depths(queues)

    @pytest.mark.parametrize(
        ("verdict", "ends"),
        [
            (Done(Reply(code=250)), True),
            (Done(Reply(code=250), relayed=True), True),
            (Drop(NEVER), True),
            (Bounce(NEVER), True),
            (Bounce(LATER, expired=True), True),
            (FallBack(LATER), False),
            (NextTarget(LATER), False),
            (Wait(AT, LATER, "smtp"), False),
            (RetryAt(AT, LATER), False),
            (RetryAt(AT, LATER, quick=True), False),
            (RetryAt(AT, LATER, warn=True), False),
        ],
    )
    async def test_what_ends_a_delivery(self, settler: Settler, verdict: Disposition, ends: bool) -> None:
        """Only who has it, or is given up, needs the message no longer."""
        part = delivery("b@a.example", "c@a.example", route=Route(version=1, targets=("b.example", "c.example")))
        assert (["b@a.example", "c@a.example"] if ends else []) == await settle(settler, part, verdict)


def refused(*recipients: str) -> dict[str, Disposition]:
    """Return the verdicts on recipients whom a host refused, each by name."""
    return {
        each: Bounce(Reply(code=550, enhanced="5.1.1", text=f"<{each}>: no such user", mta="mx.a.example"))
        for each in recipients
    }


class TestReports:
    """One report for each kind of news, however many things the hosts said (RFC 3464 2.1)."""

    async def test_a_hundred_refusals_are_one_report(self, settler: Settler, queues: Queues) -> None:
        """Hosts name the recipient in their words; a hundred reports with the whole message each would be a flood."""
        verdicts = refused(*(f"user{number}@a.example" for number in range(100)))
        part = delivery(*verdicts, ret="FULL")
        assert list(verdicts) == await settler.settle(part, MESSAGE, verdicts)
        report = Report(await queues.take(topology.OUTBOUND))
        assert [(f"rfc822; {each}", f"smtp; 550 5.1.1 <{each}>: no such user") for each in verdicts] == [
            (block["Final-Recipient"], "".join(block["Diagnostic-Code"].splitlines())) for block in report.blocks[1:]
        ]
        assert {} == await depths(queues)

    async def test_failed_late_and_relayed_are_one_report_each(
        self, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """Each with its own recipients only, whatever was answered; who has it or waits unwarned is in none."""
        later = Reply(code=451, enhanced="4.7.1", text="<late2@a.example>: greylisted", mta="mx.a.example")
        verdicts: dict[str, Disposition] = {
            "ok@a.example": Done(Reply(code=250)),
            "late@a.example": RetryAt(AT, LATER, warn=True),
            "passed@a.example": Done(Reply(code=250, text="1"), relayed=True),
            "never@a.example": Bounce(NEVER),
            "late2@a.example": RetryAt(AT, later, warn=True),
            "passed2@a.example": Done(Reply(code=250, text="2"), relayed=True),
            "expired@a.example": Bounce(LATER, expired=True),
            "room@a.example": Wait(AT, LATER, "smtp", warn=True),
            "soon@a.example": RetryAt(AT, LATER),
            "silent@a.example": Drop(NEVER),
        }
        ended = await settler.settle(delivery(*verdicts), MESSAGE, verdicts)
        reports = [Report(await queues.take(topology.OUTBOUND)) for _ in range(3)]
        assert [
            [("never@a.example", "failed", "5.1.1"), ("expired@a.example", "failed", "4.4.7")],
            [(f"{each}@a.example", "delayed", "4.7.1") for each in ("late", "late2", "room")],
            [("passed@a.example", "relayed", "2.0.0"), ("passed2@a.example", "relayed", "2.0.0")],
        ] == [
            [(block["Final-Recipient"][8:], block["Action"], block["Status"]) for block in report.blocks[1:]]
            for report in reports
        ]
        assert {} == await depths(queues)
        waiting = {part.envelope.rcpt_to: part.warned for part, _, _ in await waits(deferred)}
        assert {each: each != ("soon@a.example",) for each in waiting} == waiting
        assert 4 == len(waiting)
        names = ("ok", "passed", "never", "passed2", "expired", "silent")
        assert [f"{each}@a.example" for each in names] == ended

    async def test_a_courtesy_can_be_left_for_later(self, settler: Settler, deferred: Deferred, queues: Queues) -> None:
        """Who settles verdict by verdict tells the sender of all in the end, once."""
        verdicts: dict[str, Disposition] = {
            "a@a.example": RetryAt(AT, LATER, warn=True),
            "b@a.example": RetryAt(AT, NEVER, warn=True),
        }
        part = delivery(*verdicts)
        for recipient, verdict in verdicts.items():
            assert [] == await settler.carry_out(part, MESSAGE, {recipient: verdict})
        assert {} == await depths(queues)
        assert [True, True] == [each.warned for each, _, _ in await waits(deferred)]
        await settler.tell(part, MESSAGE, verdicts)
        assert 3 == len(Report(await queues.take(topology.OUTBOUND)).blocks)
        assert {} == await depths(queues)

    async def test_a_report_that_is_not_confirmed_leaves_the_rest_undone(
        self, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """The caller settles again: what was stored or handed on before would be delivered twice."""
        await queues.channel.queue_delete(topology.OUTBOUND)
        verdicts: dict[str, Disposition] = {
            "fall@a.example": FallBack(LATER),
            "a@a.example": RetryAt(AT, LATER),
            **refused("b@a.example"),
        }
        with pytest.raises(BrokerUnavailable):
            await settler.settle(delivery(*verdicts), MESSAGE, verdicts)
        await topology.declare(queues.channel)
        assert ({}, []) == (await depths(queues), await waits(deferred))

    async def test_what_is_not_handed_on_leaves_what_waits_undone(
        self, settler: Settler, deferred: Deferred, queues: Queues
    ) -> None:
        """Only the report is there twice, when the caller settles again."""
        await queues.channel.queue_delete(topology.SMTP)
        verdicts: dict[str, Disposition] = {
            "a@a.example": RetryAt(AT, LATER),
            "fall@a.example": FallBack(LATER),
            **refused("b@a.example"),
        }
        with pytest.raises(BrokerUnavailable):
            await settler.settle(delivery(*verdicts), MESSAGE, verdicts)
        await topology.declare(queues.channel)
        assert [] == await waits(deferred)
        await settler.settle(delivery(*verdicts), MESSAGE, verdicts)
        assert {topology.OUTBOUND: 2, topology.SMTP: 1} == await depths(queues)
        assert 1 == len(await waits(deferred))

    @pytest.mark.parametrize("verdict", [RetryAt(AT, LATER, warn=True), Done(Reply(code=250), relayed=True)])
    async def test_a_courtesy_that_cannot_be_sent_holds_nothing_up(
        self, settler: Settler, queues: Queues, verdict: Disposition
    ) -> None:
        """To settle again for its sake would store or deliver the mail twice."""
        await queues.channel.queue_delete(topology.OUTBOUND)
        await settle(settler, delivery(), verdict)
        await topology.declare(queues.channel)
        assert {} == await depths(queues)

    async def test_a_courtesy_that_cannot_be_written_holds_nothing_up(
        self, publisher: Publisher, deferred: Deferred, queues: Queues
    ) -> None:
        """A fault of our own is no more reason to settle again; a refusal must be told, and raises."""

        def broken() -> datetime:
            raise ValueError("a fault of our own")

        settler = Settler(publisher, deferred, hostname=HOSTNAME, schedule=SCHEDULE, clock=broken)
        await settle(settler, delivery(), RetryAt(AT, LATER, warn=True))
        assert 1 == len(await waits(deferred))
        with pytest.raises(ValueError, match="of our own"):
            await settle(settler, delivery(), Bounce(NEVER))
        assert {} == await depths(queues)


class TestAway:
    """Store or broker away: late, never lost."""

    async def test_while_the_store_is_away_a_delivery_waits_in_limbo(
        self, publisher: Publisher, away: Deferred, queues: Queues
    ) -> None:
        """Whole, with the time of its next attempt; the attempt counts."""
        settler = Settler(publisher, away, hostname=HOSTNAME, schedule=SCHEDULE)
        await settle(settler, delivery(), RetryAt(AT, LATER))
        assert (delivery(attempts=1, reply=LATER, retry_at=AT), MESSAGE) == await queues.delivery(topology.LIMBO)

    async def test_with_store_and_broker_away_it_stays_in_its_queue(
        self, publisher: Publisher, away: Deferred, queues: Queues
    ) -> None:
        """BrokerUnavailable: the caller must not ack."""
        await queues.channel.queue_delete(topology.LIMBO)
        settler = Settler(publisher, away, hostname=HOSTNAME, schedule=SCHEDULE)
        with pytest.raises(BrokerUnavailable):
            await settle(settler, delivery(), RetryAt(AT, LATER))

    async def test_limbo_leads_back_to_the_router(self, queues: Queues) -> None:
        """A queue with limbo's arguments, only less patient, hands its messages whole to `mail.reroute`, by itself."""
        hasty: FieldTable = {**topology.QUEUES[topology.LIMBO], "x-message-ttl": 50}
        name = (await queues.channel.declare_queue("test.hasty", durable=True, arguments=hasty)).name
        try:
            await queues.put(name, codec.encode(delivery(retry_at=AT), MESSAGE))
            assert (delivery(retry_at=AT), MESSAGE) == await queues.delivery(topology.REROUTE)
        finally:
            await (await queues.channel.get_queue(name)).delete(if_unused=False, if_empty=False)

    async def test_what_is_handed_out_too_often_is_set_aside(self, queues: Queues) -> None:
        """A work queue's arguments: after the delivery limit a message is set aside, not handed out for ever."""
        hasty: FieldTable = {**topology.QUEUES[topology.SMTP], "x-delivery-limit": 2}
        queue = await queues.channel.declare_queue("test.hasty2", durable=True, arguments=hasty)
        try:
            await queues.put(queue.name, b"poison")
            for _ in range(3):
                message = await queue.get(timeout=5)
                await message.nack(requeue=True)
            assert b"poison" == (await queues.take(topology.UNDECODABLE)).body
        finally:
            await queue.delete(if_unused=False, if_empty=False)


async def test_set_aside_keeps_bytes_headers_and_reason(settler: Settler, queues: Queues) -> None:
    """What cannot be read is kept whole, beside the headers that were there, with the reason."""
    data = bytes(range(256))
    headers = {"mail_from": "x", "n": 7, "l": ["a", {"b": None}], "raw": bytearray(b"\xff")}
    await settler.set_aside(data, "the header cannot be read", headers, "id-1")
    message = await queues.take(topology.UNDECODABLE)
    assert data == message.body
    kept = {name: value for name, value in message.headers.items() if name != "x-delivery-count"}  # the broker's own
    assert headers | {"reason": "the header cannot be read", "message_id": "id-1"} == kept
