"""How every change of the rules goes on once it is saved: released, applied by the routers, waiting mail made due.

From the commit on nothing is undone: what fails then is told, and the rules stay as they were saved.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
import typer

from shared.broker.publisher import Publisher
from shared.fleet.release import announce, flush
from shared.runtime.clock import now
from shared.runtime.errors import StoreUnavailable
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides, Released, Saved
from shared.store.pool import Pool
from shared.store.routers import Routers
from workers.cli import difference
from workers.cli.frame import LATE, Fleet, Refusal, Result, actor, counted

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


class How(msgspec.Struct, frozen=True, kw_only=True):
    """What the options say about a change.

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

    def __init__(self, pool: Pool, how: How, connecting: asyncio.Task[Publisher]) -> None:
        """Use an open pool, and a broker once it is needed."""
        self.rules = Overrides(pool)
        self._pool = pool
        self._how = how
        self._connecting = connecting

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
        data |= {"version": saved.version, "changed": saved.changed, "released": saved.released is not None}
        data["warnings"] = list(warnings)
        if saved.released is None:
            staged = f"saved as version {saved.version}; `pushpush reload` applies it"
            text = f"{before}{what}: {staged if saved.changed else 'nothing differs, and nothing was released'}"
            return Result(data=data, text=text, warnings=warnings)
        earlier = max(0, saved.released.version - saved.released.since - saved.changed)
        result = await self.release(saved.released, data | {"released_earlier": earlier})
        also = counted(earlier, "earlier change that was", "earlier changes that were")
        text = f"{what}: {result.text!s}" + f"; also released {also} saved with --no-reload" * bool(earlier)
        return msgspec.structs.replace(result, text=before + text, fault=text if result.code else "", warnings=warnings)

    async def told(self, saved: Saved, what: str, data: dict[str, object], *, dry: bool) -> Result:
        """Show the difference of a change of many rules, then do what follows it, unless it was only tried."""
        data |= {"changes": saved.changes, "difference": difference.count(saved.changes), "dry_run": dry}
        before = difference.lines(saved.changes) + "\n"
        if not dry:
            return await self.go_on(saved, what, data, before=before)
        data |= {"version": saved.version, "changed": False, "released": False}
        return Result(data=data, text=f"{before}{what}: nothing was changed")

    async def release(self, released: Released, data: dict[str, object]) -> Result:
        """Tell the routers, wait for them, and make due the mail that the release touches, even if one is late."""
        version = released.version
        try:
            applied = await announce(version, await self._connecting, Routers(self._pool), wait=self._how.wait)
            due = await flush(released, self.rules, Deferred(self._pool), now()) if self._how.flush else 0
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"version {version} is saved and released, but it cannot be seen whether the routers have applied it, "
                f"and waiting mail may not be due: {error}"
            ) from error
        data = data | msgspec.structs.asdict(applied) | {"due": due}
        if self._how.wait:
            text = applied.sentence()
        else:
            away = f"; the reload event could not be published ({applied.broker_away})" if applied.broker_away else ""
            text = f"released as version {version}, not waited for{away}"
        if due:
            text += f"; {counted(due, 'waiting delivery is', 'waiting deliveries are')} due now"
        return Result(data=data, text=text, code=LATE if applied.late and self._how.wait else 0)


@contextlib.asynccontextmanager
async def writing(fleet: Fleet, how: How) -> AsyncIterator[Writing]:
    """Open the store, and begin to connect to the broker."""
    pool = await fleet.pool()
    connecting = asyncio.create_task(fleet.publisher(wait=5.0 if how.release else 0))
    try:
        yield Writing(pool, how, connecting)
    finally:
        # A refusal does not wait for the broker.
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
