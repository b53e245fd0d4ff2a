"""What a router makes of messages: deliveries by the rules, and everything else kept."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from shared.broker import topology
from shared.delivery.large import TRAVELS
from shared.mail import codec
from shared.mail.envelope import Delivery
from shared.mail.reply import Reply
from shared.mail.route import Route
from shared.mail.rule import make_rule
from shared.runtime.chance import new_id
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from shared.store.bodies import FREED, Bodies, Head
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from tests.integration.conftest import MESSAGE, NOON, Queues, Wire, delivery, through, until
from tests.integration.rooms import Router, running

pytestmark = [pytest.mark.anyio, pytest.mark.services]

RULES: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("a.example", "exact.example", {}),
    ("*.a.example", "suffix.example", {}),
    ("*.x.a.example", "longer.example:2525", {"transport": "smtp"}),
    ("[192.0.2.1]", "https://literal.example:8443/in", {"tls": "encrypt"}),
)


@pytest.fixture
async def router(settings: Settings) -> AsyncIterator[Router]:
    """A router that works."""
    async with running(settings) as router:
        yield router


async def rule(pool: Pool, key: str, target: str, **fields: object) -> None:
    """Save and release a rule."""
    await Overrides(pool).set(make_rule(key, target, **fields), actor="ann", release=True)  # type: ignore[arg-type] # by name


def ways(deliveries: list[tuple[Delivery, bytes]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return targets by recipients."""
    return {part.envelope.rcpt_to: part.route.targets for part, _ in deliveries}


class TestFanOut:
    """One delivery per domain and hundred recipients."""

    async def test_recipients_of_different_domains_part(self, router: Router, queues: Queues) -> None:
        """One delivery for each domain, however it is written; each with the whole message and its own recipients."""
        del router
        await queues.send("a@a.example", "b@b.example", "c@A.Example.", "a@a.example")
        found = dict([await queues.delivery(topology.SMTP) for _ in range(2)])
        assert {("a@a.example", "c@A.Example."), ("b@b.example",)} == {each.envelope.rcpt_to for each in found}
        assert {"a.example", "b.example"} == {each.domain for each in found}
        assert {MESSAGE} == set(found.values())
        assert 1 == len({each.id for each in found})

    async def test_a_thousand_recipients_part_by_the_hundred(self, router: Router, queues: Queues) -> None:
        """No delivery has more than a hundred recipients, and no recipient is lost or named twice."""
        del router
        recipients = [f"r{n}@a.example" for n in range(950)] + [f"r{n}@b.example" for n in range(50)]
        await queues.send(*recipients)
        found = [(await queues.delivery(topology.SMTP))[0] for _ in range(11)]
        assert [50, 50, *[100] * 9] == sorted(len(each.envelope.rcpt_to) for each in found)
        assert sorted(recipients) == sorted(address for each in found for address in each.envelope.rcpt_to)
        assert 0 == await queues.depth(topology.SMTP)

    async def test_what_the_sender_asked_for_travels(self, router: Router, queues: Queues) -> None:
        """Queue id, reverse-path and the DSN wishes of the ingress contract are in the delivery."""
        del router
        headers = {
            "mail_from": "",
            "rcpt_to": ["b@a.example"],
            "smtputf8": True,
            "envid": "QQ",
            "ret": "HDRS",
            "notify": "NEVER",
        }
        await queues.put(topology.OUTBOUND, MESSAGE, headers=headers, message_id="my-id")
        envelope = (await queues.delivery(topology.SMTP))[0].envelope
        assert ("my-id", "", True, "QQ", "HDRS", "NEVER") == (
            envelope.id,
            envelope.mail_from,
            envelope.smtputf8,
            envelope.envid,
            envelope.ret,
            envelope.notify,
        )
        assert 0 <= (now() - envelope.accepted_at).total_seconds() < 60


