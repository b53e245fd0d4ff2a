"""`pushpush check`: what is wrong, in plain words, and what to do."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from shared.broker import topology
from shared.broker.depths import Depths, Queue
from shared.broker.link import FAULTS, Link
from shared.delivery.resolver import Resolver
from shared.mail.outcome import Deferred as NotNow
from shared.mail.rule import RuleError, make_rule
from shared.runtime.errors import FleetError
from shared.runtime.settings import Settings
from shared.store.dead import DeadLetters
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Routers
from shared.store.waiting import WaitingMail
from workers.cli.frame import REFUSED, Fleet, Json, Result, counted, duration, run, table

OLDEST_BROKER = (3, 10)
OVERDUE = timedelta(minutes=1)  # mail that is due for longer should have been handed out
_PATIENCE = 3.0  # seconds for the broker to take a message
_TAKERS = {
    topology.OUTBOUND: "router",
    topology.REROUTE: "router",
    topology.HTTPS: "https worker",
    topology.SMTP: "smtp worker",
    topology.JOURNAL: "journal",
}

Found = tuple[bool, str]  # whether it is well, and what there is to say of it


def check(json: Json = False) -> None:
    """Say what is wrong with broker, database, DNS, rules, rooms and mail, and what to do; exit with 1 for that."""

    async def work(fleet: Fleet) -> Result:
        pool = await fleet.pool()
        link, publishing = await asyncio.gather(fleet.link(), fleet.link())
        queues = asyncio.ensure_future(_queues(link))
        looks: dict[str, Callable[[], Awaitable[Found]]] = {
            "broker": lambda: _broker(publishing),
            "database": lambda: _database(fleet.settings, pool),
            "dns": lambda: _dns(fleet),
            "rules": lambda: _rules(pool),
            "routers": lambda: _routers(pool),
            "workers": lambda: _workers(queues),
            "waiting": lambda: _waiting(pool, fleet.settings.max_age),
            "limbo": lambda: _limbo(queues),
            "dead": lambda: _dead(queues, pool),
        }
        found = dict(zip(looks, await asyncio.gather(*map(_found, looks.values())), strict=True))
        return _result(found, _warnings(fleet.settings))

    run("check", work, json=json)


def _warnings(settings: Settings) -> tuple[str, ...]:
    if "." in settings.hostname:
        return ()
    words = f"{settings.hostname} is no name that other mail servers believe, and many refuse mail for it"
    return (f"{words}: set PUSHPUSH_HOSTNAME to one that has an address",)


def _result(found: dict[str, Found], warnings: tuple[str, ...]) -> Result:
    shown = table("what", "well", "why")
    for name, (well, why) in found.items():
        shown.add_row(name, "yes" if well else "NO", why)
    data = {name: {"ok": well, "detail": why} for name, (well, why) in found.items()}
    fault = "; ".join(f"{name}: {why}" for name, (well, why) in found.items() if not well)
    return Result(data=data, text=shown, code=REFUSED if fault else 0, fault=fault, warnings=warnings)


async def _found(look: Callable[[], Awaitable[Found]]) -> Found:
    try:
        return await look()
    except FleetError as error:
        return False, str(error)


async def _broker(link: Link) -> Found:
    channel = link.publishing
    if channel is None:
        return False, link.why or "RabbitMQ does not answer: is it up, and does PUSHPUSH_AMQP_URL lead there?"
    version = _text(channel.connection.server_properties.get("version"))
    if _numbers(version) < OLDEST_BROKER:
        return False, f"RabbitMQ {version} is older than 3.10: upgrade it"
    try:
        # To no queue: what is thrown away is confirmed all the same, unless publishers are kept waiting. The first one
        # is taken even then: it makes the broker stop reading.
        async with asyncio.timeout(_PATIENCE):
            for _ in range(2):
                await channel.basic_publish(b"", routing_key="pushpush.check", mandatory=False)
    except TimeoutError:
        return (
            False,
            "RabbitMQ takes no messages: it is short of memory or disk; see `rabbitmq-diagnostics alarms` there",
        )
    except FAULTS as error:
        return False, f"RabbitMQ ended the connection while it was asked: {error!r}"
    return True, f"RabbitMQ {version} takes messages, every queue is there"


def _text(value: object) -> str:
    return (
        value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value or "of unknown version")
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers; one that cannot be read counts as new."""
    numbers = version.split(".")[:2]
    return tuple(map(int, numbers)) if all(each.isdecimal() for each in numbers) else OLDEST_BROKER


