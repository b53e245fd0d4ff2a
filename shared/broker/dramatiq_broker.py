"""Run delivery jobs as a dramatiq actor, so that no fault on the way loses a message.

Failure policy: a message is acked only when its actor returned normally; whatever else happens to it, it goes back to
its queue, and the queue's x-delivery-limit in the end sets it aside, whole, in mail.undecodable. When the connection is
lost, what runs is finished, what only waited is left to the broker, and the consumer comes back by itself.

Dramatiq's own RabbitMQ broker acks what failed, acks by number after a reconnect, lets a message name its queue, and
declares classic queues that delete; tests/integration/test_dramatiq_faults.py has a test for each of its faults.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias

import dramatiq
import dramatiq.worker
import pika  # type: ignore[import-untyped]
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import iter_queue
from dramatiq.encoder import Encoder, MessageData
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import SkipMessage
from pika.exceptions import AMQPError  # type: ignore[import-untyped]

from shared.broker import topology

log = logging.getLogger(__name__)

Queues: TypeAlias = Mapping[str, Mapping[str, str | int]]

ACTOR: Final = "deliver"
RESTART_WAIT: Final = 1.0  # seconds between two tries to reach the broker
REQUEUE_WAIT: Final = 30.0  # seconds, at most, that a failed message is held before it goes back to its queue

# pika raises AssertionError when a reply arrives in a state that it did not expect, which a lost connection can cause.
_LOST: Final = (AMQPError, AssertionError, OSError)


@dataclass(frozen=True, slots=True)
class Job:
    """One message as it came off the queue; the argument of the actor.

    The body is left out of the repr, because dramatiq logs the arguments of an actor that failed.
    """

    body: bytes = field(repr=False)
    message_id: str = ""  # the AMQP property, "" when there is none
    redelivered: bool = False
    delivery_count: int = 0  # how often the broker had it back before this time (x-delivery-count)
    # Says whether its connection is gone, so that the broker hands it out again whatever becomes of this one.
    stale: Callable[[], bool] = field(default=lambda: False, repr=False, compare=False)


class BodyEncoder(Encoder):
    """Put the job's body on the wire as it is, so that no byte of it can name a queue, an actor or an option."""

    def encode(self, data: MessageData) -> bytes:
        """Return the body of the job; the rest is not sent."""
        job: Job = data["args"][0]
        return job.body

    def decode(self, data: bytes) -> MessageData:
        """Return the fields of a message around these bytes; any bytes will do."""
        return _fields(Job(data))


def _fields(job: Job, queue_name: str = "") -> MessageData:
    return {
        "queue_name": queue_name,
        "actor_name": ACTOR,
        "args": (job,),
        "kwargs": {},
        "options": {},
        "message_id": job.message_id,
    }


def declare_blocking(channel: Any, queues: Queues = topology.QUEUES) -> None:
    """Declare the queues and the reload exchange through pika; does nothing where they already are.

    Raises:
        pika.exceptions.ChannelClosedByBroker: A queue of this name exists with other arguments (406).
    """
    for name, arguments in queues.items():
        channel.queue_declare(queue=name, durable=True, arguments=dict(arguments))
    channel.exchange_declare(topology.RELOAD, exchange_type="fanout", durable=True)


def _closed(error: Exception) -> ConnectionClosed:
    """Return the error that makes dramatiq wait and connect again."""
    return ConnectionClosed(error)  # type: ignore[no-untyped-call]


class _Delivery(dramatiq.MessageProxy):
    """A message, the consumer it came from, and whether its actor has returned normally."""

    def __init__(self, message: dramatiq.Message[None], consumer: "_Consumer", tag: int) -> None:
        super().__init__(message)
        self.consumer = consumer
        self.tag = tag
        self.returned = False


class _Guard(dramatiq.Middleware):
    """Keep stale messages from running, and note which actors returned: the only thing that allows an ack."""

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        del broker
        if isinstance(message, _Delivery) and not message.consumer.is_open:
            raise SkipMessage("its connection is lost, so the broker hands it out again")

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.MessageProxy,
        *,
        result: Any | None = None,
        exception: BaseException | None = None,
    ) -> None:
        del broker, result
        if isinstance(message, _Delivery):
            message.returned = exception is None and not message.failed


