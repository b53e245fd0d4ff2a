"""Turns at the store: whoever holds mail on one of its connections, and needs another meanwhile, does so alone.

Several at once would each hold a connection and wait for one that the others hold, until all are told that the store
is away.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakKeyDictionary

from shared.store.pool import Pool

_locks: WeakKeyDictionary[Pool, asyncio.Lock] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def turn(pool: Pool) -> AsyncIterator[None]:
    """Wait for the turn at a pool, first come, first served."""
    async with _locks.setdefault(pool, asyncio.Lock()):
        yield
