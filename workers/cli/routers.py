"""`pushpush reload` and `pushpush routers`: release what was saved, and see who has applied it."""

import msgspec

from shared.fleet.release import WAIT
from shared.store.overrides import Overrides
from shared.store.routers import Routers
from workers.cli.change import NoFlush, NoWait, Timeout, how, writing
from workers.cli.frame import Fleet, Json, Result, ago, run, table


def reload(no_wait: NoWait = False, timeout: Timeout = WAIT, no_flush: NoFlush = False, json: Json = False) -> None:
    """Release every saved change, and return when every live router has applied it."""

    async def work(fleet: Fleet) -> Result:
        async with writing(fleet, how(no_wait=no_wait, timeout=timeout, no_flush=no_flush)) as change:
            return await change.release()

    run("reload", work, json=json)


def routers(json: Json = False) -> None:
    """Show the routers, and the version of the rules that each has applied."""

    async def work(fleet: Fleet) -> Result:
        pool = await fleet.pool()
        versions = await Overrides(pool).versions()
        every = await Routers(pool).all()
        shown = table("router", "applied", "last sign of life", "started", "state")
        for each in every:
            state = "silent" if not each.live else "behind" if each.applied < versions.released else "current"
            shown.add_row(each.name, str(each.applied), ago(each.seen_at), ago(each.started_at), state)
        data = {**msgspec.structs.asdict(versions), "routers": every}
        return Result(data=data, text=shown if every else "no router is signed in")

    run("routers", work, json=json)
