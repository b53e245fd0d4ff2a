"""`make screenshots`: pictures of the panel for the README, of a fleet of its own with a believable day behind it."""

import asyncio
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.async_api import Browser, Page, async_playwright

from deploy.local.fleet import Fleet
from deploy.local.png import small
from deploy.local.process import ServiceError
from deploy.local.scenery import STORY, fill
from deploy.local.services import open_services
from shared.runtime.clock import now
from shared.store.pool import Pool

FOLDER = Path(".run/pictures")
PICTURES = Path("docs/images")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
MOST = 150_000  # bytes of a picture: they are cloned with the repository
_WIDE, _PHONE = (1280, 800), (390, 844)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture."""

    name: str
    path: str
    scheme: Literal["light", "dark"] = "light"
    size: tuple[int, int] = _WIDE
    address: str = ""


PLAN: Sequence[Picture] = (
    Picture(name="overview", path="/"),
    Picture(name="overview-dark", path="/", scheme="dark"),
    Picture(name="endpoint-cache", path="/endpoint-cache", size=(1280, 760)),
    Picture(name="endpoint-cache-phone", path="/endpoint-cache", size=_PHONE),
    Picture(name="trace", path=f"/trace/message?id={STORY}", size=(1280, 900)),
    Picture(name="waiting-dark", path="/waiting?domain=harbour.example", scheme="dark"),
    Picture(name="ages", path="/waiting/ages", size=(1280, 420)),
)


async def take(browser: Browser, base: str, picture: Picture, secret: str) -> bytes:
    """Return one picture, as PNG."""
    width, height = picture.size
    context = await browser.new_context(
        base_url=base, color_scheme=picture.scheme, viewport={"width": width, "height": height}, reduced_motion="reduce"
    )
    page = await context.new_page()
    await _log_in(page, secret)
    await page.goto(picture.path)
    await page.wait_for_load_state("networkidle")
    data = await page.screenshot()
    await context.close()
    return small(data)


def keep(picture: Picture, data: bytes) -> None:
    """Write a picture to the disk.

    Raises:
        ServiceError: It is too large to be kept in the repository.
    """
    file = PICTURES / f"{picture.name}.png"
    if len(data) > MOST:
        raise ServiceError(f"{file} would have {len(data)} bytes, more than {MOST}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    print(f"{file}: {len(data) // 1000} kB")


async def _log_in(page: Page, secret: str) -> None:
    await page.goto("/login")
    await page.get_by_label("Token").fill(secret)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url("**/")


async def main() -> None:
    """Start the fleet, fill its store, and take every picture."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        raise ServiceError("There is no Chromium here: install the package chromium.")
    shutil.rmtree(FOLDER, ignore_errors=True)
    with open_services(FOLDER) as services:
        fleet = Fleet(
            FOLDER,
            amqp_url=services.amqp_url,
            database_url=services.database_url,
            rooms={"router": 3, "panel": 1},
            env={"PUSHPUSH_INSTANCE": "mail-1"},
        )
        async with fleet:
            pool = Pool(services.database_url, name="scenery")
            await pool.open()
            secret = (await fill(pool, now()))["maria"]
            await fleet.wait_ready()
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                for picture in PLAN:
                    keep(picture, await take(browser, f"http://127.0.0.1:{fleet.panel_port()}", picture, secret))
                await browser.close()
            await pool.close()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except ServiceError as error:
        sys.exit(str(error))