class TestRules:
    """The rules decide the way."""

    async def test_exact_then_longest_suffix_then_any(self, pool: Pool, settings: Settings, queues: Queues) -> None:
        """Design 4.2: precedence, transports and TLS of the rule that matches; without one the MX, by SMTP."""
        for key, target, fields in RULES:
            await rule(pool, key, target, **fields)
        by_smtp = ("b@x.x.a.example", "b@y.y.x.a.example", "b@nothing.example")
        by_https = ("b@A.example", "b@y.a.example", "b@x.a.example", "b@192.0.2.1")
        async with running(settings):
            await queues.send(*by_smtp, *by_https)
            smtp = [await queues.delivery(topology.SMTP) for _ in by_smtp]
            https = [await queues.delivery(topology.HTTPS) for _ in by_https]
            await rule(pool, "*", "any.example")
            await queues.event(b'{"version": 5}')
            await until(lambda: _applied(pool, 5))
            await queues.send("b@nothing.example", "b@a.example")
            anything = [await queues.delivery(topology.HTTPS) for _ in range(2)]
        longer = ("longer.example:2525",)
        assert {by_smtp[:1]: longer, by_smtp[1:2]: longer, by_smtp[2:]: ()} == ways(smtp)
        assert {
            ("b@A.example",): ("exact.example",),
            ("b@y.a.example",): ("suffix.example",),
            ("b@x.a.example",): ("suffix.example",),
            ("b@192.0.2.1",): ("https://literal.example:8443/in",),
        } == ways(https)
        assert {("b@nothing.example",): ("any.example",), ("b@a.example",): ("exact.example",)} == ways(anything)
        assert {(4, "encrypt")} == {(each.route.version, each.route.tls) for each, _ in https if each.route.tls}

    async def test_waiting_mail_takes_the_rules_of_the_moment(self, pool: Pool, router: Router, queues: Queues) -> None:
        """A rule made during an outage moves the mail that waits: the old route counts no more, the attempts do."""
        waiting = delivery(attempts=3, warned=True, reply=Reply(code=451), route=Route(version=0))
        await rule(pool, "a.example", "b.example")
        await queues.event(b"{}")
        await until(lambda: _applied(pool, 1))
        await queues.put(topology.REROUTE, codec.encode(waiting, MESSAGE))
        route = Route(version=1, key="a.example", targets=("b.example",))
        assert (waiting.but(route=route), MESSAGE) == await queues.delivery(topology.HTTPS)
        await Overrides(pool).remove("a.example", actor="ann", release=True)
        await queues.event(b"{}")
        await until(lambda: _applied(pool, 2))
        await queues.put(topology.REROUTE, codec.encode(waiting.but(route=route), MESSAGE))
        assert (waiting.but(route=Route(version=2)), MESSAGE) == await queues.delivery(topology.SMTP)
        del router


class TestLimbo:
    """Deliveries that waited in limbo while the store was away."""

    async def test_before_its_time_it_is_parked(self, pool: Pool, router: Router, queues: Queues) -> None:
        """`retry_at` in the future: into the store until then, and not to a worker."""
        del router
        at = now().replace(microsecond=0).replace(year=now().year + 1)
        await queues.put(topology.REROUTE, codec.encode(delivery(attempts=1, retry_at=at), MESSAGE))
        deferred = Deferred(pool)
        await until(lambda: _waits(deferred))
        [waiting] = await deferred.matching()
        assert at == waiting.next_attempt_at
        assert (delivery(attempts=1), MESSAGE) == await deferred.message(waiting.id)
        assert 0 == await queues.depth(topology.SMTP)
        assert 0 == await queues.depth(topology.REROUTE)

    async def test_after_its_time_it_is_routed(self, router: Router, queues: Queues) -> None:
        """`retry_at` in the past: it is due, and no longer marked."""
        del router
        await queues.put(
            topology.REROUTE, codec.encode(delivery(attempts=1, retry_at=NOON.replace(year=2020)), MESSAGE)
        )
        assert (delivery(attempts=1, route=Route(version=0)), MESSAGE) == await queues.delivery(topology.SMTP)


