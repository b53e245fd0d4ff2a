"""Earlier releases, as the history of this checkout has them: their files, and their rooms as processes."""

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from deploy.local.fleet import ROOT, is_ready
from deploy.local.process import free_port, last_lines
from deploy.local.supervisor import Room

VERSIONS = ROOT / "alembic" / "versions"
REVISIONS = sorted(path.name.partition("_")[0] for path in VERSIONS.glob("*.py"))


def _git(*arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def before(revision: str) -> str:
    """Return the commit before the one that added a migration; one that is not committed comes after all that are."""
    [path] = VERSIONS.glob(f"{revision}_*.py")
    added = _git("log", "--diff-filter=A", "--format=%H", "--", str(path))
    return _git("rev-parse", f"{added}^" if added else "HEAD")


def before_change(path: str) -> str:
    """Return the commit before the last one that changed a file; that is HEAD while its change is not committed."""
    changed = "" if _git("status", "--porcelain", "--", path) else _git("log", "-1", "--format=%H", "--", path)
    return _git("rev-parse", f"{changed}^" if changed else "HEAD")


def tree(commit: str, folder: Path) -> Path:
    """Return the files of a commit, in a folder of their own below this one; skip where there is no history."""
    if _git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("this checkout has no history: the release before is not known")
    target = folder / commit
    if not target.exists():
        archive = folder / f"{commit}.tar"
        assert not _git("archive", "-o", str(archive), commit, "shared", "workers")
        with tarfile.open(archive) as packed:
            packed.extractall(target, filter="data")
    return target


class Release:
    """The rooms of one release, on one broker and one database."""

    def __init__(self, files: Path, logs: Path, env: Mapping[str, str]) -> None:
        self._files = files
        self._logs = logs
        self._env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(files), **env}
        self._said: list[str] = []

    async def check(self) -> None:
        """Make sure that its own modules are the ones it runs, not those of the checkout."""
        found = await self.run("-c", "import shared, workers; print(shared.__file__, workers.__file__)")
        assert [str(self._files)] * 2 == [str(Path(each).parents[1]) for each in found.split()]

    async def run(self, *arguments: str) -> str:
        """Run Python with these arguments; return what it prints."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env=self._env, cwd=self._files, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert 0 == process.returncode, f"{arguments}: {output.decode()}"
        return output.decode()

    @contextlib.asynccontextmanager
    async def rooms(self, *names: str) -> AsyncIterator[None]:
        """Run these rooms; at the end stop them as SIGTERM does."""
        rooms = [self._room(name) for name in names]
        await asyncio.gather(*(room.start() for room in rooms))
        try:
            ports = [int(room.env["PUSHPUSH_METRICS_PORT"]) for room in rooms]
            await until(lambda: _all_ready(ports), self._story)
            yield
        finally:
            await asyncio.gather(*(room.stop(seconds=40, hurry=asyncio.Event()) for room in rooms))
        assert ([], [0] * len(rooms)) == (self._said, [room.code for room in rooms]), self._story()

    def _room(self, name: str) -> Room:
        env = {**self._env, "PUSHPUSH_METRICS_PORT": str(free_port())}
        command = [sys.executable, "-m", f"workers.{name}"]

        def log(line: bytes) -> None:
            with (self._logs / f"{name}.log").open("ab") as file:
                file.write(line)

        return Room(name, command, env=env, folder=self._files, sink=log, say=self._said.append)

    def _story(self) -> str:
        return last_lines(*sorted(self._logs.glob("*.log")))


async def _all_ready(ports: list[int]) -> bool:
    return all(await asyncio.gather(*map(is_ready, ports)))


async def until(condition: Callable[[], bool | Awaitable[bool]], story: Callable[[], object]) -> None:
    """Return as soon as the condition holds; otherwise tell the story."""
    try:
        async with asyncio.timeout(60):
            while True:
                held = condition()
                if held if isinstance(held, bool) else await held:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within a minute: {story()}") from None
