"""Forms of the panel, sent as a browser sends them: what was seen is what is changed, and nothing besides."""

import asyncio
import contextlib
import html
import random
import re
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest

from shared.mail.rule import Rule, make_rule
from shared.runtime.clock import now
from shared.store.audit import Audit
from shared.store.overrides import Overrides, Versions
from shared.store.pool import Pool
from tests.integration.panels import Panel
from tests.integration.panels import panel as panel  # noqa: PLC0414 - a fixture

# A joiner of Persian words, a family of one emoji, spaces at the ends, what HTML has a meaning for.
COMMENT = " \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f467 \u202d\"<b>&amp;' "
_FIELD = re.compile(
    r'<input[^>]*? name="([^"]+)"[^>]*? value="([^"]*)"|<input[^>]*? value="([^"]*)"[^>]*? name="([^"]+)"'
)


class Sender:
    """An operator who has logged in."""

    def __init__(self, client: httpx.AsyncClient, csrf: str) -> None:
        self.client = client
        self._csrf = csrf

    async def fields(self, path: str, action: str) -> dict[str, str]:
        """Return what the form with this action sends when nobody touches it."""
        page = (await self.client.get(path)).text
        form = page.partition(f'action="{action}"')[2].partition("</form>")[0]
        assert form, path
        found = {one or four: html.unescape(two or three) for one, two, three, four in _FIELD.findall(form)}
        return {name: value for name, value in found.items() if name not in ("csrf", "force")}

    async def send(self, path: str, **fields: object) -> httpx.Response:
        """Send a form."""
        return await self.client.post(path, data={"csrf": self._csrf, **fields})

    async def said(self, answer: httpx.Response) -> str:
        """Return what the page says to which an action leads."""
        assert 303 == answer.status_code, answer.text
        page = (await self.client.get(answer.headers["location"])).text
        found = re.search(r'<div class="said[^"]*" tabindex.*?</div>', page, re.DOTALL)
        return html.unescape(re.sub(r"<[^>]+>|\s+", " ", found[0])) if found else ""

    async def choose(self, data: bytes, *, whole: str = "") -> httpx.Response:
        """Send a file of rules."""
        fields = {"csrf": self._csrf, "whole": whole}
        return await self.client.post("/endpoint-cache/import", data=fields, files={"file": ("rules.csv", data)})


@pytest.fixture
async def sender(panel: Panel) -> AsyncIterator[Sender]:
    """An operator by the name of ann."""
    client, csrf = await panel.login(await panel.token("operator", "ann"))
    client.timeout = httpx.Timeout(60)
    async with contextlib.aclosing(client):
        yield Sender(client, csrf)


@pytest.fixture
def rules(pool: Pool) -> Overrides:
    """The rules."""
    return Overrides(pool)


async def have(rules: Overrides, key: str = "a.example", target: str = "b.example", **more: object) -> Rule:
    """Save a rule as somebody else does."""
    made = make_rule(key, target, **more)  # type: ignore[arg-type] # fields by name
    await rules.set(made, actor="bob", release=True)
    return made


class TestEdit:
    """The form of a rule that is there."""

    async def test_untouched_it_changes_nothing(self, sender: Sender, rules: Overrides) -> None:
        """Neither what cannot be seen of a comment, nor the part of a second of its end; and takes no version."""
        await have(rules, comment=COMMENT, expires_at=now() + timedelta(hours=2, microseconds=123_456))
        before = await rules.get("a.example")
        fields = await sender.fields("/endpoint-cache/edit?key=a.example", "/endpoint-cache/edit")
        assert COMMENT == fields["comment"]
        said = await sender.said(await sender.send("/endpoint-cache/edit", **fields, force="yes"))
        assert "nothing differs" in said
        assert before == await rules.get("a.example")
        assert Versions(version=1, released=1) == await rules.versions()

    async def test_what_was_typed_is_saved_and_the_rest_stays(self, sender: Sender, rules: Overrides) -> None:
        """One field of several."""
        rule = await have(rules, comment=COMMENT, expires_at=now() + timedelta(hours=2, microseconds=123_456))
        fields = await sender.fields("/endpoint-cache/edit?key=a.example", "/endpoint-cache/edit")
        await sender.send("/endpoint-cache/edit", **fields | {"target": "c.example", "force": "yes"})
        stored = await rules.get("a.example")
        assert stored is not None
        assert ("c.example", COMMENT, rule.expires_at) == (
            stored.rule.target_host,
            stored.rule.comment,
            stored.rule.expires_at,
        )


