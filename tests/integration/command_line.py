"""Runs `pushpush`, each command in a process of its own, forked from one that has loaded the program already."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from shared.runtime.settings import Settings
from tests.peers.dns import DnsPeer
from workers.cli.main import main

_START = multiprocessing.get_context("forkserver")  # loading the program takes ten times longer than a command
_START.set_forkserver_preload([__name__, "shared.delivery.probe", "shared.fleet.files"])
_READ, _WRITE = os.O_RDONLY, os.O_WRONLY | os.O_CREAT


class Ran:
    """What a command did."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code = code
        self.bytes = out
        self.out = out.decode("utf-8", "backslashreplace")
        self.err = err.decode()

    @property
    def object(self) -> dict[str, Any]:
        """The one JSON object it printed."""
        assert "" == self.err
        assert 1 == len(self.out.splitlines())
        found: dict[str, Any] = json.loads(self.out)
        assert found["ok"] is (self.code == 0)
        assert found["ok"] is ("error" not in found)
        return found

    @property
    def data(self) -> dict[str, Any]:
        """The data of a command that went well."""
        assert 0 == self.code, self.out + self.err
        found: dict[str, Any] = self.object["data"]
        return found

    @property
    def sentence(self) -> str:
        """The one line that a command that refused wrote, to standard error alone."""
        assert ("", 1) == (self.out, len(self.err.splitlines())), self.err
        return self.err.strip()


class CommandLine:
    """Runs `pushpush` with an environment, in a folder; None is ours."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self.folder: Path | None = None

    async def __call__(self, *words: str, stdin: bytes = b"", **env: str) -> Ran:
        """Run it."""
        named = {f"PUSHPUSH_{name.upper()}": value for name, value in env.items()}
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / name for name in ("in", "out", "err")}
            files["in"].write_bytes(stdin)
            process = _START.Process(target=_command, args=(words, self.env | named, files, self.folder))
            process.start()
            await asyncio.to_thread(process.join, 30)
            assert process.exitcode is not None, f"{words} did not end"
            return Ran(process.exitcode, files["out"].read_bytes(), files["err"].read_bytes())


@contextlib.asynccontextmanager
async def commands(settings: Settings, **env: str) -> AsyncIterator[CommandLine]:
    """Give the command line for a private broker, database and DNS."""
    async with DnsPeer() as dns:
        dns.add("example.com", "MX", "0 .")
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PUSHPUSH_")}
        yield CommandLine(
            ours
            | {
                "COLUMNS": "200",
                "PUSHPUSH_AMQP_URL": settings.amqp_url,
                "PUSHPUSH_DATABASE_URL": settings.database_url,
                "PUSHPUSH_DNS_SERVERS": dns.address,
            }
            | env
        )


def _command(words: tuple[str, ...], env: Mapping[str, str], files: Mapping[str, Path], folder: Path | None) -> None:
    if folder is not None:
        os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, name in enumerate(("in", "out", "err")):
        os.dup2(os.open(files[name], _WRITE if number else _READ), number)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8") for number, mode in enumerate(("r", "w", "w"))
    )
    sys.argv = ["pushpush", *words]
    main()
