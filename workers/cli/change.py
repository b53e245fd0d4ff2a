"""What the commands that change rules have in common: their options, and the words for what follows a change."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
import typer

from shared.broker.publisher import Publisher
from shared.fleet.change import Change, Followed, How
from shared.runtime.tasks import end
from shared.store.overrides import Saved
from workers.cli import difference
from workers.cli.frame import LATE, Fleet, Refusal, Result, actor

Key = Annotated[
    str,
    typer.Argument(metavar="KEY", help="A domain (a.com), its subdomains (*.a.com), an address ([192.0.2.1]), or *."),
]
Actor = Annotated[str | None, typer.Option("--actor", help="Who makes the change; default: the user of the system.")]
NoReload = Annotated[bool, typer.Option("--no-reload", help="Save only; `pushpush reload` applies it later.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until the routers have applied it.")]
Timeout = Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds to wait for the routers.")]
NoFlush = Annotated[bool, typer.Option("--no-flush", help="Leave waiting mail until its next attempt.")]
IfVersion = Annotated[
    int | None,
    typer.Option("--if-version", min=0, help="Refuse when somebody changed the same rules after this version."),
]


def how(
    *,
    no_wait: bool,
    timeout: float,
    no_flush: bool,
    no_reload: bool = False,
    who: str | None = None,
    if_version: int | None = None,
) -> How:
    """Read the options that every change has.

    Raises:
        Refusal: One of them is not acceptable.
    """
    if not math.isfinite(timeout):
        raise Refusal(f"{timeout} is no number of seconds to wait")
    return How(
        actor=actor(who),
        release=not no_reload,
        wait=0 if no_wait else timeout,
        flush=not no_flush,
        if_version=if_version,
    )


class Writing:
    """A change under way. The broker is connected to meanwhile, so that the event goes out right after the commit."""

    def __init__(self, change: Change) -> None:
        """Tell of a change."""
        self.rules = change.rules
        self._change = change

    async def go_on(
        self, saved: Saved, what: str, data: dict[str, object], *, before: str = "", warnings: tuple[str, ...] = ()
    ) -> Result:
        """Do what follows a change.

        Args:
            saved: What was written.
            what: It in words.
            data: It for machines; what follows is added.
            before: Lines for people to be told first.
            warnings: Sentences for people.
        """
        followed = await self._change.follow(saved)
        data |= {"version": saved.version, "changed": saved.changed, "released": saved.released is not None}
        data["warnings"] = list(warnings)
        text = f"{what}: {followed.sentence()}"
        if followed.applied is None:
            return Result(data=data, text=before + text, warnings=warnings)
        result = _told(followed, data | {"released_earlier": followed.earlier})
        return msgspec.structs.replace(result, text=before + text, fault=text if result.code else "", warnings=warnings)

    async def told(self, saved: Saved, what: str, data: dict[str, object], *, dry: bool) -> Result:
        """Show the difference of a change of many rules, then do what follows it, unless it was only tried."""
        data |= {"changes": saved.changes, "difference": difference.count(saved.changes), "dry_run": dry}
        before = difference.lines(saved.changes) + "\n"
        if not dry:
            return await self.go_on(saved, what, data, before=before)
        data |= {"version": saved.version, "changed": False, "released": False}
        return Result(data=data, text=f"{before}{what}: nothing was changed")

    async def release(self) -> Result:
        """Release every saved change."""
        return _told(await self._change.release(await self.rules.release()), {})


def _told(followed: Followed, data: dict[str, object]) -> Result:
    applied = {} if followed.applied is None else msgspec.structs.asdict(followed.applied)
    return Result(
        data=data | applied | {"due": followed.due}, text=followed.sentence(), code=LATE if followed.late else 0
    )


@contextlib.asynccontextmanager
async def writing(fleet: Fleet, how: How) -> AsyncIterator[Writing]:
    """Open the store, and begin to connect to the broker."""
    pool = await fleet.pool()
    connecting = asyncio.create_task(fleet.publisher(wait=5.0 if how.release else 0))

    async def connected() -> Publisher:
        return await connecting

    try:
        yield Writing(Change(pool, how, connected))
    finally:
        # A refusal does not wait for the broker.
        await end(connecting)