async def _database(settings: Settings, pool: Pool) -> Found:
    from shared.store import migrate  # noqa: PLC0415 - slow to load, and only needed here

    versions = await Overrides(pool).versions()
    revision = await asyncio.to_thread(migrate.revision, settings.database_url)
    if not await asyncio.to_thread(migrate.runs_on, revision):
        return (
            False,
            f"the tables are at revision {revision}, this release needs {migrate.head()}: run `pushpush migrate`",
        )
    newer = (
        "" if revision == migrate.head() else f"; the tables are of a newer release ({revision}), which is all right"
    )
    return True, f"rules at version {versions.version}, released {versions.released}{newer}"


async def _dns(fleet: Fleet) -> Found:
    answer = await Resolver(fleet.settings.dns_servers).mail_hosts("example.com")
    if isinstance(answer, NotNow):
        return False, f"{answer.reply.text}: look at the resolver of this machine, or set PUSHPUSH_DNS_SERVERS"
    return True, "answers"


async def _rules(pool: Pool) -> Found:
    faults = []
    rules = await Overrides(pool).matching()
    for each in rules:
        try:
            made = make_rule(each.rule.lookup_key, each.rule.target_host)
            if (made.lookup_key, made.target_host) != (each.rule.lookup_key, each.rule.target_host):
                faults.append(f"{each.rule.lookup_key} is not in normal form, so it never matches: set it again")
        except RuleError as error:
            faults.append(f"{error}: set it again, mail under it waits")
    return not faults, "; ".join(faults) or f"{len(rules)} rules, all well-formed"


async def _routers(pool: Pool) -> Found:
    every = await Routers(pool).all()
    live = [each for each in every if each.live]
    released = (await Overrides(pool).versions()).released
    if not live:
        return False, "no router is running: start one"
    if behind := [each.name for each in live if each.applied < released]:
        return False, f"behind the released rules: {', '.join(behind)}; if that lasts, run `pushpush reload`"
    silent = len(every) - len(live)
    gone = f"; {counted(silent, 'other has', 'others have')} ended without signing out" if silent else ""
    return True, f"{len(live)} live, all at version {released}{gone}"


async def _queues(link: Link) -> dict[str, Queue] | str:
    """Return the queues, or why they cannot be counted: each look that needs them says so."""
    try:
        return await Depths(link).queues()
    except FleetError as error:
        return link.why or str(error)


async def _workers(asked: Awaitable[dict[str, Queue] | str]) -> Found:
    queues = await asked
    if isinstance(queues, str):
        return False, f"not known: {queues}"
    idle: dict[str, int] = {}
    for name, who in _TAKERS.items():
        queue = queues.get(name, Queue(0, 0))
        if not queue.consumers:
            idle[who] = max(queue.ready, idle.get(who, 0))
    if idle:
        each = [
            f"no {who} is running" + (f", {counted(ready, 'message', 'messages')} in its queue" if ready else "")
            for who, ready in idle.items()
        ]
        return False, f"{'; '.join(each)}: start what is missing"
    return True, "every queue has somebody who takes from it"


async def _waiting(pool: Pool, max_age: timedelta) -> Found:
    standing = await WaitingMail(pool).standing(())
    count = f"{counted(standing.counts[0], 'delivery waits', 'deliveries wait')}"
    if standing.overdue > OVERDUE:
        return False, f"mail is due for {duration(standing.overdue)} and not handed out: is a scheduler running?"
    if standing.oldest > max_age + timedelta(hours=8):
        return (
            False,
            f"{count}, the oldest for {duration(standing.oldest)}, beyond PUSHPUSH_MAX_AGE: see `pushpush queue top`",
        )
    return True, f"{count}, the oldest for {duration(standing.oldest)}" if standing.counts[0] else "nothing waits"


async def _limbo(asked: Awaitable[dict[str, Queue] | str]) -> Found:
    queues = await asked
    if isinstance(queues, str):
        return False, f"not known: {queues}"
    if ready := queues.get(topology.LIMBO, Queue(0, 0)).ready:
        return False, f"{counted(ready, 'delivery', 'deliveries')} could not be stored: does PostgreSQL take writes?"
    return True, "empty"


async def _dead(asked: Awaitable[dict[str, Queue] | str], pool: Pool) -> Found:
    kept = await DeadLetters(pool).count()
    queues = await asked
    if isinstance(queues, str):
        return False, f"not known: {queues}"
    if new := queues.get(topology.UNDECODABLE, Queue(0, 0)).ready:
        return False, f"{counted(new, 'new dead letter', 'new dead letters')}: see `pushpush dead list`"
    return True, f"nothing new, {kept} kept; see `pushpush dead list`" if kept else "none"
