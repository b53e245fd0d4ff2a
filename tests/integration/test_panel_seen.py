"""Trace, overview, traffic and tokens in a real browser."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from playwright.async_api import Browser, expect

from deploy.local.scenery import STORY, fill
from shared.mail.event import Batch, Event
from shared.mail.privacy import Privacy
from shared.runtime.clock import now
from shared.store.hops import NextHops
from shared.store.journal import Journal
from shared.store.pool import Pool
from tests.integration.browser import Visit, visiting
from tests.integration.browser import chromium as chromium  # noqa: PLC0414 - a fixture
from tests.integration.browser import visit as visit  # noqa: PLC0414
from tests.integration.panels import Panel
from tests.integration.panels import panel as panel  # noqa: PLC0414

NASTY = "<script>alert(1)</script>\u202egnp"


async def tell(pool: Pool, *events: Event) -> None:
    """Record events, as the journal does."""
    batch = Batch(source="test", number=1, emitted=len(events), events=events)
    await Journal(pool, Privacy()).record([batch], now=now())


def event(kind: str, at: datetime, **fields: object) -> Event:
    """Return an event of the message `m1` to `b@a.example`."""
    given = {"id": "m1", "recipient": "b@a.example", "domain": "a.example", "room": "smtp", **fields}
    return Event(kind=kind, at=at, **given)  # type: ignore[arg-type] # fields by name


class TestTrace:
    """Where is this message?"""

    async def test_found_by_address_message_id_and_queue_id(self, visit: Visit, pool: Pool) -> None:
        """And its life, in order, with the words of the peer."""
        at = now() - timedelta(minutes=3)
        await tell(
            pool,
            event(
                "routed",
                at,
                room="router",
                sender="a@from.example",
                header_id="<x1@from.example>",
                accepted_at=at,
                size=900,
            ),
            event("deferred", at + timedelta(seconds=1), attempt=1, code=451, reply=NASTY, mta="mx.a.example", ms=40),
            event("delivered", at + timedelta(minutes=1), attempt=2, code=250, reply="Ok", mta="mx.a.example"),
        )
        for word in ("b@a.example", "a@from.example", "<x1@from.example>", "x1@from.example", "m1"):
            await visit.go("/trace")
            await visit.page.get_by_label("Address, Message-ID or queue id").fill(word)
            await visit.page.keyboard.press("Enter")
            await expect(visit.page.locator("tbody tr")).to_have_count(1)
        await visit.click("m1", exact=True)
        await expect(visit.page.locator(".line .badge")).to_have_text(["routed", "deferred", "delivered"])
        text = await visit.text()
        assert "Delivered to 1 recipient." in text
        assert r"451  <script>alert(1)</script>\u202egnp" in text.replace("451 <", "451  <")
        await visit.keep("trace")

    async def test_nothing_found_is_said(self, visit: Visit) -> None:
        """With what may be the reason."""
        visit.refused.add(404)
        await visit.go("/trace?word=nobody@a.example")
        assert "Nothing found" in await visit.text()
        await visit.go("/trace/message?id=none")
        assert "neither the journal nor the waiting mail" in await visit.text()


class TestSeen:
    """Overview, traffic, audit log and tokens, with a day of mail."""

    async def test_overview_updates_itself_until_it_is_paused(self, visit: Visit, pool: Pool) -> None:
        """Numbers, charts and what is wrong; without a reload."""
        await fill(pool, now())
        await visit.go("/")
        text = await visit.text()
        for words in ("Delivered", "The last hour", "No router is signed in", "mail.outbound", "harbour.example"):
            assert words in text
        assert 60 == await visit.page.locator("svg[role=img]").first.locator("g").count()
        await NextHops(pool).remember("new.example", "suspended", 3600, "refused")
        await expect(visit.page.locator("main")).to_contain_text("new.example", timeout=15_000)
        await visit.keep("overview")
        await visit.click("Pause updates")
        await NextHops(pool).remember("newer.example", "suspended", 3600, "refused")
        await visit.page.wait_for_timeout(6_000)
        assert "newer.example" not in await visit.text()

    async def test_traffic_by_domain(self, visit: Visit, pool: Pool) -> None:
        """Ordered, searched, and one domain by transport."""
        await fill(pool, now())
        await visit.go("/traffic")
        first = visit.page.locator("#domains tbody tr").first
        await expect(first).to_contain_text("bigmail.example")
        await visit.page.get_by_label("Most").select_option("deferred")
        await visit.click("Show", exact=True)
        await expect(first).to_contain_text("harbour.example")
        await visit.page.get_by_role("textbox", name="Domain").press_sequentially("muse")
        await expect(visit.page.locator("#domains tbody tr")).to_have_count(1)
        await visit.click("museum.example", exact=True)
        await expect(visit.page.locator("tbody th", has_text="https")).to_be_visible()
        await visit.keep("traffic-domain")

    async def test_a_trace_with_two_ends(self, visit: Visit, pool: Pool) -> None:
        """Recipients of one attempt stand together; each has its own end."""
        await fill(pool, now())
        await visit.go(f"/trace/message?id={STORY}")
        assert 8 == await visit.page.locator(".line li").count()
        assert "Delivered to 1 recipient; given up for 1 recipient." in await visit.text()

    async def test_tokens(self, chromium: Browser, panel: Panel) -> None:
        """The secret is shown once and opens the panel; revoked, it does not."""
        async with visiting(chromium, panel, "admin") as visit:
            visit.refused.add(422)
            await visit.go("/tokens")
            await visit.page.get_by_label("Name").fill("Noor")
            await visit.page.get_by_label("Role").select_option("operator")
            await visit.click("Make it")
            secret = await visit.page.locator(".secret").inner_text()
            await visit.go("/tokens")
            assert secret not in await visit.page.content()
            async with visiting(chromium, panel, None) as other:
                await other.log_in(secret)
                assert "Noor" in await other.page.get_by_role("banner").inner_text()
            await visit.page.get_by_label("Name").fill("Noor")
            await visit.click("Make it")
            assert "Noor" in await visit.page.get_by_role("alert").inner_text()
            await visit.go("/tokens")
            await visit.click("Revoke Noor")
            await visit.click("Revoke it")
            assert "The token of Noor is revoked." in await visit.said()
            async with panel.client(secret) as client:
                assert 401 == (await client.get("/api/v1/session")).status_code


@pytest.mark.parametrize("pages", [("/", "/waiting", "/trace", "/traffic", "/dead", "/endpoint-cache")])
async def test_nothing_there_yet_is_said_kindly(visit: Visit, pages: Sequence[str]) -> None:
    """Each page of an empty fleet is whole."""
    for path in pages:
        await visit.go(path)
        assert 1 <= await visit.page.locator("main h1").count()
