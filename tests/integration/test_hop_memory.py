"""What the fleet remembers of next hops: shared through the store, and never waited for."""

import psycopg
import pytest

from deploy.local.services import PostgreSQL
from shared.delivery.memory import WITHOUT_MXDELIV, Memory
from shared.store.hops import NextHops
from shared.store.pool import Pool

pytestmark = [pytest.mark.anyio, pytest.mark.services]

URL = "https://b.example/mxdeliv"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.time


@pytest.fixture
def hops(pool: Pool) -> NextHops:
    """The table."""
    return NextHops(pool)


async def test_what_one_worker_learns_the_others_know(hops: NextHops) -> None:
    """Also one that starts later; and that it was forgotten."""
    one, other = Memory(hops), Memory(hops)
    await other.exchange()
    one.found_without_mxdeliv(URL, "a web site")
    assert (True, False) == (one.lacks_mxdeliv(URL), other.lacks_mxdeliv(URL))
    await one.exchange()
    late = Memory(hops)
    for each in (other, late):
        await each.exchange()
        assert each.lacks_mxdeliv(URL)
    late.may_have_mxdeliv(URL)
    await late.exchange()
    await one.exchange()
    assert not one.lacks_mxdeliv(URL)


async def test_it_is_remembered_for_half_an_hour(hops: NextHops) -> None:
    """Then HTTPS has its turn again: the host may have got an mxdeliv."""
    clock = Clock()
    memory = Memory(hops, clock=clock)
    memory.found_without_mxdeliv(URL, "a web site")
    clock.time += WITHOUT_MXDELIV - 1
    assert memory.lacks_mxdeliv(URL)
    clock.time += 1
    assert not memory.lacks_mxdeliv(URL)


async def test_being_told_again_does_not_make_it_longer(hops: NextHops) -> None:
    """Mail that goes by SMTP because of the memory must not renew it for ever."""
    clock = Clock()
    memory = Memory(hops, clock=clock)
    memory.found_without_mxdeliv(URL, "a web site")
    clock.time += WITHOUT_MXDELIV - 1
    memory.found_without_mxdeliv(URL, "a web site")
    clock.time += 1
    assert not memory.lacks_mxdeliv(URL)


async def test_what_other_workers_told_long_ago_is_over(hops: NextHops, postgres: PostgreSQL) -> None:
    """The database's clock decides, not that of a worker."""
    one = Memory(hops)
    one.found_without_mxdeliv(URL, "a web site")
    await one.exchange()
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("UPDATE next_hops SET until = now() - interval '1 s'")
    late = Memory(hops)
    await late.exchange()
    assert not late.lacks_mxdeliv(URL)


async def test_operators_see_what_is_suspended(hops: NextHops) -> None:
    """With why, until it answers again."""
    memory = Memory(hops)
    memory.suspended("b.example:25", 30, "450 4.4.1 connection refused \x00")
    await memory.exchange()
    (known,) = await hops.about(["b.example:25", URL])
    assert ("b.example:25", "suspended", "450 4.4.1 connection refused ?") == (known.hop, known.state, known.reason)
    memory.answers("b.example:25")
    await memory.exchange()
    assert [] == await hops.about(["b.example:25"])


async def test_old_knowledge_is_pruned(hops: NextHops, postgres: PostgreSQL) -> None:
    """A day after its time; what is true stays."""
    await hops.remember(URL, "without mxdeliv", 60, "a web site")
    await hops.remember("b.example:25", "suspended", 60, "refused")
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("UPDATE next_hops SET until = now() - interval '25 h' WHERE state = 'suspended'")
    assert (1, 0) == (await hops.prune(), await hops.prune())
    assert [URL] == [each.hop for each in await hops.about([URL, "b.example:25"])]


async def test_without_the_store_a_worker_knows_what_it_learned() -> None:
    """What it would have told the others is not kept for later: it may not be true then."""
    alone = Memory()
    alone.found_without_mxdeliv(URL, "a web site")
    await alone.exchange()
    assert alone.lacks_mxdeliv(URL)
