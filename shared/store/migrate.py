"""Bring the tables to the state that this version of the program needs."""

import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.errors import LockNotAvailable
from sqlalchemy.exc import OperationalError

TRIES = 30  # at a table that is in use
PAUSE = 1.0  # seconds between two of them


def upgrade(url: str) -> None:
    """Run every migration that has not run yet; one migrator at a time, all in one transaction.

    Rooms go on meanwhile: while a table is in use for long, as one is that a scheduler hands mail out of, this gives up
    after two seconds and comes again, so that nobody has to wait behind it for longer.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: The database refused, or is away, or a table was in use all the time.
    """
    for left in reversed(range(TRIES)):
        try:
            command.upgrade(_config(url), "head")
        except OperationalError as error:
            if not left or not isinstance(error.orig, LockNotAvailable):
                raise
            time.sleep(PAUSE)
        else:
            return


def head() -> str:
    """Return the newest migration's revision."""
    return ScriptDirectory.from_config(_config("")).get_current_head() or ""


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_scripts()))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def _scripts() -> Path:
    """Return the folder of migrations: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "migrations"
    return packaged if packaged.is_dir() else here.parent.parent / "alembic"
