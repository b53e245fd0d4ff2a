"""The live routers, and the version of the rules that each has applied."""

from datetime import datetime

import msgspec
from psycopg.rows import class_row

from shared.store.pool import Pool

HEARTBEAT = 2.0  # seconds between two signs of life
LIVE = 8.0  # seconds after which a router without one no longer counts

_ALL = """
    SELECT name, started_at, seen_at, seen_at > now() - make_interval(secs => %s) AS live,
           CASE WHEN mark IS NULL
                  OR EXISTS (SELECT FROM dns_override_changes c WHERE c.version = applied AND c.at = mark)
                THEN applied ELSE 0 END AS applied,
           own_queue
    FROM routers ORDER BY name
"""


class Router(msgspec.Struct, frozen=True, kw_only=True):
    """One router.

    Attributes:
        name: Machine or pod, and process.
        started_at: When it registered.
        seen_at: Its last sign of life.
        applied: It publishes nothing under rules older than this version; 0 when that is a version of another history,
            as after a failover that lost commits.
        live: It gave a sign of life lately.
        own_queue: Its queue of events is named after it, so that it can be fenced off; not so before revision 0002.
    """

    name: str
    started_at: datetime
    seen_at: datetime
    applied: int
    live: bool
    own_queue: bool = False


class Routers:
    """The table `routers`."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def register(self, name: str) -> None:
        """Sign in, before the rules are loaded: whoever changes a rule after this waits for this router."""
        await self._write(
            "INSERT INTO routers (name, own_queue) VALUES (%s, true) "
            "ON CONFLICT (name) DO UPDATE SET started_at = now(), seen_at = now(), applied = 0, mark = NULL",
            (name,),
        )

    async def seen(self, name: str, applied: int, mark: object = None) -> None:
        """Give a sign of life, with the version applied and its mark; signs in again when the row is gone."""
        await self._write(
            "INSERT INTO routers (name, applied, mark, own_queue) VALUES (%s, %s, %s, true) ON CONFLICT (name) "
            "DO UPDATE SET seen_at = now(), applied = excluded.applied, mark = excluded.mark",
            (name, applied, mark),
        )

    async def leave(self, name: str) -> None:
        """Sign out."""
        await self._write("DELETE FROM routers WHERE name = %s", (name,))

    async def all(self) -> list[Router]:
        """Return every router that is signed in, live or not."""
        async with self._pool.statement() as connection, connection.cursor(row_factory=class_row(Router)) as cursor:
            await cursor.execute(
                _ALL,
                (LIVE,),
            )
            return await cursor.fetchall()

    async def silent(self, *, seconds: float) -> list[str]:
        """Return the routers that gave no sign of life for so long."""
        async with self._pool.statement() as connection:
            cursor = await connection.execute(
                "SELECT name FROM routers WHERE own_queue AND seen_at < now() - make_interval(secs => %s)", (seconds,)
            )
            return [row[0] for row in await cursor.fetchall()]

    async def forget(self, name: str, *, silent_for: float) -> bool:
        """Delete a router that gave no sign of life for so many seconds; say whether it was there."""
        return (
            await self._write(
                "DELETE FROM routers WHERE name = %s AND seen_at < now() - make_interval(secs => %s)",
                (name, silent_for),
            )
            > 0
        )

    async def forget_older_release(self) -> int:
        """Delete routers from before revision 0002, which cannot be fenced off, after a day of silence."""
        return await self._write("DELETE FROM routers WHERE NOT own_queue AND seen_at < now() - interval '1 day'", ())

    async def _write(self, statement: str, values: tuple[object, ...]) -> int:
        async with self._pool.statement() as connection:
            return (await connection.execute(statement, values)).rowcount
