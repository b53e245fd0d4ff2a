"""A real Chromium that looks at a panel; whatever it complains of fails the test."""

import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from shared.mail.rule import make_rule
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.tokens import Role
from tests.integration.panels import Panel

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 360  # pixels
LAN = "panel.lan"  # a name of this machine that browsers do not trust as they trust 127.0.0.1
_STATUS = re.compile(r"the server responded with a status of (\d+)")


class Visit:
    """One person at one panel.

    Attributes:
        page: What they see.
        refused: Statuses of answers that the test asks for; the browser complains of each.
        faults: Of what the browser complained else: errors of scripts, broken policies, things that are not there.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.refused: set[int] = set()
        self.faults: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    async def log_in(self, secret: str) -> None:
        """Sign in as people do."""
        await self.page.goto("/login")
        await self.page.get_by_label("Token").fill(secret)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.wait_for_url("**/")

    async def go(self, path: str) -> None:
        """Open a page and wait until it is all there."""
        await self.page.goto(path)
        await self.page.wait_for_load_state("networkidle")

    async def keep(self, name: str) -> None:
        """Keep a picture of the page for whoever reviews the test."""
        await self.page.screenshot(path=_folder() / f"{name}.png", full_page=True)

    async def click(self, name: str, *, exact: bool = False) -> None:
        """Press the button, or follow the link, of that name, and wait until the page is all there."""
        either = self.page.get_by_role("button", name=name, exact=exact)
        await either.or_(self.page.get_by_role("link", name=name, exact=exact)).first.click()
        await self.page.wait_for_load_state("domcontentloaded")

    async def said(self) -> str:
        """Return what the page says of the action before."""
        return await self.page.locator("#said").inner_text()

    async def text(self) -> str:
        """Return what the page says."""
        return await self.page.locator("main").inner_text()

    def _console(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        status = _STATUS.search(message.text)
        if status is None or int(status[1]) not in self.refused:
            self.faults.append(f"{message.type}: {message.text}")


def _folder() -> Path:
    folder = Path(os.environ.get("PUSHPUSH_SCREENSHOTS", ".run/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """The browser."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    async with async_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox; it only sees our own pages.
        args = ["--no-sandbox", f"--host-resolver-rules=MAP {LAN} 127.0.0.1"]
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        await browser.close()


@contextlib.asynccontextmanager
async def watched(
    chromium: Browser,
    base: str,
    *,
    width: int = 1280,
    scheme: Literal["light", "dark"] = "light",
    scripts: bool = True,
) -> AsyncIterator[Visit]:
    """Open a window; at the end, nothing must have been complained of."""
    context = await chromium.new_context(
        base_url=base,
        color_scheme=scheme,
        java_script_enabled=scripts,
        viewport={"width": width, "height": 800},
        accept_downloads=True,
    )
    context.set_default_timeout(10_000)
    try:
        visit = Visit(await context.new_page())
        yield visit
        assert [] == visit.faults
    finally:
        await context.close()


@contextlib.asynccontextmanager
async def visiting(
    chromium: Browser,
    panel: Panel,
    role: Role | None = "operator",
    *,
    width: int = 1280,
    scheme: Literal["light", "dark"] = "light",
    scripts: bool = True,
) -> AsyncIterator[Visit]:
    """Look at a panel as somebody with a role, or as nobody yet."""
    async with watched(chromium, panel.url, width=width, scheme=scheme, scripts=scripts) as visit:
        if role is not None:
            await visit.log_in(await panel.token(role, f"{role} {width} {scheme} {scripts}"))
        yield visit


@pytest.fixture
async def visit(chromium: Browser, panel: Panel) -> AsyncIterator[Visit]:
    """Somebody who may change rules and mail."""
    async with visiting(chromium, panel) as visit:
        yield visit


async def have(pool: Pool, *keys: str, target: str = "b.example", comment: str = "") -> None:
    """Save and release rules, one version each."""
    for key in keys:
        await Overrides(pool).set(make_rule(key, target, comment=comment), actor="Ann", release=True)
