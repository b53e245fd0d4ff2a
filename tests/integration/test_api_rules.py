"""/api/v1 of rules: what is asked for is done, waited for, and told as it is."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from shared.mail.rule import make_rule
from shared.runtime.settings import Settings
from shared.store.overrides import Overrides, Versions
from shared.store.pool import Pool
from shared.store.routers import Routers
from tests.integration import rooms
from tests.integration.panels import Panel
from tests.integration.panels import panel as panel  # noqa: PLC0414

RULES = "/api/v1/overrides"


def error(answer: httpx.Response) -> tuple[int, str, dict[str, str]]:
    """Return what went wrong, after a look at its shape."""
    told: dict[str, Any] = answer.json()
    assert ["error"] == list(told)
    assert ["kind", "message", "fields"] == list(told["error"])
    assert told["error"]["message"]
    return answer.status_code, told["error"]["kind"], told["error"]["fields"]


class TestOneRule:
    """Made, read, changed, switched, removed."""

    async def test_its_life(self, panel: Panel, settings: Settings) -> None:
        """Each change is applied by every router when it is answered."""
        async with rooms.running(settings), panel.client(await panel.token("operator", "ann")) as client:
            made = await client.put(
                f"{RULES}/A.Example.", json={"target_host": "b.example:2525", "comment": "blocked", "expires_at": "2h"}
            )
            assert 200 == made.status_code
            rule, change = made.json()["override"], made.json()["change"]
            assert ("a.example", "b.example:2525", "blocked", 1) == (
                rule["lookup_key"], rule["target_host"], rule["comment"], rule["version"],
            )  # fmt: skip
            assert (1, True, 1, []) == (
                change["version"], change["changed"], len(change["applied"]["applied"]), change["applied"]["late"],
            )  # fmt: skip
            assert "applied by 1 of 1 router in " in change["sentence"]
            patched = (await client.patch(f"{RULES}/a.example", json={"tls": "verify", "expires_at": None})).json()
            assert ("b.example:2525", "blocked", "verify", None) == tuple(
                patched["override"][name] for name in ("target_host", "comment", "tls", "expires_at")
            )
            ending = (await client.patch(f"{RULES}/a.example?wait=0", json={"expires_at": "2h"})).json()
            assert "it is not put back" in ending["warnings"][0]
            await client.patch(f"{RULES}/a.example?wait=0", json={"expires_at": None})
            off = (await client.post(f"{RULES}/a.example/disable")).json()
            assert (False, 5, []) == (off["override"]["enabled"], off["change"]["version"], off["warnings"])
            again = (await client.post(f"{RULES}/a.example/disable")).json()
            assert (False, 5) == (again["change"]["changed"], again["change"]["version"])
            on = (await client.post(f"{RULES}/a.example/enable")).json()
            assert on["override"] == (await client.get(f"{RULES}/a.example")).json()
            gone = (await client.delete(f"{RULES}/a.example")).json()
            assert (None, 7) == (gone["override"], gone["change"]["version"])
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/enable"), ("PATCH", "")):
                answer = await client.request(method, f"{RULES}/a.example{path}", json={})
                assert (404, "not_found", {}) == error(answer)

    async def test_a_late_router_is_named(self, panel: Panel, pool: Pool) -> None:
        """Saved is not applied."""
        await Routers(pool).register("slow-1")
        async with panel.client(await panel.token("operator")) as client:
            late = (await client.put(f"{RULES}/a.example?wait=0.3", json={"target_host": "b.example"})).json()
            saved = (await client.put(f"{RULES}/c.example?release=false", json={"target_host": "d.example"})).json()
            state = (await client.get("/api/v1/routers")).json()
            reloaded = (await client.post("/api/v1/reload?wait=0")).json()
        assert ["slow-1"] == late["change"]["applied"]["late"]
        assert "not applied in time by slow-1" in late["change"]["sentence"]
        assert (None, "saved as version 2") == (saved["change"]["applied"], saved["change"]["sentence"][:18])
        assert (2, 1, "behind") == (state["version"], state["released"], state["routers"][0]["state"])
        assert (2, False) == (reloaded["version"], reloaded["waited"])

    async def test_what_changes_nothing_releases_nothing(self, panel: Panel, pool: Pool) -> None:
        """What somebody else has staged stays staged: put, patch, switch and import of what is so already."""
        rules = Overrides(pool)
        await rules.set(make_rule("a.example", "b.example"), actor="bob", release=True)
        await rules.set(make_rule("staged.example", "b.example"), actor="bob", release=False)
        async with panel.client(await panel.token("operator")) as client:
            for answer in (
                await client.put(f"{RULES}/a.example", json={"target_host": "b.example"}),
                await client.patch(f"{RULES}/a.example", json={"comment": ""}),
                await client.post(f"{RULES}/a.example/enable"),
                await client.post(
                    "/api/v1/import?format=csv", content=b"lookup_key,target_host\na.example,b.example\n"
                ),
            ):
                change = answer.json()["change"]
                assert (200, False, None) == (answer.status_code, change["changed"], change["applied"])
        assert Versions(version=2, released=1) == await rules.versions()

    async def test_two_people_at_once(self, panel: Panel) -> None:
        """Whoever saw an older version changes nothing, with `if_version`; a patch never undoes another one."""
        async with panel.client(await panel.token("operator")) as client:
            await client.put(f"{RULES}/a.example?wait=0", json={"target_host": "b.example"})
            await client.put(f"{RULES}/a.example?wait=0", json={"target_host": "c.example"})
            stale = await client.put(f"{RULES}/a.example?wait=0&if_version=1", json={"target_host": "d.example"})
            assert (409, "conflict", {}) == error(stale)
            answers = await asyncio.gather(
                *(client.patch(f"{RULES}/a.example?wait=0", json={"comment": str(each)}) for each in range(4)),
                *(client.patch(f"{RULES}/a.example?wait=0", json={"share": 10 + each}) for each in range(4)),
            )
            assert {200, 409} >= {each.status_code for each in answers}
            history = (await client.get("/api/v1/history?key=a.example")).json()["history"]
            for each in history[:-2]:
                changed = {name for name in each["after"] if each["after"][name] != each["before"][name]}
                assert changed in ({"version", "comment"}, {"version", "share"})

    @pytest.mark.parametrize(
        ("key", "body", "status"),
        [
            ("a..example", {"target_host": "b.example"}, 422),
            ("a.example", {"target_host": "b.example:99999"}, 422),
            ("a.example", {"target_host": "a.example"}, 422),
            ("a.example", {"target_host": "b.example", "comment": "two\nlines"}, 422),
            ("a.example", {"target_host": "b.example", "comment": "\x1b[31m"}, 422),
            ("a.example", {"target_host": "b.example", "comment": "\u2028"}, 422),
            ("a.example", {"target_host": "b.example", "comment": "x" * 1001}, 422),
            ("a.example", {"target_host": "b.example", "enabled": "yes"}, 422),
            ("a.example", {"target_host": "b.example", "share": 0}, 422),
            ("a.example", {"target_host": "b.example", "share": 1.5}, 422),
            ("a.example", {"target_host": "b.example", "expires_at": "2020-01-01T00:00Z"}, 422),
            ("a.example", {"target_host": "b.example", "expires_at": 1}, 422),
            ("a.example", {"target_host": "b.example", "commment": "a typing error"}, 422),
            ("a.example", {"target_host": None}, 422),
            ("a.example", {}, 422),
            ("a.example", [], 422),
            ("a.example\x00", {"target_host": "b.example"}, 422),
            ("x" * 400, {"target_host": "b.example"}, 422),
            ("z.example", {"target_host": "y.example"}, 422),
        ],
    )
    async def test_a_bad_rule(self, panel: Panel, pool: Pool, key: str, body: object, status: int) -> None:
        """A clear refusal in the one shape; nothing is written."""
        async with pool.transaction() as connection:
            await connection.execute(
                "INSERT INTO dns_overrides (lookup_key, target_host) VALUES ('y.example', 'z.example')"
            )
        async with panel.client(await panel.token("operator")) as client:
            answer = await client.put(f"{RULES}/{quote(key, safe='')}", json=body)
        assert (status, "invalid") == error(answer)[:2]
        assert 1 == (await Overrides(pool).versions()).version

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"target_host": "\\ud800"}', b"null"])
    async def test_what_is_no_json(self, panel: Panel, body: bytes) -> None:
        """400 or 422, never a crash."""
        async with panel.client(await panel.token("operator"), **{"Content-Type": "application/json"}) as client:
            answer = await client.put(f"{RULES}/a.example", content=body)
        assert answer.status_code in (400, 422), answer.text
        error(answer)

    async def test_what_has_html_in_it_is_given_back_as_it_is(self, panel: Panel) -> None:
        """As JSON, which no browser takes for a page."""
        comment = '<script>alert(1)</script> & "quotes" \U0001f600'
        async with panel.client(await panel.token("operator")) as client:
            await client.put(f"{RULES}/a.example?wait=0", json={"target_host": "b.example", "comment": comment})
            answer = await client.get(f"{RULES}/a.example")
        assert (comment, "application/json") == (answer.json()["comment"], answer.headers["content-type"])

    async def test_every_kind_of_key(self, panel: Panel) -> None:
        """In the path, as a URL writes them."""
        async with panel.client(await panel.token("operator")) as client:
            for key, normal in {
                "*": "*",
                "*.A.example": "*.a.example",
                "192.0.2.1": "[192.0.2.1]",
                "[IPv6:2001:DB8::1]": "[IPv6:2001:db8::1]",
                "Bücher.example": "xn--bcher-kva.example",
            }.items():
                made = await client.put(f"{RULES}/{key}?wait=0", json={"target_host": "b.example"})
                assert (200, normal) == (made.status_code, made.json()["override"]["lookup_key"]), made.text
                assert normal == (await client.get(f"{RULES}/{normal}")).json()["lookup_key"]


class TestManyRules:
    """Pages, files, versions."""

    async def test_pages(self, panel: Panel, pool: Pool) -> None:
        """Every rule once, in order, also while rules come and go between two pages."""
        async with pool.transaction() as connection:
            await connection.execute(
                "INSERT INTO dns_overrides (lookup_key, target_host, comment, enabled, expires_at) "
                "SELECT 'k' || n || '.example', 'b' || n % 7 || '.example', CASE n % 2 WHEN 0 THEN 'Even' ELSE '' END, "
                "n % 3 > 0, CASE n % 5 WHEN 0 THEN now() + interval '1 day' END FROM generate_series(1, 250) AS n"
            )
        async with panel.client(await panel.token("viewer")) as client:
            seen: list[str] = []
            after: str | None = ""
            total = 0
            while after is not None:
                page = (await client.get(RULES, params={"after": after, "limit": 60})).json()
                seen += [each["lookup_key"] for each in page["overrides"]]
                after, total = page["next"], page["total"]
            found = {
                name: (await client.get(RULES, params=params)).json()["total"]
                for name, params in {
                    "even": {"search": "eVEN"}, "target": {"search": "B3.ex"}, "none": {"search": "%"},
                    "on": {"state": "on"}, "off": {"state": "off"}, "temporary": {"state": "temporary"},
                    "both": {"state": "off", "search": "even"},
                }.items()
            }  # fmt: skip
        assert (250, 250, 250) == (total, len(seen), len(set(seen)))
        assert {"even": 125, "target": 36, "none": 0, "on": 167, "off": 83, "temporary": 50, "both": 41} == found

    async def test_files(self, panel: Panel, tmp_path: Path) -> None:
        """What is exported can be imported; madmail's database, too; a fault in one row takes none."""
        async with panel.client(await panel.token("operator")) as client:
            csv = b"lookup_key,target_host,comment\na.example,b.example,one\nc.example,d.example,two\n"
            dry = await client.post("/api/v1/import?format=csv&dry_run=true", content=csv)
            assert (2, True, None) == (dry.json()["added"], dry.json()["dry_run"], dry.json()["change"])
            assert 0 == (await client.get(RULES)).json()["total"]
            made = (await client.post("/api/v1/import?format=csv&wait=0", content=csv)).json()
            assert (2, 0, 0, 1) == (made["added"], made["altered"], made["removed"], made["change"]["version"])
            for form in ("csv", "yaml", "json"):
                written = await client.get(f"/api/v1/export?format={form}")
                assert f'filename="endpoint-cache.{form}"' in written.headers["content-disposition"]
                same = (
                    await client.post(f"/api/v1/import?format={form}&whole=true&wait=0", content=written.content)
                ).json()
                assert (0, 0, 0) == (same["added"], same["altered"], same["removed"])
            path = tmp_path / "madmail.db"
            with sqlite3.connect(path) as database:
                database.execute("CREATE TABLE dns_overrides (lookup_key TEXT, target_host TEXT, comment TEXT)")
                database.execute("INSERT INTO dns_overrides VALUES ('E.example', 'f.example', 'old')")
            database.close()
            synced = await client.post("/api/v1/import?format=sqlite&whole=true&wait=0", content=path.read_bytes())
            assert (1, 0, 2) == (synced.json()["added"], synced.json()["altered"], synced.json()["removed"])
            bad = await client.post("/api/v1/import?format=csv", content=csv + b"x..y,b.example,\nz.example,,\n")
            assert (422, "invalid") == error(bad)[:2]
            assert "x..y" in bad.json()["error"]["message"]
            for form in ("csv", "yaml", "json", "sqlite"):
                for data in (b"\x00\xff", b"SQLite format 3\x00" + b"x" * 100, b""):
                    answer = await client.post(f"/api/v1/import?format={form}&whole=true", content=data)
                    assert (422, "invalid") == error(answer)[:2], (form, data)
            assert 1 == (await client.get(RULES)).json()["total"]

    async def test_a_file_may_be_larger_than_other_requests(self, panel: Panel) -> None:
        """32 MiB; for a viewer not even that is read."""
        large = b"lookup_key,target_host\n" + b"".join(b"k%d.example,b.example\n" % each for each in range(60_000))
        async with panel.client(await panel.token("operator")) as client:
            answer = await client.post("/api/v1/import?format=csv&dry_run=true", content=large)
        assert (200, 60_000, 100) == (answer.status_code, answer.json()["added"], len(answer.json()["changes"]))
        async with panel.client(await panel.token("viewer")) as client:
            assert 413 == (await client.post("/api/v1/import?format=csv", content=large)).status_code

    async def test_history_and_rollback(self, panel: Panel) -> None:
        """The latest first, a page at a time; taken back as one new version."""
        async with panel.client(await panel.token("operator", "ann")) as client:
            for target in ("b.example", "c.example", "d.example"):
                await client.put(f"{RULES}/a.example?wait=0", json={"target_host": target})
            first = (await client.get("/api/v1/history?limit=2")).json()
            second = (await client.get("/api/v1/history", params={"limit": 2, "before": first["next"]})).json()
            assert [3, 2, 1] == [each["version"] for each in first["history"] + second["history"]]
            assert (None, None) == (second["next"], second["history"][0]["before"])
            dry = (await client.post("/api/v1/rollback", json={"version": 1, "dry_run": True})).json()
            assert (0, 1, "b.example", None) == (
                dry["added"], dry["altered"], dry["changes"][0]["after"]["target_host"], dry["change"],
            )  # fmt: skip
            back = (await client.post("/api/v1/rollback?wait=0", json={"version": 1})).json()
            assert (4, "b.example") == (
                back["change"]["version"],
                (await client.get(f"{RULES}/a.example")).json()["target_host"],
            )
            none = await client.post("/api/v1/rollback", json={"version": 99})
            assert (422, "invalid", {"version": "there is none"}) == error(none)


