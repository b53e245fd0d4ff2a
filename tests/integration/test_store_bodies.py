"""Large bodies in PostgreSQL: stored once, used by name, freed with the last delivery, never before."""

import asyncio
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from shared.broker import topology
from shared.delivery.large import TRAVELS
from shared.runtime.chance import new_id
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from shared.store.bodies import FREED, REPORTED, START, Bodies, Head
from shared.store.deferred import Deferred
from shared.store.pool import Pool
from tests.integration.command_line import commands
from tests.integration.conftest import MESSAGE, NOON, Queues, delivery

pytestmark = [pytest.mark.anyio, pytest.mark.services]

BODY = b"Subject: large\r\n\r\n" + bytes(range(256)) * 1024
ALL = [f"r{number}@a.example" for number in range(20)]


@pytest.fixture
def bodies(pool: Pool) -> Bodies:
    """Stored bodies, none yet."""
    return Bodies(pool)


@pytest.fixture
async def one(bodies: Bodies) -> str:
    """The id of a body that everybody needs."""
    reference = new_id()
    await bodies.put(reference, BODY, message_id="m1", recipients=ALL)
    return reference


async def named(pool: Pool, reference: str) -> int:
    """Return how many recipients are named for a body."""
    async with pool.transaction() as connection:
        cursor = await connection.execute("SELECT count(*) FROM body_uses WHERE body_id = %s", (reference,))
        [(count,)] = await cursor.fetchall()
    return int(count)


class TestUses:
    """Who needs a body, and until when."""

    async def test_it_is_freed_with_the_last_of_twenty_at_once(self, bodies: Bodies) -> None:
        """Twenty workers end their recipients at the same time: exactly one of them frees it."""
        for _ in range(15):
            reference = new_id()
            await bodies.put(reference, BODY, message_id="m1", recipients=ALL)
            freed = await asyncio.gather(*(bodies.end(reference, "m1", [each]) for each in ALL))
            assert 1 == sum(freed)
            assert FREED is await bodies.get(reference)

    async def test_it_is_never_freed_early(self, bodies: Bodies) -> None:
        """As long as one recipient has not ended, the body is there, whoever ends besides."""
        for _ in range(5):
            reference = new_id()
            await bodies.put(reference, BODY, message_id="m1", recipients=[*ALL, "last@a.example"])
            assert {False} == set(await asyncio.gather(*(bodies.end(reference, "m1", [each]) for each in ALL)))
            assert BODY == await bodies.get(reference)
            assert await bodies.end(reference, "m1", ["last@a.example"])
            assert FREED is await bodies.get(reference)

    async def test_ending_twice_frees_for_nobody_else(self, bodies: Bodies, one: str) -> None:
        """A doubled delivery ends the same recipients again; the body stays for the others, and is freed once."""
        for _ in range(3):
            assert not any(await asyncio.gather(*(bodies.end(one, "m1", ALL[:19]) for _ in range(5))))
        assert BODY == await bodies.get(one)
        assert [True] == [
            each for each in await asyncio.gather(*(bodies.end(one, "m1", ALL) for _ in range(9))) if each
        ]
        assert not await bodies.end(one, "m1", ALL)

    async def test_ends_of_strangers_free_nothing(self, bodies: Bodies, one: str) -> None:
        """Recipients, messages and bodies that are not named change nothing, nor does a body of the release before.

        That one has no uses, and several deliveries on their way: the first to end must not free it.
        """
        assert not await bodies.end(one, "m1", ["stranger@a.example"])
        assert not await bodies.end(one, "m2", ALL)
        assert not await bodies.end(new_id(), "m1", ALL)
        assert not await bodies.end(one, "m1", [])
        old = new_id()
        await bodies.put(old, BODY)
        assert not await bodies.end(old, "m1", ALL)
        assert (BODY, BODY) == (await bodies.get(one), await bodies.get(old))

    async def test_a_body_that_more_messages_may_name_is_not_freed(self, bodies: Bodies, one: str) -> None:
        """A front door stores a body for several messages: who has ended is noted, but nobody knows who is to come.

        So it is with a body whose users were all named, once somebody else needs it.
        """
        shared = new_id()
        await bodies.put(shared, BODY)
        for number in range(2):
            await bodies.use(shared, f"m{number}", ALL)
            assert not await bodies.end(shared, f"m{number}", ALL)
        again = await bodies.use(shared, "m1", ALL)
        assert (BODY, sorted(ALL)) == (await bodies.get(shared), sorted(again.ended if again else []))
        await bodies.put(shared, BODY, message_id="m2", recipients=ALL)
        await bodies.use(one, "m2", ALL[:1])
        assert not any([await bodies.end(each, name, ALL) for each in (shared, one) for name in ("m1", "m2")])
        assert (BODY, BODY) == (await bodies.get(shared), await bodies.get(one))

    async def test_what_is_freed_does_not_come_back(self, bodies: Bodies, pool: Pool, one: str) -> None:
        """Using or storing it again brings neither bytes nor uses back; who has ended stays ended, who has not, not."""
        await bodies.end(one, "m1", ALL)
        gone = Head(size=0, start=b"", freed=True, ended=[])
        assert gone == await bodies.use(one, "m2", ALL)
        assert gone == await bodies.put(one, BODY, message_id="m2", recipients=ALL)
        assert FREED is await bodies.get(one)
        assert len(ALL) == await named(pool, one)
        again = await bodies.use(one, "m1", [*ALL, "stranger@a.example"])
        assert again is not None
        assert sorted(ALL) == sorted(again.ended)

    async def test_storing_and_using_twice_is_as_once(self, bodies: Bodies, pool: Pool, one: str) -> None:
        """The same id keeps what it has; a router that tries again names nobody twice, and sees who has ended."""
        await bodies.end(one, "m1", ALL[:1])
        heads = [
            await bodies.put(one, b"other", message_id="m1", recipients=ALL),
            await bodies.use(one, "m1", ALL),
        ]
        head = Head(size=len(BODY), start=BODY[:START], freed=False, ended=ALL[:1])
        assert [head, head] == heads
        assert msgspec.structs.replace(head, start=b"") == await bodies.head(one, "m1", ALL)
        assert (BODY, len(ALL)) == (await bodies.get(one), await named(pool, one))
        assert (None, None, None) == (
            await bodies.get("none"),
            await bodies.use("none", "m1", ALL),
            await bodies.head("none", "m1", ALL),
        )
        assert 0 == await named(pool, "none")

    async def test_using_and_ending_at_once(self, bodies: Bodies) -> None:
        """Routers that note recipients while workers end others never meet a deadlock, nor lose the body to a race."""
        reference = new_id()
        await bodies.put(reference, BODY)
        names = [f"m{number}" for number in range(1, 15)]

        async def live(message_id: str) -> None:
            await bodies.use(reference, message_id, ALL)
            await asyncio.gather(*(bodies.end(reference, message_id, ALL[start::3]) for start in range(3)))

        await asyncio.gather(*map(live, names))
        assert BODY == await bodies.get(reference)
        heads = [await bodies.head(reference, each, ALL) for each in names]
        assert {len(ALL)} == {len(head.ended) for head in heads if head is not None}


