"""/api/v1 of mail: what waits, what is dead, what became of a message, how much went where."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from shared.broker import topology
from shared.mail.event import Batch, Event
from shared.mail.privacy import Privacy
from shared.mail.reply import Reply
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from shared.store.audit import Audit
from shared.store.deferred import Deferred
from shared.store.journal import Journal
from shared.store.pool import Pool
from tests.integration.conftest import MESSAGE, NOON, Queues, delivery, until
from tests.integration.panels import ADMIN_TOKEN, Panel, running
from tests.integration.panels import panel as panel  # noqa: PLC0414
from tests.integration.test_api_rules import error

QUEUE, DEAD = "/api/v1/queue", "/api/v1/dead"
LATER = datetime(2100, 1, 1, tzinfo=UTC)


async def wait(pool: Pool, count: int, **fields: object) -> None:
    """Let deliveries wait, due one after the other."""
    for number in range(count):
        fields = {"id": f"m{number}", "reply": Reply(code=451, enhanced="4.7.1", text="Greylisted"), **fields}
        await Deferred(pool).defer(delivery(**fields), MESSAGE, LATER + timedelta(seconds=number))
        fields.pop("id")


async def acts(pool: Pool) -> list[tuple[str, str, str, str]]:
    """Return what the audit log has of what was done to mail, the latest first."""
    entries = await Audit(pool).page()
    return [(each.actor, each.via, each.action, each.object) for each in entries if each.action != "token make"]


class TestWaiting:
    """Listed, made due, ended."""

    async def test_pages_and_choices(self, panel: Panel, pool: Pool) -> None:
        """Each delivery once, those due first; by each field."""
        await wait(pool, 5)
        await wait(pool, 2, domain="xn--bcher-kva.example", reply=None)
        async with panel.client(await panel.token("viewer")) as client:
            seen: list[int] = []
            after: str | None = None
            while True:
                page = (await client.get(QUEUE, params={"limit": 3} | ({"after": after} if after else {}))).json()
                seen += [each["id"] for each in page["waiting"]]
                if (after := page["next"]) is None:
                    break
            assert (7, 7, 7) == (page["total"], len(seen), len(set(seen)))
            counts = {
                name: (await client.get(QUEUE, params=params)).json()["total"]
                for name, params in {
                    "domain": {"domain": "Bücher.example"}, "message": {"message_id": "m1"}, "error": {"error": "GREY"},
                    "older": {"older": "1h"}, "newer": {"older": "3650d"}, "mx": {"target": ""},
                    "target": {"target": "b.example"},
                }.items()
            }  # fmt: skip
            one = (await client.get(f"{QUEUE}/messages/m1")).json()["waiting"]
            assert ("451 4.7.1 Greylisted", ["b@a.example"]) == (one[0]["reply"], one[0]["rcpt_to"])
            assert (404, "not_found", {}) == error(await client.get(f"{QUEUE}/messages/none"))
            for params in ({"domain": "a..b"}, {"older": "soon"}, {"target": "x y"}, {"after": "1"}, {"limit": "0"}):
                assert (422, "invalid") == error(await client.get(QUEUE, params=params))[:2]
            far = await client.get(QUEUE, params={"after": "9999999999999999-9999999999999999999"})
            assert (200, []) == (far.status_code, far.json()["waiting"])
        assert {"domain": 2, "message": 2, "error": 5, "older": 7, "newer": 0, "mx": 7, "target": 0} == counts

    async def test_stats(self, panel: Panel, pool: Pool) -> None:
        """What is in the broker, what waits for whom, and for how long."""
        await wait(pool, 3)
        async with panel.client(await panel.token("viewer")) as client:
            found = (await client.get(f"{QUEUE}/stats")).json()
        assert (3, [("a.example", 3)]) == (
            found["waiting"], [(each["domain"], each["deliveries"]) for each in found["domains"]],
        )  # fmt: skip
        assert (0, None) == (found["queues"][topology.OUTBOUND], found["broker_away"])
        assert 3 == sum(found["ages"][0]["counts"])

    async def test_it_is_said_which_mail(self, panel: Panel, pool: Pool) -> None:
        """Nobody means all by leaving everything out."""
        await wait(pool, 2)
        async with panel.client(await panel.token("operator", "ann")) as client:
            vague: list[dict[str, object]] = [
                {},
                {"everything": True, "domain": "a.example"},
                {"ids": []},
                {"domain": ""},
            ]
            for body in vague:
                assert 422 == (await client.post(f"{QUEUE}/retry", json=body)).status_code
                assert 422 == (await client.post(f"{QUEUE}/remove", json=body | {"expect": 2})).status_code
            assert {"retried": 1} == (await client.post(f"{QUEUE}/retry", json={"message_id": "m1"})).json()
            assert {"retried": 1} == (await client.post(f"{QUEUE}/retry", json={"everything": True})).json()
        assert [
            ("ann", "api", "queue retry", "all that waits"),
            ("ann", "api", "queue retry", "message m1"),
        ] == await acts(pool)

    async def test_no_more_is_ended_than_was_seen(self, panel: Panel, pool: Pool, queues: Queues) -> None:
        """The count must be right; then the senders are told, or nobody is, and the journal is."""
        await wait(pool, 3)
        async with panel.client(await panel.token("operator", "ann")) as client:
            for act in ("bounce", "remove"):
                refused = await client.post(f"{QUEUE}/{act}", json={"domain": "a.example", "expect": 2})
                assert (409, "conflict", {}) == error(refused)
                assert "3 deliveries match, not 2" in refused.json()["error"]["message"]
                assert 422 == (await client.post(f"{QUEUE}/{act}", json={"domain": "a.example"})).status_code
            gone = (await client.post(f"{QUEUE}/remove", json={"message_id": "m0", "expect": 1})).json()
            assert (1, 0, 1, 0) == (gone["deliveries"], gone["reports"], gone["silent"], gone["left"])
            told = (await client.post(f"{QUEUE}/bounce", json={"domain": "a.example", "expect": 2})).json()
            assert (2, 2, 0, 0) == (told["deliveries"], told["reports"], told["silent"], told["left"])
        report = await queues.take(topology.OUTBOUND)
        assert ("", ["a@from.example"]) == (report.headers["mail_from"], report.headers["rcpt_to"])
        assert 0 == await Deferred(pool).count()
        assert ["queue bounce", "queue remove"] == [action for _, _, action, _ in await acts(pool)]

        async def journaled() -> bool:
            return await queues.depth(topology.JOURNAL) > 0

        await until(journaled, wanted="events of what an operator did")

    async def test_without_the_broker_nothing_is_bounced(self, settings: Settings, pool: Pool) -> None:
        """503; the mail waits on. It is still listed, and the stats say why they have no queues."""
        await wait(pool, 1)
        away = "amqp://127.0.0.1:9/"
        async with running(settings, pool, amqp_url=away) as panel, panel.client(ADMIN_TOKEN) as client:
            answer = await client.post(f"{QUEUE}/bounce", json={"everything": True, "expect": 1})
            assert (503, "broker_unavailable") == error(answer)[:2]
            assert 1 == (await client.get(QUEUE)).json()["total"]
            stats = (await client.get(f"{QUEUE}/stats")).json()
            assert (503, "broker_unavailable") == error(await client.post(f"{DEAD}/collect"))[:2]
        assert (None, True) == (stats["queues"], "away" in stats["broker_away"])
        assert 1 == await Deferred(pool).count()


class TestDead:
    """What could not be read."""

    async def test_a_letter(self, panel: Panel, pool: Pool, queues: Queues) -> None:
        """Collected, shown, given out, sent again; to read the mail in it takes an operator, and is recorded."""
        headers = {"reason": "rcpt_to is missing", "mail_from": "a@from.example", "odd": bytearray(b"\x00\xff")}
        await queues.put(topology.UNDECODABLE, MESSAGE, headers=headers, content_type="message/rfc822")
        async with panel.client(await panel.token("operator", "ann")) as client:
            assert {"kept": 1, "left": 0} == (await client.post(f"{DEAD}/collect")).json()
            listed = (await client.get(DEAD, params={"search": "MISSING"})).json()
            number = listed["letters"][0]["id"]
            assert (1, "rcpt_to is missing", None) == (listed["total"], listed["letters"][0]["reason"], listed["next"])
            shown = (await client.get(f"{DEAD}/letters/{number}")).json()
            assert ("message", "a@from.example", "hello", {"base64": "AP8="}) == (
                shown["kind"], shown["mail_from"], shown["fields"]["Subject"], shown["headers"]["odd"],
            )  # fmt: skip
            raw = await client.get(f"{DEAD}/letters/{number}/raw")
            assert (MESSAGE, "application/octet-stream", "nosniff") == (
                raw.content, raw.headers["content-type"], raw.headers["x-content-type-options"],
            )  # fmt: skip
            again = await client.post(f"{DEAD}/letters/{number}/requeue", json={})
            assert (409, "conflict") == error(again)[:2]
            assert "come back at once" in again.json()["error"]["message"]
            sent = (await client.post(f"{DEAD}/letters/{number}/requeue", json={"rcpt_to": ["b@a.example"]})).json()
            assert (topology.OUTBOUND, number) == (sent["queue"], sent["id"])
            for method, path in (("GET", ""), ("GET", "/raw"), ("POST", "/requeue")):
                answer = await client.request(
                    method, f"{DEAD}/letters/{number}{path}", json={} if method == "POST" else None
                )
                assert (404, "not_found", {}) == error(answer)
        assert MESSAGE == (await queues.take(topology.OUTBOUND)).body
        async with panel.client(await panel.token("viewer")) as client:
            assert 403 == (await client.get(f"{DEAD}/letters/{number}/raw")).status_code
        assert ["dead requeue", "dead raw", "dead collect"] == [action for _, _, action, _ in await acts(pool)]

    async def test_no_more_is_thrown_away_than_was_seen(self, panel: Panel, queues: Queues) -> None:
        """The count must be right."""
        for _ in range(3):
            await queues.put(topology.UNDECODABLE, b"x", headers={"reason": "none"})
        async with panel.client(await panel.token("operator")) as client:
            await client.post(f"{DEAD}/collect")
            page = (await client.get(DEAD, params={"limit": 2})).json()
            assert page["next"] == page["letters"][1]["id"]
            ids = [each["id"] for each in page["letters"]]
            refused = await client.post(f"{DEAD}/discard", json={"ids": [*ids, 999_999], "expect": 3})
            assert (409, "conflict", {}) == error(refused)
            gone = (await client.post(f"{DEAD}/discard", json={"ids": ids, "expect": 2})).json()
            assert sorted(ids) == gone["discarded"]
            assert 1 == (await client.get(DEAD)).json()["total"]


class TestJournal:
    """What became of mail."""

    @pytest.fixture(autouse=True)
    async def _events(self, pool: Pool) -> None:
        at = now() - timedelta(minutes=2)
        first = Event(
            at=at,
            kind="routed",
            id="m1",
            recipient="b@a.example",
            domain="a.example",
            room="router",
            sender="a@from.example",
            header_id="<x@y>",
            accepted_at=at,
        )
        second = msgspec.structs.replace(
            first, at=at + timedelta(seconds=1), kind="delivered", room="smtp", attempt=1, code=250, reply="OK"
        )
        events = (first, msgspec.structs.replace(second, sender=None, header_id=None, accepted_at=None))
        async with pool.transaction() as connection:
            await connection.execute("TRUNCATE event_batches")
        await Journal(pool, Privacy()).record([Batch(source="s", number=1, emitted=2, events=events)], now=now())

    async def test_a_trace(self, panel: Panel, pool: Pool) -> None:
        """Found by id, Message-ID or address; then its life, and what waits."""
        await wait(pool, 1, id="m1")
        async with panel.client(await panel.token("viewer")) as client:
            for word in ("m1", "<x@y>", "x@y", "b@A.example", "a@from.example"):
                found = (await client.get("/api/v1/trace", params={"word": word})).json()
                assert ["m1"] == [each["id"] for each in found["messages"]], word
            assert ["m1"] == [each["id"] for each in (await client.get("/api/v1/trace")).json()["messages"]]
            life = (await client.get("/api/v1/trace/m1")).json()
            assert ["routed", "delivered"] == [each["kind"] for each in life["events"]]
            assert ["a.example"] == [each["domain"] for each in life["waiting"]]
            assert (404, "not_found", {}) == error(await client.get("/api/v1/trace/none"))
            none = (await client.get("/api/v1/trace", params={"word": "nobody@a.example"})).json()
            assert {"messages": [], "next": None} == none

    async def test_traffic(self, panel: Panel) -> None:
        """By domain and by hour."""
        async with panel.client(await panel.token("viewer")) as client:
            domains = (await client.get("/api/v1/traffic/domains")).json()["domains"]
            assert [("a.example", 1)] == [(each["domain"], each["delivered"]) for each in domains]
            hours = (await client.get("/api/v1/traffic/hours", params={"domain": "A.example"})).json()
            assert 1 == sum(each["delivered"] for each in hours["hours"])
            assert "smtp" in [each["transport"] for each in hours["transports"]]
            assert len(hours["hours"]) in (24, 25)
            for params in (
                {"since": "1970-01-01T00:00:00Z"},
                {"since": "0001-01-01T00:00:00+23:59"},
                {"since": NOON.replace(tzinfo=None).isoformat()},
                {"since": "x"},
                {"since": "1"},
                {"until": "9999-12-31T23:59:59-23:59"},
                {"domain": "a..b"},
            ):
                assert (422, "invalid") == error(await client.get("/api/v1/traffic/hours", params=params))[:2]