class TestWhereMailGoes:
    """Explained and tried."""

    async def test_explain(self, panel: Panel) -> None:
        """The rule, its beaten ones, and the hosts."""
        async with panel.client(await panel.token("operator", "ann")) as client:
            await client.put(f"{RULES}/*.example?wait=0", json={"target_host": "127.0.0.2"})
            await client.put(f"{RULES}/a.example?wait=0", json={"target_host": "127.0.0.3:2525"})
            found = (await client.get("/api/v1/explain", params={"address": "Someone@A.example"})).json()
            wrong = [
                await client.get("/api/v1/explain", params=params)
                for params in ({"address": "a@b@"}, {"address": "a..b"}, {"address": "a.example", "at": "99"}, {})
            ]
        assert ("a.example", "ann", ["*.example"]) == (
            found["rule"]["lookup_key"], found["rule"]["set_by"], [each["lookup_key"] for each in found["beaten"]],
        )  # fmt: skip
        assert ["127.0.0.3"] == found["hops"][0]["addresses"]
        assert [(422, "invalid")] * 4 == [error(each)[:2] for each in wrong]

    async def test_probe(self, panel: Panel) -> None:
        """Nothing listens there: it says so, and that the rule should not be made."""
        async with panel.client(await panel.token("operator")) as client:
            body = {"key": "a.example", "target_host": "127.0.0.1:9", "transport": "smtp"}
            found = (await client.post("/api/v1/probe", json=body)).json()
            bad = await client.post("/api/v1/probe", json=body | {"target_host": "x y"})
        assert (False, False) == (found["usable"], found["targets"][0]["usable"])
        assert found["refused"]
        assert 422 == bad.status_code
        async with panel.client(await panel.token("viewer")) as client:
            assert 403 == (await client.post("/api/v1/probe", json=body)).status_code