class TestOthers:
    """What somebody else did meanwhile, or has staged."""

    @pytest.mark.parametrize(
        ("path", "more"),
        [("enable", {}), ("disable", {}), ("disable", {"back": "rule"}), ("expire", {"ends": "2h"})],
    )
    async def test_a_rule_that_is_another_by_now_is_left_alone(
        self, sender: Sender, rules: Overrides, path: str, more: dict[str, str]
    ) -> None:
        """The page says who changed it, and shows what it is."""
        await have(rules)
        await have(rules, target="c.example", enabled=path != "enable")
        answer = await sender.send(f"/endpoint-cache/{path}", key="a.example", seen=1, **more)
        assert "Nothing was changed: bob changed a.example in version 2" in await sender.said(answer)
        assert 2 == (await rules.versions()).version

    async def test_the_pages_send_what_they_showed_and_name_the_target(self, sender: Sender, rules: Overrides) -> None:
        """The list, the page of the rule, and its removal."""
        await have(rules, "z.example")
        await have(rules)
        listed = await sender.fields("/endpoint-cache", "/endpoint-cache/disable")
        assert {"key": "a.example", "seen": "2"} == listed
        said = await sender.said(await sender.send("/endpoint-cache/disable", **listed))
        assert "a.example → b.example is off" in said
        shown = await sender.fields("/endpoint-cache/rule?key=a.example", "/endpoint-cache/enable")
        assert "a.example → b.example is on" in await sender.said(await sender.send("/endpoint-cache/enable", **shown))
        end = await sender.fields("/endpoint-cache/rule?key=a.example", "/endpoint-cache/expire")
        said = await sender.said(await sender.send("/endpoint-cache/expire", **end | {"ends": "2h"}))
        assert "a.example → b.example ends at" in said
        gone = await sender.fields("/endpoint-cache/remove?key=a.example", "/endpoint-cache/remove")
        said = await sender.said(await sender.send("/endpoint-cache/remove", **gone))
        assert "a.example → b.example removed" in said

    async def test_what_is_staged_is_not_released_by_what_changes_nothing(
        self, sender: Sender, rules: Overrides
    ) -> None:
        """Enable, expire, edit and import of what is so already."""
        await have(rules)
        await rules.set(make_rule("staged.example", "b.example"), actor="bob", release=False)
        for path in ("enable", "expire"):
            said = await sender.said(await sender.send(f"/endpoint-cache/{path}", key="a.example", seen=1))
            assert "nothing was released" in said
        fields = await sender.fields("/endpoint-cache/edit?key=a.example", "/endpoint-cache/edit")
        await sender.send("/endpoint-cache/edit", **fields, force="yes")
        await sender.choose(b"lookup_key,target_host\na.example,b.example\n")
        assert Versions(version=2, released=1) == await rules.versions()

    async def test_a_release_is_recorded(self, sender: Sender, rules: Overrides, pool: Pool) -> None:
        """By whom, for it is not a change of the rules."""
        await rules.set(make_rule("staged.example", "b.example"), actor="bob", release=False)
        assert "Released" in await sender.said(await sender.send("/endpoint-cache/release"))
        first = (await Audit(pool).page(limit=1))[0]
        assert ("ann", "panel", "reload", "rules") == (first.actor, first.via, first.action, first.object)

    async def test_a_look_for_dead_letters_is_recorded(self, sender: Sender, panel: Panel, pool: Pool) -> None:
        """From the page and from the API."""
        await sender.send("/dead/collect")
        async with panel.client(await panel.token("operator", "eve")) as client:
            assert 200 == (await client.post("/api/v1/dead/collect")).status_code
        entries = [each for each in await Audit(pool).page() if each.action == "dead collect"]
        assert [("eve", "api"), ("ann", "panel")] == [(each.actor, each.via) for each in entries]
        assert {("mail.undecodable", "0 new letters")} == {(each.object, each.detail) for each in entries}

    async def test_the_count_is_that_after_the_change(self, sender: Sender, rules: Overrides) -> None:
        """Though counts are kept for some seconds."""
        many = {f"d{number:03}.example": make_rule(f"d{number:03}.example", "b.example") for number in range(60)}
        await rules.apply(many, actor="bob", release=True)
        assert "60 rules" in (await sender.client.get("/endpoint-cache")).text
        await sender.send("/endpoint-cache/remove", key="d000.example", seen=1)
        assert "59 rules" in (await sender.client.get("/endpoint-cache")).text


