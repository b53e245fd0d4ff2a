"""A private RabbitMQ node with a private epmd, on 127.0.0.1 only, without plugins."""

import glob
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import ClassVar

import pika  # type: ignore[import-untyped] # it ships no types
import pika.exceptions  # type: ignore[import-untyped]

from deploy.local.process import ServiceError, bound_to_us, is_free, last_lines, launch, wait_until
from deploy.local.service import Service

_PLACES = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",  # not /usr/sbin: Debian's wrapper there changes the user
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server",
    "/opt/rabbitmq/sbin/rabbitmq-server",
    "/usr/local/lib/rabbitmq*/sbin/rabbitmq-server",
)
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
# These win over the machine's own in /etc/rabbitmq. No listeners here: the environment names the port, and both would
# bind twice.
_FILES = {
    "rabbitmq.conf": "disk_free_limit.absolute = 50MB\nlog.console = false\nlog.file.level = info\n",
    "advanced.config": "[].\n",
    "enabled_plugins": "[].\n",
    "rabbitmq-env.conf": "",
}
_PATHS = {
    "HOME": "",  # where the cookie is
    "RABBITMQ_BASE": "",
    "RABBITMQ_MNESIA_BASE": "data",
    "RABBITMQ_LOG_BASE": "log",
    "RABBITMQ_LOGS": "log/node.log",
    "RABBITMQ_CONF_ENV_FILE": "rabbitmq-env.conf",
    "RABBITMQ_CONFIG_FILE": "rabbitmq.conf",
    "RABBITMQ_CONFIG_FILES": "conf.d",
    "RABBITMQ_ADVANCED_CONFIG_FILE": "advanced.config",
    "RABBITMQ_ENABLED_PLUGINS_FILE": "enabled_plugins",
}


class RabbitMQ(Service):
    """A RabbitMQ node of our own, as root or as any user.

    The node runs as whoever starts it. Its distribution port and its epmd listen on 127.0.0.1 only, and the cookie is
    its own. The node's name is `pushpush@localhost`: with an epmd for each folder it is unique where it matters, and
    its data stay valid when the folder moves.

    Args:
        folder: where the data, `log/node.log`, the configuration and the chosen ports are kept.
    """

    name = "RabbitMQ"
    port_names = ("amqp", "dist", "epmd")
    stop_signal = signal.SIGTERM
    node: ClassVar[str] = "pushpush@localhost"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for clients, `amqp://guest:guest@127.0.0.1:PORT/`; valid from the first `start` on."""
        return f"amqp://guest:guest@127.0.0.1:{self.ports['amqp']}/"

    def kill(self) -> None:
        """Kill the node, its helpers and its epmd with SIGKILL, as a power cut would."""
        super().kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def _launch(self, lock: int) -> subprocess.Popen[bytes]:
        server = find_rabbitmq()
        env = self._prepare()
        epmd = [_find_epmd(), "-port", str(self.ports["epmd"]), "-address", "127.0.0.1"]
        self._epmd = launch(bound_to_us(epmd), env=env, folder=self.folder, log=self.log, held=[lock])
        # A node that finds no epmd starts one of its own, as a daemon, which nobody would ever end.
        if not wait_until(lambda: not is_free(self.ports["epmd"]), seconds=10):
            raise ServiceError(f"epmd did not listen on 127.0.0.1:{self.ports['epmd']} within 10 s.\n{self._story()}")
        return launch(bound_to_us([server]), env=env, folder=self.folder, log=self.log, held=[lock])

    def _prepare(self) -> dict[str, str]:
        """Write the configuration and return the environment; nothing of the machine's own node leaks in."""
        for name in ("data", "log", "conf.d"):
            (self.folder / name).mkdir(exist_ok=True)
        for name, text in _FILES.items():
            (self.folder / name).write_text(text)
        foreign = ("RABBITMQ_", "ERL_", "PUSHPUSH_", "NOTIFY_SOCKET")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        paths = {name: str(self.folder / path) for name, path in _PATHS.items()}
        return (
            inherited
            | paths
            | {
                "LANG": "C.UTF-8",
                "ERL_EPMD_PORT": str(self.ports["epmd"]),
                "ERL_EPMD_ADDRESS": "127.0.0.1",
                "ERL_CRASH_DUMP_SECONDS": "0",
                "RABBITMQ_NODENAME": self.node,
                "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODE_PORT": str(self.ports["amqp"]),
                "RABBITMQ_DIST_PORT": str(self.ports["dist"]),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
                # The script then execs Erlang instead of waiting for it: one process, and our signals reach it.
                "RUNNING_UNDER_SYSTEMD": "true",
            }
        )

    def _answers(self) -> bool:
        # The bare greeting first: pika logs an error for each refused connection.
        return self._greets() and self._opens_channel()

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.ports["amqp"]), timeout=2) as client:
                client.sendall(_PROTOCOL_HEADER)
                return client.recv(1) == b"\x01"
        except OSError:
            return False

    def _opens_channel(self) -> bool:
        try:
            connection = pika.BlockingConnection(pika.URLParameters(self.url))
            connection.channel()
            connection.close()
        except (OSError, pika.exceptions.AMQPError):
            return False
        return True

    def _story(self) -> str:
        return last_lines(self.log, self.folder / "log" / "node.log")


def find_rabbitmq() -> str:
    """Return the path of the rabbitmq-server script.

    Raises:
        ServiceError: there is none.
    """
    found = next((path for place in _PLACES for path in sorted(glob.glob(place), reverse=True)), None)  # noqa: PTH207 - absolute patterns
    if path := found or shutil.which("rabbitmq-server"):
        return path
    raise ServiceError(
        "rabbitmq-server is missing. Install it (Debian: apt-get install rabbitmq-server) or set PUSHPUSH_AMQP_URL."
    )


def _find_epmd() -> str:
    places = ("/usr/lib/erlang/bin/epmd", "/usr/local/lib/erlang/bin/epmd")
    if path := shutil.which("epmd") or next((place for place in places if Path(place).exists()), None):
        return path
    raise ServiceError("epmd is not installed. It comes with Erlang (Debian: apt-get install erlang-base).")