async def test_a_report_gets_its_beginning(bodies: Bodies) -> None:
    """As much as a report gives back, and one byte more, so that it can tell a whole message from a beginning."""
    large, small = new_id(), new_id()
    body = b"x" * (REPORTED + 1000)
    await bodies.put(large, body)
    await bodies.put(small, BODY)
    assert body[:REPORTED] == await bodies.reported(large)
    assert (BODY, b"") == (await bodies.reported(small), await bodies.reported("none"))
    head = await bodies.use(large, "m1", [])
    assert Head(size=len(body), start=body[:START], freed=False, ended=[]) == head


async def test_pruning_takes_rows_of_freed_bodies_and_uses_of_bodies_that_are_gone(
    bodies: Bodies, pool: Pool, one: str
) -> None:
    """What is left of a freed body goes after its own time, with the names; a body in use stays until it is old."""
    freed, old = new_id(), new_id()
    for reference in (freed, old):
        await bodies.put(reference, BODY, message_id="m1", recipients=ALL)
    await bodies.end(freed, "m1", ALL)
    async with pool.transaction() as connection:
        await connection.execute("UPDATE bodies SET created_at = now() - interval '40 days' WHERE id = %s", (old,))
    month, hour = now() - timedelta(days=30), timedelta(hours=1)
    assert 1 == await bodies.prune(month, freed_before=now() - hour)
    assert (None, FREED, BODY) == (await bodies.get(old), await bodies.get(freed), await bodies.get(one))
    assert (0, 20, 20) == (await named(pool, old), await named(pool, freed), await named(pool, one))
    await Deferred(pool).defer(delivery(accepted_at=NOON), b"", NOON)
    assert 0 == await bodies.prune(month, freed_before=now() + hour)
    await Deferred(pool).wake(now=now(), limit=9, publish=lambda _: asyncio.sleep(0))
    assert 1 == await bodies.prune(month, freed_before=now() + hour)
    assert (None, BODY) == (await bodies.get(freed), await bodies.get(one))
    assert (0, 20) == (await named(pool, freed), await named(pool, one))


