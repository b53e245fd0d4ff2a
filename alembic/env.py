"""Run migrations on the database of PUSHPUSH_DATABASE_URL, one migrator at a time."""

import os

from alembic import context
from sqlalchemy import create_engine, pool, text

from shared.store.pool import KEEPALIVES

LOCK = 7_250_417  # an advisory lock of our own; two pods that start together must not migrate together


def url() -> str:
    """Return the database's address for SQLAlchemy, through psycopg 3."""
    given = context.config.get_main_option("sqlalchemy.url") or os.environ["PUSHPUSH_DATABASE_URL"]
    scheme, rest = given.split("://", 1)
    return given if "+" in scheme else f"postgresql+psycopg://{rest}"


def run() -> None:
    """Upgrade within one transaction, under the lock."""
    engine = create_engine(url(), poolclass=pool.NullPool, connect_args={"options": KEEPALIVES})
    with engine.connect() as connection:
        context.configure(connection=connection, transaction_per_migration=False)
        with context.begin_transaction():
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            # Whoever waits for a table keeps all others from it. Better to give up, and come again.
            connection.execute(text("SET LOCAL lock_timeout = '2s'"))
            context.run_migrations()
    engine.dispose()


run()
