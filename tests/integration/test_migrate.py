"""Migrations run while rooms work, and keep nobody waiting behind them."""

import asyncio
import contextlib

import psycopg
import pytest
from alembic import command
from psycopg.errors import LockNotAvailable
from sqlalchemy.exc import OperationalError

from deploy.local.services import PostgreSQL
from shared.store import migrate
from tests.databases import new_database

pytestmark = [pytest.mark.anyio, pytest.mark.services]

_WAITING = """
    INSERT INTO deferred (message_id, mail_from, rcpt_to, domain, target, accepted_at, next_attempt_at, attempts, reply,
                          size, delivery)
    VALUES ('m1', '', '{b@a.example}', 'a.example', '', now(), now(), 1, '', 0, '')
"""


@pytest.fixture
def empty(postgres: PostgreSQL) -> str:
    """The URL of a database without tables."""
    return new_database(postgres.url, "migrated")


async def test_a_table_in_use_keeps_nobody_waiting_behind_the_migration(empty: str) -> None:
    """A scheduler hands out mail for as long as the broker needs: others still defer and read meanwhile."""
    await asyncio.to_thread(command.upgrade, migrate._config(empty), "0003")
    with psycopg.connect(empty) as scheduler:
        scheduler.execute(_WAITING)  # and does not commit
        migrating = asyncio.create_task(asyncio.to_thread(migrate.upgrade, empty))
        await asyncio.to_thread(_waits_for_a_lock, empty)
        with psycopg.connect(empty) as worker:
            worker.execute("SET statement_timeout = '20s'")
            worker.execute(_WAITING)
            worker.commit()
        assert not migrating.done()
        scheduler.commit()
    await migrating
    with psycopg.connect(empty) as connection:
        assert (2, None) == connection.execute("SELECT count(*), max(put_off) FROM deferred").fetchone()


async def test_a_table_that_stays_in_use_is_told_of(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is half migrated then."""
    await asyncio.to_thread(command.upgrade, migrate._config(empty), "0003")
    monkeypatch.setattr(migrate, "TRIES", 2)
    monkeypatch.setattr(migrate, "PAUSE", 0.1)
    with psycopg.connect(empty) as scheduler:
        scheduler.execute(_WAITING)
        with pytest.raises(OperationalError) as raised:
            await asyncio.to_thread(migrate.upgrade, empty)
    assert isinstance(raised.value.orig, LockNotAvailable)
    with psycopg.connect(empty) as connection:
        assert ("0003",) == connection.execute("SELECT version_num FROM alembic_version").fetchone()


async def test_down_and_up_again(empty: str) -> None:
    """Each release can be taken back once, as long as nothing would be lost."""
    await asyncio.to_thread(migrate.upgrade, empty)
    await asyncio.to_thread(command.downgrade, migrate._config(empty), "0002")
    await asyncio.to_thread(migrate.upgrade, empty)
    with psycopg.connect(empty) as connection:
        connection.execute(
            "INSERT INTO dead_letters (reason, queue, message_id, headers, size, digest, data) "
            "VALUES ('', '', '', '', 0, '', '')"
        )
    with pytest.raises(Exception, match="dead letters would be lost"):
        await asyncio.to_thread(command.downgrade, migrate._config(empty), "0003")


def _waits_for_a_lock(url: str) -> None:
    """Return when the migration wants the table."""
    with psycopg.connect(url, autocommit=True) as connection, contextlib.suppress(StopIteration):
        while not connection.execute(
            "SELECT FROM pg_locks WHERE relation = 'deferred'::regclass AND NOT granted"
        ).fetchall():
            pass
