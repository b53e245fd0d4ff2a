"""Ending tasks, also those whose library loses a cancellation."""

import asyncio
from typing import Any

AGAIN = 1.0  # seconds until a task that still runs is told once more


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and return when they are over; what they raise stays with them.

    Once is not enough: before Python 3.12, `asyncio.wait_for` passes over a cancellation that comes together with the
    result it waits for, and the libraries that connect to broker and database are full of it.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN)
