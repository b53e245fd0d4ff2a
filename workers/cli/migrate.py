"""`pushpush migrate`: bring the tables to this release, or wait until somebody has."""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Annotated

import typer

from shared.mail.retry import parse_duration
from shared.runtime.errors import StoreUnavailable
from workers.cli.frame import Fleet, Json, Refusal, Result, printable, read_settings, run

PAUSE = 1.0  # seconds between two looks
SAY = 10.0  # seconds after which a wait says again why it lasts

Check = Annotated[
    bool, typer.Option("--check", help="Change nothing; exit with 1 when the tables are older than this release.")
]
Patience = Annotated[
    str | None,
    typer.Option("--wait", metavar="DURATION", help="Keep trying so long (90s, 10m), also while PostgreSQL is away."),
]


def migrate(check: Check = False, wait: Patience = None, json: Json = False) -> None:
    """Bring the database's tables to what this version needs; does nothing where they already are, or are newer."""

    async def work(fleet: Fleet) -> Result:
        del fleet  # its settings are of the start: a secret that is put right in its file is to be seen
        patience = parse_duration(wait).total_seconds() if wait else 0.0
        return await _until_well(_look if check else _bring, patience)

    run("migrate", work, json=json)


async def _until_well(step: Callable[[str], Result], patience: float) -> Result:
    """Take a step until it goes well, or the patience is over; say on standard error why it takes so long.

    Raises:
        Refusal: The tables are older than this release, the last time.
        StoreUnavailable: The database was away, or refused, the last time.
    """
    until = time.monotonic() + patience
    said, at = "", 0.0
    while True:
        left = until - time.monotonic()
        try:
            return await asyncio.to_thread(step, read_settings().database_url)
        except (Refusal, StoreUnavailable) as error:
            if left <= 0:
                raise
            why = printable(str(error))
        if why != said or time.monotonic() - at >= SAY:
            print(f"pushpush migrate: waits, {left:.0f} s more at most: {why}", file=sys.stderr)  # noqa: T201
            said, at = why, time.monotonic()
        await asyncio.sleep(min(PAUSE, left))


def _bring(url: str) -> Result:
    from shared.store import migrate as migrations  # noqa: PLC0415 - slow to load, and only needed here

    return _told(migrations.bring(url), migrations.head())


def _look(url: str) -> Result:
    """Look at the tables.

    Raises:
        Refusal: They are older than this release.
        StoreUnavailable: The database was away, or refused.
    """
    from shared.store import migrate as migrations  # noqa: PLC0415

    found, ours = migrations.revision(url), migrations.head()
    if not migrations.runs_on(found):
        are = f"are at revision {found}" if found else "are not there"
        raise Refusal(f"the tables {are}, this release needs {ours}: run `pushpush migrate` of this release")
    return _told(found, ours)


def _told(found: str, ours: str) -> Result:
    words = f"the database is at revision {found}"
    if found != ours:
        words += f", which is newer than {ours} of this release: it runs on it"
    return Result(data={"revision": found}, text=words)
