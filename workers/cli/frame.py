"""What every command shares: settings, connections, output for people or as JSON, and exit codes."""

import asyncio
import contextlib
import getpass
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Never

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.runtime import log
from shared.runtime.clock import now
from shared.runtime.errors import BrokerUnavailable, FleetError
from shared.runtime.settings import PREFIX, ConfigError, Settings
from shared.store.pool import Pool

REFUSED, USAGE, AWAY, LATE, CONFIG = 1, 2, 3, 4, 78  # exit codes
CONFIRM = 30.0  # seconds to wait for the broker's word
LOCAL = Path(".run/pushpush.env")  # where `make up` says how to reach its broker and database

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


class Refusal(Exception):  # noqa: N818 - the command refuses; nothing was changed
    """What was asked for cannot be done; the message is a sentence for the person who asked."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a command has to say: data for machines, text for people, and an exit code.

    `fault` says in words what the code means, where the text is a table.
    """

    data: Any
    text: str | Table
    code: int = 0
    fault: str = ""


class Fleet:
    """The settings, and connections that are opened when they are first needed."""

    def __init__(self, settings: Settings, stack: contextlib.AsyncExitStack) -> None:
        """Open nothing yet; what is opened is closed with the stack."""
        self.settings = settings
        self._stack = stack

    async def pool(self) -> Pool:
        """Open the store."""
        pool = Pool(self.settings.database_url, name="cli", size=2)
        await pool.open()
        self._stack.push_async_callback(pool.close)
        return pool

    async def publisher(self, *, wait: float = 5.0) -> Publisher:
        """Connect to the broker; when it is away, the publisher says so at the first publish."""
        return Publisher(await self.link(wait=wait), timeout=CONFIRM)

    async def link(self, *, wait: float = 5.0) -> Link:
        """Connect to the broker, waiting that many seconds for it."""
        link = await self._stack.enter_async_context(Link(self.settings.amqp_url, name="cli"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(link.wait_up(), wait)
        return link


def run(command: str, work: Callable[[Fleet], Awaitable[Result]], *, json: bool) -> Never:
    """Run a command, print what it has to say, and exit with its code."""
    try:
        settings = read_settings()
        # What a command has to say, it says itself.
        log.set_up(form="text", level="error", room="cli")
        result = asyncio.run(_opened(settings, work))
    except ConfigError as error:
        fail(command, "config", str(error), CONFIG, json=json)
    except FleetError as error:
        kind = "broker_unavailable" if isinstance(error, BrokerUnavailable) else "store_unavailable"
        fail(command, kind, str(error), AWAY, json=json)
    except (Refusal, ValueError) as error:
        fail(command, "refused", str(error), REFUSED, json=json)
    if json:
        told = {"ok": result.code == 0, "command": command, "data": result.data}
        if result.code:
            kind = "late" if result.code == LATE else "not_well"
            words = result.text if isinstance(result.text, str) else result.fault
            told["error"] = {"kind": kind, "message": words, "code": result.code}
        _print_json(told)
    else:
        # Facts are not wrapped or coloured away: they may be read by another program, too.
        Console(highlight=False, soft_wrap=isinstance(result.text, str), markup=False).print(result.text)
    raise typer.Exit(result.code)


def fail(command: str, kind: str, message: str, code: int, *, json: bool) -> Never:
    """Say what went wrong and exit with the code."""
    if json:
        _print_json({"ok": False, "command": command, "error": {"kind": kind, "message": message, "code": code}})
    else:
        print(f"pushpush {command}: {message}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(code)


def read_settings() -> Settings:
    """Read the settings; without any address in the environment, those of a fleet that `make up` runs here.

    Raises:
        ConfigError: They are not usable.
    """
    environ = dict(os.environ)
    if f"{PREFIX}AMQP_URL" not in environ and f"{PREFIX}AMQP_URL_FILE" not in environ and LOCAL.is_file():
        lines = (line.partition("=") for line in LOCAL.read_text(encoding="utf-8").splitlines())
        environ = {key: value for key, equals, value in lines if equals} | environ
    return Settings.read(environ)


def actor(given: str | None) -> str:
    """Return who makes a change: as given, or the user of the operating system."""
    if given:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def table(*columns: str) -> Table:
    """Return an empty table with these columns."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def ago(time: datetime) -> str:
    """Return a time as people say it: `3 m ago`, `in 2 h`."""
    passed = now() - time
    words = duration(abs(passed))
    return f"{words} ago" if passed >= timedelta(0) else f"in {words}"


def duration(span: timedelta) -> str:
    """Return a span in its largest unit."""
    seconds = int(span.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _print_json(value: object) -> None:
    print(msgspec.json.encode(value).decode())  # noqa: T201


async def _opened(settings: Settings, work: Callable[[Fleet], Awaitable[Result]]) -> Result:
    async with contextlib.AsyncExitStack() as stack:
        return await work(Fleet(settings, stack))
