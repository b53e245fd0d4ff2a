"""Tell the routers that rules were released, and wait until every live one has applied them."""

import asyncio
import time

import msgspec

from shared.broker.publisher import Publisher
from shared.runtime.errors import BrokerUnavailable
from shared.store.routers import Routers

WAIT = 10.0  # seconds, by default
_LOOK = 0.004  # seconds between two looks at the routers at first; then it grows to ten times that


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """How far a version has come.

    Attributes:
        version: The version released.
        applied: Live routers that publish nothing under older rules any more.
        late: Live routers that have not applied it in time.
        silent: Routers that gave no sign of life lately; if one still runs, it has the rules it had.
        milliseconds: From the release to the last confirmation, or to giving up.
        broker_away: The event could not be published; routers find the release by themselves.
    """

    version: int
    applied: list[str]
    late: list[str]
    silent: list[str]
    milliseconds: float
    broker_away: str | None = None

    def sentence(self) -> str:
        """Return it in words."""
        live = len(self.applied) + len(self.late)
        if live == 0:
            text = f"saved as version {self.version}; no router is running, it applies when one starts"
        else:
            text = (
                f"applied by {len(self.applied)} of {live} router{'s' * (live != 1)} "
                f"in {self.milliseconds:.0f} ms, version {self.version}"
            )
        if self.late:
            text += f"; not applied in time by {', '.join(self.late)}"
        if self.silent:
            text += f"; no sign of life from {', '.join(self.silent)}: if it still runs, it has older rules"
        if self.broker_away:
            text += f"; the reload event could not be published ({self.broker_away})"
        return text


async def announce(version: int, publisher: Publisher, routers: Routers, *, wait: float = WAIT) -> Applied:
    """Publish the reload event and wait until every live router has applied the version.

    Args:
        version: The version that was released, already committed.
        publisher: Where to publish.
        routers: Where they report.
        wait: Seconds to wait at most; 0 does not wait.

    Raises:
        StoreUnavailable: The routers' reports cannot be read.
    """
    began = time.monotonic()
    broker_away = None
    try:
        await publisher.reload(version)
    except BrokerUnavailable as error:
        broker_away = str(error)
    look = _LOOK
    while True:
        every = await routers.all()
        late = [each.name for each in every if each.live and each.applied < version]
        passed = time.monotonic() - began
        if not late or passed >= wait:
            return Applied(
                version=version,
                applied=[each.name for each in every if each.live and each.applied >= version],
                late=late,
                silent=[each.name for each in every if not each.live],
                milliseconds=round(passed * 1000, 1),
                broker_away=broker_away,
            )
        await asyncio.sleep(look)
        look = min(look * 1.2, _LOOK * 10)
