"""What every command shares: settings, connections, output for people or as JSON, and exit codes."""

import asyncio
import contextlib
import getpass
import os
import re
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
MAX_ACTOR = 200  # characters
_WIDE = 200  # characters of a line of a table that goes into a file or another program
# What PostgreSQL or JSON cannot hold, or would do things to a terminal, such as show text in another order than it has;
# a bad byte of argv arrives as a surrogate.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


class Refusal(Exception):  # noqa: N818 - the command refuses; nothing was changed
    """What was asked for cannot be done; the message is a sentence for the person who asked."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a command has to say: data for machines, text for people, and an exit code.

    Attributes:
        data: For machines.
        text: For people; bytes are a file, and are printed as they are.
        code: The exit code.
        fault: What the code means in one sentence, where the text is more than that.
        warnings: Sentences for people on standard error; commands that have some put them into the data, too.
    """

    data: Any
    text: str | Table | bytes
    code: int = 0
    fault: str = ""
    warnings: tuple[str, ...] = ()


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
            words = result.text if isinstance(result.text, str) and not result.fault else result.fault
            told["error"] = {"kind": kind, "message": words, "code": result.code}
        _print_json(told)
        raise typer.Exit(result.code)
    for warning in result.warnings:
        print(f"pushpush {command}: warning: {printable(warning)}", file=sys.stderr)  # noqa: T201
    if isinstance(result.text, bytes):
        sys.stdout.buffer.write(result.text)
        sys.stdout.buffer.flush()
    else:
        # Facts are not wrapped or coloured away: they may be read by another program, too.
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
        soft = isinstance(result.text, str)
        Console(highlight=False, soft_wrap=soft, markup=False, emoji=False, width=width).print(result.text)
    raise typer.Exit(result.code)


def fail(command: str, kind: str, message: str, code: int, *, json: bool) -> Never:
    """Say what went wrong and exit with the code."""
    message = "\n".join(map(printable, message.split("\n")))
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
    """Return who makes a change: as given, or the user of the operating system.

    Raises:
        Refusal: It is no name that a history can show.
    """
    if given:
        return one_line("the actor", given, MAX_ACTOR)
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def one_line(what: str, text: str, longest: int) -> str:
    """Return the text.

    Raises:
        Refusal: It is not one line of so many characters at most.
    """
    if len(text) > longest or _CONTROL.search(text):
        raise Refusal(f"{what} must be one line of at most {longest} characters, without control characters")
    return text


def printable(text: str) -> str:
    """Return the text with every character that a terminal would obey, or cannot show, written out."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def counted(count: int, one: str, many: str) -> str:
    """Return `1 rule` or `2 rules`."""
    return f"{count} {one if count == 1 else many}"


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
