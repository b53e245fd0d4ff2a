"""Private RabbitMQ and PostgreSQL for tests, the demo and the one-machine fleet; never the machine's own."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.postgresql import PostgreSQL
from deploy.local.process import ServiceError
from deploy.local.rabbitmq import RabbitMQ
from deploy.local.service import Service

__all__ = ["OpenServices", "PostgreSQL", "RabbitMQ", "Service", "ServiceError", "open_services"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenServices:
    """The addresses of a broker and a database that answer, and our own processes where we started them."""

    amqp_url: str
    database_url: str
    rabbitmq: RabbitMQ | None
    postgresql: PostgreSQL | None


@contextmanager
def open_services(folder: Path) -> Iterator[OpenServices]:
    """Give a broker and a database: those that the environment names, else private ones that are stopped at the end.

    `PUSHPUSH_AMQP_URL` and `PUSHPUSH_DATABASE_URL` (or `..._FILE`) each stand for one service; what they name is
    neither started nor stopped, nor asked whether it answers. Private ones are started at the same time.

    Args:
        folder: private services keep their data in `rabbitmq` and `postgres` below it.

    Raises:
        ServiceError: a private service could not be started or stopped.
    """
    amqp_url, database_url = _named("PUSHPUSH_AMQP_URL"), _named("PUSHPUSH_DATABASE_URL")
    rabbitmq = None if amqp_url else RabbitMQ(folder / "rabbitmq")
    postgresql = None if database_url else PostgreSQL(folder / "postgres")
    ours: list[Service] = [service for service in (rabbitmq, postgresql) if service is not None]
    with ExitStack() as ends:
        for service in ours:
            ends.callback(service.stop)
        with ThreadPoolExecutor(max_workers=2) as threads:
            for start in [threads.submit(service.start) for service in ours]:
                start.result()
        yield OpenServices(
            amqp_url=amqp_url or (rabbitmq.url if rabbitmq else ""),
            database_url=database_url or (postgresql.url if postgresql else ""),
            rabbitmq=rabbitmq,
            postgresql=postgresql,
        )


def _named(name: str) -> str | None:
    """Return what the environment sets, itself or by a file, else None."""
    if path := os.environ.get(f"{name}_FILE"):
        return Path(path).read_text().strip()
    return os.environ.get(name) or None
