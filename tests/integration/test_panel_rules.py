"""Endpoint Cache in a real browser: find, make, change, end, remove; and what is refused."""

import re

import pytest
from playwright.async_api import expect

from shared.mail.rule import make_rule
from shared.runtime.settings import Settings
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from tests.integration import rooms
from tests.integration.browser import Visit, have
from tests.integration.browser import chromium as chromium  # noqa: PLC0414 - a fixture
from tests.integration.browser import visit as visit  # noqa: PLC0414
from tests.integration.panels import panel as panel  # noqa: PLC0414
from tests.peers.mxdeliv import MxdelivPeer


class TestMaking:
    """A rule is made, and the page says how far it has come."""

    async def test_is_applied_by_the_routers(self, visit: Visit, settings: Settings, pool: Pool) -> None:
        """The target is tried first; then every router that has it is named."""
        async with MxdelivPeer() as peer, rooms.running(settings):
            await visit.go("/endpoint-cache")
            await visit.click("New rule")
            await visit.page.get_by_label("Key: mail for").fill("A.Example")
            await visit.page.get_by_label("Deliver to").fill(peer.url)
            await visit.page.get_by_label("Comment").fill("Their line is cut")
            await visit.page.get_by_label("Ends").fill("2h")
            await visit.click("Make the rule")
            await visit.page.wait_for_url("**/endpoint-cache/rule?key=a.example")
            assert re.search(r"applied by 1 of 1 router in \d+ ms, version 1", await visit.said())
            await expect(visit.page.locator("#said .badge")).to_contain_text("has version 1")
            await expect(visit.page.locator("main")).to_contain_text("set by operator")
            await visit.keep("rule-made")
            await visit.go("/endpoint-cache/rule?key=a.example")
            assert "" == await visit.page.locator("#said").inner_html()
        stored = await Overrides(pool).get("a.example")
        assert stored is not None
        assert ("Their line is cut", True) == (stored.rule.comment, stored.rule.expires_at is not None)

    async def test_without_a_router_it_says_so(self, visit: Visit) -> None:
        """Nothing is promised that is not so."""
        async with MxdelivPeer() as peer:
            await visit.go("/endpoint-cache/new?key=a.example")
            await visit.page.get_by_label("Deliver to").fill(peer.url)
            await visit.click("Make the rule")
            await visit.page.wait_for_url("**/rule?key=a.example")
        assert "no router is running" in await visit.said()

    async def test_a_target_that_would_lose_mail_is_refused_until_one_insists(self, visit: Visit, pool: Pool) -> None:
        """What was found is shown, and a box to save it all the same."""
        visit.refused.add(422)
        await visit.go("/endpoint-cache/new")
        await visit.page.get_by_label("Key: mail for").fill("a.example")
        await visit.page.get_by_label("Deliver to").fill("http://127.0.0.1:9")
        await visit.page.get_by_label("Transport").select_option("https")
        await visit.click("Try the target")
        await expect(visit.page.locator("#probed")).to_contain_text("not usable")
        await visit.click("Make the rule")
        await expect(visit.page.locator("#probed")).to_contain_text("lost, bounced or stuck")
        assert "http://127.0.0.1:9" == await visit.page.get_by_label("Deliver to").input_value()
        assert None is await Overrides(pool).get("a.example")
        await visit.keep("probe-refused")
        await visit.page.get_by_label("Save it all the same").check()
        await visit.click("Make the rule")
        await visit.page.wait_for_url("**/rule?key=a.example")
        assert None is not await Overrides(pool).get("a.example")

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"Key: mail for": "a..b", "Deliver to": "b.example"}, "malformed"),
            ({"Key: mail for": "a.example", "Deliver to": "a.example"}, "points at itself"),
            (
                {"Key: mail for": "a.example", "Deliver to": "b.example", "Share": "900%"},
                "no percentage|not a percentage",
            ),
            ({"Key: mail for": "a.example", "Deliver to": "b.example", "Ends": "yesterday"}, "neither a span"),
            ({"Key: mail for": "old.example", "Deliver to": "c.example"}, "There is a rule for old.example already"),
        ],
    )
    async def test_what_is_no_rule_comes_back_with_what_was_typed(
        self, visit: Visit, pool: Pool, fields: dict[str, str], words: str
    ) -> None:
        """And why, in a sentence; nothing is saved."""
        visit.refused.add(422)
        await have(pool, "old.example")
        await visit.go("/endpoint-cache/new")
        for label, value in fields.items():
            await visit.page.get_by_label(label).fill(value)
        await visit.click("Make the rule")
        assert re.search(words, await visit.page.get_by_role("alert").inner_text())
        assert fields["Deliver to"] == await visit.page.get_by_label("Deliver to").input_value()
        assert 1 == (await Overrides(pool).versions()).version


