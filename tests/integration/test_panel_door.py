"""The way in and out of the panel, and what each role sees of it, in a real browser."""

import contextlib

import pytest
from playwright.async_api import Browser

from tests.integration.browser import LAN, Visit, visiting, watched
from tests.integration.browser import chromium as chromium  # noqa: PLC0414 - a fixture
from tests.integration.browser import visit as visit  # noqa: PLC0414
from tests.integration.panels import Panel
from tests.integration.panels import panel as panel  # noqa: PLC0414

PAGES = (
    "/",
    "/endpoint-cache",
    "/endpoint-cache/history",
    "/endpoint-cache/files",
    "/traffic",
    "/waiting",
    "/waiting/ages",
    "/trace",
    "/dead",
    "/audit",
)
ACTIONS = (
    "/endpoint-cache/new",
    "/endpoint-cache/edit",
    "/endpoint-cache/probe",
    "/endpoint-cache/enable",
    "/endpoint-cache/disable",
    "/endpoint-cache/expire",
    "/endpoint-cache/remove",
    "/endpoint-cache/release",
    "/endpoint-cache/undo",
    "/endpoint-cache/rollback",
    "/endpoint-cache/import",
    "/endpoint-cache/apply/import",
    "/waiting/act",
    "/waiting/end",
    "/dead/collect",
    "/dead/discard",
    "/dead/discard/now",
    "/dead/requeue",
    "/tokens",
    "/tokens/revoke",
)


class TestDoor:
    """In with a token, out with a button."""

    async def test_wrong_then_right_then_out(self, chromium: Browser, panel: Panel) -> None:
        """A wrong token is told of; a right one opens the page that was asked for; after signing out it is closed."""
        secret = await panel.token("viewer", "Vera")
        async with visiting(chromium, panel, None) as visit:
            visit.refused.add(401)
            await visit.page.goto("/audit")
            assert "/login?next=%2Faudit" in visit.page.url
            await visit.page.get_by_label("Token").fill("pp_wrong")
            await visit.page.keyboard.press("Enter")
            alert = await visit.page.get_by_role("alert").inner_text()
            assert "The token is none" in alert
            assert "" == await visit.page.get_by_label("Token").input_value()
            await visit.keep("login")
            await visit.page.get_by_label("Token").fill(secret)
            await visit.page.keyboard.press("Enter")
            await visit.page.wait_for_url("**/audit")
            assert "Vera" in await visit.page.get_by_role("banner").inner_text()
            await visit.click("Sign out")
            await visit.page.wait_for_url("**/login")
            await visit.page.goto("/audit")
            assert "/login" in visit.page.url

    async def test_by_plain_http_in_a_network(self, chromium: Browser, panel: Panel) -> None:
        """Where browsers tell less of where a form comes from: in, an action, and out."""
        url = panel.url.replace("127.0.0.1", LAN)
        async with watched(chromium, url) as visit:
            await visit.log_in(await panel.token("operator", "Olga"))
            await visit.go("/dead")
            await visit.click("Sign out")
            await visit.page.wait_for_url("**/login")

    @pytest.mark.parametrize(
        "elsewhere", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:x"]
    )
    async def test_a_link_to_the_login_leads_nowhere_else(
        self, chromium: Browser, panel: Panel, elsewhere: str
    ) -> None:
        """Else a stranger's link would end at a stranger's page that looks like ours."""
        secret = await panel.token("viewer")
        async with visiting(chromium, panel, None) as visit:
            await visit.page.goto(f"/login?next={elsewhere}")
            await visit.page.get_by_label("Token").fill(secret)
            await visit.page.keyboard.press("Enter")
            await visit.page.wait_for_url(f"{panel.url}/")

    async def test_the_way_back_may_be_too_long(self, panel: Panel) -> None:
        """Then one comes to the first page, and not to a fault."""
        async with panel.client() as client:
            asked = await client.get(f"/waiting?target={'a' * 3_000}&message_id={'b' * 990}&error={'c' * 200}")
            shown = await client.get(asked.headers["location"])
            assert (303, 200, True) == (asked.status_code, shown.status_code, 'name="next" value=""' in shown.text)
            token = await panel.token("viewer")
            opened = await client.post("/login", data={"token": token, "next": "/" + "a" * 5_000})
            assert (303, "/") == (opened.status_code, opened.headers["location"])

    async def test_what_is_not_there_is_told_of_on_a_page(self, visit: Visit) -> None:
        """With the menu, so that one gets on from there."""
        visit.refused.add(404)
        for path in (
            "/nothing",
            "/endpoint-cache/rule?key=none.example",
            "/dead/letter?id=77",
            "/waiting/delivery?id=5",
        ):
            await visit.page.goto(path)
            assert "Not Found" == await visit.page.get_by_role("heading", level=1).inner_text()
            await visit.page.get_by_role("link", name="Waiting mail").wait_for()


class TestRoles:
    """What one may not do is not shown, and refused all the same."""

    async def test_a_viewer_sees_everything_and_no_button_that_changes(self, chromium: Browser, panel: Panel) -> None:
        """Each page is whole without them."""
        async with visiting(chromium, panel, "viewer") as visit:
            for path in PAGES:
                await visit.go(path)
                forms = await visit.page.locator("main form[method=post]").count()
                links = await visit.page.locator("main a[href*='/new'], main a[href*='/edit']").count()
                assert (path, 0, 0) == (path, forms, links)
            assert 0 == await visit.page.get_by_role("link", name="Tokens").count()
            visit.refused.add(403)
            for path in ("/endpoint-cache/new", "/endpoint-cache/remove?key=a.example", "/tokens"):
                await visit.page.goto(path)
                assert "Forbidden" == await visit.page.get_by_role("heading", level=1).inner_text()

    async def test_a_viewer_is_refused_whatever_is_sent(self, panel: Panel) -> None:
        """Also with the right token of their own session."""
        client, csrf = await panel.login(await panel.token("viewer"))
        fields = {"csrf": csrf, "key": "a.example", "version": 1, "seen": 1, "do": "bounce", "id": 1, "name": "x"}
        fields |= {"role": "admin", "expect": 1, "up_to": 1, "format": "csv", "packed": "x"}
        async with contextlib.aclosing(client):
            for path in ACTIONS:
                file = {"file": b"lookup_key,target_host"} if path == "/endpoint-cache/import" else None
                answer = await client.post(path, data=fields, files=file)
                assert (path, 403, True) == (path, answer.status_code, "takes the role" in answer.text)

    async def test_an_operator_makes_no_tokens(self, visit: Visit) -> None:
        """That is for admins."""
        visit.refused.add(403)
        assert 0 == await visit.page.get_by_role("link", name="Tokens").count()
        await visit.page.goto("/tokens")
        assert "Forbidden" == await visit.page.get_by_role("heading", level=1).inner_text()
