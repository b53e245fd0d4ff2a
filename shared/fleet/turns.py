"""Turns at the store: whoever holds mail on one of its connections, and needs another meanwhile, does so alone.

Several at once would each hold a connection and wait for one that the others hold, until all are told that the store
is away.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import TypeVar
from weakref import WeakKeyDictionary

import structlog

from shared.store.pool import Pool

log = structlog.get_logger()

_T = TypeVar("_T")
_locks: WeakKeyDictionary[Pool, asyncio.Lock] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def turn(pool: Pool) -> AsyncIterator[None]:
    """Wait for the turn at a pool, first come, first served."""
    async with _locks.setdefault(pool, asyncio.Lock()):
        yield


async def unbroken(work: Coroutine[None, None, _T]) -> _T:
    """Finish the work even when we are told to stop meanwhile: half a batch would be reported twice."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("stopped in a batch that could not be ended", error=str(error))
        raise
