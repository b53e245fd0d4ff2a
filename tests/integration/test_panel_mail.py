"""Mail in the panel, in a real browser: what waits, what is dead, where it went, and what was done to it."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from playwright.async_api import Browser, expect

from deploy.local.scenery import STORY, fill
from shared.broker import topology
from shared.mail.envelope import Delivery, Envelope
from shared.mail.event import Batch, Event
from shared.mail.privacy import Privacy
from shared.mail.reply import Reply
from shared.mail.route import Route
from shared.runtime.clock import now
from shared.store.dead import DeadLetters
from shared.store.deferred import Deferred
from shared.store.hops import NextHops
from shared.store.journal import Journal
from shared.store.pool import Pool
from tests.integration.browser import Visit, visiting
from tests.integration.browser import chromium as chromium  # noqa: PLC0414 - a fixture
from tests.integration.browser import visit as visit  # noqa: PLC0414
from tests.integration.conftest import Queues
from tests.integration.panels import Panel
from tests.integration.panels import access_tables as access_tables  # noqa: PLC0414
from tests.integration.panels import panel as panel  # noqa: PLC0414

NASTY = "<script>alert(1)</script>\u202egnp"
MESSAGE = f"Subject: {NASTY}\r\nFrom: a@from.example\r\n\r\nHello\r\n".encode()


async def wait(
    pool: Pool,
    *rcpt_to: str,
    id: str = "m1",  # noqa: A002 - the field's name
    mail_from: str = "a@from.example",
    age: timedelta = timedelta(minutes=30),
    reply: str = "greylisted",
) -> None:
    """Let a delivery wait for an hour."""
    envelope = Envelope(id=id, mail_from=mail_from, rcpt_to=rcpt_to, accepted_at=now() - age)
    delivery = Delivery(
        domain=rcpt_to[0].partition("@")[2],
        route=Route(version=1),
        envelope=envelope,
        attempts=2,
        reply=Reply(code=451, enhanced="4.7.1", text=reply, mta="mx.a.example"),
    )
    await Deferred(pool).defer(delivery, MESSAGE, now() + timedelta(hours=1))


async def tell(pool: Pool, *events: Event) -> None:
    """Record events, as the journal does."""
    batch = Batch(source="test", number=1, emitted=len(events), events=events)
    await Journal(pool, Privacy()).record([batch], now=now())


def event(kind: str, at: datetime, **fields: object) -> Event:
    """Return an event of the message `m1` to `b@a.example`."""
    given = {"id": "m1", "recipient": "b@a.example", "domain": "a.example", "room": "smtp", **fields}
    return Event(kind=kind, at=at, **given)  # type: ignore[arg-type] # fields by name


class TestWaiting:
    """Filter, try, bounce, remove."""

    async def test_a_filter_finds_by_domain_age_and_answer(self, visit: Visit, pool: Pool) -> None:
        """Each alone and together; one that is not understood is told of."""
        visit.refused.add(422)
        await wait(pool, "b@a.example", age=timedelta(hours=5))
        await wait(pool, "c@a.example", reply="mailbox full")
        await wait(pool, "d@other.example")
        rows = visit.page.locator("tbody tr")
        for fields, found in (
            ({"Domain": "A.example"}, 2),
            ({"Older than": "2h"}, 1),
            ({"Last answer has": "FULL"}, 1),
            ({"Domain": "other.example", "Last answer has": "full"}, 0),
            ({"Target": "mx"}, 3),
        ):
            await visit.go("/waiting")
            for label, value in fields.items():
                await visit.page.get_by_label(label).fill(value)
            await visit.click("Filter")
            await expect(rows).to_have_count(found)
        await visit.go("/waiting?older=sometime")
        assert "sometime" in await visit.page.get_by_role("alert").inner_text()

    async def test_try_now(self, visit: Visit, pool: Pool) -> None:
        """What is chosen is due at once, the rest is not."""
        await wait(pool, "b@a.example")
        await wait(pool, "c@a.example")
        await visit.go("/waiting")
        await visit.click("Try now")
        assert "Choose some mail first" in await visit.said()
        await visit.page.get_by_label("Choose the mail to c@a.example").check()
        await visit.click("Try now")
        assert "1 delivery is due now" in await visit.said()
        due = [each.rcpt_to for each in await Deferred(pool).matching() if each.next_attempt_at <= now()]
        assert [["c@a.example"]] == due

    async def test_bounce_all_that_match_asks_with_the_count(self, visit: Visit, pool: Pool, queues: Queues) -> None:
        """The senders are told; what does not match waits on."""
        await wait(pool, "b@a.example", id="m1")
        await wait(pool, "c@a.example", id="m2")
        await wait(pool, "d@other.example", id="m3")
        await visit.go("/waiting?domain=a.example")
        await visit.page.get_by_label("all that match (2)").check()
        await visit.click("Bounce…")
        assert "Bounce 2 waiting deliveries?" == await visit.page.get_by_role("heading", level=1).inner_text()
        await visit.keep("bounce")
        await visit.click("Bounce 2 waiting deliveries")
        await visit.page.wait_for_url("**/waiting?domain=a.example")
        assert "2 deliveries bounced, for 2 recipients.\n2 senders were told." == (await visit.said()).strip().replace(
            "\n\n", "\n"
        )
        assert 2 == await queues.depth(topology.OUTBOUND)
        assert ["m3"] == [each.message_id for each in await Deferred(pool).matching()]
        await visit.go("/audit")
        assert "queue bounce" in await visit.text()

    async def test_a_count_that_changed_meanwhile_is_refused(self, visit: Visit, pool: Pool) -> None:
        """Nothing is removed that nobody saw, and what has gone is told of."""
        visit.refused.add(409)
        await wait(pool, "b@a.example", id="m1")
        await wait(pool, "c@a.example", id="m2")
        await visit.go("/waiting")
        await visit.page.get_by_label("all that wait (2)").check()
        await visit.click("Remove…")
        await wait(pool, "new@a.example", id="m3")
        async with pool.transaction() as connection:
            await connection.execute("DELETE FROM deferred WHERE message_id = 'm1'")
        await visit.click("Remove 2 waiting deliveries")
        assert "it was 2 deliveries, and is 1 now" in await visit.page.get_by_role("alert").inner_text()
        assert 2 == await Deferred(pool).count()
        await visit.click("Remove 1 waiting delivery")
        assert "1 delivery removed" in await visit.said()
        assert ["m3"] == [each.message_id for each in await Deferred(pool).matching()]

    async def test_ages_by_domain(self, visit: Visit, pool: Pool) -> None:
        """Who has the most, and how old it is; from there to the mail itself."""
        await wait(pool, "b@a.example", age=timedelta(minutes=7))
        await wait(pool, "b@a.example", age=timedelta(minutes=3000))
        await wait(pool, "b@c.example", age=timedelta(minutes=1))
        await visit.go("/waiting/ages")
        cells = await visit.page.locator("tbody tr", has_text="a.example").first.locator("td").all_inner_texts()
        assert ["2", "2 d", "", "1", "", "", "", "", "", "", "", "1"] == cells
        await visit.keep("ages")
        await visit.click("a.example", exact=True)
        await expect(visit.page.locator("tbody tr")).to_have_count(2)

    async def test_what_strangers_wrote_is_inert(self, visit: Visit, pool: Pool) -> None:
        """Reply, subject and address."""
        await wait(pool, '"<b>x</b>"@a.example', reply=NASTY)
        await visit.go("/waiting")
        assert r"<script>alert(1)</script>\u202egnp" in await visit.text()
        await visit.page.locator("tbody a").first.click()
        assert r"Subject: <script>alert(1)</script>\u202egnp" in await visit.page.locator("pre").inner_text()
        assert 0 == await visit.page.locator("main script, main b b").count()
        assert "\u202e" not in await visit.page.content()
        await visit.keep("waiting-inert")


class TestDead:
    """Look, show, put back, throw away."""

    async def test_from_the_queue_to_the_fleet_again(self, visit: Visit, queues: Queues, pool: Pool) -> None:
        """What is missing is typed in; a letter that would return at once is refused first."""
        visit.refused.add(422)
        headers = {"mail_from": "a@from.example", "reason": f"rcpt_to is missing {NASTY}"}
        await queues.put(topology.UNDECODABLE, MESSAGE, headers=headers, content_type="message/rfc822")
        await visit.go("/dead")
        assert "1 letter is in the queue" in await visit.text()
        await visit.click("Look for new ones")
        assert "1 new letter." in await visit.said()
        await visit.page.locator("tbody a").first.click()
        assert r"rcpt_to is missing <script>alert(1)</script>\u202egnp" in await visit.text()
        assert 0 == await visit.page.locator("main script").count()
        await visit.keep("dead-letter")
        await visit.click("Put it back")
        assert "would come back at once" in await visit.page.get_by_role("alert").inner_text()
        await visit.page.get_by_label("Recipients").fill("b@a.example, c@a.example")
        await visit.click("Put it back")
        await visit.page.wait_for_url("**/dead")
        assert "is in mail.outbound again" in await visit.said()
        message = await queues.take(topology.OUTBOUND)
        assert (["b@a.example", "c@a.example"], MESSAGE) == (message.headers["rcpt_to"], message.body)
        assert 0 == await DeadLetters(pool).count()

    async def test_discard_asks_with_the_count(self, visit: Visit, queues: Queues, pool: Pool) -> None:
        """Of those chosen only."""
        for reason in ("one", "two", "three"):
            await queues.put(topology.UNDECODABLE, reason.encode(), headers={"reason": reason})
        await visit.go("/dead")
        await visit.click("Look for new ones")
        for box in await visit.page.locator("tbody input[type=checkbox]").all():
            await box.check()
        await visit.page.locator("tbody input[type=checkbox]").first.uncheck()
        await visit.click("Discard those chosen…")
        assert "Discard 2 letters?" == await visit.page.get_by_role("heading", level=1).inner_text()
        await visit.click("Discard 2 letters")
        assert "2 letters discarded" in await visit.said()
        assert ["three"] == [each.reason for each in await DeadLetters(pool).page()]

    async def test_the_bytes_of_a_letter_are_a_file(self, visit: Visit, queues: Queues) -> None:
        """As they came, whatever they are, and never shown as a page."""
        await queues.put(topology.UNDECODABLE, b"<script>\x00\xff", headers={"reason": "x"})
        await visit.go("/dead")
        await visit.click("Look for new ones")
        await visit.page.locator("tbody a").first.click()
        async with visit.page.expect_download() as waiting:
            await visit.click("Download its bytes")
        path = await (await waiting.value).path()
        assert b"<script>\x00\xff" == path.read_bytes()


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
        kinds = await visit.page.locator(".line .badge").all_inner_texts()
        assert ["routed", "deferred", "delivered"] == kinds
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