class TestBodies:
    """Bodies over the inline limit."""

    async def test_a_large_body_is_stored_once(self, pool: Pool, settings: Settings, queues: Queues) -> None:
        """All deliveries of a message refer to one stored body; one byte less travels along."""
        at_limit = MESSAGE.ljust(2000, b"x")
        async with running(settings.model_copy(update={"inline_body_limit": 2000})):
            await queues.send("b@a.example", "b@b.example", body=at_limit + b"y")
            parts = [await queues.delivery(topology.SMTP) for _ in range(2)]
            await queues.send("b@a.example", body=at_limit)
            inline = await queues.delivery(topology.SMTP)
        [reference] = {part.envelope.body_ref for part, _ in parts}
        assert reference is not None
        assert [b"", b""] == [body for _, body in parts]
        assert at_limit + b"y" == await Bodies(pool).get(reference)
        assert (None, at_limit) == (inline[0].envelope.body_ref, inline[1])
        async with pool.transaction() as connection:
            assert [(1,)] == await (await connection.execute("SELECT count(*) FROM bodies")).fetchall()

    async def test_whatever_the_limit_no_queue_gets_more_than_it_takes(
        self, pool: Pool, settings: Settings, queues: Queues
    ) -> None:
        """RabbitMQ 4 refuses 16 MiB: with a limit beyond that, what comes near is stored all the same."""
        large = MESSAGE.ljust(TRAVELS + 1, b"x")
        async with running(settings.model_copy(update={"inline_body_limit": 2**30})):
            await queues.send("b@a.example", body=large)
            part, body = await queues.delivery(topology.SMTP)
        assert b"" == body
        assert large == await Bodies(pool).get(str(part.envelope.body_ref))

    async def test_who_needs_a_body_is_noted_before_anything_is_published(
        self, pool: Pool, settings: Settings, queues: Queues
    ) -> None:
        """The deliveries end as they like, the body is freed with the last; a copy of the message has its own body."""
        recipients = ["b@a.example", "c@a.example", "b@b.example"]
        async with running(settings.model_copy(update={"inline_body_limit": 10})):
            for _ in range(2):
                await queues.send(*recipients)
            parts = [(await queues.delivery(topology.SMTP))[0].envelope for _ in range(4)]
        bodies = Bodies(pool)
        freed = [await bodies.end(str(each.body_ref), each.id, each.rcpt_to) for each in parts]
        assert 2 == sum(freed)
        assert {FREED} == {await bodies.get(str(each.body_ref)) for each in parts}


