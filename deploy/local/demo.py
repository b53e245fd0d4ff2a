"""`make demo`: the main job on real messages and real peers; exits with 1 if anything differs from what must be."""

import asyncio
import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from deploy.local.process import ServiceError
from deploy.local.scenes import SCENES
from deploy.local.stage import Differs, opened

FOLDER = Path(".run/demo")


class Board:
    """The live table: a row for each scene."""

    def __init__(self) -> None:
        """Start with every scene waiting."""
        self._rows = {letter: [title, "waiting", ""] for letter, title, _ in SCENES}

    def tell(self, letter: str, state: str, detail: str) -> None:
        """Say how a scene is doing."""
        self._rows[letter][1:] = [state, detail]

    def __rich__(self) -> Table:
        """Return the table as it stands."""
        table = Table("", "scene", "state", "now", box=None, pad_edge=False, header_style="bold")
        for letter, (title, state, detail) in self._rows.items():
            style = {"ok": "green", "differs": "red", "playing": "yellow"}.get(state, "dim")
            table.add_row(letter, title, f"[{style}]{state}[/]", detail)
        return table


async def play(console: Console) -> int:
    """Play every scene; return how many differ."""
    board, told, differing = Board(), dict[str, str](), 0
    async with opened(FOLDER, lambda line: console.print(f"[dim]{line}[/]")) as stage:
        with Live(board, console=console, refresh_per_second=10):
            for letter, _, scene in SCENES:
                began = time.monotonic()
                board.tell(letter, "playing", "")
                try:
                    told[letter] = await scene(stage, partial(board.tell, letter, "playing"))
                    board.tell(letter, "ok", f"{time.monotonic() - began:.1f} s")
                except Differs as error:
                    differing += 1
                    told[letter] = f"DIFFERS: {error}"
                    board.tell(letter, "differs", "see below")
        for letter, words in told.items():
            console.print(f"\n[bold]({letter})[/] ", end="")
            console.print(words, markup=False, highlight=False)
        console.print("\n[dim]stopping the fleet[/]")
    return differing


def main() -> None:
    """Play, and say how it ended."""
    console = Console()
    try:
        differing = asyncio.run(play(console))
    except ServiceError as error:
        console.print(str(error), markup=False)
        sys.exit(1)
    if differing:
        console.print(f"[red]{differing} of {len(SCENES)} scenes differ from what must be.[/] Logs: {FOLDER / 'log'}")
        sys.exit(1)
    console.print(f"[green]All {len(SCENES)} scenes are as they must be.[/]")


if __name__ == "__main__":
    main()
