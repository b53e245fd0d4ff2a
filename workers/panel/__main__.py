"""`python -m workers.panel`: web pages and the admin API. Any number may run.

It starts without broker and database, and stays up when they go away: that is when it is looked at. What cannot be done
meanwhile is answered with 503.
"""

import asyncio
import sys

import structlog

from shared.broker.events import Events
from shared.broker.link import Link
from shared.runtime import health, main
from shared.runtime.errors import StoreUnavailable
from shared.runtime.settings import ConfigError, Settings
from shared.store.pool import Pool
from shared.store.sessions import Sessions
from workers.panel.app import create_app
from workers.panel.fleet import Fleet
from workers.panel.proxies import Proxies
from workers.panel.server import Server, server

log = structlog.get_logger()

CONNECTIONS = 16  # to PostgreSQL at most
PATIENCE = 2.0  # seconds for one of them; a person waits for it,
ANSWER = 5.0  # and for an answer on it; what takes longer by its nature says so
PRUNE = 600.0  # seconds between two prunings


async def work(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    # Neither broker nor store is a need: a panel that is taken out of service cannot tell that they are away. One that
    # they refuse has a wrong secret, and tells nobody anything.
    state = health.Health("web", told=("broker", "store"))
    pool = Pool(settings.database_url, name="panel", size=CONNECTIONS, timeout=PATIENCE, patience=ANSWER)
    await pool.open()
    stop_serving = health.serve(state, host=settings.metrics_host, port=settings.metrics_port)
    try:
        async with Link(settings.amqp_url, name="panel", health=state) as link:
            events = Events(link, room="operator")
            fleet = Fleet(settings, pool, link, emit=events)
            serving = _server(settings, fleet)
            async with main.background(main.pulse(state), pool.watch(state), events.run(), prune(fleet.sessions)):
                await _serve(serving, state, stop)
            await events.close()
    finally:
        stop_serving()
        await pool.close()


async def prune(sessions: Sessions) -> None:
    """Remove sessions and counted tries that are over, again and again; never ends."""
    while True:
        try:
            await sessions.prune()
        except StoreUnavailable as error:
            log.warning("cannot prune, trying on", error=str(error))
        await asyncio.sleep(PRUNE)


async def _serve(made: Server, state: health.Health, stop: asyncio.Event) -> None:
    """Serve until told to stop, then finish what is being answered."""
    listener = made.config.bind_socket()  # ends the process, with a line in the log, when the port is taken
    listener.listen(made.config.backlog)  # whoever comes from now on is answered, so that "ready" is true
    serving, stopping = asyncio.create_task(made.serve(sockets=[listener])), asyncio.create_task(stop.wait())
    state.well("web")
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    made.should_exit = True
    await serving


def _server(settings: Settings, fleet: Fleet) -> Server:
    try:
        app, proxies = create_app(fleet), Proxies(settings.panel_proxies)
    except ConfigError as error:
        log.error("the settings are not usable", error=str(error))  # noqa: TRY400 - the message is all there is to say
        sys.exit(main.CONFIG)
    return server(app, host=settings.panel_host, port=settings.panel_port, proxies=proxies)


if __name__ == "__main__":
    main.run("panel", work)
