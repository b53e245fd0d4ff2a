"""Tell the routers that rules were released, and wait until every one of them has applied them.

A confirmation is never given on trust. A router counts as done when it has written the version, and as gone only when
it is silent, its connection to the broker is no more, and a fence stands in its way back: then it can publish nothing
until it has read the rules anew. One that is merely silent, since it hangs or cannot reach PostgreSQL, may still route
by the rules it has, and is named as late.
"""

import asyncio
import time
from datetime import datetime

import msgspec

from shared.broker import topology
from shared.broker.publisher import Publisher
from shared.runtime.errors import BrokerUnavailable
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides, Released
from shared.store.routers import Router, Routers

WAIT = 10.0  # seconds, by default
_PATIENCE = 3.0  # seconds for an answer of the broker; one that is short of memory or disk answers no publisher
_NAMED = 5  # gone routers that the sentence names
_LOOK = 0.004  # seconds between two looks at the routers at first; then it grows to ten times that


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """How far a version has come.

    Attributes:
        version: The version released.
        applied: Routers that publish nothing under older rules any more.
        late: Routers that have not applied it in time, live or silent.
        gone: Routers that ended without signing out, or lost every connection; fenced off until they have the rules.
        milliseconds: From the release to the last confirmation, or to giving up.
        broker_away: The event could not be published; routers find the release by themselves.
    """

    version: int
    applied: list[str]
    late: list[str]
    gone: list[str]
    milliseconds: float
    broker_away: str | None = None

    def sentence(self) -> str:
        """Return it in words."""
        count = len(self.applied) + len(self.late)
        if count == 0:
            text = f"saved as version {self.version}; no router is running, it applies when one starts"
        else:
            text = (
                f"applied by {len(self.applied)} of {count} router{'s' * (count != 1)} "
                f"in {self.milliseconds:.0f} ms, version {self.version}"
            )
        if self.late:
            text += f"; not applied in time by {', '.join(self.late)}, which may still route by older rules"
        if self.gone:
            text += f"; passed over, since gone: {', '.join(self.gone[:_NAMED])}{' ...' * (len(self.gone) > _NAMED)}"
        if self.broker_away:
            text += f"; the reload event could not be published ({self.broker_away})"
        return text


async def announce(version: int, publisher: Publisher, routers: Routers, *, wait: float = WAIT) -> Applied:
    """Publish the reload event and wait until every router has applied the version, or is gone.

    Args:
        version: The version that was released, already committed.
        publisher: Where to publish.
        routers: Where they report.
        wait: Seconds to wait at most, 0 does not wait; a broker that hangs may add a few.

    Raises:
        StoreUnavailable: The routers' reports cannot be read.
    """
    began = time.monotonic()
    broker_away = None
    try:
        async with asyncio.timeout(_PATIENCE):
            await publisher.reload(version)
    except BrokerUnavailable as error:
        broker_away = str(error)
    except TimeoutError:
        broker_away = f"RabbitMQ did not confirm it within {_PATIENCE:.0f} s"
    look = _LOOK
    while True:
        every = await routers.all()
        behind = [each for each in every if each.applied < version]
        passed = time.monotonic() - began
        # As long as a live one is behind, there is time for the silent ones to speak.
        gone = [] if passed < wait and any(each.live for each in behind) else await _gone(behind, publisher)
        late = [each.name for each in behind if each.name not in gone]
        if not late or passed >= wait:
            return Applied(
                version=version,
                applied=[each.name for each in every if each.applied >= version],
                late=late,
                gone=gone,
                milliseconds=round(passed * 1000, 1),
                broker_away=broker_away,
            )
        await asyncio.sleep(look)
        look = min(look * 1.2, _LOOK * 10)


async def flush(released: Released, overrides: Overrides, deferred: Deferred, now: datetime) -> int:
    """Make due what waits for the domains that a release touches; return how many deliveries.

    Raises:
        StoreUnavailable: They may or may not be due.
    """
    keys = await overrides.changed_keys(released)
    return await deferred.flush(keys, now) if keys else 0


async def _gone(silent: list[Router], publisher: Publisher) -> list[str]:
    """Fence off the silent routers without a connection to the broker and return them; none if it does not answer."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return [
                each.name
                for each in silent
                if not each.live and each.own_queue and await publisher.fence(topology.reload_queue(each.name))
            ]
    except (BrokerUnavailable, TimeoutError):
        return []
