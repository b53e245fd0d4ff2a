"""A real Postfix of the test's own: a mail server by other people, with other people's reading of the RFCs.

It listens on 127.0.0.1 only, and passes what it takes on to one port of 127.0.0.1, where a test reads it with its
envelope. Everything of it lies in a folder of its own below /tmp, which is gone afterwards; the machine's own Postfix
(/etc/postfix, /var/spool/postfix, port 25) is neither used nor touched, and no name is looked up.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psutil
import trustme

from deploy.local.process import ServiceError, free_port, last_lines, wait_until

HOST = "mx.postfix.example"

# Built into Postfix or in Debian's package itself; no table of the machine's own is read. Below, only what must not be
# as Postfix ships it has a reason.
_MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = {host}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
mydestination =
local_recipient_maps =
default_transport = smtp:[127.0.0.1]:{relay}
message_size_limit = {size_limit}
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = check_recipient_access texthash:{folder}/etc/recipients, permit_mynetworks, reject
smtpd_tls_security_level = may
smtpd_tls_chain_files = {folder}/etc/tls.pem
smtpd_tls_received_header = yes
smtpd_tls_loglevel = 1
smtp_tls_security_level = none
# No name is looked up in the DNS, neither the client's nor the next hop's.
smtpd_peername_lookup = no
smtp_dns_support_level = disabled
smtp_host_lookup = native
# For Postfix a client on the same machine is one of its own users, whose header fields it completes and rewrites.
local_header_rewrite_clients =
# It takes out Return-Path and Bcc, which would say nothing of us.
message_drop_headers =
# RFC 5321 4.5.3.1.6 allows no longer lines; Postfix takes them, and folds them on the way out.
smtp_line_length_limit = 0
# Each test has a far end of its own: no connection to the last one is kept, and its end says nothing of the next.
smtp_connection_cache_on_demand = no
default_destination_concurrency_failed_cohort_limit = 0
"""

# service type private unprivileged chroot wakeup maxproc command
_MASTER = """
127.0.0.1:{smtp} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
showq unix n - n - - showq
flush unix n - n 1000? 0 flush
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


# Run by root. Its standard input is a pipe from the test run: that ends with the run, however the run ends. (The kernel
# would not end Postfix with us: a master that changes its user, as Postfix' does, has lost PR_SET_PDEATHSIG.)
_KEEPER = """
umask 022
mkdir "$1/queue"
if timeout 60 "$2" -c "$1/etc" start </dev/null 1>&2; then master=$(sed 1q "$1/queue/pid/master.pid" | tr -d ' '); fi
echo "$master"
exec 1>&2
cat >/dev/null
"$2" -c "$1/etc" stop
[ -z "$master" ] || kill -KILL -- "-$master"
rm -rf -- "$1"
"""


def unusable() -> str | None:
    """Return why no Postfix can be started here, None when one can. Its master must be started by root."""
    if _program("postfix") is None:
        return "Postfix is not installed (Debian: apt-get install postfix; `make test` does so where it may)"
    if os.geteuid() == 0:
        return None
    if not shutil.which("sudo") or subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode:
        return "Postfix must be started by root, and `sudo -n` does not work here"
    return None


class PostfixPeer:
    """A running Postfix, from `start` (or `with`) to `stop`.

    Args:
        authority: Who signs its certificate, which is for `HOST`, localhost and 127.0.0.1.
        size_limit: The greatest message that it takes, in octets.
        refuse: Recipient to the reply for its RCPT, "550 5.1.1 no such user".

    Attributes:
        port: Where it listens, on 127.0.0.1.
        relay_port: The port of 127.0.0.1 to which it passes everything on.
        log: What its programs say.
    """

    def __init__(
        self, *, authority: trustme.CA, size_limit: int = 10_240_000, refuse: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self.relay_port = free_port()
        # mkdtemp's folder is for its owner only, and pytest's below it too; Postfix' programs run as `postfix`.
        self.folder = Path(tempfile.mkdtemp(prefix="pushpush-postfix-"))
        self.folder.chmod(0o755)
        self.log = self.folder / "mail.log"
        self._output = self.folder / "output.log"
        self._keeper: subprocess.Popen[bytes] | None = None
        self._master = 0
        self._configure(authority, size_limit, refuse or {})

    def start(self) -> None:
        """Start it and return when it greets.

        Raises:
            ServiceError: It ended, or did not greet in time; the last lines of its log are in the text.
        """
        script = [*_as_root(), "sh", "-c", _KEEPER, "keeper", str(self.folder), _program("postfix") or "postfix"]
        with self._output.open("wb") as output:
            # A session of its own: Ctrl-C is for us.
            self._keeper = subprocess.Popen(
                script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, cwd="/", start_new_session=True
            )
        assert self._keeper.stdout is not None
        self._master = int(self._keeper.stdout.readline().strip() or 0)
        if not (self._master and wait_until(self._greets, seconds=10)):
            story = last_lines(self._output, self.log)
            self.stop()
            raise ServiceError(f"Postfix did not start on port {self.port}.\n{story}")

    def stop(self) -> None:
        """End it with all its programs, and remove its folder."""
        if self._keeper is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        with self._keeper:  # closes the pipe, and waits
            pass
        assert wait_until(lambda: not self.processes(), seconds=10), self.processes()
        assert not self.folder.exists()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def said(self) -> str:
        """Return all that its programs have logged so far."""
        return self.log.read_text("utf-8", "replace")

    def processes(self) -> list[psutil.Process]:
        """Return the master and what it has started and still runs: they are one process group."""
        members = []
        for process in psutil.process_iter() if self._master else ():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getpgid(process.pid) == self._master and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
        return members

    def _configure(self, authority: trustme.CA, size_limit: int, refuse: Mapping[str, str]) -> None:
        etc = self.folder / "etc"
        etc.mkdir()
        etc.chmod(0o755)
        fields = {"folder": self.folder, "host": HOST, "relay": self.relay_port, "smtp": self.port}
        (etc / "main.cf").write_text(_MAIN.format(size_limit=size_limit, **fields))
        (etc / "master.cf").write_text(_MASTER.format(**fields))
        (etc / "recipients").write_text("".join(f"{each} {reply}\n" for each, reply in refuse.items()))
        for path in etc.iterdir():
            path.chmod(0o644)
        key = etc / "tls.pem"
        key.touch(0o600)
        authority.issue_cert(HOST, "localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(key)
        self.log.touch(0o644)  # Postfix appends; made by its root, we could perhaps not read it

    def _greets(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
            return client.recv(4) == b"220 "
        return False


def _as_root() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def _program(name: str) -> str | None:
    """Return the path of a program; the folders of root's programs are not on the path of everybody."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
