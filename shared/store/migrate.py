"""Bring the tables to the state that this version of the program needs."""

import time
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from psycopg.errors import LockNotAvailable
from sqlalchemy.exc import DBAPIError, OperationalError

from shared.runtime.errors import StoreUnavailable
from shared.store.contact import away, refusal

TRIES = 30  # at a table that is in use
PAUSE = 1.0  # seconds between two of them
CONNECT = 5  # seconds


def bring(url: str) -> str:
    """Bring the tables to this release, where they are not there or newer already; return their revision.

    Raises:
        StoreUnavailable: The database refused, or is away, or a table was in use all the time.
    """
    if not runs_on(revision(url)):
        try:
            upgrade(url)
        except DBAPIError as error:
            raise _as_ours(error.orig) from error
        except CommandError:
            # A newer release was faster: what it has made of the tables is not known here.
            if not runs_on(revision(url)):
                raise
    return revision(url)


def revision(url: str) -> str:
    """Return the revision that the tables are at; "" where there are none.

    Raises:
        StoreUnavailable: The database is away, or refuses.
    """
    try:
        with psycopg.connect(url, connect_timeout=CONNECT, options="-c statement_timeout=5s") as connection:
            there = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
            if there != (True,):
                return ""
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except psycopg.Error as error:
        raise _as_ours(error) from error
    return str(found[0]) if found else ""


def runs_on(revision: str) -> bool:
    """Say whether this release runs on tables of a revision: its own, or one that it does not know.

    A revision that is not known is a newer one: each release runs on the tables of the next, so that it can start anew
    while that one is rolled out, and after it was taken back.
    """
    known = {each.revision for each in ScriptDirectory.from_config(_config("")).walk_revisions()}
    return revision == head() or (revision != "" and revision not in known)


def upgrade(url: str) -> None:
    """Run every migration that has not run yet; one migrator at a time, all in one transaction.

    Rooms go on meanwhile: while a table is in use for long, as one is that a scheduler hands mail out of, this gives up
    after two seconds and comes again, so that nobody has to wait behind it for longer.

    Raises:
        alembic.util.CommandError: The tables are of a newer release.
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


def _as_ours(error: BaseException | None) -> StoreUnavailable:
    assert isinstance(error, psycopg.Error)
    # What has a code was said on a connection; without one, there was none.
    return away(error) if error.sqlstate else refusal(error)


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