class _Consumer(dramatiq.Consumer):
    """One connection that consumes one queue; other threads may settle, give back, release and ask for its state."""

    def __init__(self, broker: "DeliveryBroker", queue_name: str, prefetch: int, timeout: int) -> None:
        self._queue_name = queue_name
        self._wait = timeout / 1000
        self._requeue_wait = broker.requeue_wait
        self._callbacks: deque[Callable[[], object]] = deque()
        self._flush_due = False
        self._released = False
        try:
            self._connection = pika.BlockingConnection(broker.parameters)
        except _LOST as error:
            raise _closed(error) from None
        try:
            self._channel = self._connection.channel()
            declare_blocking(self._channel, broker.topology)
            self._channel.basic_qos(prefetch_count=prefetch)
            self._messages = self._channel.consume(queue_name, inactivity_timeout=self._wait)
        except _LOST as error:
            self.close()
            raise _closed(error) from None

    @property
    def is_open(self) -> bool:
        return bool(self._connection.is_open and self._channel.is_open)

    @property
    def is_attached(self) -> bool:
        return self.is_open and bool(self._channel.consumer_tags)

    def __next__(self) -> dramatiq.MessageProxy | None:
        try:
            method, properties, body = next(self._messages)
        except StopIteration:
            if not self._released:
                raise  # the broker cancelled the consumer: dramatiq makes a new one
            self._pump()
            return None
        except _LOST as error:
            raise _closed(error) from None
        if method is None:
            return None
        job = Job(
            body,
            properties.message_id or "",
            method.redelivered,
            (properties.headers or {}).get("x-delivery-count", 0),
            stale=lambda: not self.is_open,
        )
        return _Delivery(dramatiq.Message(**_fields(job, self._queue_name)), self, method.delivery_tag)

    def _pump(self) -> None:
        try:
            self._connection.process_data_events(self._wait)
        except _LOST as error:
            raise _closed(error) from None

    def ack(self, message: dramatiq.MessageProxy) -> None:
        """Settle the message where it came from: a tag means nothing to any other connection."""
        assert isinstance(message, _Delivery)
        message.consumer.settle(message)

    nack = ack  # what is to happen is decided by `returned` alone

    def settle(self, delivery: _Delivery) -> None:
        """Ack what returned, requeue what did not after a while; does nothing when the connection is lost."""
        if delivery.returned:
            self._submit(partial(self._ack, delivery.tag))
        else:
            # At once would spend the whole delivery limit in a second, and set aside good mail for a short outage.
            job: Job = delivery.args[0]
            wait = min(self._requeue_wait, 0.1 * 2 ** min(job.delivery_count, 20))
            self._submit(partial(self._connection.call_later, wait, partial(self._requeue, delivery.tag)))

    def give_back(self, delivery: _Delivery) -> None:
        """Requeue at once what has not run."""
        self._submit(partial(self._requeue, delivery.tag))

    def release(self) -> None:
        """Take no more messages, but stay, so that what runs can be acked."""
        self._released = True
        self._submit(self._channel.cancel)

    def _ack(self, tag: int) -> None:
        # BlockingChannel.basic_ack waits until each ack is on the wire; the channel under it leaves that to the next
        # poll or to close(), and saves a fifth of all the CPU of a message here.
        self._channel._impl.basic_ack(tag)  # noqa: SLF001

    def _requeue(self, tag: int) -> None:
        self._channel.basic_nack(tag, requeue=True)

    def _submit(self, callback: Callable[[], object]) -> None:
        self._callbacks.append(callback)
        if self._flush_due:
            return
        self._flush_due = True
        try:
            self._connection.add_callback_threadsafe(self._flush)
        except AMQPError:
            log.debug("connection is lost; the broker takes back what was not acked")

    def _flush(self) -> None:
        self._flush_due = False  # before the loop: who appends later must ask again
        while self._callbacks:
            self._callbacks.popleft()()

    def close(self) -> None:
        """Write the acks that still wait, then close; the broker takes back everything else."""
        try:
            with self._connection:
                if self.is_open:
                    self._flush()
                    self._fence()
        except Exception:  # any: the connection is given up, and the thread must live to make the next one
            log.debug("connection was lost while it was closed", exc_info=True)

    def _fence(self) -> None:
        """Wait until the queue has taken our acks.

        RabbitMQ's channel sends a quorum queue some 32 commands at a time and forgets the others when it closes, so a
        burst of acks before a close would be delivered again. A get goes through the queue's log behind them.
        """
        self._channel.basic_get(self._queue_name)  # what it may get goes back with the close


