"""A message of 40 MiB to many domains: one stored copy, small queue messages, and no byte left in the end."""

import asyncio
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import aio_pika
import psycopg
import pytest

from deploy.local.services import PostgreSQL
from shared.broker import topology
from shared.delivery.large import ROOM
from tests.e2e.conftest import SENDER, World
from tests.peers.behaviour import END_OF_DATA, Behaviour
from tests.peers.inbox import Inbox, Received
from tests.peers.mxdeliv import MxdelivPeer, free_port
from tests.peers.smtp import ScriptedSmtpPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

MIB = 1024**2
EACH = 10  # recipients by each transport, each at a domain of its own
LINE = b".dots at the beginning are stuffed on the way; and " + b"x" * 850 + b"\r\n"
OURS = b"+0000\r\n"  # ends our Received field


class _Digests(Inbox):
    """Keeps the digest of what stood below our Received field, not 40 MiB each time."""

    def record(self, message: Received, *, accepted: bool = True) -> None:
        """Record one whole message."""
        below = memoryview(message.body)[message.body.index(OURS) + len(OURS) :]
        super().record(replace(message, body=hashlib.sha256(below).digest()), accepted=accepted)


class _Https(_Digests, MxdelivPeer):
    pass


class _Smtp(_Digests, ScriptedSmtpPeer):
    pass


async def test_one_copy_of_a_large_message_serves_all_its_domains(world: World, tmp_path: Path) -> None:
    """Twenty domains, by HTTPS, by SMTP after HTTPS, and once by a retry: whole everywhere, one copy, freed."""
    body = b"Subject: large\r\n\r\n" + LINE * (40 * MIB // len(LINE))
    (tmp_path / "mail.eml").write_bytes(body)
    digest = hashlib.sha256(body).digest()
    del body
    later = Behaviour(replies={"MAIL": "451 4.7.1 greylisted"}, hang_up_after="MAIL")
    recipients = [f"b@d{number}.{way}.example" for way in ("https", "smtp") for number in range(EACH)]
    env = {"retry_schedule": "2s", "https_port": str(free_port())}
    async with _Https() as https, _Smtp() as smtp, _Smtp(later, Behaviour()) as greylists:
        await world.rule("*.https.example", https.url)
        await world.rule("*.smtp.example", f"127.0.0.1:{smtp.port}")
        await world.rule("d0.smtp.example", f"127.0.0.1:{greylists.port}")
        async with world.fleet({"router": 1}, **env) as front:
            await _send(front.env, tmp_path / "mail.eml", recipients)
            assert 2 * EACH == len(sizes := await _queued(world, 2 * EACH))
            assert max(sizes) < 10_000
            async with world.fleet({"https": 1, "smtp": 1, "scheduler": 1}, **env) as fleet:
                largest = await _until_freed(world.postgres)
                peaks = {name: _peak(fleet.pid(name)) for name in fleet.names}
    assert (1, 40) == (largest["copies"], round(largest["bytes"] / MIB))
    assert 1 <= largest["waiting"]
    assert largest["row"] < 10_000
    assert {} == {name: peak for name, peak in peaks.items() if peak > ROOM + 512 * MIB}
    arrived = [each for peer in (https, smtp, greylists) for each in peer.received]
    assert Counter(recipients) == Counter(each.rcpt_to[0] for each in arrived)
    assert {digest} == {each.body for each in arrived}
    assert (EACH, EACH - 1, 1) == (len(https.received), len(smtp.received), len(greylists.received))
    assert not any((await world.depths()).values())


async def test_a_worker_killed_before_a_body_is_freed(world: World, tmp_path: Path) -> None:
    """It dies after the delivery, before its ack: the mail comes again, with its body, which is freed after that."""
    (tmp_path / "mail.eml").write_bytes(b"Subject: large\r\n\r\n" + LINE * 400)
    async with _Smtp(Behaviour(delays={END_OF_DATA: 1.0}), Behaviour()) as smtp:
        await world.rule("a.example", f"127.0.0.1:{smtp.port}")
        rooms = {"router": 1, "https": 1, "smtp": 1}
        async with world.fleet(rooms, https_port=str(free_port())) as fleet:
            await _send(fleet.env, tmp_path / "mail.eml", ["b@a.example"])
            await smtp.wait_for(1, within=20)
            with psycopg.connect(world.postgres.url) as connection:
                connection.execute("SELECT id FROM bodies FOR UPDATE")  # who wants to free it waits for us
                await _until(lambda: _held_up(world.postgres))
                fleet.kill("smtp-1")
            await smtp.wait_for(2, within=20)
            await _until_freed(world.postgres)
    assert 1 == len({each.body for each in smtp.received})
    assert not any((await world.depths()).values())


async def _send(env: Mapping[str, str], file: Path, recipients: list[str]) -> None:
    """Hand in a message as people do."""
    to = [word for each in recipients for word in ("--to", each)]
    words = ("-m", "workers.cli", "send", str(file), "--from", SENDER, *to)
    process = await asyncio.create_subprocess_exec(sys.executable, *words, env=dict(env))
    assert 0 == await process.wait()


async def _queued(world: World, count: int) -> list[int]:
    """Return the sizes of the messages in the delivery queues once there are so many; they stay there."""
    async with asyncio.timeout(20):
        while sum((await world.depths()).values()) < count:
            await asyncio.sleep(0.1)
    sizes = []
    async with await aio_pika.connect(world.rabbitmq.url) as connection:
        channel = await connection.channel()
        for name in (topology.HTTPS, topology.SMTP):
            queue = await channel.get_queue(name, ensure=False)
            while (message := await queue.get(fail=False)) is not None:  # with the connection they go back
                sizes.append(len(message.body))
    return sizes


async def _until_freed(postgres: PostgreSQL) -> Counter[str]:
    """Return when nothing waits and no body is stored any more; return the most there was of everything."""
    most: Counter[str] = Counter()
    with psycopg.connect(postgres.url, autocommit=True) as connection:

        def done() -> bool:
            row = connection.execute(
                """
                SELECT count(body), coalesce(sum(octet_length(body)), 0)::bigint, count(freed_at),
                    (SELECT count(*) FROM deferred), (SELECT coalesce(max(octet_length(delivery)), 0) FROM deferred)
                FROM bodies
                """
            ).fetchone()
            assert row is not None
            now = Counter(dict(zip(("copies", "bytes", "freed", "waiting", "row"), row, strict=True)))
            most.update(now - most)
            return (now["copies"], now["freed"], now["waiting"]) == (0, 1, 0)

        await _until(done, within=60)
    return most


def _held_up(postgres: PostgreSQL) -> bool:
    with psycopg.connect(postgres.url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()
    return row is not None and row[0] > 0


def _peak(pid: int) -> int:
    """Return the most memory that a process has had, in bytes."""
    [line] = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


async def _until(condition: Callable[[], bool], *, within: float = 20) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.05)
