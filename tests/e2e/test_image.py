"""The container image: what is in it, what is not, and the main path of the demo run from inside its file system."""

import asyncio
import contextlib
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import trustme

from deploy.local.fleet import is_ready
from deploy.local.process import free_port
from deploy.local.stage import message
from tests.e2e import image as images
from tests.e2e.conftest import World
from tests.e2e.image import Image
from tests.integration.conftest import until
from tests.peers.dns import DnsPeer
from tests.peers.inbox import Inbox, Received
from tests.peers.mxdeliv import MxdelivPeer
from tests.peers.smtp import SmtpPeer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]  # on a new machine the first build fetches everything

ROOMS = ("router", "https", "smtp", "scheduler", "journal", "panel")
SENDER = "you@sender.example"


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, built once, with its file system mounted."""
    if why := images.unusable():
        pytest.skip(why)
    built = images.build()
    if built.returncode == images.UNAVAILABLE:
        pytest.skip(f"no base can be made here: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stdout + built.stderr
    container = images.buildah("from", images.NAME)
    yield Image.read(images.buildah("mount", container))
    images.buildah("umount", container)
    images.buildah("rm", container)


def test_it_says_what_it_is(image: Image) -> None:
    """Who runs it, as whom, and how to ask it, stands in the image; a cluster refuses a user without a number."""
    config = image.config
    assert ("10001:10001", "/", ["pushpush", "--help"]) == (config["User"], config["WorkingDir"], config["Cmd"])
    assert not config.get("Entrypoint")
    assert ["CMD", "python", "-m", "shared.runtime.probe"] == config["Healthcheck"]["Test"]
    labels = {name.rpartition(".")[2]: text for name, text in config["Labels"].items() if "opencontainers" in name}
    assert {"created", "description", "licenses", "revision", "title", "version"} == labels.keys()
    assert ("pushpush", "Apache-2.0") == (labels["title"], labels["licenses"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", labels["version"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])


def test_it_holds_what_runs_and_nothing_else(image: Image) -> None:
    """The pinned libraries and pushpush; no tests, no tools of developers, nothing that installs or compiles."""
    (packages,) = image.root.glob("opt/pushpush/lib/python3*/site-packages")
    lock = Path(images.ROOT / "deploy/image/requirements.lock").read_text()
    pinned = set(re.findall(r"(?m)^([a-z0-9-]+)==(?!.*sys_platform == 'win32')", lock))
    there = {_name(each.name) for each in packages.glob("*.dist-info")}
    assert pinned | {"pushpush"} == there
    assert not [each for each in ("tests", "bench", "deploy", "alembic.ini") if (packages / each).exists()]
    assert not list(packages.rglob("tests"))
    tools = {"apt-get", "as", "cc", "gcc", "ld", "make", "pip", "pip3", "g++"}
    assert not tools & {each.name for each in image.root.glob("**/bin/*")}
    assert not list(image.root.glob("usr/**/ensurepip")) + list(image.root.glob("**/pip-*.whl"))


def test_every_module_is_compiled(image: Image) -> None:
    """A read-only file system keeps no bytecode: what is not compiled here is compiled at every start."""
    (packages,) = image.root.glob("opt/pushpush/lib/python3*/site-packages")
    for folder in ("workers", "shared", "aio_pika", "psycopg"):
        sources = list((packages / folder).rglob("*.py"))
        compiled = [next(each.parent.glob(f"__pycache__/{each.stem}.*.pyc"), None) for each in sources]
        assert sources
        # Bit 0 of the flags: checked by content, and bit 1 not set: never. The time of a source says nothing.
        assert {1} == {each.read_bytes()[4] if each else None for each in compiled}


def test_nothing_of_the_machine_that_built_it_stays(image: Image) -> None:
    """How pip reaches an index can name passwords: neither the files nor the history of the image may."""
    assert images.MARK not in image.history
    assert str(images.ROOT) not in image.history
    found = subprocess.run(["grep", "-rlF", images.MARK, image.root], capture_output=True, text=True, check=False)
    assert (1, "") == (found.returncode, found.stdout)
    left = ("build", "run/secrets", "etc/pip.conf", "etc/apt", "root/.cache", "var/cache/pip")
    assert not [each for each in left if (image.root / each).exists()]


async def test_its_user_can_write_nowhere_but_to_tmp(image: Image, tmp_path: Path) -> None:
    """And no program there makes anybody root, even where a cluster forgets to forbid it."""
    code, out, _ = await image.run("python", "-c", "import os; print(os.getuid(), os.getgroups())", folder=tmp_path)
    assert (0, "10001 []") == (code, out.strip())
    writable = _find(
        "chroot", "--userspec=10001:10001", image.root, "find", "/", "-xdev", "!", "-type", "l", "-writable"
    )
    assert ["/tmp"] == writable
    assert not _find("find", image.root, "-xdev", "-type", "f", "-perm", "/6000")


def _find(*command: str | Path) -> list[str]:
    """Return what is found, without the folders that may not be looked into."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


async def test_a_missing_setting_stops_a_room_with_one_message(image: Image, tmp_path: Path) -> None:
    """Every fault at once; the code says that starting again will not help."""
    code, _, err = await image.run("python", "-m", "workers.smtp", folder=tmp_path, PUSHPUSH_DRAIN="soon")
    assert 78 == code
    assert ["smtp: the settings are not usable:"] == err.splitlines()[:1]
    named = sorted(re.findall(r"^PUSHPUSH_\w+ is \w+", err, re.MULTILINE))
    expected = ["PUSHPUSH_AMQP_URL is missing", "PUSHPUSH_DATABASE_URL is missing", "PUSHPUSH_DRAIN is malformed"]
    assert expected == named


