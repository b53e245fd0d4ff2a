"""`python -m deploy.local.fleet up`: private services, migrations and all rooms, until interrupted."""

import argparse
import asyncio
import contextlib
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from deploy.local.fleet import Fleet
from deploy.local.process import ServiceError, free_port, is_free, locked
from deploy.local.services import OpenServices, open_services
from deploy.local.supervisor import Sink, prefixed

_COLOURS = (36, 33, 32, 35, 34, 31)
_MOST = 64  # processes of one room
_OPENS_PANEL = "admin-token"  # the name of a file
_ROOMS = {
    "routers": ("router", 2),
    "https": ("https", 1),
    "smtp": ("smtp", 1),
    "schedulers": ("scheduler", 1),
    "journals": ("journal", 1),
    "panels": ("panel", 1),
}
_PANEL_PORT = 8080  # or any free one


def main(
    arguments: Sequence[str] | None = None, *, modules: Mapping[str, str] | None = None, migrated: bool = False
) -> int:
    """Run the command line; return the exit code: 0 after a clean stop, 1 when something did not start or stop.

    Args:
        arguments: the command line, `sys.argv` when None.
        modules: modules to run in place of `workers.ROOM`.
        migrated: no migration is needed.
    """
    parser = argparse.ArgumentParser(prog="python -m deploy.local.fleet", description="The one-machine fleet.")
    up = parser.add_subparsers(required=True, metavar="up").add_parser("up", help="run the fleet until interrupted")
    up.add_argument("--folder", type=Path, default=Path(".run"), help="data, logs and addresses (default: .run)")
    for option, (room, count) in _ROOMS.items():
        up.add_argument(f"--{option}", type=_count, default=count, dest=room, help=f"processes (default: {count})")
    chosen = parser.parse_args(arguments)
    counts = {room: getattr(chosen, room) for room, _ in _ROOMS.values()}
    try:
        asyncio.run(_up(chosen.folder.absolute(), counts, modules or {}, migrated=migrated))
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


async def _up(folder: Path, counts: Mapping[str, int], modules: Mapping[str, str], *, migrated: bool) -> None:
    interrupted, hurry = _signals()
    with ExitStack() as ends:
        ends.enter_context(_alone(folder))
        _say("Starting RabbitMQ and PostgreSQL ...")
        services = await _open(folder, ends)
        env = {"PUSHPUSH_LOG_FORMAT": "text"} if sys.stdout.isatty() and "PUSHPUSH_LOG_FORMAT" not in os.environ else {}
        env |= _panel(folder)
        fleet = Fleet(
            folder,
            amqp_url=services.amqp_url,
            database_url=services.database_url,
            rooms=counts,
            env=env,
            modules=modules,
            migrated=migrated,
            sink=_sinks(counts),
            say=_say,
        )
        fleet.hurry = hurry
        ends.enter_context(_addresses(folder, services))
        async with fleet:
            print(_summary(folder, services, counts, fleet.env), flush=True)
            await interrupted.wait()
            _say("Stopping the rooms (Ctrl-C again to hurry) ...")
        _say("Stopping RabbitMQ and PostgreSQL ...")
    _say("Stopped.")


async def _open(folder: Path, ends: ExitStack) -> OpenServices:
    services = open_services(folder)
    opened = await asyncio.to_thread(services.__enter__)
    ends.push(services.__exit__)
    return opened


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return what the first and the second Ctrl-C (or SIGTERM) set."""
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return first, second


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a second fleet in the same folder."""
    refusal = "A fleet already runs in {folder} (process {pid}). Stop it, or choose another folder with --folder."
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", patience=0, refusal=refusal):
        yield


@contextlib.contextmanager
def _addresses(folder: Path, services: OpenServices) -> Iterator[None]:
    """Keep the addresses in `pushpush.env` for the command line, for as long as they are good."""
    file = folder / "pushpush.env"
    file.touch(mode=0o600)
    file.write_text(f"PUSHPUSH_AMQP_URL={services.amqp_url}\nPUSHPUSH_DATABASE_URL={services.database_url}\n")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _panel(folder: Path) -> dict[str, str]:
    """Return where the panel is to listen, and the token that opens it: one of this folder's own, made once."""
    port = os.environ.get("PUSHPUSH_PANEL_PORT") or str(_PANEL_PORT if is_free(_PANEL_PORT) else free_port())
    env = {"PUSHPUSH_PANEL_PORT": port}
    if os.environ.get("PUSHPUSH_ADMIN_TOKEN") or os.environ.get("PUSHPUSH_ADMIN_TOKEN_FILE"):
        return env
    file = folder / _OPENS_PANEL
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(f"{secrets.token_urlsafe(24)}\n")
    return env | {"PUSHPUSH_ADMIN_TOKEN_FILE": str(file)}


def _sinks(counts: Mapping[str, int]) -> Callable[[str], Sink]:
    """Return a maker of sinks that write to our output, one colour for each room on a terminal."""
    rooms = list(counts)
    width = max(len(room) for room in rooms) + 2

    def make(name: str) -> Sink:
        place = rooms.index(name.rpartition("-")[0])
        colour = _COLOURS[place % len(_COLOURS)] if sys.stdout.isatty() else None
        return prefixed(name, sys.stdout.buffer, width=width, colour=colour)

    return make


def _summary(folder: Path, services: OpenServices, counts: Mapping[str, int], env: Mapping[str, str]) -> str:
    rooms = ", ".join(f"{count} x {room}" for room, count in counts.items() if count)
    broker = services.rabbitmq.log.parent / "log" / "node.log" if services.rabbitmq else "elsewhere"
    database = services.postgresql.log if services.postgresql else "elsewhere"
    panel = ""
    if counts["panel"]:
        token = env.get("PUSHPUSH_ADMIN_TOKEN_FILE")
        where = f"log in with the token in {token}" if token else "log in with your PUSHPUSH_ADMIN_TOKEN"
        panel = f"\n  Panel       http://127.0.0.1:{env['PUSHPUSH_PANEL_PORT']}/  ({where})"
    return f"""
The fleet runs: {rooms}.{panel}
  RabbitMQ    {_without_password(services.amqp_url)}  (log: {broker})
  PostgreSQL  {_without_password(services.database_url)}  (log: {database})
  Addresses   {folder / "pushpush.env"}, read by the command line
Try, in another terminal:
  .venv/bin/pushpush endpoint-cache set a.example 127.0.0.1:2525 --comment "Route via our partner"
  .venv/bin/pushpush send MESSAGE.eml --from you@x.example --to someone@a.example
  .venv/bin/pushpush queue status
Ctrl-C stops it. What the rooms say follows.
"""


def _without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1@", url)


def _say(text: str) -> None:
    print(f"fleet: {text}", flush=True)


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= _MOST:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and {_MOST}")
    return number
