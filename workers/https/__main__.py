"""`python -m workers.https`: the room's wiring."""

from contextlib import AbstractAsyncContextManager

from shared.delivery.memory import Memory
from shared.delivery.room import run
from shared.runtime.settings import Settings
from shared.store.pool import Pool
from workers.https.transport import HttpsTransport, open_transport


def _open(settings: Settings, _: Pool, memory: Memory) -> AbstractAsyncContextManager[HttpsTransport]:
    return open_transport(settings, memory=memory)


if __name__ == "__main__":
    run("https", _open)
