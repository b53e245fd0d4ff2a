"""The frame of a process: settings, log, event loop and signals. A room adds its work."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import structlog
import uvloop

from shared.runtime import log as logging
from shared.runtime import tracing
from shared.runtime.health import Health
from shared.runtime.settings import ConfigError, Settings
from shared.runtime.tasks import end

log = structlog.get_logger()

CONFIG = 78  # EX_CONFIG of sysexits.h: a supervisor need not try again soon
PULSE = 1.0  # seconds between two pulses of the loop, for the health


def settings_or_exit(room: str) -> Settings:
    """Read the settings and set up the log; on a fault, say all of them and exit with 78."""
    try:
        settings = Settings.read(os.environ)
    except ConfigError as error:
        sys.exit(_refusal(room, error))
    logging.set_up(form=settings.log_format, level=settings.log_level, room=room)
    return settings


def run(room: str, work: Callable[[Settings, asyncio.Event], Awaitable[None]]) -> None:
    """Run a room until SIGTERM or SIGINT.

    Args:
        room: Its name.
        work: Does the job until the event is set, then finishes what it has in hand and returns.
    """
    settings = settings_or_exit(room)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        log.info("started", pid=os.getpid(), hostname=settings.hostname)
        await work(settings, stop)
        log.info("stopped")

    try:
        with tracing.running(settings, room), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except ConfigError as error:
        sys.exit(_refusal(room, error))


@contextlib.asynccontextmanager
async def background(*endless: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless work beside the block; a fault in it ends the block, and the process, with that fault."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_endless(each)) for each in endless]
        await asyncio.sleep(0)  # each has begun, also when the block ends at once
        try:
            yield
        finally:
            await end(*tasks)


async def _endless(work: Coroutine[Any, Any, None]) -> None:
    """Run it. That it ends, unless we cancel it, is a fault; a task group passes over a task that was cancelled."""
    try:
        await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("endless work was cancelled from within") from error
    raise RuntimeError("endless work ended")


async def done_before(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run the work until it is done or the event is set; return whether it was done."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        stopping.cancel()
        working.result()
        return True
    working.cancel()
    return False


async def pulse(health: Health) -> None:
    """Tell the health that the loop turns; never ends."""
    while True:
        health.pulse()
        await asyncio.sleep(PULSE)


def _refusal(room: str, error: ConfigError) -> int:
    print(f"{room}: the settings are not usable:", file=sys.stderr)  # noqa: T201 - there is no log yet
    print(error, file=sys.stderr)  # noqa: T201
    return CONFIG