class TestReferences:
    """A front door that stored the body itself sends an empty message with `body_ref` (design 4.1)."""

    async def stored(self, pool: Pool, body: bytes = MESSAGE, *recipients: str) -> str:
        """Store a body as a front door does, and return its id."""
        reference = new_id()
        await Bodies(pool).put(reference, body, message_id="m1", recipients=recipients)
        return reference

    async def send(self, queues: Queues, reference: str, *rcpt_to: str, mail_from: str = "a@from.example") -> None:
        """Send the message m1."""
        headers = {"mail_from": mail_from, "rcpt_to": list(rcpt_to), "body_ref": reference}
        await queues.put(topology.OUTBOUND, b"", headers=headers, message_id="m1")

    async def routed(self, queues: Queues) -> None:
        """Return when the router has dealt with everything before this."""
        await queues.send("mark@mark.example")
        while (await queues.delivery(topology.SMTP))[0].domain != "mark.example":
            pass

    async def test_it_is_used_as_it_is_and_freed_in_the_end(self, pool: Pool, router: Router, queues: Queues) -> None:
        """As `pushpush send` does: who needs it was named when it was stored."""
        del router
        everybody = ("b@a.example", "b@b.example")
        reference = await self.stored(pool, MESSAGE, *everybody)
        await self.send(queues, reference, *everybody)
        one, other = [(await queues.delivery(topology.SMTP)) for _ in range(2)]
        assert {(reference, b"")} == {(part.envelope.body_ref, body) for part, body in (one, other)}
        assert not await Bodies(pool).end(reference, "m1", one[0].envelope.rcpt_to)
        assert await Bodies(pool).end(reference, "m1", other[0].envelope.rcpt_to)

    async def test_one_body_for_any_number_of_messages(self, pool: Pool, router: Router, queues: Queues) -> None:
        """VERP: the first one ends before the next one comes. Nobody said how many there are, so it stays.

        A copy of a message with an id is a double; one without may be another message, and is delivered.
        """
        del router
        reference = await self.stored(pool)
        for number, message_id in enumerate(("m1", "m2", "m2", None, None)):
            headers = {"mail_from": f"v{number}@from.example", "rcpt_to": ["b@a.example"], "body_ref": reference}
            await queues.put(topology.OUTBOUND, b"", headers=headers, message_id=message_id)
            if number == 2:
                continue
            envelope = (await queues.delivery(topology.SMTP))[0].envelope
            assert (f"v{number}@from.example", reference) == (envelope.mail_from, envelope.body_ref)
            assert not await Bodies(pool).end(reference, envelope.id, envelope.rcpt_to)
        assert MESSAGE == await Bodies(pool).get(reference)
        assert (0, 0) == (await queues.depth(topology.UNDECODABLE), await queues.depth(topology.SMTP))

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (MESSAGE.ljust(70_001, b"x"), "552 5.3.4"),
            (b"Received: by x\r\n" * 50 + MESSAGE, "554 5.4.6"),
        ],
    )
    async def test_size_and_hops_count_here_too(
        self, pool: Pool, settings: Settings, queues: Queues, body: bytes, status: str
    ) -> None:
        """Too large, or round in a circle: the sender gets the stored header back, once, and the body is freed."""
        reference = await self.stored(pool, body, "b@a.example", "b@b.example")
        async with running(settings.model_copy(update={"max_message_size": 70_000})):
            for _ in range(2):
                await self.send(queues, reference, "b@a.example", "b@b.example")
                await self.routed_reports(queues)
            reports = [await queues.take(topology.SMTP) for _ in range(await queues.depth(topology.SMTP))]
        assert 2 == len(reports)  # one for each domain
        for each in reports:
            report = codec.decode(each.body)
            assert ("", ("a@from.example",)) == (report[0].envelope.mail_from, report[0].envelope.rcpt_to)
            assert status[4:].encode() in report[1]
            assert b"\r\nSubject: hello\r\n" in report[1]
        assert FREED is await Bodies(pool).get(reference)
        assert 0 == await queues.depth(topology.UNDECODABLE)

    async def routed_reports(self, queues: Queues) -> None:
        """Return when the router has nothing in hand, twice over: what it reports it routes as well."""
        await asyncio.sleep(0.5)
        await until(lambda: _empty(queues))

    async def test_one_that_is_at_the_limit_passes(self, pool: Pool, settings: Settings, queues: Queues) -> None:
        """49 hops and the greatest size are good."""
        body = (b"Received: by x\r\n" * 49 + MESSAGE).ljust(70_000, b"x")
        reference = await self.stored(pool, body)
        async with running(settings.model_copy(update={"max_message_size": 70_000})):
            await self.send(queues, reference, "b@a.example")
            assert reference == (await queues.delivery(topology.SMTP))[0].envelope.body_ref

    async def test_a_body_that_is_not_there_is_told(self, router: Router, queues: Queues) -> None:
        """The message is set aside, whole: its headers are all there is of it."""
        del router
        await self.send(queues, "nowhere", "b@a.example")
        kept = await queues.take(topology.UNDECODABLE)
        assert "body nowhere is not in the store" == kept.headers["reason"]
        assert (b"", "nowhere", ["b@a.example"], "m1") == (
            kept.body,
            kept.headers["body_ref"],
            kept.headers["rcpt_to"],
            kept.headers["message_id"],
        )

    async def test_a_double_is_done_and_brings_nothing_back(self, pool: Pool, router: Router, queues: Queues) -> None:
        """A router that died before its ack has the message handed out again, when some or all have ended."""
        del router
        everybody = ("b@a.example", "c@a.example", "b@b.example")
        reference = await self.stored(pool, MESSAGE, *everybody)
        await self.send(queues, reference, *everybody)
        for _ in range(2):
            await queues.take(topology.SMTP)
        await Bodies(pool).end(reference, "m1", ["b@a.example", "b@b.example"])
        await self.send(queues, reference, *everybody)
        assert ("c@a.example",) == (await queues.delivery(topology.SMTP))[0].envelope.rcpt_to
        assert await Bodies(pool).end(reference, "m1", ["c@a.example"])
        await self.send(queues, reference, *everybody)
        await self.routed(queues)
        assert FREED is await Bodies(pool).get(reference)
        assert (0, 0) == (await queues.depth(topology.UNDECODABLE), await queues.depth(topology.SMTP))

    async def test_a_named_body_in_another_message(self, pool: Pool, router: Router, queues: Queues) -> None:
        """Who was named when it was stored finds it; a later message to others, once it is freed, is set aside."""
        del router
        reference = await self.stored(pool, MESSAGE, "b@a.example", "late@a.example")
        await self.send(queues, reference, "b@a.example")
        await queues.take(topology.SMTP)
        assert not await Bodies(pool).end(reference, "m1", ["b@a.example"])
        await self.send(queues, reference, "late@a.example")
        assert ("late@a.example",) == (await queues.delivery(topology.SMTP))[0].envelope.rcpt_to
        assert await Bodies(pool).end(reference, "m1", ["late@a.example"])
        await self.send(queues, reference, "stranger@a.example", "b@a.example")
        kept = await queues.take(topology.UNDECODABLE)
        assert "was freed before these had ended" in str(kept.headers["reason"])
        assert ["stranger@a.example", "b@a.example"] == kept.headers["rcpt_to"]

    async def test_while_the_store_is_away_it_is_passed_on(
        self, pool: Pool, settings: Settings, store_wire: Wire, queues: Queues, impatient: None
    ) -> None:
        """The worker waits for the body: here a few of them would stop all other mail. No body is lost by that."""
        del impatient
        named, shared = await self.stored(pool, MESSAGE, "b@a.example"), await self.stored(pool)
        url = through(settings.database_url, store_wire)
        async with running(settings.model_copy(update={"database_url": url, "prefetch": 2})):
            await store_wire.cut()
            for reference in (named, shared, shared):
                await self.send(queues, reference, "b@a.example")
            await queues.send("small@a.example")
            found = [(await queues.delivery(topology.SMTP))[0].envelope for _ in range(4)]
        assert [shared, shared, named, None] == sorted(
            (each.body_ref for each in found), key=[shared, named, None].index
        )
        assert not await Bodies(pool).end(shared, "m1", ["b@a.example"])
        assert await Bodies(pool).end(named, "m1", ["b@a.example"])


