"""Rooms with a wrong secret: they stay up, say what is wrong and what to look at, and begin once it is mended."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest

from deploy.local.rabbitmq import find_rabbitmq
from deploy.local.services import PostgreSQL, RabbitMQ
from shared.store import migrate
from tests.integration.conftest import until
from tests.peers.mxdeliv import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.services]

ROOMS = ("router", "https", "smtp", "scheduler", "journal", "panel")
NO_VHOST = "refuses the vhost, or user fleet on it: NOT_ALLOWED - "
RIGHT, WRONG = "right-Horse%2F1", "wrong-Battery%2F2"  # as they stand in a URL


class Room:
    """A room in a process of its own; what it writes goes to a file."""

    def __init__(self, name: str, folder: Path, **settings: str) -> None:
        self.port = free_port()
        given = {"metrics_port": str(self.port), "panel_port": str(free_port()), "log_level": "debug", **settings}
        env = {key: value for key, value in os.environ.items() if not key.startswith("PUSHPUSH_")}
        self._file = folder / f"{name}.log"
        with self._file.open("wb") as file:
            self.process = subprocess.Popen(
                (sys.executable, "-m", f"workers.{name}"),
                env=env | {f"PUSHPUSH_{key.upper()}": value for key, value in given.items()},
                stdout=file,
                stderr=file,
            )

    @property
    def log(self) -> str:
        """What it wrote."""
        return self._file.read_text()

    async def get(self, path: str) -> tuple[int, str]:
        """Return the status and the body of an answer, 0 when there is none."""
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=60) as client:
            try:
                answer = await client.get(f"http://127.0.0.1:{self.port}{path}")
            except httpx.HTTPError:
                return 0, ""
        return answer.status_code, answer.text

    async def says(self, status: int, words: str) -> bool:
        """Say whether /readyz has this status, with these words."""
        assert self.process.poll() is None, self.log
        found, body = await self.get("/readyz")
        return (status, True) == (found, words in body)


@contextlib.asynccontextmanager
async def rooms(folder: Path, **settings: str) -> AsyncIterator[dict[str, Room]]:
    """Run every room, and end it."""
    started = {name: Room(name, folder, **settings) for name in ROOMS}
    try:
        yield started
        for each in started.values():
            each.process.terminate()
        for each in started.values():
            assert 0 == await asyncio.to_thread(each.process.wait, 30), each.log
    finally:
        for each in started.values():
            each.process.kill()
            each.process.wait()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[PostgreSQL]:
    """A PostgreSQL that asks for a password, which is the right one."""
    server = PostgreSQL(tmp_path / "postgres")
    with server:
        migrate.upgrade(server.url)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE pushpush PASSWORD '{RIGHT.replace('%2F', '/')}'")
        access = (server.folder / "data").resolve() / "pg_hba.conf"
        access.write_text("host all pushpush 127.0.0.1/32 scram-sha-256\n")
        os.kill(server.pid, signal.SIGHUP)
        yield server


def with_password(url: str, user: str, password: str) -> str:
    """Return a URL with another user and password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:{password}@{rest.partition('@')[2]}"


async def refused_by_the_database(each: Room) -> bool:
    """Say whether it is alive, not ready, and says why."""
    words = "PostgreSQL refuses the password of user pushpush: check PUSHPUSH_DATABASE_URL"
    return await each.says(503, words) and 200 == (await each.get("/healthz"))[0]


async def test_postgresql_refuses_the_password(rabbitmq: RabbitMQ, guarded: PostgreSQL, tmp_path: Path) -> None:
    """No room is ready, the panel neither; the password is told to nobody; mended in PostgreSQL, they begin."""
    url = with_password(guarded.url, "pushpush", WRONG)
    async with rooms(tmp_path, amqp_url=rabbitmq.url, database_url=url) as started:
        for name, each in started.items():
            await until(partial(refused_by_the_database, each), within=60, wanted=f"{name} refused")
            assert 'need="store"} 0.0' in (await each.get("/metrics"))[1]
        right = with_password(guarded.url, "pushpush", RIGHT)
        async with await psycopg.AsyncConnection.connect(right, autocommit=True) as connection:
            await connection.execute(f"ALTER ROLE pushpush PASSWORD '{WRONG.replace('%2F', '/')}'")
        for name, each in started.items():
            await until(partial(each.says, 200, '"faults": {}'), within=60, wanted=f"{name} ready")
            assert "pushpush_ready 1.0" in (await each.get("/metrics"))[1]
    assert not [name for name, each in started.items() if "Battery" in each.log]
    assert list(ROOMS) == [name for name, each in started.items() if "refuses the password" in each.log]


async def refused_by_the_broker(each: Room) -> bool:
    """Say whether it is alive, not ready, and says why."""
    words = "RabbitMQ refuses user fleet or the password: check PUSHPUSH_AMQP_URL"
    return await each.says(503, words) and 200 == (await each.get("/healthz"))[0]


async def control(broker: RabbitMQ, *words: str) -> None:
    """Run rabbitmqctl."""
    tool = Path(find_rabbitmq()).with_name("rabbitmqctl")
    command = (str(tool), "--quiet", "--node", broker.node, *words)
    await asyncio.to_thread(subprocess.run, command, env=broker._prepare(), check=True, capture_output=True, timeout=60)


async def test_rabbitmq_refuses_the_password(rabbitmq: RabbitMQ, database: str, tmp_path: Path) -> None:
    """As with PostgreSQL, and the rights on a vhost are told apart from the password."""
    await control(rabbitmq, "add_user", "fleet", "another")
    url = with_password(rabbitmq.url, "fleet", WRONG)
    try:
        async with rooms(tmp_path, amqp_url=url, database_url=database) as started:
            await until(lambda: started["router"].says(503, '"broker": "RabbitMQ refuses user fleet'), within=60)
            for name, each in started.items():
                await until(partial(refused_by_the_broker, each), within=60, wanted=f"{name} refused")
            await control(rabbitmq, "change_password", "fleet", WRONG.replace("%2F", "/"))
            for name, each in started.items():
                await until(partial(each.says, 503, NO_VHOST), within=60, wanted=name)
            await control(rabbitmq, "set_permissions", "fleet", ".*", ".*", ".*")
            for name, each in started.items():
                await until(partial(each.says, 200, '"faults": {}'), within=60, wanted=f"{name} ready")
    finally:
        await control(rabbitmq, "delete_user", "fleet")
    assert not [name for name, each in started.items() if "Battery" in each.log]


async def test_a_room_that_was_ready_stays_so_without_its_database(
    rabbitmq: RabbitMQ, guarded: PostgreSQL, tmp_path: Path
) -> None:
    """A delivery room goes on and tells the fault; one that never had a database is not ready before it comes."""
    url = with_password(guarded.url, "pushpush", RIGHT)
    guarded.stop()
    room = Room("https", tmp_path, amqp_url=rabbitmq.url, database_url=url)
    try:
        await until(lambda: room.says(503, "PostgreSQL is away"), within=60)
        guarded.start()
        await until(lambda: room.says(200, '"faults": {}'), within=60)
        guarded.kill()
        await until(lambda: room.says(200, '"store": "PostgreSQL is away'), within=60)
        assert 'pushpush_need_met{need="store"} 0.0' in (await room.get("/metrics"))[1]
    finally:
        room.process.terminate()
        assert 0 == await asyncio.to_thread(room.process.wait, 30), room.log
