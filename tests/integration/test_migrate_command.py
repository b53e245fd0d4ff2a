"""`pushpush migrate`, as a Job runs it before a release, and `--check`, by which pods wait for the Job."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command

from deploy.local.services import PostgreSQL
from shared.runtime.settings import Settings
from shared.store import migrate
from tests.databases import new_database
from tests.integration.command_line import CommandLine, Ran, commands
from tests.integration.conftest import Wire, through, until

pytestmark = [pytest.mark.anyio, pytest.mark.services]

BROKER = "amqp://nobody@127.0.0.1:1/"  # nothing here needs one
NEWER = "9999"  # a revision that only a later release knows


@pytest.fixture
def empty(postgres: PostgreSQL) -> str:
    """The URL of a database without tables."""
    return new_database(postgres.url, "fresh")


@pytest.fixture
async def pushpush(empty: str) -> AsyncIterator[CommandLine]:
    """The command line for that database."""
    async with commands(Settings(amqp_url=BROKER, database_url=empty)) as pushpush:
        yield pushpush


def waited(ran: Ran, why: str) -> bool:
    """Say whether the command told, each time in one line, that it waits, and once for this reason."""
    lines = ran.err.splitlines()
    return all("waits" in each for each in lines) and any(why in each for each in lines)


class TestCheck:
    """`pushpush migrate --check`."""

    async def test_without_tables(self, pushpush: CommandLine, empty: str) -> None:
        """Exit 1 and a sentence that says what to do; nothing is made."""
        text, object_ = await asyncio.gather(pushpush("migrate", "--check"), pushpush("migrate", "--check", "--json"))
        assert (1, True) == (text.code, "the tables are not there" in text.sentence)
        assert "run `pushpush migrate`" in text.sentence
        assert (1, "refused") == (object_.code, object_.object["error"]["kind"])
        with psycopg.connect(empty) as connection:
            assert (0,) == connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()

    async def test_older_tables(self, pushpush: CommandLine, empty: str) -> None:
        """They are named, and so are those that are needed; they stay as they are."""
        await asyncio.to_thread(command.upgrade, migrate._config(empty), "0002")
        ran = await pushpush("migrate", "--check")
        assert 1 == ran.code
        assert f"are at revision 0002, this release needs {migrate.head()}" in ran.sentence
        assert "0002" == migrate.revision(empty)

    async def test_our_own_tables(self, pushpush: CommandLine, empty: str) -> None:
        """Exit 0."""
        await asyncio.to_thread(migrate.upgrade, empty)
        ran = await pushpush("migrate", "--check", "--json")
        assert {"revision": migrate.head()} == ran.data

    async def test_waits_for_the_job(self, pushpush: CommandLine) -> None:
        """A pod that is started with its Job, or before it, begins when the tables are there."""
        checking = asyncio.create_task(pushpush("migrate", "--check", "--wait", "2m"))
        migrated = await pushpush("migrate")
        checked = await checking
        assert [(0, ""), (0, "")] == [(each.code, each.err * (each is migrated)) for each in (migrated, checked)]
        assert migrated.out == checked.out

    async def test_waits_no_longer_than_it_may(self, pushpush: CommandLine) -> None:
        """Then it ends as if it had not waited, so that whoever started it sees why."""
        ran = await pushpush("migrate", "--check", "--wait", "1s")
        *waits, last = ran.err.splitlines()
        assert (1, True) == (ran.code, "this release needs" in last)
        assert waits
        assert all("waits" in each for each in waits)


class TestNewer:
    """A release that starts anew while a later one is rolled out, or after that was taken back."""

    async def test_runs_on_the_tables_of_a_later_release(self, pushpush: CommandLine, empty: str) -> None:
        """It is content with them, and leaves them as they are."""
        await asyncio.to_thread(migrate.upgrade, empty)
        _become(empty, NEWER)
        checked, migrated = await asyncio.gather(pushpush("migrate", "--check"), pushpush("migrate"))
        for each in (checked, migrated):
            assert (0, "") == (each.code, each.err)
            assert f"at revision {NEWER}, which is newer than {migrate.head()}" in each.out
        assert NEWER == migrate.revision(empty)

    async def test_a_later_release_is_faster(self, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both Jobs found old tables; the later release had the lock first."""
        await asyncio.to_thread(migrate.upgrade, empty)
        _become(empty, NEWER)
        looks = iter(("0002", NEWER, NEWER))
        monkeypatch.setattr(migrate, "revision", lambda _: next(looks))
        assert NEWER == await asyncio.to_thread(migrate.bring, empty)


