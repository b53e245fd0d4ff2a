"""What tests of every kind share: the private RabbitMQ and PostgreSQL, started once a run."""

from collections.abc import Iterator

import pytest

from deploy.local.services import PostgreSQL, RabbitMQ
from shared.store import migrate

_PANEL = ("test_access", "test_api_", "test_panel_", "test_rpc")  # files


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start RabbitMQ or PostgreSQL, by whichever fixture, tests of a whole fleet, and of the panel."""
    for each in items:
        if each.path.stem.startswith(_PANEL):
            each.add_marker(pytest.mark.panel)
        if each.path.parent.name == "e2e":
            each.add_marker(pytest.mark.fleet)
        if {"rabbitmq", "postgres"} & set(getattr(each, "fixturenames", ())):
            each.add_marker(pytest.mark.services)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A RabbitMQ of this run's own."""
    broker = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    """A PostgreSQL of this run's own, migrated."""
    database = PostgreSQL(tmp_path_factory.mktemp("postgres"))
    database.start()
    migrate.upgrade(database.url)
    yield database
    database.stop()
