"""Large bodies: stored once, while references to them travel."""

from datetime import datetime

from psycopg.rows import scalar_row

from shared.store.pool import Pool


class Bodies:
    """The table `bodies`."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def put(self, id: str, body: bytes) -> None:  # noqa: A002 - the column's name
        """Store a body; the same id keeps what it has.

        Raises:
            StoreUnavailable: It may or may not have been committed.
        """
        async with self._pool.transaction() as connection:
            await connection.execute(
                "INSERT INTO bodies (id, body) VALUES (%s, %b) ON CONFLICT (id) DO NOTHING", (id, body)
            )

    async def get(self, id: str) -> bytes | None:  # noqa: A002
        """Return a body, or None when there is none of this id.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        async with self._pool.transaction() as connection, connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute("SELECT body FROM bodies WHERE id = %s", (id,), binary=True)
            body = await cursor.fetchone()
        return None if body is None else bytes(body)

    async def prune(self, older_than: datetime) -> int:
        """Delete bodies stored before then and no longer waited for; return how many.

        A body is kept while any mail waits that is as old: after a lowered `max_age`, or a week in which the fleet
        stood still, that mail is to be tried once more and bounced, not to be found without its body.
        """
        async with self._pool.transaction() as connection:
            deleted = await connection.execute(
                "DELETE FROM bodies "
                "WHERE created_at < least(%s, (SELECT min(accepted_at) - interval '1 day' FROM deferred))",
                (older_than,),
            )
            return deleted.rowcount