class DeliveryBroker(RabbitmqBroker):
    """Dramatiq's RabbitMQ broker with our queues, our consumer, publisher confirms and no other middleware."""

    def __init__(self, *, url: str, queues: Queues = topology.QUEUES, requeue_wait: float = REQUEUE_WAIT) -> None:
        super().__init__(url=url, confirm_delivery=True, middleware=[_Guard()])
        self.topology = queues
        self.requeue_wait = requeue_wait

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> dramatiq.Consumer:
        """Connect and consume a queue; the queues are declared on the way.

        Raises:
            ConnectionClosed: The broker cannot be reached, or refuses; dramatiq waits and tries again.
        """
        return _Consumer(self, queue_name, prefetch, timeout)

    def declare_queue(self, queue_name: str, *, ensure: bool = False) -> None:
        """Take note of a queue of the topology, and declare it when `ensure` is set; it gets no delay queue.

        Raises:
            KeyError: The topology has no queue of this name.
            ConnectionClosed: `ensure` is set and the broker cannot be reached, or refuses.
        """
        if queue_name not in self.queues:
            self._build_queue_arguments(queue_name)
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.queues_pending.add(queue_name)
            self.emit_after("declare_queue", queue_name)
        if ensure:
            self._ensure_queue(queue_name)  # type: ignore[no-untyped-call]

    def _build_queue_arguments(self, queue_name: str) -> dict[str, str | int]:
        return dict(self.topology[queue_name])

    def _declare_dq_queue(self, queue_name: str) -> None:
        """Retries wait in the store, not in a delay queue."""

    def _declare_xq_queue(self, queue_name: str) -> None:
        """What cannot be delivered is dead-lettered by the queue itself."""


class DeliveryWorker:
    """Consume one queue with a coroutine function, on the event loop that `start` is called on.

    A message is acked when `deliver` returns. When it raises, or is cancelled, the message goes back to the queue.
    """

    def __init__(
        self,
        *,
        url: str,
        queue: str,
        concurrency: int,
        deliver: Callable[[Job], Awaitable[None]],
        queues: Queues = topology.QUEUES,
        requeue_wait: float = REQUEUE_WAIT,
    ) -> None:
        dramatiq.set_encoder(BodyEncoder())  # for the whole process: dramatiq has no other way
        self._deliver = deliver
        self._queue = queue
        self._running: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broker = DeliveryBroker(url=url, queues=queues, requeue_wait=requeue_wait)
        dramatiq.actor(actor_name=ACTOR, queue_name=queue, broker=self._broker)(self._run)
        self._worker = dramatiq.Worker(self._broker, queues={queue}, worker_threads=concurrency)
        # Dramatiq would take twice the concurrency; what waits here waits while another process may be idle.
        self._worker.queue_prefetch = concurrency + concurrency // 4 + 1

    def start(self) -> None:
        """Start the threads and return; the consumer connects in its own time, and again whenever it is cut off.

        Raises:
            RuntimeError: No event loop is running here.
        """
        self._loop = asyncio.get_running_loop()
        dramatiq.worker.CONSUMER_RESTART_DELAY_SECS = RESTART_WAIT
        self._broker.emit_after("process_boot")
        self._worker.start()

    async def stop(self, grace: float = 30.0) -> None:
        """Finish what runs and give back what waits; after `grace` seconds cancel what still runs, and requeue it."""
        consumer = self._consumer
        if consumer is not None:
            consumer.release()
        for item in iter_queue(self._worker.work_queue):  # type: ignore[no-untyped-call]
            item.message.consumer.give_back(item.message)
        # Its own timeout is left long: once it runs out, dramatiq uses the connection from two threads at once.
        stopping = asyncio.ensure_future(asyncio.to_thread(self._worker.stop))
        await asyncio.wait({stopping}, timeout=grace)
        while not stopping.done():
            for task in self._running:
                task.cancel()
            await asyncio.wait({stopping}, timeout=1)
        await stopping

    @property
    def connected(self) -> bool:
        """Whether the consumer is attached to its queue."""
        consumer = self._consumer
        return consumer is not None and consumer.is_attached

    @property
    def _consumer(self) -> _Consumer | None:
        thread = self._worker.consumers.get(self._queue)
        return thread.consumer if thread is not None and isinstance(thread.consumer, _Consumer) else None

    def _run(self, job: Job) -> None:
        """Block a thread of dramatiq's while the coroutine runs on the loop.

        Dramatiq's own AsyncIO middleware looks every 0.1 s whether the thread was interrupted; nothing interrupts ours.
        """
        assert self._loop is not None
        try:
            asyncio.run_coroutine_threadsafe(self._run_task(job), self._loop).result()
        except CancelledError:
            raise SkipMessage("it was cancelled, so it is requeued") from None

    async def _run_task(self, job: Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await self._deliver(job)
        finally:
            self._running.discard(task)
