"""A private PostgreSQL server, on 127.0.0.1 only, durable (fsync stays on)."""

import contextlib
import glob
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg

from deploy.local.process import ServiceError, bound_to_us, launch
from deploy.local.service import Service

_PLACES = ("/usr/lib/postgresql/*/bin/postgres", "/usr/pgsql-*/bin/postgres", "/usr/local/pgsql/bin/postgres")
_ELSEWHERE = Path("/var/tmp")  # noqa: S108 - mkdtemp makes the folder below it, for its owner only
# The role of the fleet may do as it likes with databases of its own, but is no superuser: who can reach the port
# without a password must not be able to run programs and read files as the service user.
_ACCESS = "host all pushpush 127.0.0.1/32 trust\n"
_ROLES = b"CREATE ROLE pushpush LOGIN CREATEDB;\nCREATE DATABASE pushpush OWNER pushpush;\n"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path may have 107 bytes only; nobody needs one here
    "max_connections": "200",
    "fsync": "on",
    "dynamic_shared_memory_type": "mmap",  # in the data folder: nothing stays in /dev/shm after a kill
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


class PostgreSQL(Service):
    """A PostgreSQL server of our own, as root or as any user.

    PostgreSQL refuses to run as root. Started by root, it runs as `postgres` (or `nobody`). Where that user cannot
    enter the folder (below /root, or a temporary folder with mode 700), the data are kept in
    `/var/tmp/pushpush-XXXXXXXX` instead, and `data` in the folder is a link to it; `remove` removes both. A server
    with the power to pass any folder (CAP_DAC_OVERRIDE) would work too, but would be one that reads every file of the
    machine.

    Args:
        folder: where the data, `server.log` and the chosen port are kept.
    """

    name = "PostgreSQL"
    port_names = ("postgresql",)
    stop_signal = signal.SIGINT  # fast: sessions are ended, and the data written

    @property
    def url(self) -> str:
        """The address for clients, `postgresql://pushpush@127.0.0.1:PORT/pushpush`; valid from the first `start` on."""
        return f"postgresql://pushpush@127.0.0.1:{self.ports['postgresql']}/pushpush"

    def remove(self) -> None:
        """Kill the server and remove its folder, and the data with it, wherever they are."""
        self.kill()
        if (link := self.folder / "data").is_symlink():
            shutil.rmtree(link.resolve().parent, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _launch(self, lock: int) -> subprocess.Popen[bytes]:
        postgres = find_postgres()
        account = _service_account()
        data = self._place(account)
        if not (data / "PG_VERSION").exists():
            self._create(data, postgres, account)
        data = data.resolve()
        (data / "pg_hba.conf").write_text(_ACCESS)
        settings = _SETTINGS | {"port": str(self.ports["postgresql"])}
        command = [postgres, "-D", str(data), *(f"--{name}={value}" for name, value in settings.items())]
        return launch(bound_to_us(command, *_as(account)), env=_environment(), folder=data, log=self.log, held=[lock])

    def _place(self, account: pwd.struct_passwd | None) -> Path:
        """Return where the data belong; a folder that the account can enter is made for them."""
        data = self.folder / "data"
        if data.exists():
            return data
        data.unlink(missing_ok=True)  # a link whose target somebody has cleaned away
        if account is not None and not _can_enter(self.folder, account):
            _sweep(account)
            elsewhere = Path(tempfile.mkdtemp(prefix="pushpush-", dir=_ELSEWHERE))
            (elsewhere / "origin").write_text(str(self.folder))
            os.chown(elsewhere, account.pw_uid, account.pw_gid)
            data.symlink_to(elsewhere / "data")
        return data

    def _create(self, data: Path, postgres: str, account: pwd.struct_passwd | None) -> None:
        """Make the cluster beside its place and move it there when it is whole: a half-made one is never used."""
        target = data.readlink() if data.is_symlink() else data
        half = target.with_name("data.new")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(mode=0o700)
        if account is not None:
            os.chown(half, account.pw_uid, account.pw_gid)
        initdb = Path(postgres).with_name("initdb")
        options = ("--username=admin", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions")
        self._run([str(initdb), "-D", str(half), *options], account, half)
        # Without a network: nobody but us can be the superuser, not even for this moment.
        self._run(
            [postgres, "--single", "-j", "-D", str(half), "postgres"], account, half, _ROLES.replace(b";\n", b";\n\n")
        )
        half.rename(target)

    def _run(self, command: list[str], account: pwd.struct_passwd | None, folder: Path, feed: bytes = b"") -> None:
        bound = bound_to_us(command, *_as(account))
        done = subprocess.run(bound, cwd=folder, env=_environment(), input=feed, capture_output=True, check=False)
        if done.returncode != 0:
            story = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
            raise ServiceError(f"{command[0]} for {folder} ended with code {done.returncode}:\n{story}")

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=2) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
        return False


def find_postgres() -> str:
    """Return the path of the newest postgres program; initdb lies beside it.

    Raises:
        ServiceError: there is none.
    """
    found = [path for place in _PLACES for path in glob.glob(place)]  # noqa: PTH207 - absolute patterns
    newest = max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path)], default=None)
    if path := newest or shutil.which("postgres"):
        return str(Path(path).resolve())
    raise ServiceError(
        "postgres is not installed. Install it (Debian: apt-get install postgresql), or set PUSHPUSH_DATABASE_URL."
    )


def _service_account() -> pwd.struct_passwd | None:
    """Return whom the server must run as, or None when we are not root and it runs as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServiceError(
        "PostgreSQL does not run as root, and there is no user postgres or nobody here. Start this as a plain user."
    )


def _as(account: pwd.struct_passwd | None) -> list[str]:
    return [] if account is None else [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]


def _can_enter(folder: Path, account: pwd.struct_passwd) -> bool:
    test = bound_to_us(["test", "-x", str(folder)], *_as(account))
    return subprocess.run(test, cwd="/", check=False).returncode == 0


def _sweep(account: pwd.struct_passwd) -> None:
    """Remove data that were kept elsewhere for folders that are gone, such as those of old test runs."""
    for origin in _ELSEWHERE.glob("pushpush-*/origin"):
        ours = origin.parent.lstat().st_uid == account.pw_uid
        if ours and not Path(origin.read_text()).exists():
            shutil.rmtree(origin.parent, ignore_errors=True)


def _environment() -> dict[str, str]:
    """Return our environment without PGDATA, PGPORT, PGHOST and the like, which would lead to another server."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PG", "PUSHPUSH_"))} | {
        "LC_ALL": "C.UTF-8"
    }
