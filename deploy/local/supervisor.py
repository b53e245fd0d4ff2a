"""Keep processes running: start each, start it again when it dies, end all in good order.

A room that dies comes back after a pause that grows from 1 s to 10 s; a minute of good health makes it short again.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from deploy.local.process import ServiceError, bound_to_us

_PAUSES = (1.0, 2.0, 4.0, 7.0, 10.0)
_HEALTHY_SECONDS = 60.0

Say = Callable[[str], None]
Sink = Callable[[bytes], None]


class Room:
    """One process of the fleet, kept alive.

    Args:
        name: such as `router-1`; used in messages.
        command: the program and its arguments.
        env: the whole environment of the process.
        folder: its working directory.
        sink: takes its output in whole lines (bytes with the line end).
        say: takes one line of text about what happened to it.
    """

    def __init__(
        self, name: str, command: list[str], *, env: Mapping[str, str], folder: Path, sink: Sink, say: Say
    ) -> None:
        self.name = name
        self.env = env
        self._command = bound_to_us(command)
        self._folder = folder
        self._sink = sink
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            ServiceError: it does not run now, it may be in the pause before its next start.
        """
        if self._process is None or self._process.returncode is not None:
            raise ServiceError(f"{self.name} is not running at this moment.")
        return self._process.pid

    @property
    def code(self) -> int:
        """The exit code of the process that ended last: negative, the signal that ended it.

        Raises:
            ServiceError: it runs, or was never started.
        """
        if self._process is None or self._process.returncode is None:
            raise ServiceError(f"{self.name} has not ended.")
        return self._process.returncode

    async def start(self) -> None:
        """Start the process and keep it running from now on."""
        self._ending.clear()
        process = await self._launch()
        self._keeper = asyncio.create_task(self._keep(process), name=self.name)

    def kill(self) -> None:
        """Kill the process with SIGKILL; it is started again after a pause, unless the room is being stopped.

        Raises:
            ServiceError: it does not run now.
        """
        if self.pid and self._process is not None:
            self._process.kill()

    async def stop(self, *, seconds: float, hurry: asyncio.Event) -> None:
        """End the process with SIGTERM, and with SIGKILL when it takes too long, and wait for it.

        Args:
            seconds: how long it may take.
            hurry: when set, it is killed at once.
        """
        self._ending.set()
        keeper, process = self._keeper, self._process
        if keeper is None:
            return
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
        impatience = asyncio.create_task(hurry.wait())
        await asyncio.wait([keeper, impatience], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        impatience.cancel()
        if process is not None and process.returncode is None and not keeper.done():
            why = "was told to hurry" if hurry.is_set() else f"did not stop within {seconds:g} s"
            self._say(f"{self.name} {why}: killed")
            process.kill()
        await keeper

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        deaths = 0
        while True:
            started = time.monotonic()
            await self._pump(process)
            if self._ending.is_set():
                return
            deaths = 0 if time.monotonic() - started > _HEALTHY_SECONDS else deaths
            pause = _PAUSES[min(deaths, len(_PAUSES) - 1)]
            deaths += 1
            self._say(f"{self.name} {_how(process.returncode)}; starting it again in {pause:.0f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
            if self._ending.is_set():
                return
            process = await self._launch()

    async def _launch(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=dict(self.env),
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the supervisor, which then ends the rooms in order
        )
        return self._process

    async def _pump(self, process: asyncio.subprocess.Process) -> None:
        """Hand the output on line by line until the process has ended."""
        assert process.stdout is not None
        rest = b""
        while chunk := await process.stdout.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._sink(line + b"\n")
        if rest:
            self._sink(rest + b"\n")
        await process.wait()


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def prefixed(name: str, output: BinaryIO, *, width: int, colour: int | None) -> Sink:
    """Return a sink that writes each line behind the name of its room.

    Args:
        name: of the room.
        output: where to, such as `sys.stdout.buffer`.
        width: of the column of names, in characters.
        colour: an ANSI colour number for the name (31 to 36), None for none.
    """
    label = f"{name:<{width}} | "
    head = (label if colour is None else f"\x1b[{colour}m{label}\x1b[0m").encode()

    def write(line: bytes) -> None:
        output.write(head + line)
        output.flush()

    return write