async def test_mail_that_is_stuck_keeps_its_own_body_only(bodies: Bodies, pool: Pool) -> None:
    """One delivery that waits far too long must not keep all bodies for ever; its own it may need still."""
    own, other = new_id(), new_id()
    await bodies.put(own, BODY, message_id="stuck", recipients=ALL[:1])
    await bodies.put(other, BODY, message_id="m1", recipients=ALL)
    async with pool.transaction() as connection:
        await connection.execute("UPDATE bodies SET created_at = now() - interval '90 days'")
    old = delivery(ALL[0], id="stuck", accepted_at=now() - timedelta(days=90), body_ref=own)
    await Deferred(pool).defer(old, b"", now())
    month, stuck = now() - timedelta(days=30), now() - timedelta(days=10)
    assert 0 == await bodies.prune(month)
    assert 1 == await bodies.prune(month, stuck_before=stuck)
    assert (BODY, None) == (await bodies.get(own), await bodies.get(other))
    await bodies.end(own, "stuck", ALL[:1])
    assert 1 == await bodies.prune(month, stuck_before=stuck)


async def test_reading_bodies_leaves_connections_to_others(bodies: Bodies, pool: Pool, one: str) -> None:
    """Twenty wait for their bodies: what takes milliseconds, as deferring mail, still finds a connection."""
    async with pool.transaction() as connection:
        await connection.execute("LOCK TABLE bodies")
        reading = [asyncio.create_task(each) for _ in range(10) for each in (bodies.get(one), bodies.reported(one))]
        await asyncio.sleep(0.2)
        await Deferred(pool).defer(delivery(), b"", NOON)
    assert [BODY] * 20 == await asyncio.gather(*reading)


async def test_schedulers_prune_at_once(bodies: Bodies) -> None:
    """Each row is deleted by one of them, and none waits for another."""
    for _ in range(30):
        reference = new_id()
        await bodies.put(reference, b"x", message_id="m1", recipients=ALL[:2])
        await bodies.end(reference, "m1", ALL)
    later = now() + timedelta(hours=1)
    assert 30 == sum(
        await asyncio.gather(*(bodies.prune(later - timedelta(days=1), freed_before=later) for _ in "abc"))
    )


class TestSend:
    """`pushpush send` of messages that no queue would take."""

    async def test_a_large_message_is_stored_first(
        self, settings: Settings, bodies: Bodies, queues: Queues, tmp_path: Path
    ) -> None:
        """On the queue is a reference; who needs the body is named. At the limit a message travels along."""
        file = tmp_path / "mail.eml"
        file.write_bytes(MESSAGE.ljust(2001, b"x"))
        async with commands(settings, PUSHPUSH_INLINE_BODY_LIMIT="2000") as pushpush:
            words = ("send", str(file), "--from", "", "--to", "b@a.example", "--to", "c@a.example", "--json")
            sent = (await pushpush(*words)).data
            message = await queues.take(topology.OUTBOUND)
            file.write_bytes(MESSAGE.ljust(2000, b"x"))
            assert 2000 == (await pushpush(*words)).data["size"]
        assert (sent["id"], 2001) == (message.message_id, sent["size"])
        assert (b"", sent["id"]) == (message.body, message.headers["body_ref"])
        assert MESSAGE.ljust(2001, b"x") == await bodies.get(sent["id"])
        assert not await bodies.end(sent["id"], sent["id"], ["b@a.example"])
        assert await bodies.end(sent["id"], sent["id"], ["c@a.example"])
        assert MESSAGE.ljust(2000, b"x") == (await queues.take(topology.OUTBOUND)).body

    async def test_while_the_store_is_away(self, settings: Settings, queues: Queues, tmp_path: Path) -> None:
        """What a queue takes travels along; what it would not is refused, with the reason, and nothing is sent."""
        file = tmp_path / "mail.eml"
        away = "postgresql://nobody@127.0.0.1:1/none"
        async with commands(settings, PUSHPUSH_DATABASE_URL=away) as pushpush:
            words = ("send", str(file), "--from", "", "--to", "b@a.example")
            file.write_bytes(MESSAGE.ljust(TRAVELS + 1, b"x"))
            refused, _ = await pushpush(*words), file.write_bytes(MESSAGE.ljust(TRAVELS, b"x"))
            sent = await pushpush(*words)
        assert (3, True) == (refused.code, "too large for a queue and must be stored" in refused.sentence)
        assert 0 == sent.code
        assert TRAVELS == len((await queues.take(topology.OUTBOUND)).body)
        assert 0 == await queues.depth(topology.OUTBOUND)
