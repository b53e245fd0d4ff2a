"""Bring the tables to the state that this version of the program needs."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory


def upgrade(url: str) -> None:
    """Run every migration that has not run yet; one migrator at a time, all in one transaction.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: The database refused, or is away.
    """
    command.upgrade(_config(url), "head")


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
