"""What the journal does with batches when recording them fails in ways that no real service shows on demand."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import cast

import pytest

from shared.broker.consumer import Incoming
from shared.mail.event import Batch, encode
from shared.runtime.errors import StoreUnavailable
from shared.runtime.health import Health
from shared.store.journal import Journal, Recorded
from workers.journal import recorder
from workers.journal.recorder import Recorder

pytestmark = pytest.mark.anyio


class Refusing:
    """A journal that has a fault with one batch, and says as often as it is told that the store is away."""

    def __init__(self, faulty: int, away: int) -> None:
        self.faulty = faulty
        self.away = away
        self.kept: list[int] = []

    async def record(self, batches: Sequence[Batch], *, now: datetime) -> Recorded:
        """Record all or none."""
        del now
        numbers = [each.number for each in batches]
        if self.away > 0:
            self.away -= 1
            raise StoreUnavailable("away")
        if self.faulty in numbers:
            raise ZeroDivisionError("a fault of ours")
        self.kept += numbers
        return Recorded(events=0, doubles=0, late=0)


class OnQueue:
    """A message of the broker's."""

    def __init__(self, number: int) -> None:
        self.body = encode(Batch(source="s", number=number, emitted=0, events=()))
        self.lost = False
        self.acked = False

    async def ack(self) -> None:
        """Let the broker forget it."""
        self.acked = True


@pytest.mark.parametrize("away", [0, 2])
async def test_a_fault_of_our_own_takes_one_batch_and_not_the_journal(
    monkeypatch: pytest.MonkeyPatch, away: int
) -> None:
    """Else it would come again for ever, and nothing behind it would be recorded."""
    monkeypatch.setattr(recorder, "RETRY", 0.01)
    journal, messages = Refusing(2, away), [OnQueue(number) for number in (1, 2, 3)]
    room = Recorder(cast("Journal", journal), health=Health())
    running = asyncio.create_task(room.run())
    await asyncio.wait_for(asyncio.gather(*(room.handle(cast("Incoming", each)) for each in messages)), 5)
    running.cancel()
    assert ([1, 3], [True] * 3) == (journal.kept, [each.acked for each in messages])


async def test_one_whose_consumer_was_cancelled_does_not_stop_the_others() -> None:
    """When a connection ends, aiormq cancels those who handle its messages, while they are being recorded."""
    journal, messages = Refusing(0, 0), [OnQueue(number) for number in (1, 2)]
    room = Recorder(cast("Journal", journal), health=Health())
    running = asyncio.create_task(room.run())
    first, second = (asyncio.create_task(room.handle(cast("Incoming", each))) for each in messages)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(second, 5)
    running.cancel()
    assert ([2], [False, True]) == (journal.kept, [each.acked for each in messages])
