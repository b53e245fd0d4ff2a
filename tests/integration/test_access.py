"""Who gets in, as what, and what no stranger or other site's page can do."""

import asyncio

import httpx
import pytest

from shared.runtime.settings import Settings
from shared.store.pool import Pool
from shared.store.tokens import TakenError, TokenError, Tokens
from tests.integration.conftest import Wire, through, until
from tests.integration.panels import ADMIN_TOKEN, Panel, running
from tests.integration.panels import panel as panel  # noqa: PLC0414

RULE = {"target_host": "b.example"}


class TestTokens:
    """By the Authorization field."""

    async def test_roles(self, panel: Panel) -> None:
        """A viewer reads, an operator changes rules, an admin makes tokens; nobody does more."""
        asked = [
            ("GET", "/api/v1/overrides", None),
            ("PUT", "/api/v1/overrides/a.example?wait=0", RULE),
            ("POST", "/api/v1/tokens", {"name": "new", "role": "viewer"}),
        ]
        found = {}
        for role in ("viewer", "operator", "admin"):
            async with panel.client(await panel.token(role)) as client:
                found[role] = [(await client.request(*each[:2], json=each[2])).status_code for each in asked]
        assert {"viewer": [200, 403, 403], "operator": [200, 200, 403], "admin": [200, 200, 201]} == found

    async def test_the_history_names_the_token(self, panel: Panel) -> None:
        """Who changes a rule cannot call themselves otherwise."""
        async with panel.client(await panel.token("operator", "Ann")) as client:
            await client.put("/api/v1/overrides/a.example?wait=0", json=RULE)
            history = (await client.get("/api/v1/history")).json()["history"]
        assert [("Ann", "set", "a.example")] == [
            (each["actor"], each["action"], each["lookup_key"]) for each in history
        ]

    async def test_a_revoked_or_ended_token_opens_nothing(self, panel: Panel, pool: Pool) -> None:
        """At once; the name stays taken, so that the history is true."""
        tokens = Tokens(pool)
        revoked, ended, kept = [await panel.token("admin", name) for name in ("revoked", "ended", "kept")]
        session, _ = await panel.login(revoked)
        assert True is await tokens.revoke("revoked", by="test", via="cli")
        assert (False, None) == (
            await tokens.revoke("revoked", by="test", via="cli"),
            await tokens.revoke("nobody", by="test", via="cli"),
        )
        async with pool.transaction() as connection:
            await connection.execute("UPDATE tokens SET expires_at = now() WHERE name = 'ended'")
        statuses = []
        for secret in (revoked, ended, kept):
            async with panel.client(secret) as client:
                statuses.append((await client.get("/api/v1/session")).status_code)
        assert [401, 401, 200] == statuses
        assert 401 == (await session.get("/api/v1/session")).status_code
        await session.aclose()
        with pytest.raises(TakenError):
            await panel.token("viewer", "revoked")

    async def test_secrets_are_not_kept(self, panel: Panel, pool: Pool) -> None:
        """The database has hashes; a copy of it opens nothing."""
        secret = await panel.token("admin")
        client, _ = await panel.login(secret)
        cookie = client.cookies["pushpush"]
        await client.aclose()
        async with pool.transaction() as connection:
            rows = await (
                await connection.execute("SELECT t::text FROM tokens t UNION SELECT s::text FROM sessions s")
            ).fetchall()
        kept = " ".join(row[0] for row in rows)
        for word in (secret, cookie, secret.encode().hex(), cookie.encode().hex()):
            assert word not in kept

    @pytest.mark.parametrize(
        "name", ["", " a", "a\n", "a" * 101, "admin-token", "Scheduler", "<b>", "a\x00b", "é\ud800"]
    )
    async def test_a_name_that_is_none(self, pool: Pool, name: str) -> None:
        """It would do things to a page or a terminal, or be taken for somebody else."""
        with pytest.raises(TokenError):
            await Tokens(pool).make(name, "viewer", by="test", via="cli")

    async def test_admin_token(self, panel: Panel) -> None:
        """It opens as admin, under a name of its own, until there are tokens and after."""
        async with panel.client(ADMIN_TOKEN) as client:
            answer = (await client.get("/api/v1/session")).json()
        assert ("admin-token", "admin", "api") == (answer["name"], answer["role"], answer["via"])

    async def test_without_admin_token_an_empty_one_opens_nothing(self, settings: Settings, pool: Pool) -> None:
        """Not set is not empty."""
        async with running(settings, pool, admin_token=None) as panel:
            for secret in ("None", "pp_", '"'):
                async with panel.client(Authorization=f"Bearer {secret}") as client:
                    assert 401 == (await client.get("/api/v1/session")).status_code


