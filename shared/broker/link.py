"""One AMQP connection that comes back by itself.

Each time it is up, everything is declared anew and the owner's `on_up` starts its consumers; when it goes down, what
was not acknowledged belongs to the broker again. That is plainer than restoring the state of a dead connection, and it
gives the router the moment at which it must read the rules again (fanout events in the gap are lost).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self, cast

import aio_pika
import aiormq
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import AMQPError

from shared.broker import tolerant, topology
from shared.broker.contact import why
from shared.runtime.health import Health
from shared.runtime.tasks import end

log = structlog.get_logger()

RETRY = (0.2, 0.5, 1.0, 2.0)  # seconds between attempts to connect; the last one repeats
STABLE = 5.0  # seconds; a connection that ends sooner is not made anew at once, lest good mail go round and round
HEARTBEAT = 30  # seconds
SET_UP = 120.0  # seconds for all that is declared and begun on a new connection
FAULTS = (AMQPError, OSError, asyncio.TimeoutError, RuntimeError)  # what a lost connection raises, wherever it shows

OnUp = Callable[[AbstractConnection], Awaitable[None]]


class Link:
    """A connection with one channel to publish on, and consumers of the owner's making.

    Attributes:
        why: Why it could not be made, the last time that it was tried; "" when it could, or was not tried yet.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        health: Health | None = None,
        on_up: OnUp | None = None,
        heartbeat: int = HEARTBEAT,
    ) -> None:
        """Describe the connection; nothing happens before `async with`.

        Args:
            url: `amqp://USER:PASSWORD@HOST:PORT/VHOST`.
            name: What the broker calls the connection, for people who look at it there.
            health: Told about the need `broker`.
            on_up: Called after each (re)connect, once everything is declared.
            heartbeat: Seconds; the broker ends the connection of a process that is silent for two to three of them.
        """
        self._url = url
        self._name = name
        self._health = health or Health()
        self._on_up = on_up
        self._heartbeat = heartbeat
        self._channel: AbstractChannel | None = None
        self._publishing: aiormq.Channel | None = None
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.why = ""

    async def __aenter__(self) -> Self:
        """Start connecting in the background; does not wait for the broker."""
        tolerant.install()
        self._task = asyncio.create_task(self._run(), name=f"link {self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        if self._task is not None:
            await end(self._task)

    @property
    def publishing(self) -> aiormq.Channel | None:
        """The same channel, one layer below, for publishing at speed; None while the broker is away."""
        return self._publishing

    @property
    def channel(self) -> AbstractChannel | None:
        """The channel to publish on, confirmed and with returns raised; None while the broker is away."""
        return self._channel

    @property
    def is_up(self) -> bool:
        """Say whether the broker is there and the owner's consumers were started."""
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Return once the broker is there."""
        await self._up.wait()

    async def reconnect(self) -> None:
        """Give the connection up; a new one is made at once."""
        if self._channel is not None:
            with contextlib.suppress(*FAULTS):
                await self._channel.close()

    async def _run(self) -> None:
        attempt = 0
        while True:
            began = time.monotonic()
            try:
                async with self._connected() as closed:
                    why = await closed
                log.warning("broker connection lost", why=repr(why))
                self._health.ill("broker", f"the connection was lost: {why!r}")
                if time.monotonic() - began > STABLE:
                    attempt = 0
                    continue
            except FAULTS as error:
                self._unreachable(error, first=attempt == 0)
            except asyncio.CancelledError as error:
                if _told_to_end():
                    raise
                # aiormq hands its own cancellation to those who wait on a connection that ended.
                self._health.ill("broker", f"the connection was lost: {error!r}")
            except Exception as error:
                # A fault of our own while the connection was set up: a room must not stay up and deaf because of it.
                log.exception("the connection could not be used, trying on")
                self._health.ill("broker", f"cannot use the connection: {error!r}")
            if _told_to_end():  # aio_pika may pass over it while it connects
                return
            await asyncio.sleep(RETRY[min(attempt, len(RETRY) - 1)])
            attempt += 1

    def _unreachable(self, error: BaseException, *, first: bool) -> None:
        """Say once in the log, and in the health as long as it is so, why there is no connection."""
        before, (self.why, refused) = self.why, why(error, self._url)
        if first or (refused and self.why != before):
            log.warning("broker unreachable, trying on", error=self.why)
        self._health.ill("broker", self.why, refused=refused)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncio.Future[object]]:
        closed: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def on_close(_: object, why: object) -> None:
            if not closed.done():
                closed.set_result(why)

        connection = await aio_pika.connect(
            self._url, timeout=10, heartbeat=self._heartbeat, client_properties={"connection_name": self._name}
        )
        try:
            connection.close_callbacks.add(on_close)
            # A broker that answers heartbeats and nothing else, as one may after a crash, is tried anew.
            async with asyncio.timeout(SET_UP):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                channel.close_callbacks.add(on_close)
                await topology.declare(channel)
                self._channel = channel
                self._publishing = cast("aiormq.Channel", await channel.get_underlay_channel())
                if self._on_up is not None:
                    await self._on_up(connection)
            self.why = ""
            self._health.well("broker")
            self._up.set()
            log.info("broker connected")
            yield closed
        finally:
            self._up.clear()
            self._channel = self._publishing = None
            with contextlib.suppress(*FAULTS):
                await connection.close()


def _told_to_end() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def close_quietly(connection: AbstractConnection) -> None:
    """Close a connection of which a part is lost, so that its link makes a whole one."""
    with contextlib.suppress(*FAULTS):
        await connection.close()
