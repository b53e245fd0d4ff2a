"""Tasks that pass over a cancellation, as those of libraries may."""

import asyncio
import contextlib

import pytest

from shared.runtime import tasks
from shared.runtime.main import background

pytestmark = pytest.mark.anyio


async def passes_over_one() -> None:
    """Hear of the end only when it is told twice."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await asyncio.sleep(60)


async def fails() -> None:
    """Fail at the end, which whoever ends it need not know."""
    try:
        await asyncio.sleep(60)
    finally:
        raise RuntimeError("at the end")


async def test_all_of_them_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that passes over it is told again; one that is over, or fails, holds nobody up."""
    monkeypatch.setattr(tasks, "AGAIN", 0.01)
    over = asyncio.create_task(asyncio.sleep(0))
    given = [over, asyncio.create_task(passes_over_one()), asyncio.create_task(fails())]
    await over
    async with asyncio.timeout(20):
        await tasks.end(*given)
    assert all(task.done() for task in given)
    assert given[1].cancelled()
    assert isinstance(given[2].exception(), RuntimeError)


async def test_endless_work_that_passes_over_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A room that is told to stop stops."""
    monkeypatch.setattr(tasks, "AGAIN", 0.01)
    async with asyncio.timeout(20):
        async with background(passes_over_one()):
            await asyncio.sleep(0)
        with pytest.raises(ExceptionGroup):
            async with background(passes_over_one()):
                raise ValueError("of the block")
