"""madmail's admin API: a client written from its description connects, lists, adds and deletes rules."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from shared.mail.rule import make_rule
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from shared.store.overrides import Overrides, Versions
from shared.store.pool import Pool
from shared.store.routers import Routers
from tests.integration import rooms
from tests.integration.panels import ADMIN_TOKEN, Panel
from tests.integration.panels import panel as panel  # noqa: PLC0414

NUMBER, TEXT, BOOLEAN = int | float, str, bool
SETTING = {"key": TEXT, "value": TEXT, "is_set": BOOLEAN}
DISK = {"total_bytes": NUMBER, "used_bytes": NUMBER, "available_bytes": NUMBER, "percent_used": NUMBER}
TRAFFIC = {
    "inbound": NUMBER, "outbound": NUMBER, "queued": NUMBER, "expired": NUMBER, "mean_latency_ms": NUMBER,
    "health": {"perfect": NUMBER, "federated": NUMBER, "bad": NUMBER},
}  # fmt: skip
STATUS = {
    "version": TEXT, "users": {"registered": NUMBER}, "uptime": {"boot_time": TEXT, "duration": TEXT},
    "email_servers": {"connections": NUMBER, "domain_servers": NUMBER, "ip_servers": NUMBER},
    "federation_traffic": TRAFFIC, "sent_messages": NUMBER, "outbound_messages": NUMBER, "received_messages": NUMBER,
}  # fmt: skip
SETTINGS = {"registration": TEXT, "turn_enabled": TEXT, "smtp_port": SETTING, "imap_access": TEXT, "language": SETTING}
SHAPES: dict[str, object] = {
    "/admin/status": STATUS,
    "/admin/overview": STATUS | {"disk": DISK, "tokens": {"total": NUMBER}, "settings": SETTINGS},
    "/admin/storage": {"disk": DISK, "state_dir": {"path": TEXT, "size_bytes": NUMBER}},
    "/admin/settings": SETTINGS,
    "/admin/settings/federation": {"enabled": BOOLEAN, "policy": TEXT},
    "/admin/settings/smtp_port": SETTING,
    "/admin/federation/servers": {"servers": list, "total": NUMBER},
    "/admin/federation/rules": {"rules": list, "total": NUMBER},
    "/admin/accounts": {"accounts": list, "total": NUMBER},
    "/admin/blocklist": {"blocked": list, "total": NUMBER},
    "/admin/quota": {"total_storage_bytes": NUMBER, "accounts_count": NUMBER, "default_quota_bytes": NUMBER},
    "/admin/exchangers": {"exchangers": list, "total": NUMBER},
    "/admin/registration-token": {"tokens": list, "total": NUMBER},
    "/admin/registration": {"status": TEXT},
    "/admin/services/turn": {"status": TEXT},
    "/admin/queue": {"total": NUMBER},
    "/admin/dns": {"overrides": list, "total": NUMBER},
}


def fits(shape: Any, value: object) -> bool:
    """Say whether a value has at least what the client reads of it."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            name in value and fits(part, value[name]) for name, part in shape.items()
        )
    return isinstance(value, shape) and (shape is bool or not isinstance(value, bool))


@pytest.fixture
async def token(panel: Panel) -> str:
    """A token of an operator."""
    return await panel.token("operator", "madmail panel")


