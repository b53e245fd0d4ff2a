"""The one-machine fleet: every room as a process of this machine, kept alive. A library for tests and benchmarks too.

`python -m deploy.local.fleet up` adds a private RabbitMQ and PostgreSQL; what it does is in `up.py`.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from deploy.local.process import ServiceError, free_port, last_lines
from deploy.local.supervisor import Room, Say, Sink

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 30.0


class Fleet:
    """Rooms that are kept running against a broker and a database that are there already.

    Use it as an async context manager: it migrates the database, starts the rooms, and stops them at the end. The rooms
    get our own `PUSHPUSH_*` variables, then `env`, then the addresses, and each its own free `PUSHPUSH_METRICS_PORT`;
    the first panel listens where `PUSHPUSH_PANEL_PORT` says, if it does, and every other on a free port.

    Attributes:
        env: the environment that all rooms have in common, fit for the command line too.
        hurry: when set, `stop` waits no longer and kills.

    Args:
        folder: output goes to `log/NAME.log` below it; made when missing.
        amqp_url: the broker.
        database_url: the database.
        rooms: how many processes of each room, such as `{"router": 2, "smtp": 1}`: `router-1`, `router-2`, `smtp-1`.
        env: more variables for all rooms.
        modules: the module to run for a room where it is not `workers.ROOM`.
        migrated: the database has the newest schema already, `start` need not see to it.
        sink: makes the sink for the output of a room by its name, in place of the log file.
        say: takes one line about each death and restart; the default writes to `log/fleet.log`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        amqp_url: str,
        database_url: str,
        rooms: Mapping[str, int],
        env: Mapping[str, str] | None = None,
        modules: Mapping[str, str] | None = None,
        migrated: bool = False,
        sink: Callable[[str], Sink] | None = None,
        say: Say | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.names = [f"{room}-{number}" for room, count in rooms.items() for number in range(1, count + 1)]
        self.hurry = asyncio.Event()
        self._modules = {room: (modules or {}).get(room, f"workers.{room}") for room in rooms}
        self.env = environment(amqp_url=amqp_url, database_url=database_url, extra=env or {})
        self._migrated = migrated
        self._sink = sink or self._log_file
        self._say: Say = say or (lambda text: self._log_file("fleet")(f"{text}\n".encode()))
        self._rooms: dict[str, Room] = {}
        self._files = ExitStack()
        self._logs: dict[str, Sink] = {}

    async def start(self) -> None:
        """Migrate the database and start all rooms; `wait_ready` tells when they work.

        Raises:
            ServiceError: the migration failed, there is no free port, or setpriv is missing.
        """
        if not self._migrated:
            await migrate(self.env)
            self._migrated = True
        for name in self.names:
            self._rooms[name] = room = self._room(name)
            await room.start()

    async def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """End all rooms with SIGTERM, at the same time, and kill those that take longer than `seconds`.

        Setting `hurry` kills what is left at once. No room is started again from here on.
        """
        await asyncio.gather(*(room.stop(seconds=seconds, hurry=self.hurry) for room in self._rooms.values()))
        self._rooms.clear()
        self._files.close()
        self._logs.clear()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def pid(self, name: str) -> int:
        """Return the process id of a room.

        Raises:
            ServiceError: no such room, or it does not run at this moment.
        """
        return self._find(name).pid

    def kill(self, name: str) -> None:
        """Kill a room with SIGKILL; it is started again after a pause of 1 s, growing to 10 s.

        Raises:
            ServiceError: no such room, or it does not run at this moment.
        """
        self._find(name).kill()

    def metrics_port(self, name: str) -> int:
        """Return the port of 127.0.0.1 on which a room serves /metrics, /healthz and /readyz.

        Raises:
            ServiceError: no such room.
        """
        return int(self._find(name).env["PUSHPUSH_METRICS_PORT"])

    def panel_port(self, name: str = "panel-1") -> int:
        """Return the port of 127.0.0.1 on which a panel listens.

        Raises:
            ServiceError: no such room.
        """
        return int(self._find(name).env["PUSHPUSH_PANEL_PORT"])

    async def wait_ready(self, *, seconds: float = 60.0) -> None:
        """Return when every room answers 200 on /readyz.

        Args:
            seconds: how long that may take.

        Raises:
            ServiceError: some were not ready in time; they are named, with the last lines of their logs.
        """
        deadline = time.monotonic() + seconds
        waiting = list(self._rooms)
        while waiting:
            ready = await asyncio.gather(*(is_ready(self.metrics_port(name)) for name in waiting))
            waiting = [name for name, yes in zip(waiting, ready, strict=True) if not yes]
            if waiting and time.monotonic() > deadline:
                logs = last_lines(*(self.folder / "log" / f"{name}.log" for name in ["fleet", *waiting]))
                raise ServiceError(f"Not ready within {seconds:.0f} s: {', '.join(waiting)}.\n{logs}")
            await asyncio.sleep(0.05 if waiting else 0)

    def _room(self, name: str) -> Room:
        module = self._modules[name.rpartition("-")[0]]
        env = self.env | {"PUSHPUSH_METRICS_PORT": str(free_port())}
        if name.startswith("panel-") and (name != "panel-1" or "PUSHPUSH_PANEL_PORT" not in env):
            env["PUSHPUSH_PANEL_PORT"] = str(free_port())
        command = [sys.executable, "-m", module]
        return Room(name, command, env=env, folder=ROOT, sink=self._sink(name), say=self._say)

    def _find(self, name: str) -> Room:
        if name not in self._rooms:
            raise ServiceError(f"No room {name} here. Running: {', '.join(self._rooms) or 'none'}.")
        return self._rooms[name]

    def _log_file(self, name: str) -> Sink:
        if name not in self._logs:
            path = self.folder / "log" / f"{name}.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._logs[name] = self._files.enter_context(path.open("ab", buffering=0)).write  # type: ignore[assignment]
        return self._logs[name]


def environment(*, amqp_url: str, database_url: str, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a room: ours, then `extra`, then the two addresses; output is not buffered."""
    named = {"PUSHPUSH_AMQP_URL": amqp_url, "PUSHPUSH_DATABASE_URL": database_url}
    settled = {f"{name}_FILE" for name in named}  # a second source for the same setting would be refused
    ours = {name: value for name, value in os.environ.items() if name not in settled}
    defaults = {"PUSHPUSH_HOSTNAME": "mail.pushpush.example", "PYTHONUNBUFFERED": "1"}
    return defaults | ours | dict(extra) | named


async def migrate(env: Mapping[str, str]) -> None:
    """Bring the database to the newest schema by `python -m workers.cli migrate`.

    Args:
        env: the whole environment, as `environment` returns it.

    Raises:
        ServiceError: it failed; its output is in the text.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "workers.cli", "migrate"),
        env=dict(env),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        text = output.decode("utf-8", "replace").strip()
        raise ServiceError(f"The database could not be migrated (python -m workers.cli migrate):\n{text}")


async def is_ready(port: int) -> bool:
    """Tell whether /readyz on this port of 127.0.0.1 answers 200 within 2 s."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                status = await reader.readline()
                return status.split()[1:2] == [b"200"]
            finally:
                writer.close()
    return False


if __name__ == "__main__":
    from deploy.local.up import main

    sys.exit(main())
