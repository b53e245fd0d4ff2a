"""Endpoint Cache in a real browser: what was changed and how to take it back, files, and words of others."""

from pathlib import Path

from playwright.async_api import Browser

from shared.store.overrides import Overrides
from shared.store.pool import Pool
from tests.integration.browser import Visit, have, visiting
from tests.integration.browser import chromium as chromium  # noqa: PLC0414 - a fixture
from tests.integration.browser import visit as visit  # noqa: PLC0414
from tests.integration.panels import Panel
from tests.integration.panels import panel as panel  # noqa: PLC0414

NASTY = "<img src=x onerror=alert(1)>\u202egnp.exe"


class TestHistory:
    """Every change can be taken back."""

    async def test_undo_of_one_change(self, visit: Visit, pool: Pool) -> None:
        """The rule is what it was before; what came after is told of."""
        await have(pool, "a.example", target="one.example")
        await have(pool, "a.example", target="two.example")
        await have(pool, "a.example", target="three.example")
        await visit.go("/endpoint-cache/history")
        await visit.keep("history")
        await visit.click("Undo version 2 of a.example")
        assert "It was changed since, last by Ann in version 3" in await visit.text()
        await visit.click("Undo it")
        await visit.page.wait_for_url("**/rule?key=a.example")
        assert "Version 2 of a.example undone" in await visit.said()
        stored = await Overrides(pool).get("a.example")
        assert stored is not None
        assert "one.example" == stored.rule.target_host

    async def test_an_undo_that_was_overtaken_asks_again(self, visit: Visit, pool: Pool) -> None:
        """And changes nothing."""
        visit.refused.add(409)
        await have(pool, "a.example", target="one.example")
        await visit.go("/endpoint-cache/undo?version=1&key=a.example")
        await have(pool, "a.example", target="two.example")
        await visit.click("Undo it")
        assert "Nothing was changed: Ann changed a.example" in await visit.page.get_by_role("alert").inner_text()
        assert None is not await Overrides(pool).get("a.example")
        await visit.click("Undo it")
        await visit.page.wait_for_url("**/rule?key=a.example")
        assert "There is no rule for a.example" in await visit.text()

    async def test_back_to_a_version(self, visit: Visit, pool: Pool) -> None:
        """The difference is shown first, with its count."""
        await have(pool, "a.example", "b.example", "c.example", target="x.example")
        await visit.go("/endpoint-cache/history")
        await visit.click("Back to here at version 1")
        assert "0 rules added, 0 changed, 2 removed" in await visit.text()
        await visit.click("Go back to version 1")
        await visit.page.wait_for_url("**/history")
        assert "Back to version 1" in await visit.said()
        assert ["a.example"] == [each.rule.lookup_key for each in await Overrides(pool).matching()]


class TestFiles:
    """Many rules at once."""

    async def test_import_shows_the_difference_first(self, visit: Visit, pool: Pool, tmp_path: Path) -> None:
        """Then applies just that, or asks again when it is another one by now."""
        visit.refused.add(409)
        file = tmp_path / "rules.csv"
        file.write_text("lookup_key,target_host,comment\na.example,one.example,\nnew.example,two.example,hello\n")
        await have(pool, "a.example", "gone.example")
        await visit.go("/endpoint-cache/files")
        await visit.page.get_by_label("File", exact=True).set_input_files(file)
        await visit.page.get_by_label("are removed: the file is the whole table").check()
        await visit.click("Show the difference")
        assert "1 rule added, 1 changed, 1 removed" in await visit.text()
        await visit.keep("import")
        assert 2 == (await Overrides(pool).versions()).version
        await have(pool, "a.example", target="other.example")
        await visit.click("Import them")
        assert "Nothing was changed" in await visit.page.get_by_role("alert").inner_text()
        await visit.click("Import them")
        await visit.page.wait_for_url("**/endpoint-cache")
        assert "Sync of 2 rules" in await visit.said()
        targets = {each.rule.lookup_key: each.rule.target_host for each in await Overrides(pool).matching()}
        assert {"a.example": "one.example", "new.example": "two.example"} == targets

    async def test_every_fault_of_a_file_is_told(self, visit: Visit, pool: Pool, tmp_path: Path) -> None:
        """With its row; nothing is changed."""
        visit.refused.add(422)
        file = tmp_path / "rules.json"
        file.write_text('[{"lookup_key": "a..b", "target_host": "x"}, {"lookup_key": "b.example"}]')
        await visit.go("/endpoint-cache/files")
        await visit.page.get_by_label("File", exact=True).set_input_files(file)
        await visit.click("Show the difference")
        assert 2 <= await visit.page.get_by_role("alert").locator("li").count()
        assert 0 == (await Overrides(pool).versions()).version

    async def test_an_export_can_be_imported_again(self, visit: Visit, pool: Pool, tmp_path: Path) -> None:
        """In each format, without a difference."""
        await have(pool, "a.example", "*.b.example", comment="a, “b”")
        for form in ("csv", "yaml", "json"):
            await visit.go("/endpoint-cache/files")
            await visit.page.get_by_label("Format").select_option(form)
            async with visit.page.expect_download() as waiting:
                await visit.click("Download all rules")
            file = tmp_path / (await waiting.value).suggested_filename
            await (await waiting.value).save_as(file)
            assert f"rules.{form}" == file.name
            await visit.page.get_by_label("File", exact=True).set_input_files(file)
            await visit.click("Show the difference")
            assert "no difference" in await visit.text()
            assert await visit.page.get_by_role("button", name="Import them").is_disabled()


class TestInert:
    """What others wrote is shown, and does nothing."""

    async def test_a_comment(self, visit: Visit, pool: Pool) -> None:
        """No markup of it becomes part of the page, and no mark of direction fools the reader."""
        await have(pool, "a.example", comment=NASTY)
        for path in ("/endpoint-cache", "/endpoint-cache/rule?key=a.example", "/endpoint-cache/history", "/audit"):
            await visit.go(path)
            assert 0 == await visit.page.locator("main img").count()
            assert "\u202e" not in await visit.page.content()
        await visit.go("/endpoint-cache")
        assert r"<img src=x onerror=alert(1)>\u202egnp.exe" in await visit.text()

    async def test_what_is_searched_for(self, visit: Visit) -> None:
        """It comes back in its field only."""
        await visit.go("/endpoint-cache?search=%22%3E%3Cimg%20src%3Dx%3E")
        assert '"><img src=x>' == await visit.page.get_by_label("Search key").input_value()
        assert 0 == await visit.page.locator("main img").count()


async def test_words_of_another_session_are_not_shown(chromium: Browser, panel: Panel) -> None:
    """A cookie that somebody planted says nothing on our pages."""
    async with visiting(chromium, panel) as one:
        context = one.page.context
        await context.add_cookies(
            [{"name": "pushpush-said", "value": "eyJ0b25lIjoib2siLCJsaW5lcyI6WyJoaSJdfQ==", "url": panel.url}]
        )
        await one.go("/endpoint-cache")
        assert "" == await one.page.locator("#said").inner_text()
