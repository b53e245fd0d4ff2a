"""How every change of the rules goes on once it is saved: released, applied by the routers, waiting mail made due.

From the commit on nothing is undone: what fails then is told, and the rules stay as they were saved.
"""

from collections.abc import Awaitable, Callable

import msgspec

from shared.broker.publisher import Publisher
from shared.fleet.release import Applied, announce, flush
from shared.runtime.clock import now
from shared.runtime.errors import StoreUnavailable
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides, Released, Saved
from shared.store.pool import Pool
from shared.store.routers import Routers


class How(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a change.

    Attributes:
        actor: Who makes it.
        release: Whether routers are to apply it now.
        wait: Seconds to wait for them; 0 does not wait.
        flush: Whether waiting mail becomes due.
        if_version: Refuse what somebody changed after this version.
    """

    actor: str
    release: bool
    wait: float
    flush: bool
    if_version: int | None


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a change.

    Attributes:
        version: Of the rules, with the change.
        changed: Whether anything differed.
        waited: Whether it was waited for the routers.
        earlier: Changes that were saved before without being released, and are released now.
        applied: How far it has come; None when it was only saved.
        due: Waiting deliveries that are due now.
    """

    version: int
    changed: bool
    waited: bool
    earlier: int = 0
    applied: Applied | None = None
    due: int = 0

    @property
    def late(self) -> bool:
        """Say whether a router that was waited for has not applied it."""
        return self.waited and self.applied is not None and bool(self.applied.late)

    def sentence(self) -> str:
        """Return it in words."""
        if self.applied is None:
            staged = f"saved as version {self.version}; `pushpush reload` applies it"
            return staged if self.changed else "nothing differs, and nothing was released"
        if self.waited:
            text = self.applied.sentence()
        else:
            why = self.applied.broker_away
            away = f"; the reload event could not be published ({why})" if why else ""
            text = f"released as version {self.version}, not waited for{away}"
        if self.due:
            text += f"; {self.due} waiting {'delivery is' if self.due == 1 else 'deliveries are'} due now"
        if self.earlier:
            also = "earlier change that was" if self.earlier == 1 else "earlier changes that were"
            text += f"; also released {self.earlier} {also} saved with --no-reload"
        return text


def ends_for_good(saved: Saved) -> list[str]:
    """Return what whoever gave an end to a rule without one must know: nothing comes back when it ends."""
    return [
        f"the rule {each.lookup_key} -> {each.before.target_host} had no end: when the new one ends, "
        "it is not put back, and mail goes where it would go without a rule"
        for each in saved.changes
        if each.before and not each.before.expires_at and each.after and each.after.expires_at
    ]


class Change:
    """A change under way."""

    def __init__(self, pool: Pool, how: How, connect: Callable[[], Awaitable[Publisher]]) -> None:
        """Use an open pool, and a broker once it is needed."""
        self.rules = Overrides(pool)
        self._pool = pool
        self._how = how
        self._connect = connect

    async def follow(self, saved: Saved) -> Followed:
        """Do what follows a write that was committed.

        Raises:
            StoreUnavailable: It is saved and released; what is said of it tells what is not known.
        """
        if saved.released is None:
            return Followed(version=saved.version, changed=saved.changed, waited=False)
        earlier = max(0, saved.released.version - saved.released.since - saved.changed)
        followed = await self.release(saved.released)
        return msgspec.structs.replace(followed, changed=saved.changed, earlier=earlier)

    async def release(self, released: Released) -> Followed:
        """Tell the routers, wait for them, and make due the mail that the release touches, even if one is late.

        Raises:
            StoreUnavailable: It is released; what is said of it tells what is not known.
        """
        version, how = released.version, self._how
        try:
            applied = await announce(version, await self._connect(), Routers(self._pool), wait=how.wait)
            due = await flush(released, self.rules, Deferred(self._pool), now()) if how.flush else 0
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"version {version} is saved and released, but it cannot be seen whether the routers have applied it, "
                f"and waiting mail may not be due: {error}"
            ) from error
        changed = released.version > released.since
        return Followed(version=version, changed=changed, waited=how.wait > 0, applied=applied, due=due)
