"""What RabbitMQ and PostgreSQL have in common: a folder, a lock, ports that stay, a start with a deadline, an end."""

import contextlib
import json
import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

from deploy.local.process import ServiceError, free_port, is_free, kill_tree, last_lines, locked, wait_until


class Service(ABC):
    """A private server process whose data live in one folder, and which dies when this process dies.

    A start after `stop` or `kill` on the same folder finds the data again, on the same port. Not for use by several
    threads at once.

    Args:
        folder: where data, logs and chosen ports are kept; made when missing.

    Attributes:
        lock_seconds: how long a start waits for another process to leave the folder.
        start_seconds: how long a start may take.
        stop_seconds: how long a stop may take before it becomes a kill.
    """

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]]
    stop_signal: ClassVar[signal.Signals]
    lock_seconds: float = 10.0
    start_seconds: float = 90.0
    stop_seconds: float = 60.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / "server.log"
        self.ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._held = contextlib.ExitStack()

    @property
    @abstractmethod
    def url(self) -> str:
        """The address for clients; valid from the first `start` on."""

    @property
    def pid(self) -> int:
        """The process id of the running server.

        Raises:
            ServiceError: it is not running.
        """
        if self._process is None:
            raise ServiceError(f"{self.name} in {self.folder} is not started.")
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it really answers. Does nothing when it already runs.

        Raises:
            ServiceError: the program is missing, another process uses the folder, or the server ended or did not
            answer in time;
                the last lines of its log are in the text.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self._release()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self._held.enter_context(locked(self.folder / "lock", patience=self.lock_seconds))
            self._choose_ports()
            self._process = self._launch(lock)
            self._await_answer(self._process)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the server cleanly and wait for it. Does nothing when it does not run.

        Raises:
            ServiceError: it did not end within `stop_seconds` and was killed.
        """
        process = self._process
        if process is None:
            return
        process.send_signal(self.stop_signal)
        try:
            process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            late = f"did not stop within {self.stop_seconds:.0f} s and was killed."
            raise ServiceError(f"{self.name} in {self.folder} {late}\n{self._story()}") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the server and all it started with SIGKILL, as a power cut would. Does nothing when it does not run."""
        if self._process is not None:
            kill_tree(self._process.pid)
            self._process.wait()
        self._release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _launch(self, lock: int) -> subprocess.Popen[bytes]:
        """Start the process, handing it the lock's descriptor."""

    @abstractmethod
    def _answers(self) -> bool:
        """Tell whether a client can work with the server now."""

    def _story(self) -> str:
        return last_lines(self.log)

    def _release(self) -> None:
        self._process = None
        self._held.close()

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        wait_until(lambda: process.poll() is not None or self._answers(), seconds=self.start_seconds)
        if process.poll() is not None:
            raise ServiceError(
                f"{self.name} in {self.folder} ended with code {process.returncode} at start.\n{self._story()}"
            )
        if not self._answers():
            raise ServiceError(
                f"{self.name} in {self.folder} did not answer within {self.start_seconds:.0f} s.\n{self._story()}"
            )

    def _choose_ports(self) -> None:
        """Keep each port of the last start, unless somebody else listens there now."""
        kept = self.folder / "ports.json"
        try:
            known = json.loads(kept.read_text())
        except (OSError, ValueError):
            known = {}
        self.ports = {
            name: port if isinstance(port := known.get(name), int) and is_free(port) else free_port()
            for name in self.port_names
        }
        kept.write_text(json.dumps(self.ports))
