"""A rule with several targets, through both delivery workers: the operator's order, and nobody gets mail twice.

The transports are real, against real peers; the jobs are taken from the real queues one by one.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta

import msgspec
import pytest

from shared.broker import topology
from shared.broker.dramatiq_broker import Job
from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.delivery.actor import Actor, Deliver
from shared.mail import codec
from shared.mail.envelope import Delivery
from shared.mail.outcome import Outcome
from shared.mail.retry import Schedule, parse_waits
from shared.mail.route import Route, Transport
from shared.mail.rule import make_rule
from shared.runtime.settings import Settings
from shared.store.bodies import Bodies
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from tests.integration.conftest import MESSAGE, NOON, Queues, delivery
from tests.integration.rooms import running
from tests.peers import answers
from tests.peers.dns import DnsPeer
from tests.peers.mxdeliv import MxdelivPeer, free_port
from tests.peers.smtp import END_OF_DATA, Behaviour, ScriptedSmtpPeer
from workers.https.transport import open_transport as open_https
from workers.smtp.transport import open_transport as open_smtp

pytestmark = [pytest.mark.anyio, pytest.mark.services]

SCHEDULE = Schedule(waits=parse_waits("1m"), quick=parse_waits("2s,10s"))
B, C = "127.0.0.2", "127.0.0.3"  # the hosts of the two targets; both speak SMTP, or not, on one port


class OldHttps:
    """The https transport of the previous release: it goes through all the targets it is given, also with `auto`."""

    def __init__(self, now: Deliver) -> None:
        self._now = now

    async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """With a route for HTTPS alone the transport of today does just that."""
        route = msgspec.structs.replace(delivery.route, transport="https")
        return await self._now.deliver(delivery.but(route=route), message)


class Workers:
    """Both delivery workers, one job at a time."""

    def __init__(
        self,
        queues: Queues,
        pool: Pool,
        actors: Mapping[str, Actor],
        *,
        old_https: Actor,
        smtp_port: int,
        https_port: int,
    ) -> None:
        self.queues = queues
        self.deferred = Deferred(pool)
        self.smtp_port = smtp_port
        self.https_port = https_port
        self.jobs: list[tuple[str, int]] = []
        self.targets = tuple(f"http://{host}:{https_port}/mxdeliv" for host in (B, C))
        self._actors = dict(actors)
        self._old_https = old_https

    def old_https(self) -> None:
        """Put the https worker of the previous release in the place of today's."""
        self._actors[topology.HTTPS] = self._old_https

    async def deliver(self, part: Delivery, *, first: str = topology.HTTPS) -> list[tuple[str, int]]:
        """Hand in a delivery; return the queues and targets it went through until none has it any more."""
        self.jobs = []
        await self.queues.put(first, codec.encode(part, MESSAGE))
        while await self._step():
            assert len(self.jobs) < 20, "it goes round and round"
        return self.jobs

    async def _step(self) -> bool:
        for name, actor in self._actors.items():
            if await self.queues.depth(name):
                body = (await self.queues.take(name)).body
                self.jobs.append((name.removeprefix("deliver."), self._turn(codec.decode(body)[0])))
                await actor(Job(body=body, message_id="", stale=lambda: False))
                return True
        return False

    def _turn(self, part: Delivery) -> int:
        """Return which of the rule's targets has its turn, from 0."""
        return self.delivery().route.targets.index(part.route.targets[0])

    async def waiting(self) -> list[Delivery]:
        """Return what waits for its next attempt, on the route that the router will give it."""
        found = [await self.deferred.message(each.id) for each in await self.deferred.matching()]
        rule = self.delivery().route
        return [
            whole[0].rerouted(msgspec.structs.replace(rule, transport=whole[0].route.transport))
            for whole in found
            if whole is not None
        ]

    def turns(self, *parts: Delivery) -> list[tuple[int, int]]:
        """Return at which target each begins, and after how many attempts."""
        return [(self._turn(each), each.attempts) for each in parts]

    def smtp(self, host: str, *behaviours: Behaviour) -> ScriptedSmtpPeer:
        """Return a host that speaks SMTP."""
        return ScriptedSmtpPeer(*behaviours, host=host, port=self.smtp_port)

    def mxdeliv(self, host: str, answer: answers.Answer = answers.MADMAIL_OK) -> MxdelivPeer:
        """Return a host that speaks mxdeliv."""
        return MxdelivPeer(host=host, port=self.https_port, answer=answer)

    def delivery(self, *rcpt_to: str, transport: Transport = "auto", **fields: object) -> Delivery:
        """Return a delivery on a rule for B and then C, or for other `targets`."""
        route = Route(version=1, key="a.example", targets=self.targets, transport=transport)
        return delivery(*rcpt_to, route=route, **fields)


