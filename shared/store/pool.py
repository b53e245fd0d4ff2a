"""Connections to PostgreSQL, and the one place where psycopg's exceptions become ours."""

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Iterator

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from shared.runtime.errors import StoreUnavailable
from shared.runtime.health import Health
from shared.store.contact import Noting, away

log = structlog.get_logger()

Connection = AsyncConnection[TupleRow]
# Every error of the database counts as "away": whatever it is, what was to be stored must be kept elsewhere and tried
# again, and what was to be read is not known. OSError includes TimeoutError.
_AWAY = (psycopg.Error, PoolTimeout, PoolClosed, OSError)
PATIENCE = 30.0  # seconds for a transaction; a server that is frozen rather than down never answers
CHECK = 2.0  # seconds in which a connection has to answer before it is given to anybody
LOOK = 5.0  # seconds between two looks whether the store is there, for the health
# For the server's end of a connection: the locks of a machine that is gone would be held for two hours otherwise.
KEEPALIVES = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
_GRACE = 0.2  # of the patience more, in which the server may end what it was asked to; then the connection is dropped


class _Default(enum.Enum):
    """Stands for the patience of the pool."""

    OURS = enum.auto()


class Pool:
    """A pool that opens without waiting: a room starts, and says in its health that the store is away."""

    def __init__(self, url: str, *, name: str, size: int = 4, timeout: float = 5.0, patience: float = PATIENCE) -> None:
        """Describe the pool; nothing is opened yet.

        Args:
            url: `postgresql://USER@HOST:PORT/DATABASE`.
            name: What PostgreSQL calls the connections, for people who look at it there.
            size: The most connections.
            timeout: Seconds to wait for a connection before the store counts as away.
            patience: Seconds until an answer counts as lost, where whoever asks says nothing else.
        """
        self._size = size
        self._patience = patience
        self._used = 0
        self._why: StoreUnavailable | None = None  # the last connection could not be made
        self._pool = AsyncConnectionPool(
            url,
            connection_class=Noting,
            min_size=1,
            max_size=size,
            timeout=timeout,
            open=False,
            max_idle=60,
            reconnect_timeout=2,
            check=_answering,
            reset=_ready_for_transactions,
            kwargs={
                "note": self._note,
                "application_name": f"pushpush {name}",
                # Compiling a statement takes longer than any of ours runs: 200 ms for the delta of a rule change.
                "options": f"-c jit=off {KEEPALIVES}",
                "connect_timeout": 3,
                # A dead peer is noticed in seconds, not in the two hours of the system's default.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 10_000,
            },
        )

    async def open(self) -> None:
        """Start connecting in the background."""
        await self._pool.open()

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    async def watch(self, health: Health) -> None:
        """Tell the health, as `store`, whether PostgreSQL is there with our tables; never ends."""
        told: str | None = ""  # what was logged last; None when it was that all is well
        why: str | None
        while True:
            try:
                async with self.statement() as connection:
                    await connection.execute("SELECT FROM deferred LIMIT 0")
            except StoreUnavailable as error:
                health.ill("store", str(error), refused=error.refused)
                why = str(error)
                if why != told:
                    log.warning("PostgreSQL cannot be used, trying on", error=why)
            else:
                health.well("store")
                why = None
                if told is not None:
                    log.info("PostgreSQL connected")
            told = why
            await asyncio.sleep(LOOK if why is None else 1)

    def _told(self, error: PoolTimeout) -> StoreUnavailable:
        """Return why there is no connection: the pool only says that it has none."""
        return away(error) if self._why is None else StoreUnavailable(str(self._why), refused=self._why.refused)

    def _note(self, why: StoreUnavailable | None) -> None:
        self._why = why

    @contextlib.asynccontextmanager
    async def transaction(self, *, patience: float | _Default | None = _Default.OURS) -> AsyncIterator[Connection]:
        """Give a connection in a transaction, committed when the block ends without an exception.

        Args:
            patience: Seconds until an answer counts as lost, in place of the pool's; None waits for ever.

        Raises:
            StoreUnavailable: PostgreSQL is away, or did not answer the commit: it may or may not have happened.
        """
        async with self._connection(self._patience if patience is _Default.OURS else patience) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def statement(self) -> AsyncIterator[Connection]:
        """Give a connection for one statement, a transaction of its own: no BEGIN and COMMIT to wait for.

        Raises:
            StoreUnavailable: PostgreSQL is away, or did not answer: it may or may not have happened.
        """
        async with self._connection(self._patience) as connection:
            await connection.set_autocommit(True)
            yield connection

    @contextlib.asynccontextmanager
    async def _connection(self, patience: float | None) -> AsyncIterator[Connection]:
        with _as_ours():
            try:
                async with _within(patience), self._pool.connection() as connection:
                    self._used += 1
                    try:
                        yield connection
                    finally:
                        self._used -= 1
            except PoolTimeout as error:
                if self._used < self._size:
                    raise self._told(error) from error
                raise StoreUnavailable(f"all {self._size} connections to PostgreSQL are in use") from error


async def _answering(connection: Connection) -> None:
    """Say nothing when a connection answers; the pool makes another for one that raises.

    Raises:
        OperationalError: It does not answer.
    """
    try:
        async with _within(CHECK):
            await AsyncConnectionPool.check_connection(connection)
    except TimeoutError as error:
        raise psycopg.OperationalError(f"no answer within {CHECK:.0f} s") from error


@contextlib.asynccontextmanager
async def _within(patience: float | None) -> AsyncIterator[None]:
    """Limit how long a block takes.

    Whoever is told to stop waiting asks the server to end the statement, and waits for that as well: 10 s when it is
    frozen. Told once more, psycopg drops the connection.
    """
    if patience is None:
        yield
        return
    async with asyncio.timeout(patience * (1 + _GRACE)), asyncio.timeout(patience):
        yield


async def _ready_for_transactions(connection: Connection) -> None:
    """Make a connection ready for whoever gets it next; the pool gives up one for which this fails."""
    await connection.set_autocommit(False)


@contextlib.contextmanager
def _as_ours() -> Iterator[None]:
    """Turn what psycopg raises into our own."""
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise StoreUnavailable("the tables are not there yet: run `pushpush migrate`") from error
    except _AWAY as error:
        raise away(error) from error
