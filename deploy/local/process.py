"""Start a process that cannot outlive us, and end it with all that it started.

Linux only: the kernel kills a child when the *thread* that forked it ends (PR_SET_PDEATHSIG), so every service is
forked by one thread that lives as long as this process. A test run that is killed with -9 leaves no broker behind.
"""

import contextlib
import fcntl
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

_forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forker")

# Below the kernel's range for outgoing connections (32768 and up): while a broker is down, no client can be given its
# port as a source port, nor connect to itself there.
_PORTS = range(20_000, 32_000)
_IN_USE = "{folder} is in use by another process ({pid}). Stop that one, or use another folder."


class ServiceError(RuntimeError):
    """A service or the fleet could not be started or stopped; the text says what, where and what to do."""


def bound_to_us(command: Sequence[str], *options: str) -> list[str]:
    """Return the command in a form that dies with the thread that starts it.

    Args:
        command: the program and its arguments.
        options: more options for setpriv, for instance `--reuid=postgres`.

    Raises:
        ServiceError: there is no setpriv (util-linux) on this machine.
    """
    setpriv = shutil.which("setpriv", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if setpriv is None:
        raise ServiceError("setpriv is missing: it ends our processes with us. Install util-linux (Linux only).")
    return [setpriv, *options, "--pdeathsig=KILL", "--", *command]


def launch(
    command: Sequence[str], *, env: Mapping[str, str], folder: Path, log: Path, held: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a command in its own session, its output appended to a log.

    Args:
        command: as `bound_to_us` returns it.
        env: the whole environment of the process.
        folder: its working directory.
        log: the file that gets its output.
        held: file descriptors to inherit, such as a lock that the process keeps for as long as it lives.
    """

    def fork() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                env=dict(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we then end our children in order
                pass_fds=held,
            )

    return _forker.submit(fork).result()


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants with SIGKILL, and wait until they are gone (at most 10 s)."""
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not any(_runs(process) for process in tree), seconds=10)


def _runs(process: psutil.Process) -> bool:
    # A zombie is dead: our own child stays one until its Popen is asked, others until process 1 looks after them.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nobody listens now."""
    # Not of the seeded dice: property tests set them, and two runs side by side would take the same ports.
    for port in random.SystemRandom().sample(_PORTS, k=200):
        if is_free(port):
            return port
    raise ServiceError(f"No free TCP port found on 127.0.0.1 between {_PORTS.start} and {_PORTS.stop}.")


def is_free(port: int) -> bool:
    """Tell whether a TCP port of 127.0.0.1 can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger in TIME_WAIT do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_until(check: Callable[[], bool], *, seconds: float) -> bool:
    """Ask until the answer is yes (True) or the time is over (False)."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def locked(path: Path, *, patience: float, refusal: str = _IN_USE) -> Iterator[int]:
    """Hold an exclusive lock on a file; children that inherit the descriptor hold it too, until the last one is gone.

    Args:
        path: the lock file, made when missing.
        patience: seconds to wait for another holder.
        refusal: what to say when it is held; may name `{folder}` and `{pid}`.

    Yields:
        The descriptor of the lock.

    Raises:
        ServiceError: somebody else still holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def taken() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        if not wait_until(taken, seconds=patience):
            owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise ServiceError(refusal.format(folder=path.parent, pid=owner))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def last_lines(*logs: Path, count: int = 15) -> str:
    """Return the last lines of some logs, each under its path, for an error message."""
    texts = []
    for log in logs:
        with contextlib.suppress(OSError), log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()[-count:]
            texts.append("\n".join([f"Last lines of {log}:", *(f"  {line}" for line in lines)]))
    return "\n".join(texts)
