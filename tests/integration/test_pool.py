"""Connections to a PostgreSQL that does not answer, or whose connections are all in use."""

import time
from collections.abc import AsyncIterator

import pytest

from shared.runtime.errors import StoreUnavailable
from shared.store import pool as pool_module
from shared.store.pool import Pool
from tests.integration.conftest import Wire, through, until

pytestmark = [pytest.mark.anyio, pytest.mark.services]

_LONG = """
    SELECT count(*) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND state = 'active' AND query LIKE '%too long%'
"""


@pytest.fixture
async def short(database: str, store_wire: Wire, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    """A pool of two connections, with little patience."""
    monkeypatch.setattr(pool_module, "CHECK", 0.4)
    pool = Pool(through(database, store_wire), name="test", size=2, timeout=0.8, patience=1.0)
    await pool.open()
    async with pool.statement() as connection:
        await connection.execute("SELECT 1")
    yield pool
    await pool.close()


async def refusal(pool: Pool) -> tuple[str, float]:
    """Return why nothing can be asked, and the seconds after which that was known."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        async with pool.statement() as connection:
            await connection.execute("SELECT 1")
    return str(caught.value), time.monotonic() - began


async def answers(pool: Pool) -> bool:
    """Say whether something can be asked."""
    try:
        async with pool.statement() as connection:
            await connection.execute("SELECT 1")
    except StoreUnavailable:
        return False
    return True


async def test_frozen_before_a_statement(short: Pool, store_wire: Wire) -> None:
    """A connection that does not answer is given to nobody."""
    store_wire.passing.clear()
    told, seconds = await refusal(short)
    assert ("away" in told, seconds < 2) == (True, True), (told, seconds)
    store_wire.passing.set()
    await until(lambda: answers(short), within=10)


@pytest.mark.parametrize("kind", ["statement", "transaction"])
async def test_frozen_within_one(short: Pool, store_wire: Wire, kind: str) -> None:
    """The server is asked to end it, and is not waited for when it does not answer that either."""
    began = time.monotonic()

    async def ask() -> None:
        async with getattr(short, kind)() as connection:
            await connection.execute("SELECT 1")
            store_wire.passing.clear()
            await connection.execute("SELECT 1")

    with pytest.raises(StoreUnavailable):
        await ask()
    assert time.monotonic() - began < 20  # less than the patience of a room
    store_wire.passing.set()


async def test_a_statement_that_takes_too_long_is_ended(short: Pool) -> None:
    """By the server, which answers."""
    with pytest.raises(StoreUnavailable):
        async with short.statement() as connection:
            await connection.execute("SELECT 'too long', pg_sleep(60)")
    async with short.statement() as connection:
        row = await (await connection.execute(_LONG)).fetchone()
    assert row == (0,)


async def test_patience_of_its_own(short: Pool) -> None:
    """What takes long by its nature says so."""
    async with short.transaction(patience=10) as connection:
        await connection.execute("SELECT pg_sleep(1.3)")
    async with short.transaction(patience=None) as connection:
        await connection.execute("SELECT pg_sleep(1.3)")


async def test_all_in_use(short: Pool, store_wire: Wire) -> None:
    """PostgreSQL is not away then, and is not said to be."""
    async with short.transaction(patience=None), short.transaction(patience=None):
        assert "all 2 connections to PostgreSQL are in use" == (await refusal(short))[0]
    await store_wire.cut()
    assert "PostgreSQL is away" in (await refusal(short))[0]