class TestReconnect:
    """Messages that were in hand when the connection to the broker was lost."""

    @pytest.mark.parametrize("offered", [False, True])
    async def test_the_body_of_one_that_comes_back_under_a_new_id(
        self,
        pool: Pool,
        settings: Settings,
        broker_wire: Wire,
        queues: Queues,
        *,
        monkeypatch: pytest.MonkeyPatch,
        offered: bool,
    ) -> None:
        """It is freed, unless a delivery that refers to it may be in a queue: then it is left to the pruning."""
        url = through(settings.amqp_url, broker_wire)
        if not offered:
            monkeypatch.setattr("workers.router.__main__.Bodies", _Lingering)
        async with running(settings.model_copy(update={"amqp_url": url, "inline_body_limit": 10})):
            if offered:
                await queues.channel.queue_delete(topology.SMTP)  # whatever is published there comes back
            await queues.send("b@a.example")
            await until(lambda: _there(pool, {True}))
            await asyncio.sleep(0.3)
            await broker_wire.cut()
            await topology.declare(queues.channel)
            await broker_wire.mend()
            envelope = (await queues.delivery(topology.SMTP, within=20))[0].envelope
            await Bodies(pool).end(str(envelope.body_ref), envelope.id, envelope.rcpt_to)
            await until(lambda: _there(pool, {offered, False}, count=2))


class _Lingering(Bodies):
    """Takes its time after a body is stored."""

    async def put(
        self,
        id: str,  # noqa: A002
        body: bytes,
        *,
        message_id: str = "",
        recipients: Sequence[str] = (),
    ) -> Head:
        """Store it."""
        head = await super().put(id, body, message_id=message_id, recipients=recipients)
        await asyncio.sleep(1)
        return head


