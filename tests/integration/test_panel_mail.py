"""Mail in the panel, in a real browser: what waits, what is dead, where it went, and what was done to it."""

from datetime import timedelta

from playwright.async_api import expect

from shared.broker import topology
from shared.mail.envelope import Delivery, Envelope
from shared.mail.reply import Reply
from shared.mail.route import Route
from shared.runtime.clock import now
from shared.store.dead import DeadLetters
from shared.store.deferred import Deferred
from shared.store.pool import Pool
from tests.integration.browser import Visit
from tests.integration.browser import chromium as chromium  # noqa: PLC0414 - a fixture
from tests.integration.browser import visit as visit  # noqa: PLC0414
from tests.integration.conftest import Queues
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
        await expect(visit.page.locator("tbody tr")).to_have_count(3)
        for box in await visit.page.locator("tbody input[type=checkbox]").all():
            await box.check()
        await visit.page.locator("tbody input[type=checkbox]").first.uncheck()
        await visit.click("Discard those chosen…")
        await expect(visit.page.get_by_role("heading", level=1)).to_have_text("Discard 2 letters?")
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