class TestMigrate:
    """`pushpush migrate`."""

    async def test_three_at_once(self, pushpush: CommandLine, empty: str) -> None:
        """One does it, the others find it done."""
        ran = await asyncio.gather(*(pushpush("migrate") for _ in range(3)))
        assert [(0, "", f"the database is at revision {migrate.head()}\n")] * 3 == [
            (each.code, each.err, each.out) for each in ran
        ]
        assert migrate.head() == migrate.revision(empty)

    async def test_waits_for_the_database(self, pushpush: CommandLine, postgres: PostgreSQL, empty: str) -> None:
        """Also a Job that is started before PostgreSQL is there does its work."""
        async with _shut(postgres) as wire:
            ran = await pushpush("migrate", "--wait", "2m", database_url=through(empty, wire))
        assert (0, True) == (ran.code, waited(ran, "PostgreSQL is away"))
        assert migrate.head() == migrate.revision(empty)

    async def test_a_database_that_stays_away(self, pushpush: CommandLine) -> None:
        """Exit 3, and the last line says why."""
        url = "postgresql://pushpush@127.0.0.1:1/fresh"
        ran = await pushpush("migrate", "--wait", "1s", database_url=url)
        assert (3, True) == (ran.code, "PostgreSQL is away" in ran.err.splitlines()[-1])

    async def test_a_duration_that_is_none(self, pushpush: CommandLine) -> None:
        """One sentence."""
        ran = await pushpush("migrate", "--wait", "soon")
        assert (1, True) == (ran.code, "'soon' is not a duration" in ran.sentence)

    async def test_a_role_that_may_not_make_tables(self, pushpush: CommandLine, empty: str) -> None:
        """The database says which right is missing."""
        with psycopg.connect(empty) as connection:
            connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC, pg_database_owner")
        ran = await pushpush("migrate")
        assert (3, True) == (ran.code, "permission denied for schema public" in ran.sentence)


class TestPassword:
    """A wrong secret."""

    @pytest.fixture
    def guarded(self, tmp_path: Path) -> Iterator[PostgreSQL]:
        """A PostgreSQL that asks for a password, which is `right`."""
        with PostgreSQL(tmp_path / "postgres") as server:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("ALTER ROLE pushpush PASSWORD 'right'")
            access = (server.folder / "data").resolve() / "pg_hba.conf"
            access.write_text("host all pushpush 127.0.0.1/32 scram-sha-256\n")
            os.kill(server.pid, signal.SIGHUP)
            yield server

    async def test_is_told_and_seen_when_it_is_mended(self, guarded: PostgreSQL, tmp_path: Path) -> None:
        """One sentence, without the password; who waits sees the file that was put right, as Kubernetes mounts it."""
        secret = tmp_path / "database_url"
        wrong, right = (guarded.url.replace("pushpush@", f"pushpush:{word}@") for word in ("battery", "right"))
        secret.write_text(wrong)
        async with commands(Settings(amqp_url=BROKER, database_url=wrong), PUSHPUSH_DATABASE_URL="") as pushpush:
            refused = await pushpush("migrate", "--check", database_url_file=str(secret))
            assert (3, True) == (refused.code, "refuses the password of user pushpush" in refused.sentence)
            assert "battery" not in refused.err
            known = _refusals(guarded)
            migrating = asyncio.create_task(pushpush("migrate", "--wait", "2m", database_url_file=str(secret)))
            await _refused_again(guarded, known)
            secret.write_text(right)
            ran = await migrating
        assert (0, True) == (ran.code, waited(ran, "refuses the password"))
        assert migrate.head() == migrate.revision(right)


def _become(url: str, revision: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", (revision,))


@contextlib.asynccontextmanager
async def _shut(postgres: PostgreSQL) -> AsyncIterator[Wire]:
    """Give a wire to the database that hangs up on everybody, until somebody was; then it lets pass."""
    tried = asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        tried.set()

    async def mend() -> None:
        await tried.wait()
        server.close()
        await wire.mend()

    wire = Wire(postgres.ports["postgresql"])
    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    mending = asyncio.create_task(mend())
    try:
        yield wire
    finally:
        server.close()
        mending.cancel()
        await wire.cut()


async def _refused_again(server: PostgreSQL, known: int) -> None:
    """Return when PostgreSQL has refused more passwords than are known."""
    await until(lambda: _refusals(server) > known, within=30)


def _refusals(server: PostgreSQL) -> int:
    return server.log.read_text().count("password authentication failed")
