"""`make bench`: speed, CPU and memory of the fleet on this machine, on a private RabbitMQ and PostgreSQL.

Every figure comes with its CPU per message, since messages a second depend on what else the machine does. Nothing is
asserted: a measurement is not a test.
"""

import asyncio
import json
import sys
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from bench import delivery, journal, panel, rules
from bench.events import events_cost
from bench.measure import Figure, opened
from bench.scenes import bare_library, end_to_end, idle_rooms, router_alone
from bench.waking import waking

FOLDER = Path(".run/bench")
SCENES = (
    idle_rooms,
    bare_library,
    router_alone,
    end_to_end,
    *delivery.SCENES,
    waking,
    events_cost,
    *rules.SCENES,
    *journal.SCENES,
    panel.panel,
)


async def measure(console: Console) -> list[Figure]:
    """Run every measurement, one after the other."""
    figures: list[Figure] = []
    named = [each for each in sys.argv[1:] if not each.startswith("-")]  # none: all of them
    with console.status("Starting a private RabbitMQ and PostgreSQL") as status:
        async with opened(FOLDER) as site:
            await site.migrated()
            for scene in SCENES:
                if named and scene.__name__ not in named:
                    continue
                status.update(scene.__doc__ or "")
                figures += await scene(site)
    return figures


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"


def main() -> None:
    """Measure, and print what was found."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure(Console(stderr=True)))
    if "--json" in sys.argv:
        print(json.dumps([msgspec.to_builtins(each) for each in figures]))
        return
    table = Table("what", "measured", "goal", "made of", box=None, pad_edge=False, header_style="bold")
    for each in figures:
        table.add_row(each.what, f"{_number(each.value)} {each.unit}", each.goal, each.detail)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    main()
