"""The private services and the one-machine fleet: what they keep, what they leave behind, whom they let in."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pika  # type: ignore[import-untyped] # it ships no types
import psutil
import psycopg
import pytest

from deploy.local.fleet import Fleet
from deploy.local.services import PostgreSQL, RabbitMQ, ServiceError, open_services

T = TypeVar("T")
pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]

# A room that is ready at once; "stubborn" ignores SIGTERM.
STAND_IN = """
import http.server, os, signal, sys
print("hello from", os.environ["PUSHPUSH_HOSTNAME"], flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv[0] else lambda *_: sys.exit(0))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["PUSHPUSH_METRICS_PORT"])), Answer).serve_forever()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's user can enter also when we are root; pytest's own are for their owner only."""
    path = Path(tempfile.mkdtemp(prefix="pushpush-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def stand_ins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of modules that stand in for rooms, on the Python path of the processes that we start."""
    place = folder / "modules"
    place.mkdir()
    for name in ("obedient", "stubborn"):
        (place / f"{name}_room.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{place}:{ROOT}")
    return place


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def ours() -> set[psutil.Process]:
    """Return all that this test run has started so far, the broker and the database of other tests too."""
    return set(tree(os.getpid())[1:])


def alive(processes: Iterable[psutil.Process]) -> list[str]:
    """Name those that run; a zombie that process 1 has not looked after yet does not."""
    names = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                names.append(f"{process.pid} {process.name()}")
    return names


def eventually(ask: Callable[[], T], *, seconds: float = 15) -> T:
    """Return the first answer that is true, or the last one."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer


def listens_beyond_loopback(processes: Iterable[psutil.Process]) -> list[str]:
    """Return the addresses other than this machine's own at which they listen; they must listen somewhere."""
    sockets = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that served a client just gone
            connections = process.net_connections(kind="inet")
            sockets += [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]
    assert sockets
    return [ip for ip in sockets if ip not in {"127.0.0.1", "::1"}]


def publish(url: str, body: bytes) -> None:
    """Publish a persistent message to a durable quorum queue and wait for the confirm."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", "kept", body, pika.BasicProperties(delivery_mode=2), mandatory=True)


def take(url: str) -> bytes | None:
    """Take the one message; a quorum queue elects its leader a moment after the broker is back."""

    def ask() -> bytes | None:
        body: bytes | None
        _, _, body = channel.basic_get("kept", auto_ack=True)
        return body

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        return eventually(ask)


def test_rabbitmq_keeps_messages_and_port(folder: Path) -> None:
    """A confirmed message survives a clean stop and a power cut, on the same port; nothing is left running."""
    before = ours()
    with RabbitMQ(folder / "rabbitmq") as broker:
        url, processes = broker.url, ours() - before
        assert {"beam.smp", "epmd"} <= {process.name() for process in processes}
        assert listens_beyond_loopback(processes) == []
        publish(url, b"through a stop")
    assert alive(processes) == []

    broker.start()
    assert broker.url == url
    assert take(url) == b"through a stop"
    publish(url, b"through a power cut")
    processes = ours() - before
    broker.kill()
    assert alive(processes) == []

    broker.start()
    assert broker.url == url
    assert take(url) == b"through a power cut"
    broker.stop()


def test_postgresql_keeps_rows_and_port(folder: Path) -> None:
    """A committed row survives a clean stop and a power cut, on the same port; nothing is left running."""
    with PostgreSQL(folder / "postgres") as database:
        url, processes = database.url, tree(database.pid)
        assert listens_beyond_loopback(processes) == []
        with psycopg.connect(url) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            connection.execute("CREATE TABLE kept (what text)")
            connection.execute("INSERT INTO kept VALUES ('through a stop')")
    assert alive(processes) == []

    database.start()
    assert database.url == url
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO kept VALUES ('through a power cut')")
    whole = tree(database.pid)
    database.kill()
    assert alive(whole) == []

    database.start()
    assert database.url == url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT what FROM kept").fetchall() == [("through a stop",), ("through a power cut",)]
    database.stop()


def test_postgresql_in_a_folder_that_its_user_cannot_enter(folder: Path) -> None:
    """The data of a root who works below /root are kept where the server's user can reach them, and found again."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    database = PostgreSQL(closed / "postgres")
    with database, psycopg.connect(database.url) as connection:
        connection.execute("CREATE TABLE kept (what text)")
    data = (database.folder / "data").resolve()
    with database, psycopg.connect(database.url) as connection:
        assert connection.execute("SELECT what FROM kept").fetchall() == []
    assert (data.parent == database.folder) == (os.geteuid() != 0)
    database.remove()
    assert not data.exists()


