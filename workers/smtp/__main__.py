"""`python -m workers.smtp`: the room's wiring."""

from contextlib import AbstractAsyncContextManager

from shared.delivery.memory import Memory
from shared.delivery.room import run
from shared.runtime.settings import Settings
from shared.store.policies import StoredPolicies
from shared.store.pool import Pool
from workers.smtp.transport import SmtpTransport, open_transport


def _open(settings: Settings, pool: Pool, memory: Memory) -> AbstractAsyncContextManager[SmtpTransport]:
    return open_transport(settings, memory=memory, store=StoredPolicies(pool))


if __name__ == "__main__":
    run("smtp", _open)
