"""Other ways to use the panel than with a mouse on a wide, light screen with scripts: each does the same work."""

from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Browser, Locator, expect

from deploy.local.scenery import STORY, fill
from shared.mail.rule import make_rule
from shared.runtime.clock import now
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from tests.integration.browser import PHONE, Visit, visiting
from tests.integration.browser import chromium as chromium  # noqa: PLC0414 - a fixture
from tests.integration.browser import visit as visit  # noqa: PLC0414
from tests.integration.panels import Panel
from tests.integration.panels import panel as panel  # noqa: PLC0414
from tests.peers.mxdeliv import MxdelivPeer

PAGES: Final = (
    "/",
    "/endpoint-cache",
    "/endpoint-cache/rule?key=uni-west.example",
    "/endpoint-cache/edit?key=uni-west.example",
    "/endpoint-cache/remove?key=uni-west.example",
    "/endpoint-cache/history",
    "/endpoint-cache/rollback?version=1",
    "/endpoint-cache/files",
    "/endpoint-cache/explain?address=x%40uni-west.example",
    "/traffic",
    "/traffic/domain?domain=harbour.example",
    "/waiting",
    "/waiting/ages",
    "/trace",
    f"/trace/message?id={STORY}",
    "/dead",
    "/audit",
    "/tokens",
)
LONG: Final = "a" * 60 + "." + "b" * 60 + ".example"
LOOK_OVER: Final = Path(__file__).with_name("look_over.js").read_text()


async def long_words(pool: Pool) -> None:
    """Fill the tables, also with names that no screen is wide enough for."""
    await fill(pool, now())
    rule = make_rule(LONG, f"https://x.{LONG}/{'c' * 120}", comment="w" * 300)
    await Overrides(pool).set(rule, actor="n" * 100, release=True)


@pytest.mark.parametrize(("width", "scheme"), [(PHONE, "light"), (PHONE, "dark"), (1280, "light"), (1280, "dark")])
async def test_every_page_fits_and_can_be_read(
    chromium: Browser, panel: Panel, pool: Pool, width: int, scheme: str
) -> None:
    """No page is wider than the screen, no text too pale, nothing without a name."""
    await long_words(pool)
    async with visiting(chromium, panel, "admin", width=width, scheme=scheme) as visit:  # type: ignore[arg-type] # of two
        for path in PAGES:
            await visit.go(path)
            wide = await visit.page.evaluate("document.documentElement.scrollWidth")
            assert (path, True, wide) == (path, wide <= width, wide)
            assert (path, []) == (path, await visit.page.evaluate(LOOK_OVER))
            name = path.partition("?")[0].strip("/").replace("/", "-") or "overview"
            await visit.keep(f"{name}-{scheme}-{width}")


class TestKeyboard:
    """Everything with Tab, Enter, Space and the arrows."""

    async def test_the_first_stop_leads_to_the_content(self, visit: Visit) -> None:
        """Past the menu; and where one is can be seen."""
        await visit.go("/endpoint-cache")
        await visit.page.keyboard.press("Tab")
        skip = visit.page.get_by_role("link", name="Skip to the content")
        await expect(skip).to_be_focused()
        await expect(skip).to_be_in_viewport()
        await visit.page.keyboard.press("Enter")
        assert "main" == await visit.page.evaluate("document.activeElement.id")
        await visit.page.keyboard.press("Tab")
        outline = await visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert "solid" == outline

    async def test_a_rule_is_made_and_removed(self, visit: Visit, pool: Pool) -> None:
        """Without touching the mouse."""
        async with MxdelivPeer() as peer:
            await visit.go("/endpoint-cache")
            await _to(visit, visit.page.get_by_role("link", name="New rule"))
            await visit.page.keyboard.press("Enter")
            await expect(visit.page.get_by_label("Key: mail for")).to_be_focused()
            await visit.page.keyboard.type("a.example")
            await visit.page.keyboard.press("Tab")
            await visit.page.keyboard.type(peer.url)
            await _to(visit, visit.page.get_by_role("button", name="Make the rule"))
            await visit.page.keyboard.press("Enter")
            await visit.page.wait_for_url("**/rule?key=a.example")
        await _to(visit, visit.page.get_by_role("link", name="Remove", exact=True))
        await visit.page.keyboard.press("Enter")
        await visit.page.wait_for_url("**/remove?key=a.example")
        await _to(visit, visit.page.get_by_role("button", name="Remove the rule"))
        await visit.page.keyboard.press("Space")
        await visit.page.wait_for_url("**/endpoint-cache")
        assert [] == await Overrides(pool).matching()


class TestNoScripts:
    """Plain pages and forms do all of it."""

    async def test_the_way_of_a_rule(self, chromium: Browser, panel: Panel, pool: Pool) -> None:
        """Find, explain, try, make, search, disable, remove."""
        async with MxdelivPeer() as peer, visiting(chromium, panel, scripts=False) as visit:
            await visit.page.goto("/endpoint-cache")
            await visit.page.get_by_role("textbox", name="Where does mail for this address go?").fill("b@a.example")
            await visit.click("Explain")
            assert "no rule, so it goes to the domain's own mail hosts" in await visit.text()
            await visit.page.goto("/endpoint-cache/new")
            await visit.page.get_by_label("Key: mail for").fill("a.example")
            await visit.page.get_by_label("Deliver to").fill(peer.url)
            await visit.click("Try the target")
            assert "The target would take the mail" in await visit.text()
            assert "a.example" == await visit.page.get_by_label("Key: mail for").input_value()
            await visit.click("Make the rule")
            assert "version 1" in await visit.said()
            await visit.page.goto("/endpoint-cache")
            await visit.page.get_by_label("Search key, target or comment").fill("nothing")
            await visit.click("Search")
            assert "No rule matches" in await visit.text()
            await visit.click("Clear")
            await visit.click("Disable a.example")
            assert " is off: saved" in await visit.said()
            await visit.click("Remove a.example")
            await visit.click("Remove the rule")
            assert " removed: saved" in await visit.said()
        assert [] == await Overrides(pool).matching()

    async def test_every_page_is_whole(self, chromium: Browser, panel: Panel, pool: Pool) -> None:
        """And shows no button that would do nothing."""
        await fill(pool, now())
        async with visiting(chromium, panel, "admin", scripts=False) as visit:
            for path in PAGES:
                await visit.page.goto(path)
                headings = await visit.page.locator("main h1").count()
                idle = await visit.page.locator("[data-scripted]:visible").count()
                assert (path, 1, 0) == (path, headings, idle)


async def _to(visit: Visit, wanted: Locator, *, most: int = 80) -> None:
    """Press Tab until something has the focus."""
    for _ in range(most):
        await visit.page.keyboard.press("Tab")
        if await wanted.evaluate("e => e === document.activeElement"):
            return
    raise AssertionError(f"{wanted} is not reached by Tab")