def test_the_role_of_the_fleet_is_no_superuser(folder: Path) -> None:
    """Who can reach the port needs no password, so he must not run programs as the server's user."""
    with PostgreSQL(folder / "postgres") as database:
        with psycopg.connect(database.url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("COPY (SELECT 1) TO PROGRAM 'true'")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(database.url.replace("pushpush@", "admin@"))


def test_a_port_that_somebody_took_is_given_up(folder: Path) -> None:
    """A start does not fail because a stranger sits on the port of last time."""
    with PostgreSQL(folder / "postgres") as database:
        url, port = database.url, database.ports["postgresql"]
    with contextlib.closing(socket.create_server(("127.0.0.1", port))), database:
        assert database.url != url


def test_a_folder_in_use_is_refused(folder: Path) -> None:
    """Two servers on the same data would destroy them."""
    with PostgreSQL(folder / "postgres") as database:
        other = PostgreSQL(database.folder)
        other.lock_seconds = 0.1
        with pytest.raises(ServiceError, match=f"in use by another process .{os.getpid()}"):
            other.start()


def test_a_failed_start_shows_the_log(folder: Path) -> None:
    """The reader of the error need not look for the log."""
    database = PostgreSQL(folder / "postgres")
    with database:
        pass
    (database.folder / "data" / "global" / "pg_control").unlink()
    with pytest.raises(ServiceError, match=r"(?s)ended with code .*Last lines of .*pg_control"):
        database.start()


def test_a_service_outlives_the_thread_that_started_it(folder: Path) -> None:
    """The kernel takes the end of the forking thread for the parent's death; fleets start them in passing threads."""
    database = PostgreSQL(folder / "postgres")
    starter = threading.Thread(target=database.start)
    starter.start()
    starter.join()
    time.sleep(0.3)
    with psycopg.connect(database.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    database.stop()


def test_named_services_are_used_and_not_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operator names is obeyed."""
    secret = folder / "secret"
    secret.write_text("postgresql://db.example/x\n")
    monkeypatch.setenv("PUSHPUSH_AMQP_URL", "amqp://broker.example/")
    monkeypatch.setenv("PUSHPUSH_DATABASE_URL_FILE", str(secret))
    with open_services(folder) as services:
        assert (services.amqp_url, services.database_url) == ("amqp://broker.example/", "postgresql://db.example/x")
        assert (services.rabbitmq, services.postgresql) == (None, None)


def test_nothing_outlives_a_killed_parent(folder: Path) -> None:
    """A test run that is killed with -9 leaves no broker, no database and no epmd behind."""
    code = f"""
import pathlib, time
from deploy.local.services import open_services
with open_services(pathlib.Path({str(folder)!r})) as services:
    print("up", flush=True)
    time.sleep(600)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PUSHPUSH_")}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        children = tree(parent.pid)[1:]
        assert {"beam.smp", "epmd", "postgres"} <= {process.name() for process in children}
        parent.kill()
    assert eventually(lambda: not alive(children)), alive(children)


def test_peers_that_cannot_be_installed_fail_nothing(folder: Path) -> None:
    """On a machine without Postfix and without apt `make test` says what will be skipped, and goes on."""
    script = folder / "deploy" / "local" / "bootstrap.sh"
    script.parent.mkdir(parents=True)
    text = (ROOT / "deploy" / "local" / "bootstrap.sh").read_text()
    script.write_text(text.replace("/usr/sbin/postfix /usr/local/sbin/postfix", "/nowhere"))
    programs = folder / "bin"
    programs.mkdir()
    for name in ("sh", "dirname"):
        (programs / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        [programs / "sh", script, "peers"], env={"PATH": str(programs)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("note: the Debian package postfix is missing and cannot be installed here")


def make_fleet(folder: Path, **rooms: str) -> Fleet:
    """Return a fleet of one stand-in each, which asks nothing of its services."""
    return Fleet(
        folder,
        amqp_url="amqp://broker.example/",
        database_url="postgresql://db.example/x",
        rooms=dict.fromkeys(rooms, 1),
        modules=rooms,
        migrated=True,
    )


@pytest.mark.usefixtures("stand_ins")
async def test_a_killed_room_comes_back(folder: Path) -> None:
    """The supervisor starts a room again, says so in one line, and leaves nothing behind at the end."""
    async with make_fleet(folder, router="obedient_room", smtp="obedient_room") as fleet:
        await fleet.wait_ready()
        first, other = fleet.pid("router-1"), fleet.pid("smtp-1")
        fleet.kill("router-1")
        await until(lambda: running(fleet, "router-1") not in {None, first})
        await fleet.wait_ready()
        assert fleet.pid("smtp-1") == other
        last = [psutil.Process(fleet.pid(name)) for name in fleet.names]
    assert alive(last) == []
    said = (folder / "log" / "fleet.log").read_text()
    assert said == "router-1 was ended by SIGKILL; starting it again in 1 s\n"
    assert (folder / "log" / "router-1.log").read_text() == "hello from mail.pushpush.example\n" * 2


@pytest.mark.usefixtures("stand_ins")
async def test_a_room_that_does_not_stop_is_killed(folder: Path) -> None:
    """The wait for a room is bounded, and its end by force is said."""
    fleet = make_fleet(folder, router="stubborn_room")
    await fleet.start()
    await fleet.wait_ready()
    room = psutil.Process(fleet.pid("router-1"))
    await fleet.stop(seconds=0.2)
    assert alive([room]) == []
    assert "router-1 did not stop within 0.2 s: killed" in (folder / "log" / "fleet.log").read_text()


@pytest.mark.usefixtures("stand_ins")
async def test_a_stop_can_be_hurried(folder: Path) -> None:
    """The second Ctrl-C does not wait for a room that takes its time."""
    async with make_fleet(folder, router="stubborn_room") as fleet:
        await fleet.wait_ready()
        asyncio.get_running_loop().call_later(0.2, fleet.hurry.set)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert "router-1 was told to hurry: killed" in (folder / "log" / "fleet.log").read_text()


@pytest.mark.usefixtures("stand_ins")
async def test_a_room_that_never_gets_ready_is_named(folder: Path) -> None:
    """The error names the room and shows what it said."""
    async with make_fleet(folder, router="obedient_room", smtp="missing_room") as fleet:
        with pytest.raises(ServiceError, match=r"(?s)Not ready within .* s: smtp-1\..*No module named missing_room"):
            await fleet.wait_ready(seconds=2)


def test_up_and_down(folder: Path, stand_ins: Path) -> None:
    """`up` says where things are, refuses a second fleet in the folder, and ends everything in order on SIGINT."""
    (stand_ins / "run_up.py").write_text(
        "import sys\nfrom deploy.local.up import main\n"
        "rooms = dict.fromkeys(['router', 'https', 'smtp', 'scheduler', 'journal', 'panel'], 'obedient_room')\n"
        "sys.exit(main(modules=rooms, migrated=True))\n"
    )
    run = folder / "run"
    command = [sys.executable, "-m", "run_up", "up", "--folder", str(run), "--https", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PUSHPUSH_")}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as fleet:
        assert fleet.stdout is not None
        said: list[str] = []
        while sum("hello from" in line for line in said) < 6:
            said.append(fleet.stdout.readline())
        addresses = (run / "pushpush.env").read_text()
        token = run / "admin-token"
        assert (token.stat().st_mode & 0o777, len(token.read_text().strip())) == (0o600, 32)
        children = tree(fleet.pid)[1:]
        second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        fleet.send_signal(signal.SIGINT)
        said += fleet.stdout
    assert fleet.returncode == 0
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr.startswith(f"error: A fleet already runs in {run} (process {fleet.pid}).")
    assert [line.partition("=")[0] for line in addresses.splitlines()] == ["PUSHPUSH_AMQP_URL", "PUSHPUSH_DATABASE_URL"]
    assert not (run / "pushpush.env").exists()
    assert alive(children) == []
    assert "router-2    | hello from mail.pushpush.example\n" in said
    assert said[-1] == "fleet: Stopped.\n"
    assert any(f"(log in with the token in {token})" in line for line in said)
    assert token.read_text().strip() not in "".join(said)


def running(fleet: Fleet, name: str) -> int | None:
    """Return the process id of a room, None in the pause before its next start."""
    try:
        return fleet.pid(name)
    except ServiceError:
        return None


async def until(ask: Callable[[], bool]) -> None:
    """Wait until the answer is yes."""
    async with asyncio.timeout(15):
        while not ask():
            await asyncio.sleep(0.05)