async def test_the_main_path_from_inside_the_image(image: Image, world: World, tmp_path: Path) -> None:
    """Tables made, rooms started, rules set, mail delivered by both transports, rooms ended: by the image alone."""
    authority = trustme.CA()
    async with MxdelivPeer(authority=authority) as https, SmtpPeer() as smtp, DnsPeer() as dns:
        folder = _folder(world, https, tmp_path)
        env = _settings(dns.address)

        async def pushpush(*words: str) -> Any:
            code, out, err = await image.run("pushpush", *words, "--json", folder=folder, **env)
            assert code == 0, out + err
            return json.loads(out)["data"]

        code, out, _ = await image.run(*image.config["Cmd"], folder=folder)
        assert (0, True) == (code, "endpoint-cache" in out)
        assert (await pushpush("migrate"))["revision"]
        async with _rooms(image, env, folder, tmp_path / "log") as ports:
            for room in ROOMS:
                said = await image.run(*_probe(image), folder=folder, PUSHPUSH_METRICS_PORT=str(ports[room]))
                assert (room, 0, "ready") == (room, said[0], said[1].split("\n", maxsplit=1)[0])
            assert "200 OK" in await _page(int(env["PUSHPUSH_PANEL_PORT"]), "/login")
            assert "200 OK" in await _page(int(env["PUSHPUSH_PANEL_PORT"]), "/static/panel.css")
            for domain, target in (("a.example", f"127.0.0.1:{smtp.port}"), ("b.example", https.url)):
                await pushpush("endpoint-cache", "set", domain, target)
                await pushpush("send", f"/mnt/{domain}", "--from", SENDER, "--to", f"them@{domain}")
            for peer, domain in ((smtp, "a.example"), (https, "b.example")):
                await peer.wait_until(lambda peer=peer: bool(_mail(peer)), within=60)  # type: ignore[misc]
                (received,) = _mail(peer)
                assert (SENDER, (f"them@{domain}",)) == (received.mail_from, received.rcpt_to)
                assert received.body.startswith(b"Received: ")
                assert received.body.endswith(_text(domain))
        code, _, err = await image.run(*_probe(image), folder=folder, PUSHPUSH_METRICS_PORT=str(ports["router"]))
        assert (1, True) == (code, "no answer" in err)


@contextlib.asynccontextmanager
async def _rooms(image: Image, env: dict[str, str], folder: Path, logs: Path) -> AsyncIterator[dict[str, int]]:
    """Run every room, ready; yield the ports of their metrics. At the end each must have ended well by SIGTERM."""
    ports = {room: free_port() for room in ROOMS}
    running = {}
    try:
        for room, port in ports.items():
            with (logs / f"{room}.log").open("wb") as log:
                given = {**env, "PUSHPUSH_METRICS_PORT": str(port)}
                words = ("python", "-m", f"workers.{room}")
                running[room] = await image.start(*words, env=given, folder=folder, output=log)
        for room, port in ports.items():
            await until(lambda port=port: is_ready(port), within=60, wanted=f"{room} is ready")  # type: ignore[misc]
        yield ports
        for process in running.values():
            process.terminate()
        ended = {room: await asyncio.wait_for(process.wait(), 60) for room, process in running.items()}
        assert dict.fromkeys(ROOMS, 0) == ended
    finally:
        for process in running.values():
            if process.returncode is None:
                process.kill()
                await process.wait()


def _folder(world: World, https: MxdelivPeer, tmp_path: Path) -> Path:
    """Return a folder for /mnt: the two secrets, certificates, and messages. The database is a new one."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    with psycopg.connect(world.postgres.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS image")
        connection.execute("CREATE DATABASE image")
    (folder / "amqp_url").write_text(world.rabbitmq.url)
    (folder / "database_url").write_text(urlsplit(world.postgres.url)._replace(path="/image").geturl())
    https.ca_file(folder / "ca.pem")
    (tmp_path / "log").mkdir()
    for domain in ("a.example", "b.example"):
        (folder / domain).write_bytes(_text(domain))
    return folder


def _settings(dns: str) -> dict[str, str]:
    given = {
        "AMQP_URL_FILE": "/mnt/amqp_url",
        "DATABASE_URL_FILE": "/mnt/database_url",
        "CA_FILE": "/mnt/ca.pem",
        "DNS_SERVERS": dns,
        "SMTP_PORT": str(free_port()),
        "HTTPS_PORT": str(free_port()),
        "PANEL_PORT": str(free_port()),
        "HOSTNAME": "mail.pushpush.example",
        "ADMIN_TOKEN": "the word of the first day",
    }
    return {f"PUSHPUSH_{name}": value for name, value in given.items()}


def _text(domain: str) -> bytes:
    return message("From the image", SENDER, f"them@{domain}")


def _mail(peer: Inbox) -> list[Received]:
    """Return what came but the question by which `endpoint-cache set` tries an https target: it names no recipient."""
    return [each for each in peer.received if each.rcpt_to]


def _probe(image: Image) -> list[str]:
    return list(image.config["Healthcheck"]["Test"][1:])


def _name(folder: str) -> str:
    """Return the name of a package in its normal form, from NAME-VERSION.dist-info."""
    return re.sub(r"[-_.]+", "-", folder.partition("-")[0]).lower()


async def _page(port: int, path: str) -> str:
    """Return what stands at the head of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 30)
    writer.close()
    return head.decode()
