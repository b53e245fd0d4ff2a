"""A delivery room that delivers nothing: what dramatiq and RabbitMQ's client cost alone.

    python -m bench.no_op deliver.smtp

It takes each job of the queue and returns at once; it ends by SIGTERM.
"""

import asyncio
import os
import signal
import sys

import uvloop

from shared.broker.dramatiq_broker import DeliveryWorker, Job


async def consume(queue: str) -> None:
    """Consume until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def nothing(job: Job) -> None:
        del job

    worker = DeliveryWorker(url=os.environ["PUSHPUSH_AMQP_URL"], queue=queue, concurrency=64, deliver=nothing)
    worker.start()
    await stop.wait()
    await worker.stop()


if __name__ == "__main__":
    uvloop.run(consume(sys.argv[1]))