class TestRules:
    """The part that is not pretended."""

    async def test_a_client_edits_rules(self, panel: Panel, settings: Settings, token: str) -> None:
        """Checked, in normal form, and applied by every router when it is answered."""
        async with rooms.running(settings):
            made = await panel.rpc(
                "POST", "/admin/dns", {"lookup_key": "A.Example", "target_host": "b.example"}, token=token
            )
            assert (201, "/admin/dns", None) == (made["status"], made["resource"], made["error"])
            assert {"lookup_key": "a.example", "target_host": "b.example"} == made["body"]
            assert {"status", "resource", "body", "error", "version"} == set(made)
            more = {"lookup_key": "c.example", "target_host": "d.example:2525", "comment": "why"}
            await panel.rpc("POST", "/admin/endpoint-cache", more, token=token)
            listed = await panel.rpc("GET", "/admin/dns", token=token)
            assert (200, 2) == (listed["status"], listed["body"]["total"])
            assert [{"lookup_key": "a.example", "target_host": "b.example"}, more] == listed["body"]["overrides"]
            gone = await panel.rpc("DELETE", "/admin/dns", {"lookup_key": "A.EXAMPLE"}, token=token)
            assert (200, {"deleted": "a.example"}) == (gone["status"], gone["body"])
            again = await panel.rpc("DELETE", "/admin/dns", {"lookup_key": "a.example"}, token=token)
            assert (404, None, "endpoint override not found: a.example") == (
                again["status"], again["body"], again["error"],
            )  # fmt: skip

    async def test_null_is_nothing(self, panel: Panel, token: str) -> None:
        """As for madmail's decoder: of a field, of all fields, of the body."""
        rule = {"lookup_key": "a.example", "target_host": "b.example", "comment": None}
        assert 201 == (await panel.rpc("POST", "/admin/dns", rule, token=token))["status"]
        fields = {"Authorization": f"Bearer {token}", "X-Other": None}
        async with panel.client() as client:
            for call, status in (
                ({"method": None, "resource": "/admin/dns", "headers": fields, "body": None}, 200),
                ({"method": "POST", "resource": "/admin/dns", "headers": fields, "body": None}, 400),
                ({"method": "GET", "resource": None, "headers": fields}, 404),
                ({"method": "GET", "resource": "/admin/dns", "headers": None}, 401),
            ):
                assert status == (await client.post("/api/admin", content=json.dumps(call))).json()["status"], call

    async def test_what_is_staged_stays_staged(self, panel: Panel, pool: Pool, token: str) -> None:
        """A rule that is there already releases nothing of others."""
        rules, rule = Overrides(pool), {"lookup_key": "a.example", "target_host": "b.example"}
        await panel.rpc("POST", "/admin/dns", rule, token=token)
        await rules.set(make_rule("staged.example", "b.example"), actor="bob", release=False)
        assert 201 == (await panel.rpc("POST", "/admin/dns", rule, token=token))["status"]
        assert Versions(version=2, released=1) == await rules.versions()

    async def test_what_madmail_cannot_say_stays_as_it_is(self, panel: Panel, pool: Pool, token: str) -> None:
        """A corrected target takes a rule neither its end nor its demands; one out of use is made anew."""
        ends = now() + timedelta(hours=2)
        rules = Overrides(pool)
        old = make_rule("a.example", "b.example", transport="smtp", tls="verify", expires_at=ends, share=10)
        await rules.set(old, actor="ann", release=True)
        edit = {"lookup_key": "A.example", "target_host": "c.example", "comment": "moved"}
        answer = await panel.rpc("POST", "/admin/dns", edit, token=token)
        assert 201 == answer["status"]
        stored = await rules.get("a.example")
        assert stored is not None
        changed = msgspec.structs.replace(stored.rule, version=0)
        assert msgspec.structs.replace(old, target_host="c.example", comment="moved") == changed
        await rules.enable("a.example", enabled=False, actor="ann", release=True)
        edit["target_host"] = "d.example"
        await panel.rpc("POST", "/admin/dns", edit, token=token)
        stored = await rules.get("a.example")
        assert stored is not None
        anew = make_rule("a.example", "d.example", comment="moved")
        assert anew == msgspec.structs.replace(stored.rule, version=0)

    async def test_the_history_names_the_token(self, panel: Panel, pool: Pool, token: str) -> None:
        """As for every other change; the rules are released."""
        await panel.rpc("POST", "/admin/dns", {"lookup_key": "a.example", "target_host": "b.example"}, token=token)
        rules = Overrides(pool)
        assert ["madmail panel"] == [each.actor for each in await rules.history()]
        versions = await rules.versions()
        assert (1, 1) == (versions.version, versions.released)

    async def test_a_rule_out_of_use_is_not_shown_as_if_it_were(self, panel: Panel, pool: Pool, token: str) -> None:
        """For madmail knows no such rules."""
        await panel.rpc("POST", "/admin/dns", {"lookup_key": "a.example", "target_host": "b.example"}, token=token)
        await Overrides(pool).enable("a.example", enabled=False, actor="x", release=True)
        assert {"overrides": [], "total": 0} == (await panel.rpc("GET", "/admin/dns", token=token))["body"]

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"lookup_key": "a.example"},
            {"lookup_key": "", "target_host": "b.example"},
            {"lookup_key": "a..example", "target_host": "b.example"},
            {"lookup_key": "a.example", "target_host": "b.example:0"},
            {"lookup_key": "a.example", "target_host": "a.example"},
            {"lookup_key": "a.example", "target_host": "b.example", "comment": "\x1b[31m"},
            {"lookup_key": "a.example", "target_host": "b.example", "comment": "x" * 2_000},
            {"lookup_key": 1, "target_host": "b.example"},
            ["a.example"],
            "a.example",
            None,
            7,
        ],
    )
    async def test_a_bad_rule(self, panel: Panel, pool: Pool, token: str, body: object) -> None:
        """400 in the envelope, with a sentence; nothing is written."""
        call = {
            "method": "POST",
            "resource": "/admin/dns",
            "headers": {"authorization": f"Bearer {token}"},
            "body": body,
        }
        async with panel.client() as client:
            answer = await client.post("/api/admin", json=call)
        assert (200, 400, None) == (answer.status_code, answer.json()["status"], answer.json()["body"])
        assert answer.json()["error"]
        assert 0 == (await Overrides(pool).versions()).version

    async def test_a_late_router_is_told(
        self, panel: Panel, pool: Pool, token: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is saved and not yet applied is not said to be."""
        monkeypatch.setattr("workers.panel.rpc._WAIT", 0.3)
        await Routers(pool).register("slow-1")
        made = await panel.rpc(
            "POST", "/admin/dns", {"lookup_key": "a.example", "target_host": "b.example"}, token=token
        )
        assert (201, True) == (made["status"], "not applied in time by slow-1" in made["body"]["warning"])
        reloaded = await panel.rpc("POST", "/admin/reload", token=token)
        assert (200, True) == (reloaded["status"], "slow-1" in reloaded["body"]["message"])


class TestAccess:
    """The token is inside of the body."""

    async def test_without_a_token_nothing_is_told(self, panel: Panel) -> None:
        """Not even whether there is such a resource; and a session's cookie is none."""
        session, _ = await panel.login(ADMIN_TOKEN)
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Basic x"}, {"Authorization": "Bearer x"}):
            call = {"method": "GET", "resource": "/admin/dns", "headers": headers, "body": {}}
            answer = await session.post("/api/admin", json=call)
            assert (200, "application/json") == (answer.status_code, answer.headers["content-type"])
            told = answer.json()
            assert (401, "", None, "unauthorized") == (told["status"], told["resource"], told["body"], told["error"])
        await session.aclose()

    async def test_ten_tries_a_minute(self, panel: Panel) -> None:
        """Then 429 in the envelope, for a right ADMIN_TOKEN too."""
        answers = await asyncio.gather(*(panel.rpc("GET", "/admin/status", token=f"x{each}") for each in range(14)))
        assert {401: 10, 429: 4} == {status: sum(each["status"] == status for each in answers) for status in (401, 429)}
        assert 429 == (await panel.rpc("GET", "/admin/status", token=ADMIN_TOKEN))["status"]

    async def test_roles(self, panel: Panel) -> None:
        """A viewer looks and changes nothing."""
        viewer = await panel.token("viewer")
        rule = {"lookup_key": "a.example", "target_host": "b.example"}
        statuses = [
            (await panel.rpc(method, resource, rule, token=viewer))["status"]
            for method, resource in (
                ("GET", "/admin/dns"), ("get", "/admin/status"), ("", "/admin/status"),
                ("POST", "/admin/dns"), ("DELETE", "/admin/dns"), ("POST", "/admin/reload"), ("POST", "/admin/queue"),
            )
        ]  # fmt: skip
        assert [200] * 3 + [403] * 4 == statuses

    async def test_other_ways_to_ask(self, panel: Panel) -> None:
        """A browser asks first whether it may; everything else is told in the envelope, whatever is sent."""
        async with panel.client() as client:
            first = await client.options("/api/admin", headers={"Origin": "https://admin.example"})
            assert (204, "*", "Content-Type") == (
                first.status_code, first.headers["access-control-allow-origin"],
                first.headers["access-control-allow-headers"],
            )  # fmt: skip
            for method in ("GET", "PUT", "DELETE", "PATCH"):
                answer = await client.request(method, "/api/admin")
                assert (200, 405) == (answer.status_code, answer.json()["status"])
            bodies = {
                b"": 400, b"{": 400, b"\xff": 400, b"[" * 500_000: 400, b"null": 400, b"[]": 400, b'"x"': 400,
                b'{"headers": {"Authorization": 1}}': 400, b'{"headers": null}': 401, b"{}": 401,
                b'{"resource": "\\ud800"}': 400, b"x" * (1024 * 1024 + 1): 413,
            }  # fmt: skip
            for body, status in bodies.items():
                answer = await client.post("/api/admin", content=body, headers={"Origin": "https://admin.example"})
                assert (200, status) == (answer.status_code, answer.json()["status"]), body[:40]
                assert ("", None) == (answer.json()["resource"], answer.json()["body"])


class TestResources:
    """What else the client reads."""

    async def test_every_resource_fits_the_client(self, panel: Panel, pool: Pool, token: str) -> None:
        """With mail and without: numbers where it adds, lists where it loops, words where it shows."""
        for full in (False, True):
            if full:
                async with pool.transaction() as connection:
                    await connection.execute(
                        "INSERT INTO traffic (hour, domain, transport, delivered, bounced, ms) VALUES "
                        "(date_trunc('hour', now()), 'a.example', 'smtp', 3, 1, 400), "
                        "(date_trunc('hour', now()), 'a.example', 'https', 2, 0, 100), "
                        "(date_trunc('hour', now()), '[192.0.2.1]', 'smtp', 0, 1, 100)"
                    )
                    await connection.execute(
                        "INSERT INTO traffic_hours (hour, transport, delivered, bounced, ms) "
                        "SELECT hour, transport, sum(delivered), sum(bounced), sum(ms) FROM traffic GROUP BY 1, 2"
                    )
            for resource, shape in SHAPES.items():
                answer = await panel.rpc("GET", resource, token=token)
                assert (200, None) == (answer["status"], answer["error"]), resource
                assert fits(shape, answer["body"]), (resource, answer["body"])
        status = (await panel.rpc("GET", "/admin/status", token=token))["body"]
        assert (5, 5, 2) == (
            status["sent_messages"], status["federation_traffic"]["outbound"], status["federation_traffic"]["expired"],
        )  # fmt: skip
        servers = (await panel.rpc("GET", "/admin/federation/servers", token=token))["body"]["servers"]
        numbers = ("successful_deliveries", "success_smtp", "success_https", "failed_smtp", "mean_latency_ms")
        assert {"a.example": (5, 3, 2, 1, 500 / 6), "[192.0.2.1]": (0, 0, 0, 1, 100)} == {
            each["domain"]: tuple(each[name] for name in numbers) for each in servers
        }

    @pytest.mark.parametrize(
        ("method", "resource"),
        [
            ("GET", "/admin/nothing"), ("GET", ""), ("GET", "/admin/dns/"), ("POST", "/admin/queue"),
            ("POST", "/admin/restart"), ("POST", "/admin/accounts"), ("DELETE", "/admin/accounts"),
            ("POST", "/admin/settings/smtp_port"), ("POST", "/admin/services/turn"), ("PUT", "/admin/quota"),
            ("POST", "/admin/registration"), ("POST", "/admin/federation/rules"), ("POST", "/admin/notice"),
        ],
    )  # fmt: skip
    async def test_what_has_no_meaning_here(self, panel: Panel, token: str, method: str, resource: str) -> None:
        """404 and a sentence: nothing is pretended to have been done."""
        answer = await panel.rpc(method, resource, {"action": "purge_all"}, token=token)
        assert (404, resource, None) == (answer["status"], answer["resource"], answer["body"])
        assert answer["error"]

    async def test_a_method_that_rules_do_not_have(self, panel: Panel, token: str) -> None:
        """405 in the envelope."""
        assert 405 == (await panel.rpc("PUT", "/admin/dns", token=token))["status"]
