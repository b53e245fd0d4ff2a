"""`python -m workers.scheduler`: wake what is due, end rules whose time is over, prune. Any number may run."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog
from prometheus_client import Counter

from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.fleet.release import announce, flush
from shared.runtime import health, main
from shared.runtime.clock import now
from shared.runtime.errors import BrokerUnavailable, FleetError, StoreUnavailable
from shared.runtime.health import Health
from shared.runtime.settings import Settings
from shared.store.bodies import Bodies
from shared.store.deferred import Deferred
from shared.store.hops import NextHops
from shared.store.overrides import Overrides
from shared.store.policies import StoredPolicies
from shared.store.pool import Pool
from shared.store.routers import Routers
from workers.scheduler.figures import count_queues, count_routers, count_waiting

log = structlog.get_logger()

DRAIN = 20.0  # seconds to hand out to the end what is in hand
POLL = 1.0  # seconds between two looks for what is due
BATCH = 100  # deliveries woken in one transaction: at most so many are doubled when a scheduler dies
KEPT = timedelta(days=30)  # how long a stored body outlives the patience for its mail
DOUBLES = timedelta(days=1)  # how long the row of a freed body does: a double finds there that it has ended
PRUNE = 600.0  # seconds between two prunings
_NAMED = 20  # keys of ended rules that one log line names
FORGET = 3_600.0  # seconds without a sign of life, after which a router's row goes
_WOKEN = Counter("pushpush_woken_total", "Waiting deliveries handed back to the routers")


async def work(settings: Settings, stop: asyncio.Event) -> None:
    """Wake and prune until told to stop, then hand out to the end what is in hand."""
    state = health.Health("broker", "store")
    pool = Pool(settings.database_url, name="scheduler")
    await pool.open()
    stop_serving = health.serve(state, host=settings.metrics_host, port=settings.metrics_port)
    try:
        async with Link(settings.amqp_url, name="scheduler", health=state) as link:
            publisher = Publisher(link)
            hand, rules = asyncio.Lock(), asyncio.Lock()
            waking = wake(Deferred(pool), publisher, state, hand=hand)
            ending = end_rules(pool, publisher, hold=rules)
            pruning = prune(pool, publisher, settings.max_age)
            figures = (count_waiting(pool), count_queues(link), count_routers(pool))
            async with main.background(main.pulse(state), waking, ending, pruning, *figures):
                await stop.wait()
                await asyncio.gather(_empty(hand), _empty(rules))
    finally:
        stop_serving()
        await pool.close()


async def _empty(lock: asyncio.Lock) -> None:
    """Take the lock, so that nothing more is begun.

    Broken off, what the broker has and not confirmed doubles, and mail of ended rules is not due before its time.
    """
    try:
        await asyncio.wait_for(lock.acquire(), DRAIN)
    except TimeoutError:
        log.warning("broker or database do not answer in time; what is in hand may be handed out twice, or late")


async def wake(deferred: Deferred, publisher: Publisher, state: Health, *, hand: asyncio.Lock) -> None:
    """Hand out what is due, again and again, holding the lock; never ends."""

    async def publish(due: Sequence[bytes]) -> None:
        await asyncio.gather(*(publisher.raw(topology.REROUTE, wire) for wire in due))

    while True:
        try:
            async with hand:
                woken = await deferred.wake(now=now(), limit=BATCH, publish=publish)
            state.well("store")
        except BrokerUnavailable as error:
            log.warning("cannot wake mail, trying on", error=str(error))
            woken = 0
        except StoreUnavailable as error:
            state.ill("store", str(error), refused=error.refused)
            log.warning("cannot wake mail, trying on", error=str(error))
            woken = 0
        if woken:
            _WOKEN.inc(woken)
            log.info("woken", deliveries=woken)
        if woken < BATCH:
            await asyncio.sleep(POLL)


async def end_rules(pool: Pool, publisher: Publisher, *, hold: asyncio.Lock) -> None:
    """End temporary rules, as a change that routers apply at once; then waiting mail of theirs is due. Never ends."""
    while True:
        await asyncio.sleep(POLL)
        try:
            async with hold:
                await _end_rules(pool, publisher)
        except FleetError as error:
            log.warning("cannot end rules, trying on", error=str(error))


async def _end_rules(pool: Pool, publisher: Publisher) -> None:
    overrides = Overrides(pool)
    saved = await overrides.expire(now())
    if saved is None or saved.released is None:
        return
    if (earlier := saved.version - saved.released.since - 1) > 0:
        log.warning("the end of a rule released changes that were saved with --no-reload", changes=earlier)
    log.info("rules ended", version=saved.version, keys=[each.lookup_key for each in saved.changes][:_NAMED])
    # Should this process die here, routers find the release by themselves within their poll.
    try:
        applied = await announce(saved.version, publisher, Routers(pool))
        log.info("end of rules announced", applied=len(applied.applied), late=applied.late)
    finally:
        due = await flush(saved.released, overrides, Deferred(pool), now())
        log.info("mail of ended rules is due", deliveries=due)


async def prune(pool: Pool, publisher: Publisher, max_age: timedelta) -> None:
    """Delete what nothing can refer to any more: bodies, routers, what was known of next hops, policies; never ends."""
    while True:
        await asyncio.sleep(PRUNE)
        try:
            # No delivery is tried longer than max_age; the rest is for queues that stood still, and for people who look
            # at what was set aside.
            bodies = await Bodies(pool).prune(
                now() - max_age - KEPT, freed_before=now() - max_age - DOUBLES, stuck_before=now() - 2 * max_age
            )
            routers = await _forget(Routers(pool), publisher)
            await NextHops(pool).prune()
            await StoredPolicies(pool).prune(now())
        except FleetError as error:
            log.warning("cannot prune, trying on", error=str(error))
        else:
            if bodies or routers:
                log.info("pruned", bodies=bodies, routers=routers)


async def _forget(routers: Routers, publisher: Publisher) -> int:
    """Forget routers that are gone; one that is only cut off from PostgreSQL may be routing, and stays known."""
    silent = await routers.silent(seconds=FORGET)
    gone = [name for name in silent if await publisher.fence(topology.reload_queue(name))]
    forgotten = [await routers.forget(name, silent_for=FORGET) for name in gone]
    return sum(forgotten) + await routers.forget_older_release()


if __name__ == "__main__":
    main.run("scheduler", work)
