"""Waiting mail, large bodies and routers in PostgreSQL."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import psycopg
import pytest

from shared.mail import codec
from shared.mail.reply import Reply
from shared.mail.route import Route
from shared.runtime.errors import BrokerUnavailable, StoreUnavailable
from shared.store.bodies import Bodies
from shared.store.deferred import Deferred, DomainTotal
from shared.store.pool import Pool
from shared.store.routers import LIVE, Routers
from shared.store.selection import Selection
from tests.integration.conftest import MESSAGE, NOON, delivery

pytestmark = [pytest.mark.anyio, pytest.mark.services]

LATER = NOON + timedelta(hours=1)


@pytest.fixture
def deferred(pool: Pool) -> Deferred:
    """Waiting mail, none yet."""
    return Deferred(pool)


@pytest.fixture
async def other_pool(database: str) -> AsyncIterator[Pool]:
    """A pool of another process."""
    pool = Pool(database, name="other")
    await pool.open()
    yield pool
    await pool.close()


async def wake(deferred: Deferred, *, limit: int = 100) -> list[bytes]:
    """Wake what is due at NOON and return it."""
    woken: list[bytes] = []

    async def publish(due: Sequence[bytes]) -> None:
        woken.extend(due)

    assert len(woken) == 0
    count = await deferred.wake(now=NOON, limit=limit, publish=publish)
    assert count == len(woken)
    return woken


class TestWaking:
    """`defer` and `wake`."""

    async def test_what_is_due_comes_back_byte_for_byte(self, deferred: Deferred) -> None:
        """The wire form is published as it was stored, once, and only when it is due."""
        body = bytes(range(256)) * 5
        part = delivery(reply=Reply(code=451, text="later"), attempts=3, warned=True)
        await deferred.defer(part, body, NOON)
        await deferred.defer(delivery(id="m2"), MESSAGE, NOON + timedelta(microseconds=1))
        assert [codec.encode(part, body)] == await wake(deferred)
        assert [] == await wake(deferred)
        assert ["m2"] == [each.message_id for each in await deferred.matching()]

    async def test_the_oldest_come_first_and_no_more_than_asked(self, deferred: Deferred) -> None:
        """A batch has the deliveries that are due longest."""
        for minutes in (1, 3, 2):
            await deferred.defer(delivery(id=f"m{minutes}"), MESSAGE, NOON - timedelta(minutes=minutes))
        assert {"m3", "m2"} == {codec.decode(each)[0].id for each in await wake(deferred, limit=2)}

    async def test_two_schedulers_share_the_work(self, deferred: Deferred, other_pool: Pool) -> None:
        """Any number may run: no row is handed out twice and none is lost."""
        rows = 300
        await asyncio.gather(*(deferred.defer(delivery(id=f"m{n}"), MESSAGE, NOON) for n in range(rows)))
        handed: list[bytes] = []

        async def schedule(store: Deferred) -> int:
            async def publish(due: Sequence[bytes]) -> None:
                handed.extend(due)
                await asyncio.sleep(0.005)  # the broker takes its time, so that both have rows in hand

            woken = 0
            while count := await store.wake(now=NOON, limit=10, publish=publish):
                woken += count
            return woken

        shares = await asyncio.gather(schedule(deferred), schedule(Deferred(other_pool)), schedule(deferred))
        assert rows == sum(shares)
        assert all(shares)
        assert Counter(f"m{n}" for n in range(rows)) == Counter(codec.decode(each)[0].id for each in handed)
        assert [] == await deferred.totals()

    async def test_what_was_not_published_stays(self, deferred: Deferred) -> None:
        """A publish that fails takes nothing out of the table, and the rows are due for the next scheduler at once."""
        await deferred.defer(delivery(), MESSAGE, NOON)

        async def refuse(_due: Sequence[bytes]) -> None:
            raise BrokerUnavailable("away")

        with pytest.raises(BrokerUnavailable):
            await deferred.wake(now=NOON, limit=10, publish=refuse)
        assert 1 == len(await wake(deferred))

    async def test_a_commit_that_fails_doubles_and_never_loses(self, deferred: Deferred, database: str) -> None:
        """The connection dies between publish and commit: the rows are still there."""
        await deferred.defer(delivery(), MESSAGE, NOON)

        async def cut(_due: Sequence[bytes]) -> None:
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE application_name = 'pushpush test'"
                )

        with pytest.raises(StoreUnavailable):
            await deferred.wake(now=NOON, limit=10, publish=cut)
        assert 1 == len(await wake(deferred))

    async def test_an_operators_retry_does_not_meddle_with_what_is_being_woken(self, deferred: Deferred) -> None:
        """`retry` passes over the row that a scheduler has in hand, and does not wait until the broker has it."""
        await deferred.defer(delivery(), MESSAGE, NOON)

        async def publish(_due: Sequence[bytes]) -> None:
            assert 0 == await deferred.retry(now=NOON - timedelta(hours=1))

        assert 1 == await deferred.wake(now=NOON, limit=10, publish=publish)
        assert [] == await deferred.matching()


class TestLooking:
    """What an operator sees and does."""

    async def test_filters_and_totals(self, deferred: Deferred) -> None:
        """Deliveries are found by domain, target and message; totals add up by domain and target."""
        ruled = Route(version=1, key="a.example", targets=("x.example", "y.example:2525"))
        await deferred.defer(delivery(id="m1"), b"12345", LATER)
        await deferred.defer(delivery(id="m2", route=ruled), b"123", NOON)
        await deferred.defer(delivery(id="m3", route=ruled, accepted_at=NOON - timedelta(days=1)), b"1234", LATER)
        await deferred.defer(delivery(id="m4", domain="b.example"), b"1", LATER)
        target = "x.example,y.example:2525"
        assert ["m2", "m1", "m3"] == [
            each.message_id for each in await deferred.matching(Selection(domain="a.example"))
        ]
        assert ["m2", "m3"] == [each.message_id for each in await deferred.matching(Selection(target=target))]
        assert ["m4"] == [each.message_id for each in await deferred.matching(Selection(message_id="m4"))]
        assert ["m2"] == [each.message_id for each in await deferred.matching(limit=1)]
        day_before = NOON - timedelta(days=1)
        assert [
            DomainTotal(
                domain="a.example", target=target, deliveries=2, bytes=7, oldest=day_before, next_attempt_at=NOON
            ),
            DomainTotal(domain="a.example", target="", deliveries=1, bytes=5, oldest=NOON, next_attempt_at=LATER),
            DomainTotal(domain="b.example", target="", deliveries=1, bytes=1, oldest=NOON, next_attempt_at=LATER),
        ] == await deferred.totals()

    async def test_retry_makes_due_what_it_names(self, deferred: Deferred) -> None:
        """Only what was named, and what is due already is not counted."""
        for number, domain, at in ((1, "a.example", LATER), (2, "a.example", NOON), (3, "b.example", LATER)):
            await deferred.defer(delivery(id=f"m{number}", domain=domain), MESSAGE, at)
        assert 1 == await deferred.retry(Selection(domain="a.example"), now=NOON)
        assert {"m1", "m2"} == {codec.decode(each)[0].id for each in await wake(deferred)}
        assert 1 == await deferred.retry(now=NOON)

    async def test_one_delivery_comes_back_whole(self, deferred: Deferred) -> None:
        """`message` gives the delivery and its body; None when it waits no longer."""
        await deferred.defer(delivery(), MESSAGE, LATER)
        [waiting] = await deferred.matching()
        assert (delivery(), MESSAGE) == await deferred.message(waiting.id)
        assert None is await deferred.message(waiting.id + 1)

    async def test_strange_text_does_not_keep_mail_from_waiting(self, deferred: Deferred) -> None:
        """PostgreSQL holds no NUL in text: what a peer says, or an address of any script, is stored all the same."""
        strange = delivery(
            '"quoted, {brace} \\"x\\""@a.example',
            "😀@a.example",
            mail_from="用户@from.example",
            reply=Reply(code=451, text="nul \x00, esc \x1b, 😀, \u2028"),
        )
        await deferred.defer(strange, MESSAGE, NOON)
        [waiting] = await deferred.matching()
        assert (list(strange.envelope.rcpt_to), "用户@from.example") == (waiting.rcpt_to, waiting.mail_from)
        assert [(strange, MESSAGE)] == [codec.decode(each) for each in await wake(deferred)]


class TestBodies:
    """Large bodies, stored once."""

    async def test_a_body_comes_back_byte_for_byte(self, pool: Pool) -> None:
        """Bytes of every value; an id that is there keeps what it has; an unknown one gives None."""
        body = bytes(range(256)) * 8192
        await Bodies(pool).put("one", body)
        await Bodies(pool).put("one", b"other")
        assert body == await Bodies(pool).get("one")
        assert None is await Bodies(pool).get("two")

    async def test_pruning_spares_what_waiting_mail_may_need(self, pool: Pool, deferred: Deferred) -> None:
        """A body as old as mail that still waits is kept: without it that mail is neither sent nor bounced."""
        async with pool.transaction() as connection:
            await connection.execute(
                "INSERT INTO bodies (id, body, created_at) "
                "VALUES ('old', 'x', %s), ('older', 'x', %s), ('new', 'x', now())",
                (NOON, NOON - timedelta(days=30)),
            )
        await deferred.defer(delivery(body_ref="old"), b"", LATER)
        assert 1 == await Bodies(pool).prune(NOON + timedelta(days=10))
        assert b"x" == await Bodies(pool).get("old")
        await deferred.retry(now=NOON)
        await wake(deferred)
        assert 1 == await Bodies(pool).prune(NOON + timedelta(days=10))
        assert b"x" == await Bodies(pool).get("new")


class TestRouters:
    """Who is alive, and how far."""

    async def test_a_router_lives_while_it_gives_signs(self, pool: Pool) -> None:
        """Registering starts at version 0; without signs a router counts as silent, then it is forgotten."""
        routers = Routers(pool)
        await routers.seen("r1", 7)
        await routers.register("r1")
        await routers.seen("r2", 5)
        assert [("r1", 0, True), ("r2", 5, True)] == [
            (each.name, each.applied, each.live) for each in await routers.all()
        ]
        async with pool.transaction() as connection:
            await connection.execute(
                "UPDATE routers SET seen_at = now() - make_interval(secs => %s) WHERE name = 'r1'", (LIVE + 1,)
            )
        assert [False, True] == [each.live for each in await routers.all()]
        assert ["r1"] == await routers.silent(seconds=LIVE)
        assert not await routers.forget("r1", silent_for=LIVE + 10)
        assert await routers.forget("r1", silent_for=LIVE)
        await routers.leave("r2")
        assert [] == await routers.all()