@pytest.fixture
async def workers(publisher: Publisher, pool: Pool, queues: Queues) -> AsyncIterator[Workers]:
    """Both workers at noon, and nobody at either target yet."""
    smtp_port, https_port = free_port(B), free_port(B)
    async with contextlib.AsyncExitStack() as stack:
        dns = await stack.enter_async_context(DnsPeer())
        settings = Settings(
            amqp_url="amqp://unused",
            database_url="postgresql://unused",
            dns_servers=((dns.host, dns.port),),
            smtp_port=smtp_port,
        )
        settler = Settler(publisher, Deferred(pool), hostname="h.example", schedule=SCHEDULE, clock=lambda: NOON)

        def actor(by: Transport, transport: Deliver) -> Actor:
            assert by != "auto"
            return Actor(
                by,
                transport,
                settler,
                Bodies(pool),
                hostname="h.example",
                schedule=SCHEDULE,
                clock=lambda: NOON,
                dice=lambda: 0.0,
            )

        https = await stack.enter_async_context(open_https(settings))
        actors = {
            topology.HTTPS: actor("https", https),
            topology.SMTP: actor("smtp", await stack.enter_async_context(open_smtp(settings))),
        }
        old = actor("https", OldHttps(https))
        yield Workers(queues, pool, actors, old_https=old, smtp_port=smtp_port, https_port=https_port)


async def test_a_dead_target_is_passed_over(workers: Workers) -> None:
    """B has its turn by both transports, then C gets it by HTTPS, once, and nothing is left."""
    async with workers.mxdeliv(C) as c:
        way = await workers.deliver(workers.delivery("b@a.example", "c@a.example"))
        assert [("https", 0), ("smtp", 0), ("https", 1)] == way
        assert [("b@a.example", "c@a.example")] == [each.rcpt_to for each in c.received]
    assert [] == await workers.waiting()


async def test_the_first_target_by_smtp_goes_before_the_second_by_https(workers: Workers) -> None:
    """B is well and speaks only SMTP: the operator wants the mail there, and C is not even connected to."""
    async with workers.smtp(B) as b, workers.mxdeliv(C) as c, workers.smtp(C) as c_smtp:
        assert [("https", 0), ("smtp", 0)] == await workers.deliver(workers.delivery())
        assert (1, 0, 0) == (len(b.received), c.connections, c_smtp.connections)
    assert [] == await workers.waiting()


async def test_the_last_way_is_the_second_target_by_smtp(workers: Workers) -> None:
    """All four ways, in order."""
    async with workers.smtp(C) as c:
        way = await workers.deliver(workers.delivery())
        assert [("https", 0), ("smtp", 0), ("https", 1), ("smtp", 1)] == way
        assert 1 == len(c.received)


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", END_OF_DATA])
@pytest.mark.parametrize(("reply", "left"), [("550 5.7.1 no", (0, 1)), ("451 4.7.1 later", (1, 0))])
async def test_a_refusal_is_not_taken_elsewhere(
    workers: Workers, queues: Queues, verb: str, reply: str, left: tuple[int, int]
) -> None:
    """B has decided; C gets nothing."""
    async with workers.smtp(B, Behaviour(replies={verb: reply})), workers.mxdeliv(C) as c, workers.smtp(C) as c_smtp:
        assert [("https", 0), ("smtp", 0)] == await workers.deliver(workers.delivery())
        assert (0, 0) == (c.connections, c_smtp.connections)
    assert left == (len(await workers.waiting()), await queues.depth(topology.OUTBOUND))


async def test_a_refusal_by_https_is_not_taken_elsewhere(workers: Workers, queues: Queues) -> None:
    """Nor to the same host by SMTP."""
    async with workers.mxdeliv(B, answers.FILTERMAIL_REFUSED), workers.smtp(B) as b, workers.mxdeliv(C) as c:
        assert [("https", 0)] == await workers.deliver(workers.delivery())
        assert (0, 0) == (b.connections, c.connections)
    assert ([], 1) == (await workers.waiting(), await queues.depth(topology.OUTBOUND))


async def test_what_the_first_target_may_have_taken_is_not_given_to_the_second(workers: Workers) -> None:
    """B hung up when it had the message: it waits, and begins at B again."""
    async with workers.smtp(B, Behaviour(hang_up_at=END_OF_DATA)), workers.mxdeliv(C) as c:
        await workers.deliver(workers.delivery())
        assert 0 == c.connections
    assert [(0, 1)] == workers.turns(*await workers.waiting())


