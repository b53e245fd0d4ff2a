"""`pushpush migrate`."""

import asyncio

from shared.runtime.errors import StoreUnavailable
from workers.cli.frame import Fleet, Json, Result, run


def migrate(json: Json = False) -> None:
    """Bring the database's tables to what this version needs; does nothing where they already are."""

    async def work(fleet: Fleet) -> Result:
        from sqlalchemy.exc import OperationalError  # noqa: PLC0415 - slow to load, and only needed here

        from shared.store import migrate as migrations  # noqa: PLC0415

        try:
            await asyncio.to_thread(migrations.upgrade, fleet.settings.database_url)
        except OperationalError as error:
            raise StoreUnavailable(f"PostgreSQL is away: {' '.join(str(error.orig).split())}") from error
        revision = migrations.head()
        return Result(data={"revision": revision}, text=f"the database is at revision {revision}")

    run("migrate", work, json=json)
