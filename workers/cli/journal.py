"""Tell the journal what a command does to mail."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from shared.broker.events import Events
from shared.broker.link import Link
from shared.runtime.tasks import end
from workers.cli.frame import counted

WAIT = 2.0  # seconds for the broker where only the journal is told by it


class Telling:
    """What a command tells the journal, and what it could not.

    Attributes:
        untold: Events that are not known to have come through.
    """

    def __init__(self) -> None:
        """Tell nothing yet."""
        self.untold = 0

    @contextlib.asynccontextmanager
    async def on(self, link: Link) -> AsyncIterator[Events]:
        """Emit to the journal meanwhile; what cannot be told by the end is not."""
        events = Events(link, room="operator")
        running = asyncio.create_task(events.run())
        try:
            yield events
        finally:
            await end(running)
            self.untold += await events.close()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what could not be told."""
        if not self.untold:
            return ()
        events = counted(self.untold, "event", "events")
        return (f"{events} could not be published: `trace` and `traffic` may not know what was done here",)