class TestChanging:
    """A rule that is there."""

    async def test_edit_disable_enable_and_end(self, visit: Visit, pool: Pool) -> None:
        """Each is one version, by the name of the token."""
        rules = Overrides(pool)
        await have(pool, "a.example")
        async with MxdelivPeer() as peer:
            await visit.go("/endpoint-cache")
            await visit.click("Edit a.example")
            await visit.page.get_by_label("Deliver to").fill(peer.url)
            await visit.page.get_by_label("Share of the messages").fill("10%")
            await visit.click("Save", exact=True)
            await visit.page.wait_for_url("**/rule?key=a.example")
        await visit.go("/endpoint-cache")
        await visit.click("Disable a.example")
        assert "is off" in await visit.said()
        await visit.click("Enable a.example")
        assert "is on" in await visit.said()
        await visit.go("/endpoint-cache/rule?key=a.example")
        await visit.page.get_by_label("Let it end").fill("1d")
        await visit.click("Set the end")
        assert "ends at" in await visit.said()
        stored = await rules.get("a.example")
        assert stored is not None
        assert (peer.url, 10, True) == (stored.rule.target_host, stored.rule.share, stored.rule.enabled)
        assert stored.rule.expires_at is not None
        actors = [(each.version, each.actor[:8]) for each in await rules.history()]
        assert [(5, "operator"), (4, "operator"), (3, "operator"), (2, "operator"), (1, "Ann")] == actors

    async def test_what_somebody_else_changed_meanwhile_is_not_overwritten(self, visit: Visit, pool: Pool) -> None:
        """The page says who it was; what was typed is still there."""
        visit.refused.add(422)
        await have(pool, "a.example")
        await visit.go("/endpoint-cache/edit?key=a.example")
        await have(pool, "a.example", target="c.example")
        async with MxdelivPeer() as peer:
            await visit.page.get_by_label("Deliver to").fill(peer.url)
            await visit.click("Save", exact=True)
            assert "Ann changed a.example in version 2" in await visit.page.get_by_role("alert").inner_text()
            assert peer.url == await visit.page.get_by_label("Deliver to").input_value()
        stored = await Overrides(pool).get("a.example")
        assert stored is not None
        assert "c.example" == stored.rule.target_host

    async def test_removal_asks_first(self, visit: Visit, pool: Pool) -> None:
        """Cancelled, it stays; confirmed, it is gone; changed in between, it is asked again."""
        visit.refused.add(409)
        await have(pool, "a.example", comment="why")
        await visit.go("/endpoint-cache")
        await visit.click("Remove a.example")
        await visit.keep("remove")
        await visit.click("Cancel")
        await visit.page.wait_for_url("**/rule?key=a.example")
        await visit.click("Remove", exact=True)
        await have(pool, "a.example", target="c.example")
        await visit.click("Remove the rule")
        assert "was changed meanwhile" in await visit.page.get_by_role("alert").inner_text()
        assert "a.example → c.example" in await visit.text()
        await visit.click("Remove the rule")
        await visit.page.wait_for_url("**/endpoint-cache")
        assert "a.example → c.example removed" in await visit.said()
        assert "There are no rules" in await visit.text()
        assert None is await Overrides(pool).get("a.example")

    async def test_what_was_only_saved_is_released_with_a_button(self, visit: Visit, pool: Pool) -> None:
        """The page says that there is something to release."""
        await Overrides(pool).set(make_rule("a.example", "b.example"), actor="Ann", release=False)
        await visit.go("/endpoint-cache")
        assert "1 saved version is not released" in await visit.text()
        await visit.click("Release version 1")
        assert "Released" in await visit.said()
        assert 1 == (await Overrides(pool).versions()).released


class TestFinding:
    """Among many."""

    async def test_search_as_one_types_and_pages(self, visit: Visit, pool: Pool) -> None:
        """Without a reload; the address can be sent to a colleague."""
        rules = {f"d{number:03}.example": make_rule(f"d{number:03}.example", "b.example") for number in range(120)}
        await Overrides(pool).apply(rules, actor="Ann", release=True)
        await visit.go("/endpoint-cache")
        await expect(visit.page.locator("#rules")).to_contain_text("120 rules")
        await visit.click("Next page")
        await expect(visit.page.locator("#rules tbody tr").first).to_contain_text("d050.example")
        await visit.click("Next page")
        await expect(visit.page.locator("#rules tbody tr")).to_have_count(20)
        await visit.page.get_by_label("Search key, target or comment").press_sequentially("D11")
        await expect(visit.page.locator("#rules tbody tr")).to_have_count(10)
        await expect(visit.page).to_have_url(re.compile("search=D11"))
        await visit.page.get_by_label("State").select_option("off")
        await expect(visit.page.locator("#rules")).to_contain_text("No rule matches")

    async def test_explain_in_place(self, visit: Visit, pool: Pool) -> None:
        """Where mail goes, and why, by the router's own code."""
        await have(pool, "*.a.example", target="127.0.0.1:2525")
        await visit.go("/endpoint-cache")
        await visit.page.get_by_role("textbox", name="Where does mail for this address go?").fill("someone@x.a.example")
        await visit.page.keyboard.press("Enter")
        found = visit.page.locator("#explained")
        await expect(found).to_contain_text("*.a.example")
        await expect(found).to_contain_text("127.0.0.1:2525")
        await visit.page.get_by_role("textbox", name="Where does mail for this address go?").fill("a..b")
        await visit.page.keyboard.press("Enter")
        await expect(found.locator(".bad")).to_be_visible()
        assert "/endpoint-cache" == visit.page.url.removeprefix(await visit.page.evaluate("location.origin"))
