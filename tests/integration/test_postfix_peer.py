"""The private Postfix: where it listens, what it leaves behind, and whom it says so to when it cannot run."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import trustme

from deploy.local.process import ServiceError
from tests.peers import postfix as module
from tests.peers.postfix import PostfixPeer, unusable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def peer() -> PostfixPeer:
    """One that is not started yet."""
    if why := unusable():
        pytest.skip(why)
    return PostfixPeer(authority=trustme.CA())


def eventually(ask: Callable[[], bool], *, seconds: float = 15) -> bool:
    """Return whether the answer becomes yes."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that run."""
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_it_leaves_nothing_behind(peer: PostfixPeer) -> None:
    """No process and no file; and it listens to this machine only."""
    with peer:
        processes = peer.processes()
        assert {"master", "qmgr", "smtpd", "postlogd"} <= {each.name() for each in processes}
        listening = [c.laddr for each in processes for c in each.net_connections("inet") if c.status == "LISTEN"]
        assert {("127.0.0.1", peer.port)} == set(listening)
    assert [] == alive(processes)
    assert not peer.folder.exists()
    peer.stop()


def test_it_leaves_nothing_running_when_its_master_was_killed(peer: PostfixPeer) -> None:
    """The end of a test is clean also when something went wrong in it."""
    with peer:
        processes = peer.processes()
        subprocess.run([*module._as_root(), "kill", "-KILL", str(peer.processes()[0].pid)], check=True)
    assert [] == alive(processes)
    assert not peer.folder.exists()


def test_a_failed_start_shows_the_log(peer: PostfixPeer) -> None:
    """The reader of the error need not look for the log, which is gone with the folder."""
    with (
        socket.create_server(("127.0.0.1", peer.port)),
        pytest.raises(ServiceError, match=r"(?s)Address already in use"),
    ):
        peer.start()
    assert not peer.folder.exists()


def test_it_does_not_outlive_a_killed_test_run(peer: PostfixPeer) -> None:
    """Nobody looks after the servers of a run that was killed with -9."""
    code = """
import time, trustme
from tests.peers.postfix import PostfixPeer
with PostfixPeer(authority=trustme.CA()) as peer:
    print(peer.folder, *(each.pid for each in peer.processes()), flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        folder, *pids = parent.stdout.readline().split()
        children = [psutil.Process(int(pid)) for pid in pids]
        parent.kill()
    peer.stop()
    assert eventually(lambda: not alive(children)), alive(children)
    assert eventually(lambda: not Path(folder).exists())


def test_the_reason_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Postfix is missing the tests say what to install."""
    monkeypatch.setattr(module, "_program", lambda _name: None)
    assert "apt-get install postfix" in (unusable() or "")
