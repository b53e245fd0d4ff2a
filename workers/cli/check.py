"""`pushpush check`."""

import asyncio
from collections.abc import Awaitable, Callable

from shared.delivery.resolver import Resolver
from shared.mail.outcome import Deferred as NotNow
from shared.mail.rule import RuleError, make_rule
from shared.runtime.errors import FleetError
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.routers import Routers
from workers.cli.frame import REFUSED, Fleet, Json, Result, run, table


def check(json: Json = False) -> None:
    """Look whether broker, database, DNS, rules and routers are well; exit with 1 when one is not."""

    async def work(fleet: Fleet) -> Result:
        pool = await fleet.pool()
        looks: dict[str, Callable[[], Awaitable[tuple[bool, str]]]] = {
            "broker": lambda: _broker(fleet),
            "database": lambda: _database(pool),
            "dns": lambda: _dns(fleet),
            "rules": lambda: _rules(pool),
            "routers": lambda: _routers(pool),
        }
        found = dict(zip(looks, await asyncio.gather(*map(_found, looks.values())), strict=True))
        shown = table("what", "well", "why")
        for name, (well, why) in found.items():
            shown.add_row(name, "yes" if well else "NO", why)
        data = {name: {"ok": well, "detail": why} for name, (well, why) in found.items()}
        fault = "; ".join(f"{name}: {why}" for name, (well, why) in found.items() if not well)
        return Result(data=data, text=shown, code=REFUSED if fault else 0, fault=fault)

    run("check", work, json=json)


async def _found(look: Callable[[], Awaitable[tuple[bool, str]]]) -> tuple[bool, str]:
    try:
        return await look()
    except FleetError as error:
        return False, str(error)


async def _broker(fleet: Fleet) -> tuple[bool, str]:
    link = await fleet.link()
    well = link.channel is not None
    return well, "connected, every queue is there" if well else "cannot connect; is PUSHPUSH_AMQP_URL right?"


async def _database(pool: Pool) -> tuple[bool, str]:
    versions = await Overrides(pool).versions()
    return True, f"rules at version {versions.version}, released {versions.released}"


async def _dns(fleet: Fleet) -> tuple[bool, str]:
    answer = await Resolver(fleet.settings.dns_servers).mail_hosts("example.com")
    if isinstance(answer, NotNow):
        return False, answer.reply.text
    return True, "answers"


async def _rules(pool: Pool) -> tuple[bool, str]:
    faults = []
    rules = await Overrides(pool).matching()
    for each in rules:
        try:
            made = make_rule(each.rule.lookup_key, each.rule.target_host)
            if (made.lookup_key, made.target_host) != (each.rule.lookup_key, each.rule.target_host):
                faults.append(f"{each.rule.lookup_key} is not in normal form, so it never matches: set it again")
        except RuleError as error:
            faults.append(str(error))
    return not faults, "; ".join(faults) or f"{len(rules)} rules, all well-formed"


async def _routers(pool: Pool) -> tuple[bool, str]:
    every = await Routers(pool).all()
    live = [each for each in every if each.live]
    released = (await Overrides(pool).versions()).released
    behind = [each.name for each in live if each.applied < released]
    if behind:
        return False, f"behind the released rules: {', '.join(behind)}"
    return bool(live), f"{len(live)} live, all at version {released}" if live else "no router is running"
