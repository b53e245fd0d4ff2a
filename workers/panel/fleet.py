"""What the panel has of the fleet: its settings, the store, and a broker that may be away."""

from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request

from shared.broker.depths import Depths
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.broker.settle import Settler
from shared.mail.event import Emit, to_nobody
from shared.mail.privacy import Privacy
from shared.runtime.settings import Settings
from shared.store.audit import Audit
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Routers
from shared.store.sessions import Sessions
from shared.store.tokens import Tokens, digest

CONFIRM = 10.0  # seconds to wait for the broker's word; a person waits for it


class Fleet:
    """One for the process; `request.app.state.fleet`, or the parameter `fleet: Ours` of a route."""

    def __init__(self, settings: Settings, pool: Pool, link: Link, *, emit: Emit = to_nobody) -> None:
        """Use an open pool and a link; `emit` takes on the events of what operators do to mail."""
        self.settings = settings
        self.emit = emit
        self.pool = pool
        self.link = link
        self.publisher = Publisher(link, timeout=CONFIRM)
        self.depths = Depths(link)

    async def connected(self) -> Publisher:
        """Return the publisher; when the broker is away, it says so itself."""
        return self.publisher

    @cached_property
    def settler(self) -> Settler:
        """Makes and publishes reports to senders."""
        settings = self.settings
        return Settler(
            self.publisher,
            Deferred(self.pool),
            hostname=settings.hostname,
            schedule=settings.schedule,
            emit=self.emit,
            room="operator",
        )

    @cached_property
    def privacy(self) -> Privacy:
        """How addresses stand in the journal."""
        return Privacy(mode=self.settings.journal_addresses, key=self.settings.journal_key or "")

    @cached_property
    def bootstrap(self) -> bytes | None:
        """The hash of ADMIN_TOKEN."""
        token = self.settings.admin_token
        return None if token is None else digest(token)

    @cached_property
    def tokens(self) -> Tokens:
        """The tokens."""
        return Tokens(self.pool)

    @cached_property
    def sessions(self) -> Sessions:
        """The sessions."""
        return Sessions(self.pool, bootstrap=self.bootstrap)

    @cached_property
    def overrides(self) -> Overrides:
        """The rules."""
        return Overrides(self.pool)

    @cached_property
    def routers(self) -> Routers:
        """The routers."""
        return Routers(self.pool)

    @cached_property
    def audit(self) -> Audit:
        """The audit log."""
        return Audit(self.pool)


def fleet_of(request: Request) -> Fleet:
    """Return the fleet of the panel that was asked."""
    fleet: Fleet = request.app.state.fleet
    return fleet


Ours = Annotated[Fleet, Depends(fleet_of)]
