"""A rule that is edited in the panel steers the next message: real browser, real rooms, real peers."""

import pytest
from playwright.async_api import Browser

from tests.e2e.conftest import World
from tests.integration.browser import Visit, watched
from tests.integration.browser import chromium as chromium  # noqa: PLC0414 - a fixture
from tests.peers.dns import DnsPeer
from tests.peers.smtp import ScriptedSmtpPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

TOKEN = "the word of the first day"


async def test_the_next_message_takes_the_rule_of_the_panel(world: World, chromium: Browser) -> None:
    """Made, changed and removed by hand; what is handed in after each goes where the page said it would."""
    rooms = {"router": 2, "smtp": 1, "panel": 1}
    async with ScriptedSmtpPeer() as home, ScriptedSmtpPeer() as one, ScriptedSmtpPeer() as other, DnsPeer() as dns:
        dns.add("a.example", "A", home.host)
        env = {"dns_servers": f"{dns.host}:{dns.port}", "smtp_port": str(home.port), "allow_private_targets": "true"}
        async with world.fleet(rooms, admin_token=TOKEN, **env) as fleet:
            await _edit(world, chromium, f"http://127.0.0.1:{fleet.panel_port()}", one, other)
            await home.wait_for(1)
    assert (1, 1, 1) == (len(one.received), len(other.received), len(home.received))


async def _edit(world: World, chromium: Browser, base: str, one: ScriptedSmtpPeer, other: ScriptedSmtpPeer) -> None:
    async with watched(chromium, base) as visit:
        await visit.log_in(TOKEN)
        await visit.go("/endpoint-cache/new")
        await visit.page.get_by_label("Key: mail for").fill("a.example")
        await _save(visit, f"127.0.0.1:{one.port}", "Make the rule")
        await _send(world)
        assert "n0@a.example" == (await one.wait_for(1))[0].rcpt_to[0]

        await visit.click("Edit", exact=True)
        await _save(visit, f"127.0.0.1:{other.port}", "Save")
        await _send(world)
        await other.wait_for(1)

        await visit.click("Remove", exact=True)
        await visit.click("Remove the rule")
        await visit.page.wait_for_url("**/endpoint-cache")
        assert "applied by 2 of 2 routers" in await visit.said()
        assert "There are no rules" in await visit.text()
        await _send(world)


async def _save(visit: Visit, target: str, button: str) -> None:
    await visit.page.get_by_label("Deliver to").fill(target)
    await visit.page.get_by_label("Transport").select_option("smtp")
    await visit.click(button, exact=True)
    await visit.page.wait_for_url("**/rule?key=a.example")
    assert "applied by 2 of 2 routers" in await visit.said()


async def _send(world: World) -> None:
    async with world.flow("a.example", 1):
        pass