class TestUndo:
    """One change is taken back."""

    async def test_a_rule_that_has_ended_stays_away(self, sender: Sender, rules: Overrides) -> None:
        """The scheduler would end it at once; the page says so."""
        await have(rules, expires_at=now() + timedelta(milliseconds=100))
        await asyncio.sleep(0.2)
        await rules.expire(now())
        asked = await sender.client.get("/endpoint-cache/undo?version=2&key=a.example")
        assert (200, True) == (asked.status_code, "it has ended" in asked.text)
        assert re.search(r"<button[^>]* disabled", asked.text)
        answer = await sender.send("/endpoint-cache/undo", version=2, key="a.example", seen=2)
        assert (409, True) == (answer.status_code, "it has ended" in answer.text)
        assert None is await rules.get("a.example")
        assert 2 == (await rules.versions()).version

    async def test_places_that_nothing_has(self, sender: Sender) -> None:
        """Versions up to the largest number of the tables, and places of the audit log that are none."""
        for path in ("undo", "rollback"):
            for version in (2**63 - 2, 2**63 - 1):
                answer = await sender.client.get(f"/endpoint-cache/{path}?version={version}&key=a.example")
                assert answer.status_code in (404, 409, 422), (path, version, answer.status_code)
        for before in ("5", "-", "5-", "9" * 20, f"{'9' * 20}-1"):
            assert 422 == (await sender.client.get("/audit", params={"before": before})).status_code


class TestFiles:
    """Many rules at once."""

    @pytest.mark.parametrize("whole", ["", "yes"])
    async def test_a_file_without_rules(self, sender: Sender, rules: Overrides, whole: str) -> None:
        """As the whole table it would remove all there is; it is refused when it is shown, and when it is applied."""
        await have(rules)
        answer = await sender.choose(b"lookup_key,target_host\n", whole=whole)
        assert (422 if whole else 200, bool(whole)) == (answer.status_code, "it would remove every rule" in answer.text)
        packed = (await sender.choose(b"lookup_key,target_host\n")).text.partition('name="packed" value="')[2]
        fields = {"format": "csv", "packed": packed.partition('"')[0], "seen": 1, "whole": whole}
        answer = await sender.send("/endpoint-cache/apply/import", **fields)
        assert (422 if whole else 303) == answer.status_code
        assert None is not await rules.get("a.example")

    async def test_very_many_rules_are_shown_and_applied_while_others_are_served(
        self, sender: Sender, rules: Overrides, panel: Panel
    ) -> None:
        """Packed they are larger than 1 MiB, the most that a field has elsewhere."""
        dice = random.Random(1)
        lines = [f"d{number}.example,b.example,{dice.randbytes(16).hex()}" for number in range(60_000)]
        data = "\n".join(["lookup_key,target_host,comment", *lines]).encode()
        async with _waited(panel) as waits:
            answer = await sender.choose(data)
            assert "60,000 rules added" in answer.text
            form = answer.text.partition('action="/endpoint-cache/apply/import"')[2]
            fields = dict(re.findall(r'name="(packed|format|seen|whole)" value="([^"]*)"', form))
            assert len(fields["packed"]) > 1024 * 1024
            said = await sender.said(await sender.send("/endpoint-cache/apply/import", **fields))
        assert "60,000 rules added" in said
        assert 60_000 == await rules.count()
        assert len(waits) > 20  # it takes seconds, in which others are answered


@contextlib.asynccontextmanager
async def _waited(panel: Panel) -> AsyncIterator[list[float]]:
    """Ask for something small all the time; give the seconds that each answer took."""
    waits: list[float] = []

    async def ask() -> None:
        async with panel.client() as client:
            while True:
                began = time.monotonic()
                await client.get("/static/icon.svg")
                waits.append(time.monotonic() - began)
                await asyncio.sleep(0.01)

    asking = asyncio.create_task(ask())
    try:
        yield waits
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
