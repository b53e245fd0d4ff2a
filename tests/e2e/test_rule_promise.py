"""The promise: after a confirmed change no router publishes anything under an older rule, whatever happens to it.

The deliveries pile up in one queue, in the order in which they were published. After each confirmation a mark is put
into the same queue: what lies behind a mark was published after the confirmation, and so must have its version.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator

import aio_pika
import pytest

from deploy.local.fleet import Fleet
from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.fleet.release import Applied, announce
from shared.mail import codec
from shared.mail.rule import make_rule
from shared.runtime.errors import BrokerUnavailable, FleetError
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import LIVE, Routers
from tests.e2e.conftest import SENDER, World

pytestmark = [pytest.mark.services, pytest.mark.timeout(280)]

PACE = 0.004  # seconds between two messages
ROUTERS = 3
CONFIRMED = 60.0  # seconds that a confirmation may take: RabbitMQ must notice that a router hangs


class Load:
    """Numbered messages, handed in without end until it is told to stop."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.handed_in = 0
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Hand in one message after the other."""
        while not self._stop.is_set():
            await self._hand_in(f"n{self.handed_in}@a.example")
            self.handed_in += 1
            await asyncio.sleep(PACE)

    def stop(self) -> None:
        """End it after the message in hand."""
        self._stop.set()

    async def _hand_in(self, recipient: str) -> None:
        headers = {"mail_from": SENDER, "rcpt_to": [recipient]}
        body = f"To: {recipient}\r\n\r\nHello.\r\n".encode()
        await _stubborn(self._publisher, topology.OUTBOUND, body, headers=headers, content_type="message/rfc822")


class Operator:
    """Changes the rule, and puts a mark behind each confirmation."""

    def __init__(self, pool: Pool, publisher: Publisher) -> None:
        self._pool = pool
        self._publisher = publisher
        self._changes = 0
        self.marks: list[int] = []

    async def change(self, *, wait: float = CONFIRMED) -> Applied:
        """Change the rule."""
        self._changes += 1
        rule = make_rule("a.example", f"t{self._changes}.example")
        saved = await Overrides(self._pool).set(rule, actor="test", release=True)
        return await self.confirm(saved.version, wait=wait)

    async def confirm(self, version: int, *, wait: float = CONFIRMED) -> Applied:
        """Ask for the confirmation of a version that is saved already."""
        applied = await announce(version, self._publisher, Routers(self._pool), wait=wait)
        if not applied.late:
            await _stubborn(self._publisher, topology.HTTPS, json.dumps({"mark": version}).encode())
            self.marks.append(version)
        return applied


async def test_the_promise(world: World) -> None:
    """Routers paused shortly and long, killed, the broker restarted, the database away: no confirmation was untrue."""
    await world.rule("a.example", "t0.example")
    async with _operator(world) as (operator, load), world.fleet({"router": ROUTERS}) as fleet:
        running = asyncio.create_task(load.run())
        first = await operator.change()
        assert (ROUTERS, [], []) == (len(first.applied), first.late, first.gone)

        await _paused_shortly(operator, fleet)
        await _paused_until_it_is_cut_off(operator, fleet)

        fleet.kill("router-3")
        killed = await operator.change()
        assert ([], ROUTERS - 1) == (killed.late, len(killed.applied) - _restarted(killed))

        await asyncio.to_thread(world.rabbitmq.stop)
        restarting = asyncio.create_task(asyncio.to_thread(world.rabbitmq.start))
        during = await operator.change(wait=1)  # confirmed or not, but never untrue
        await restarting
        await operator.confirm(during.version)
        assert during.version == operator.marks[-1]

        await asyncio.to_thread(world.postgres.stop)
        await asyncio.sleep(LIVE + 1)  # every router counts as silent when it is back
        await asyncio.to_thread(world.postgres.start)
        after = await _once_there(operator)
        assert ([], []) == (after.late, [name for name in after.gone if name in after.applied])
        assert len(after.applied) >= ROUTERS - 1

        await asyncio.sleep(0.5)
        load.stop()
        await running
        await _all_routed(world)
        judged, numbers = await _judge(world)
    missing = sorted(set(range(load.handed_in)) - numbers)
    assert [] == missing, f"{len(missing)} of {load.handed_in} messages are lost"
    assert judged > load.handed_in / 3, "too few messages came after a confirmation for this test to mean anything"
    assert len(operator.marks) >= 6


async def _paused_shortly(operator: Operator, fleet: Fleet) -> None:
    """A router that does not run for a while is late, and named; when it runs again the same version is confirmed."""
    os.kill(fleet.pid("router-2"), signal.SIGSTOP)
    try:
        late = await operator.change(wait=1)
        assert [fleet.pid("router-2")] == _pids(late.late)
    finally:
        os.kill(fleet.pid("router-2"), signal.SIGCONT)
    assert [] == (await operator.confirm(late.version)).late


async def _paused_until_it_is_cut_off(operator: Operator, fleet: Fleet) -> None:
    """A router that hangs is waited for until the broker has cut it off; then it can publish nothing old any more."""
    os.kill(fleet.pid("router-2"), signal.SIGSTOP)
    try:
        await asyncio.sleep(LIVE + 1)
        silent = await operator.change(wait=0.5)
        assert 1 == len(silent.late), "a silent router whose connection is there may still publish"
        applied = await operator.confirm(silent.version)
        assert ([], [fleet.pid("router-2")]) == (applied.late, _pids(applied.gone))
    finally:
        os.kill(fleet.pid("router-2"), signal.SIGCONT)
    await asyncio.sleep(2)  # it does now whatever it would do


def _pids(routers: list[str]) -> list[int]:
    """Return the processes of routers, which are part of their names."""
    return [int(name.split("-")[-2]) for name in routers]


def _restarted(applied: Applied) -> int:
    """Return how many routers beyond the expected ones have applied it: the killed one may be back already."""
    return max(0, len(applied.applied) - (ROUTERS - 1))


async def _once_there(operator: Operator) -> Applied:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(FleetError):
                return await operator.change()
            await asyncio.sleep(0.1)


async def _stubborn(publisher: Publisher, queue: str, body: bytes, **properties: object) -> None:
    while True:
        try:
            await publisher.raw(queue, body, **properties)  # type: ignore[arg-type] # by name
        except BrokerUnavailable:
            await asyncio.sleep(0.1)
        else:
            return


@contextlib.asynccontextmanager
async def _operator(world: World) -> AsyncIterator[tuple[Operator, Load]]:
    pool = Pool(world.postgres.url, name="operator")
    await pool.open()
    async with Link(world.rabbitmq.url, name="operator") as link:
        await link.wait_up()
        yield Operator(pool, Publisher(link)), Load(Publisher(link))
    await pool.close()


async def _all_routed(world: World) -> None:
    """Return once nothing waits to be routed, and nothing is in a router's hands."""
    quiet = time.monotonic()
    before: dict[str, int] = {}
    while time.monotonic() - quiet < 2:
        depths = await world.depths()
        if depths != before or depths[topology.OUTBOUND]:
            before, quiet = depths, time.monotonic()
        await asyncio.sleep(0.2)


async def _judge(world: World) -> tuple[int, set[int]]:
    """Read the queue in its order; return how many messages lie behind a mark, and which numbers there are."""
    judged, numbers, confirmed = 0, set(), 0
    async with await aio_pika.connect(world.rabbitmq.url) as connection:
        queue = await (await connection.channel()).get_queue(topology.HTTPS, ensure=False)
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            if message.body.startswith(b'{"mark"'):
                confirmed = int(json.loads(message.body)["mark"])
                continue
            delivery, _ = codec.decode(message.body)
            numbers.add(int(delivery.envelope.rcpt_to[0].partition("@")[0][1:]))
            if confirmed:
                judged += 1
                assert delivery.route.version >= confirmed, (
                    f"published under {delivery.route.version} after {confirmed}"
                )
    return judged, numbers