async def test_each_recipient_has_its_own_end(workers: Workers, queues: Queues) -> None:
    """B takes one, puts one off and refuses one: C gets none of them."""
    refuse = {"later@a.example": "450 4.2.1 busy", "never@a.example": "550 5.1.1 unknown"}
    async with workers.smtp(B, Behaviour(refuse=refuse)) as b, workers.mxdeliv(C) as c:
        await workers.deliver(workers.delivery("ok@a.example", "later@a.example", "never@a.example"))
        assert ([("ok@a.example",)], 0) == ([each.rcpt_to for each in b.received], c.connections)
    assert [("later@a.example",)] == [each.envelope.rcpt_to for each in await workers.waiting()]
    assert 1 == await queues.depth(topology.OUTBOUND)


async def test_by_smtp_alone_the_second_target_follows_in_the_same_worker(workers: Workers) -> None:
    """No HTTPS, and no other job."""
    async with workers.mxdeliv(B) as b, workers.mxdeliv(C) as c, workers.smtp(C) as c_smtp:
        way = await workers.deliver(workers.delivery(transport="smtp"), first=topology.SMTP)
        assert ([("smtp", 0)], 1) == (way, len(c_smtp.received))
        assert (0, 0) == (b.connections, c.connections)


async def test_by_https_alone_the_second_target_follows_in_the_same_worker(workers: Workers) -> None:
    """No SMTP, and no other job."""
    async with workers.smtp(B) as b, workers.mxdeliv(C) as c:
        assert [("https", 0)] == await workers.deliver(workers.delivery(transport="https"))
        assert (0, 1) == (b.connections, len(c.received))


async def test_when_all_are_dead_it_waits_once_and_begins_at_the_first_again(workers: Workers) -> None:
    """One attempt over four ways; at the next one B is up again, and gets it."""
    await workers.deliver(workers.delivery("b@a.example", "c@a.example"))
    [waiting] = await workers.waiting()
    assert ([(0, 1)], ("b@a.example", "c@a.example")) == (workers.turns(waiting), waiting.envelope.rcpt_to)
    assert waiting.reply is not None
    assert C in waiting.reply.text
    async with workers.mxdeliv(B) as b, workers.mxdeliv(C) as c:
        assert [("https", 0)] == await workers.deliver(waiting)
        assert (1, 0) == (len(b.received), c.connections)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
async def test_beside_https_workers_of_the_previous_release_an_attempt_ends(workers: Workers, number: int) -> None:
    """In a rolling deploy or a partial rollback: all targets are down, and nothing goes round."""
    workers.old_https()
    hosts = [f"127.0.0.{2 + each}" for each in range(number)]
    workers.targets = tuple(f"http://{host}:{workers.https_port}/mxdeliv" for host in hosts)
    way = await workers.deliver(workers.delivery())
    assert [(by, turn) for turn in range(number) for by in ("https", "smtp")] == way
    assert [(0, 1)] == workers.turns(*await workers.waiting())


async def test_beside_https_workers_of_the_previous_release_mail_arrives_once(workers: Workers) -> None:
    """They ask C by HTTPS before B was asked by SMTP, as they always did; nobody gets it twice."""
    workers.old_https()
    async with workers.smtp(B) as b, workers.smtp(C) as c:
        assert [("https", 0), ("smtp", 0)] == await workers.deliver(workers.delivery())
        assert (1, 0) == (len(b.received), c.connections)
    assert [] == await workers.waiting()


async def test_the_router_leaves_a_quick_try_at_its_target(
    workers: Workers, pool: Pool, settings: Settings, queues: Queues
) -> None:
    """B is dead and C says "later": C is asked again quickly, then by SMTP, and the attempt ends.

    Were each quick try to begin at B, C would never be asked by SMTP and the mail would not even expire.
    """
    part = workers.delivery()
    await Overrides(pool).set(make_rule("a.example", ",".join(part.route.targets)), actor="ann", release=True)
    way: list[tuple[str, int]] = []
    async with workers.mxdeliv(C, answers.FILTERMAIL_GREYLISTED) as c, running(settings):
        while not way or part.quick:
            way += await workers.deliver(part)
            assert len(way) < 20, f"it goes round: {way}"
            [part] = await workers.waiting()
            await wake(workers, queues)
            part, _ = await queues.delivery(topology.HTTPS)
        assert 3 == len(c.refused)
    assert [("https", 0), ("smtp", 0), ("https", 1), ("https", 1), ("https", 1), ("smtp", 1)] == way
    assert ([(0, 1)], 0) == (workers.turns(part), part.quick)


async def wake(workers: Workers, queues: Queues) -> None:
    """Do as the scheduler does when all that waits is due."""

    async def publish(bodies: object) -> None:
        assert isinstance(bodies, list | tuple)
        for body in bodies:
            await queues.put(topology.REROUTE, body)

    assert 1 == await workers.deferred.wake(now=NOON + timedelta(days=1), limit=10, publish=publish)
