"""The panel and the admin API, put together."""

from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from workers.panel import api, errors, pages, rpc
from workers.panel.access import Doors
from workers.panel.fleet import Fleet
from workers.panel.gate import Gate
from workers.panel.proxies import Proxies


def create_app(fleet: Fleet) -> FastAPI:
    """Return the application.

    Raises:
        ConfigError: The setting `panel_proxies` is malformed.
    """
    app = FastAPI(
        title="pushpush",
        summary="The admin API of a mail delivery fleet",
        version=version("pushpush"),
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    doors = Doors(fleet)
    app.state.fleet, app.state.doors = fleet, doors
    app.add_middleware(Gate, doors=doors, proxies=Proxies(fleet.settings.panel_proxies))
    errors.install(app, pages.error_page)
    app.include_router(api.router())
    app.include_router(rpc.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).with_name("static"), check_dir=False))
    for each in pages.routers():
        app.include_router(each, include_in_schema=False)
    return app
