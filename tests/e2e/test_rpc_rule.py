"""A rule edited by a client of madmail's admin API, or by the REST API, steers the next message."""

import httpx
import pytest

from tests.e2e.conftest import World
from tests.peers.mxdeliv import MxdelivPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

TOKEN = "the word of the first day"


async def test_the_next_message_takes_the_rule(world: World) -> None:
    """Two routers: what is handed in after the answer goes where the answer says."""
    async with (
        MxdelivPeer() as one,
        MxdelivPeer() as other,
        world.fleet({"router": 2, "https": 1, "panel": 1}, admin_token=TOKEN) as fleet,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{fleet.panel_port()}", trust_env=False, timeout=60) as client,
    ):
        call = {
            "method": "POST",
            "resource": "/admin/dns",
            "headers": {"Authorization": f"Bearer {TOKEN}"},
            "body": {"lookup_key": "a.example", "target_host": one.url},
        }
        made = (await client.post("/api/admin", json=call)).json()
        assert (201, {"lookup_key": "a.example", "target_host": one.url}) == (made["status"], made["body"])
        async with world.flow("a.example", 20) as flow:
            pass
        await flow.wait(one)
        assert [] == other.received

        edited = await client.patch(
            "/api/v1/overrides/a.example",
            json={"target_host": other.url},
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        assert (200, 2) == (edited.status_code, len(edited.json()["change"]["applied"]["applied"]))
        before = len(one.received)
        async with world.flow("a.example", 20) as flow:
            pass
        await flow.wait(other)
        assert before == len(one.received)
