"""Endless work beside a room's main work."""

import asyncio

import pytest

from shared.runtime.main import background

pytestmark = pytest.mark.anyio


async def ends() -> None:
    """End, as endless work must not."""


async def is_cancelled_from_within() -> None:
    """Meet a cancellation that nobody asked for, as aiormq hands one to those who wait on a connection that ended."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_exception(asyncio.CancelledError())
    await future


@pytest.mark.parametrize("work", [ends, is_cancelled_from_within])
async def test_endless_work_that_ends_is_a_fault(work: object) -> None:
    """A scheduler whose waking ended in silence would look well, and wake no mail any more."""
    assert callable(work)
    with pytest.raises(ExceptionGroup):
        async with background(work()):
            await asyncio.sleep(5)


async def test_the_end_of_the_block_ends_it() -> None:
    """Our own cancelling is no fault."""
    async with background(asyncio.sleep(60)):
        await asyncio.sleep(0)