class TestStrangers:
    """Without a login."""

    @pytest.mark.parametrize(
        "path",
        ["/", "/overrides", "/api/v1/overrides", "/api/v1/openapi.json", "/docs", "/metrics", "/login/", "//login",
         "/static/../api/v1/session", "/nothing", "/api/v1/nothing", "/API/V1/session", "/login%2f..%2fapi/v1/tokens"],
    )  # fmt: skip
    async def test_nothing_is_open(self, panel: Panel, path: str) -> None:
        """Every path but the login page and its files is closed, also those that do not exist."""
        async with panel.client() as client:
            answer = await client.send(httpx.Request("GET", panel.url, extensions={"target": path.encode()}))
        told = answer.headers.get("location", "")
        assert (
            answer.status_code == 401
            or (answer.status_code == 303 and told.startswith("/login"))
            or (path.startswith("/static/") and answer.status_code == 404)
        ), (answer.status_code, answer.text)
        assert "pushpush" not in answer.text.lower() or answer.status_code in (303, 404)

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "PROPFIND"])
    async def test_no_method_is_open(self, panel: Panel, method: str) -> None:
        """Closed is closed, however it is asked for."""
        async with panel.client() as client:
            assert 401 == (await client.request(method, "/api/v1/overrides/a.example")).status_code

    async def test_ten_tries_a_minute(self, panel: Panel, pool: Pool) -> None:
        """Then ADMIN_TOKEN itself is not compared any more; whoever has a made token is not locked out."""
        good = await panel.token("viewer")
        async with panel.client() as client:
            bearers = [f"pp_{'x' * 43}", *map(str, range(40))]
            answers = await asyncio.gather(
                *(client.get("/api/v1/session", headers={"Authorization": f"Bearer {each}"}) for each in bearers)
            )
            assert {401: 10, 429: 31} == {
                status: sum(each.status_code == status for each in answers) for status in (401, 429)
            }
            ours = await client.get("/api/v1/session", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
            assert (429, "too_many_tries", "60") == (
                ours.status_code, ours.json()["error"]["kind"], ours.headers["retry-after"],
            )  # fmt: skip
            assert 429 == (await client.post("/login", data={"token": "guess"})).status_code
            assert 429 == (await panel.rpc("GET", "/admin/status", token=ADMIN_TOKEN))["status"]
            fine = await client.get("/api/v1/session", headers={"Authorization": f"Bearer {good}"})
            assert 200 == fine.status_code
        async with pool.transaction() as connection:
            await connection.execute("UPDATE login_failures SET at = at - interval '1 minute'")
        async with panel.client(ADMIN_TOKEN) as client:
            assert 200 == (await client.get("/api/v1/session")).status_code

    async def test_many_requests_with_admin_token_are_no_failures(self, panel: Panel) -> None:
        """The panel of madmail sends eight at once."""
        async with panel.client(ADMIN_TOKEN) as client:
            answers = await asyncio.gather(*(client.get("/api/v1/session") for _ in range(30)))
        assert {200} == {each.status_code for each in answers}

    async def test_a_large_request_is_not_read(self, panel: Panel) -> None:
        """Said by its length, or found out on the way."""
        large = b"x" * (1024 * 1024 + 1)

        async def pieces() -> object:
            for _ in range(17):
                yield b"x" * 65_536

        async with panel.client(await panel.token("operator")) as client:
            told = await client.put("/api/v1/overrides/a.example", content=large)
            found = await client.put("/api/v1/overrides/a.example", content=pieces())  # type: ignore[arg-type]
        assert [(413, "too_large")] * 2 == [(each.status_code, each.json()["error"]["kind"]) for each in (told, found)]


class TestSessions:
    """By the cookie."""

    async def test_the_cookie(self, panel: Panel, settings: Settings, pool: Pool) -> None:
        """Not for scripts, not for other sites; by TLS alone behind a proxy that has TLS."""
        async with panel.client() as client:
            answer = await client.post("/login", data={"token": ADMIN_TOKEN})
        words = answer.headers["set-cookie"].split("; ")
        assert {"HttpOnly", "Path=/", "SameSite=strict", "Max-Age=604800"} == set(words[1:])
        assert words[0].startswith("pushpush=")
        proxied = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
        async with (
            running(settings, pool, panel_proxies=("127.0.0.1",)) as behind,
            behind.client(**proxied) as client,
        ):
            secure = (await client.post("/login", data={"token": ADMIN_TOKEN})).headers["set-cookie"]
            name, cookie = secure.partition(";")[0].split("=")
            plain = await client.get("/api/v1/session", headers={"Cookie": f"pushpush={cookie}"})
            right = await client.get("/api/v1/session", headers={"Cookie": f"{name}={cookie}"})
        assert ("__Host-pushpush", True) == (name, "Secure" in secure.split("; "))
        assert (401, 200) == (plain.status_code, right.status_code)

    async def test_it_ends(self, panel: Panel, pool: Pool) -> None:
        """After 12 hours in which nobody used it, after 7 days in any case, and with a new ADMIN_TOKEN."""
        for change in (
            "seen_at = now() - interval '12 hours'",
            "created_at = now() - interval '7 days'",
            "bootstrap = 'x'",
        ):
            client, _ = await panel.login(ADMIN_TOKEN)
            assert 200 == (await client.get("/api/v1/session")).status_code
            async with pool.transaction() as connection:
                await connection.execute(f"UPDATE sessions SET {change}")
            assert 401 == (await client.get("/api/v1/session")).status_code
            await client.aclose()

    async def test_log_out(self, panel: Panel) -> None:
        """The cookie opens nothing any more, also where somebody has a copy of it."""
        client, csrf = await panel.login(ADMIN_TOKEN)
        cookie = client.cookies["pushpush"]
        left = await client.post("/logout", data={"csrf": csrf})
        assert (303, "/login") == (left.status_code, left.headers["location"])
        assert 401 == (await client.get("/api/v1/session", headers={"Cookie": f"pushpush={cookie}"})).status_code
        await client.aclose()

    async def test_a_change_must_come_from_our_own_page(self, panel: Panel) -> None:
        """With the session's token in a form or a field, and asked for by no other site."""
        client, csrf = await panel.login(ADMIN_TOKEN)
        other, foreign = await panel.login(ADMIN_TOKEN)
        path = "/api/v1/overrides/a.example?wait=0"
        statuses = [
            (await client.put(path, json=RULE, headers=headers)).status_code
            for headers in (
                {},
                {"X-CSRF-Token": "x"},
                {"X-CSRF-Token": foreign},
                {"X-CSRF-Token": csrf, "Sec-Fetch-Site": "cross-site"},
                {"X-CSRF-Token": csrf, "Sec-Fetch-Site": "same-site"},
                {"X-CSRF-Token": csrf, "Origin": "https://evil.example"},
                {"X-CSRF-Token": csrf, "Origin": "null"},
                {"X-CSRF-Token": csrf, "Origin": "http://[::1"},
                {"X-CSRF-Token": csrf, "Origin": panel.url},
                {"X-CSRF-Token": csrf, "Sec-Fetch-Site": "same-origin"},
            )
        ]
        assert [403] * 8 + [200] * 2 == statuses
        outside = await client.post("/login", data={"token": ADMIN_TOKEN}, headers={"Origin": "https://evil.example"})
        assert 403 == outside.status_code
        for each in ({"data": {"csrf": "x"}}, {"files": {"csrf": (None, "x")}}):
            assert 403 == (await client.post("/logout", **each)).status_code
        broken = {"Content-Type": "multipart/form-data; boundary=x"}
        assert 400 == (await client.post("/logout", content=b"--y\r\n", headers=broken)).status_code
        assert 303 == (await client.post("/logout", files={"csrf": (None, csrf)})).status_code
        await client.aclose()
        await other.aclose()

    async def test_what_no_browser_may_do_with_an_answer(self, panel: Panel) -> None:
        """The same on every answer: no frames, no scripts of others, no guesses of types, no copies kept."""
        async with panel.client(ADMIN_TOKEN) as client:
            answers = [await client.get(path) for path in ("/login", "/", "/api/v1/session", "/nothing", "/api/v1/x")]
        for each in answers:
            assert "default-src 'none'" in each.headers["content-security-policy"]
            assert "unsafe" not in each.headers["content-security-policy"]
            assert ("nosniff", "same-origin", "no-store") == tuple(
                each.headers[name] for name in ("x-content-type-options", "referrer-policy", "cache-control")
            )
            assert "server" not in each.headers


class TestProxies:
    """Who stands in front is believed only where the setting says so."""

    async def test_addresses(self, settings: Settings, pool: Pool) -> None:
        """A stranger cannot choose the address that failed tries are counted against, nor one of their network."""
        async with (
            running(settings, pool, panel_proxies=("127.0.0.0/8", "10.0.0.1")) as panel,
            panel.client() as client,
        ):
            for told in ("192.0.2.1", "198.51.100.7, 192.0.2.1", "spoofed, 192.0.2.1, 10.0.0.1", "::ffff:192.0.2.1"):
                for _ in range(3):
                    await client.get("/api/v1/session", headers={"Authorization": "Bearer x", "X-Forwarded-For": told})
            for number in range(3):
                told = f"2001:db8:1:2::{number}"
                await client.get("/api/v1/session", headers={"Authorization": "Bearer x", "X-Forwarded-For": told})
        async with pool.transaction() as connection:
            rows = await (
                await connection.execute("SELECT address, count(*) FROM login_failures GROUP BY 1 ORDER BY 1")
            ).fetchall()
        assert [("192.0.2.1", 10), ("2001:db8:1:2::/64", 3)] == rows

    async def test_nobody_is_believed_by_default(self, panel: Panel, pool: Pool) -> None:
        """Neither the address nor the TLS of a stranger's own header."""
        async with panel.client(**{"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}) as client:
            await client.get("/api/v1/session", headers={"Authorization": "Bearer x"})
            answer = await client.post("/login", data={"token": ADMIN_TOKEN})
        async with pool.transaction() as connection:
            rows = await (await connection.execute("SELECT address FROM login_failures")).fetchall()
        assert ([("127.0.0.1",)], False) == (rows, "Secure" in answer.headers["set-cookie"])


class TestAway:
    """Without broker or database."""

    async def test_it_starts_without_them_and_says_so(self, settings: Settings, pool: Pool) -> None:
        """503 in the one shape, also for a login, and nobody gets in because it cannot be known who they are."""
        away = {"database_url": "postgresql://nobody@127.0.0.1:9/none", "amqp_url": "amqp://127.0.0.1:9/"}
        async with running(settings, pool, **away) as panel, panel.client(ADMIN_TOKEN) as client:
            answers = [
                await client.get("/api/v1/overrides"),
                await client.get("/api/v1/session", headers={"Authorization": "", "Cookie": "pushpush=x"}),
            ]
            page = await client.get("/")
            rpc = await panel.rpc("GET", "/admin/dns", token=ADMIN_TOKEN)
        for each in answers[:1]:
            assert (503, "store_unavailable") == (each.status_code, each.json()["error"]["kind"])
        assert 503 == page.status_code
        assert (503, None) == (rpc["status"], rpc["body"])

    async def test_the_database_goes_and_comes(
        self, settings: Settings, pool: Pool, store_wire: Wire, postgres: object
    ) -> None:
        """Nobody needs to start anything again."""
        del postgres
        url = through(settings.database_url, store_wire)
        async with running(settings, pool, database_url=url) as panel, panel.client(ADMIN_TOKEN) as client:
            statuses = [(await client.get("/api/v1/overrides")).status_code]
            await store_wire.cut()
            statuses.append((await client.get("/api/v1/overrides")).status_code)
            await store_wire.mend()
            assert [200, 503] == statuses

            async def back() -> bool:
                return (await client.get("/api/v1/overrides")).status_code == 200

            await until(back, within=20)

    async def test_a_rule_is_saved_while_the_broker_is_away(self, settings: Settings, pool: Pool) -> None:
        """And it is said that nobody was told of it."""
        away = "amqp://127.0.0.1:9/"
        async with running(settings, pool, amqp_url=away) as panel, panel.client(ADMIN_TOKEN) as client:
            answer = (await client.put("/api/v1/overrides/a.example?wait=1", json=RULE)).json()
        assert "RabbitMQ is away" in answer["change"]["applied"]["broker_away"]
        assert "RabbitMQ is away" in answer["change"]["sentence"]


async def test_what_a_path_can_be_asked_for(panel: Panel) -> None:
    """All of it, as a client that chose a wrong method needs to know."""
    async with panel.client(ADMIN_TOKEN) as client:
        found = {path: await client.request("TRACE", f"/api/v1/{path}") for path in ("overrides/a", "tokens", "reload")}
    assert {"overrides/a": "GET, PUT, PATCH, DELETE", "tokens": "GET, POST", "reload": "POST"} == {
        path: answer.headers["allow"] for path, answer in found.items()
    }
    assert {405} == {answer.status_code for answer in found.values()}
