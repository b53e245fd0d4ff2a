"""What the whole fleet is to be measured by: waiting mail, queues, routers, dead letters.

Every scheduler counts for itself and exports the same, so whoever looks takes the highest of each. No mail depends on
it: what cannot be counted now is counted later, and what is exported meanwhile is what was true last.
"""

import asyncio
import math
import time
from datetime import timedelta
from typing import Final

import structlog
from prometheus_client import Gauge

from shared.broker.depths import COUNTED, Depths
from shared.broker.link import Link
from shared.runtime.errors import BrokerUnavailable, StoreUnavailable
from shared.store.dead import DeadLetters
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Router, Routers
from shared.store.waiting import WaitingMail

log = structlog.get_logger()

LOOK = 15.0  # seconds between two looks at queues and routers
COUNT = 30.0  # seconds between two counts of waiting mail, at least
SHARE = 50  # and at least so many times as long as a count takes: no more than 2 % of one process of the database
BLIND = 120.0  # seconds, at most, until the next count after one that failed: what it took says nothing of the database
BORDERS: Final = (timedelta(minutes=5), timedelta(hours=1), timedelta(hours=4), timedelta(days=1))
AGES: Final = ("0-5m", "5m-1h", "1h-4h", "4h-1d", "1d+")

_WAITING = Gauge("pushpush_waiting_deliveries", "Deliveries that wait for their next attempt, by age", ["age"])
_OLDEST = Gauge("pushpush_waiting_oldest_seconds", "Age of the oldest message that waits; 0 when none does")
_OVERDUE = Gauge("pushpush_waiting_overdue_seconds", "For how long waiting mail is due and not handed out")
_DEAD = Gauge("pushpush_dead_letters", "Dead letters that are kept in the store until somebody looks")
_READY = Gauge("pushpush_queue_messages", "Messages that are ready in a queue, not counting those in hand", ["queue"])
_CONSUMERS = Gauge("pushpush_queue_consumers", "Consumers of a queue", ["queue"])
_ROUTERS = Gauge("pushpush_routers", "Routers that are signed in: applied or behind (both live), or silent", ["state"])
_AT = Gauge("pushpush_figures_timestamp_seconds", "When these numbers were counted last", ["of"])


async def count_waiting(pool: Pool) -> None:
    """Count waiting mail and dead letters, again and again; never ends."""
    waiting, dead = WaitingMail(pool), DeadLetters(pool)
    while True:
        began, most = time.monotonic(), math.inf
        try:
            standing = await waiting.standing(BORDERS)
            letters = await dead.count()
        except StoreUnavailable as error:
            log.debug("cannot count waiting mail, trying on", error=str(error))
            most = BLIND
        else:
            for age, number in zip(AGES, standing.counts, strict=True):
                _WAITING.labels(age).set(number)
            _OLDEST.set(standing.oldest.total_seconds())
            _OVERDUE.set(standing.overdue.total_seconds())
            _DEAD.set(letters)
            _AT.labels("waiting").set_to_current_time()
        await asyncio.sleep(min(most, max(COUNT, SHARE * (time.monotonic() - began))))


async def count_queues(link: Link) -> None:
    """Count what is ready in the queues, and who takes it, again and again; never ends."""
    depths = Depths(link)
    await link.wait_up()
    while True:
        try:
            found = await depths.queues()
        except BrokerUnavailable as error:
            log.debug("cannot count the queues, trying on", error=str(error))
        else:
            for name in COUNTED:
                queue = found.get(name)
                _READY.labels(name).set(0 if queue is None else queue.ready)
                _CONSUMERS.labels(name).set(0 if queue is None else queue.consumers)
            _AT.labels("queues").set_to_current_time()
        await asyncio.sleep(LOOK)


async def count_routers(pool: Pool) -> None:
    """Count the routers, again and again; never ends."""
    routers, overrides = Routers(pool), Overrides(pool)
    while True:
        try:
            released = (await overrides.versions()).released
            states = [_state(each, released) for each in await routers.all()]
        except StoreUnavailable as error:
            log.debug("cannot count the routers, trying on", error=str(error))
        else:
            for state in ("applied", "behind", "silent"):
                _ROUTERS.labels(state).set(states.count(state))
            _AT.labels("routers").set_to_current_time()
        await asyncio.sleep(LOOK)


def _state(router: Router, released: int) -> str:
    if not router.live:
        return "silent"
    return "applied" if router.applied >= released else "behind"