async def _there(pool: Pool, there: set[bool], count: int = 1) -> bool:
    """Say whether so many bodies were stored, and are there, or were freed."""
    async with pool.transaction() as connection:
        rows = await (await connection.execute("SELECT body IS NOT NULL FROM bodies")).fetchall()
    return (count, there) == (len(rows), {bool(each) for (each,) in rows})


GOOD: dict[str, object] = {"mail_from": "a@from.example", "rcpt_to": ["b@a.example"]}
BAD: dict[str, tuple[dict[str, object], bytes, dict[str, object]]] = {
    "mail_from is missing": ({"rcpt_to": ["b@a.example"]}, MESSAGE, {}),
    "mail_from is of type": (GOOD | {"mail_from": 7}, MESSAGE, {}),
    "has a control character": (GOOD | {"mail_from": "a\r\nb@from.example"}, MESSAGE, {}),
    "rcpt_to is missing": ({"mail_from": ""}, MESSAGE, {}),
    "rcpt_to is of type": (GOOD | {"rcpt_to": "b@a.example"}, MESSAGE, {}),
    "rcpt_to has 0": (GOOD | {"rcpt_to": []}, MESSAGE, {}),
    "rcpt_to has 1001": (GOOD | {"rcpt_to": [f"b{n}@a.example" for n in range(1001)]}, MESSAGE, {}),
    "has no domain": (GOOD | {"rcpt_to": ["b"]}, MESSAGE, {}),
    "smtputf8 is of type": (GOOD | {"smtputf8": "yes"}, MESSAGE, {}),
    "ret is 'ALL'": (GOOD | {"ret": "ALL"}, MESSAGE, {}),
    "notify is malformed": (GOOD | {"notify": "NEVER,DELAY"}, MESSAGE, {}),
    "content_type is": (GOOD, MESSAGE, {"content_type": "application/json"}),
    "message_id": (GOOD, MESSAGE, {"message_id": "two words"}),
    "the body is empty": (GOOD, b"", {}),
    "both a body and a body_ref": (GOOD | {"body_ref": "one"}, MESSAGE, {}),
}


class TestUndecodable:
    """What does not keep the contract is kept, whole, with the reason."""

    async def test_every_fault_of_the_contract(self, router: Router, queues: Queues) -> None:
        """Reason, bytes and headers stand in `mail.undecodable`; nothing is delivered, and the router goes on."""
        del router
        for reason, (headers, body, properties) in BAD.items():
            await queues.put(topology.OUTBOUND, body, headers=headers, **properties)
            message = await queues.take(topology.UNDECODABLE)
            assert reason in str(message.headers["reason"])
            kept = {name: value for name, value in message.headers.items() if name in headers}
            assert (body, headers) == (message.body, kept)
        await queues.send("b@a.example")
        assert ("b@a.example",) == (await queues.delivery(topology.SMTP))[0].envelope.rcpt_to
        assert 0 == await queues.depth(topology.SMTP)

    async def test_garbage_among_the_deliveries(self, router: Router, queues: Queues) -> None:
        """Bytes on `mail.reroute` that are no delivery are set aside, and the next one is routed."""
        del router
        await queues.put(topology.REROUTE, b"\x01\xff\xff\xff\xff{}")
        await queues.put(topology.REROUTE, codec.encode(delivery(), MESSAGE))
        assert b"\x01\xff\xff\xff\xff{}" == (await queues.take(topology.UNDECODABLE)).body
        assert "b@a.example" == (await queues.delivery(topology.SMTP))[0].envelope.rcpt_to[0]


async def _applied(pool: Pool, version: int) -> bool:
    async with pool.transaction() as connection:
        rows = await (await connection.execute("SELECT min(applied) FROM routers")).fetchall()
    return rows == [(version,)]


async def _waits(deferred: Deferred) -> bool:
    await asyncio.sleep(0)
    return bool(await deferred.matching())


async def _empty(queues: Queues) -> bool:
    return await queues.depth(topology.OUTBOUND) == 0
