"""Messages are found by whatever an operator has of them; what happened to one is told in an order that can be."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import psycopg
import pytest

from shared.mail.event import Event, Kind
from shared.mail.privacy import Privacy
from shared.mail.standing import standings
from shared.runtime.clock import now
from shared.store.deferred import Deferred
from shared.store.journal import Journal
from shared.store.pool import Pool
from shared.store.traces import Traces
from tests.integration.conftest import MESSAGE, delivery
from tests.integration.journals import batch, told

pytestmark = [pytest.mark.anyio, pytest.mark.services]

WHOLE = Privacy()
START = now().replace(microsecond=0) - timedelta(hours=5)
Keep = Callable[..., Awaitable[None]]
MANY = """
    INSERT INTO events (at, kind, message_id, recipient, domain, room, header_id)
    SELECT %(at)s + make_interval(secs => n / 1000.0), 'routed', 'm' || n, 'b@a.example', 'a.example', 'router',
        '<same@from.example>' FROM generate_series(1, 300000) AS n
"""


def minute(number: float) -> datetime:
    """Return a time after the start."""
    return START + timedelta(minutes=number)


def routed(id_: str, at: datetime, *recipients: str, sender: str = "ann@from.example", **fields: object) -> list[Event]:
    """Return what is told of a new message."""
    known = {"accepted_at": at, "sender": sender, "header_id": f"<{id_}@from.example>", "size": 2_048, **fields}
    return [
        told("routed", at=at, id=id_, recipient=each, domain=each.partition("@")[2], room="router", **known)
        for each in recipients or ("bob@a.example",)
    ]


@pytest.fixture
def keep(pool: Pool) -> Keep:
    """Record events, under whole addresses unless told otherwise."""
    numbers = iter(range(1, 1_000))

    async def record(*events: Event, privacy: Privacy = WHOLE) -> None:
        await Journal(pool, privacy).record([batch(next(numbers), *events)], now=now())

    return record


@pytest.fixture
def traces(pool: Pool) -> Traces:
    """The traces under whole addresses."""
    return Traces(pool, WHOLE)


class TestFind:
    """Which messages a word names."""

    @pytest.mark.parametrize(
        "word",
        [
            "m1",
            " m1 ",
            "<m1@from.example>",
            "m1@from.example",
            "bob@a.example",
            "<bob@a.example>",
            "bob@A.EXAMPLE.",
            "ann@from.example",
        ],
    )
    async def test_by_anything_that_an_operator_has(self, keep: Keep, traces: Traces, word: str) -> None:
        """The queue id, the Message-ID, a recipient or the sender, with brackets or without, in any case of domain."""
        await keep(*routed("m1", minute(0)), told(at=minute(1), attempt=1))
        await keep(*routed("m2", minute(0), "carol@c.example", sender="dan@d.example"))
        (found,) = await traces.find(word)
        assert ("m1", minute(0), "ann@from.example", ["bob@a.example"], 1, 2_048, "<m1@from.example>") == (
            found.id,
            found.accepted_at,
            found.sender,
            found.recipients,
            found.recipient_count,
            found.size,
            found.header_id,
        )
        assert ("delivered", minute(1), {"delivered": 1}) == (found.last_kind, found.last_at, found.states)

    @pytest.mark.parametrize(
        "word", ["", " ", "<>", "nothing", "a\x00b", "a@\x00", "\ud800@a.example", "%", "x" * 9_000]
    )
    async def test_what_names_nothing_finds_nothing(self, keep: Keep, traces: Traces, word: str) -> None:
        """Above all it is not told as an outage; the null reverse-path is nobody's."""
        await keep(*routed("m1", minute(0), sender=""))
        assert [] == await traces.find(word)

    async def test_the_newest_are_first_and_pages_neither_miss_nor_repeat(self, keep: Keep, traces: Traces) -> None:
        """Also where several have the same time, and where a message matches by both of its sides at two times."""
        await keep(
            *(
                event
                for n in range(40)
                for event in (
                    *routed(f"m{n}", minute(n // 3), "x@a.example", "me@a.example", sender="me@a.example"),
                    told(at=minute(60 - n // 5), id=f"m{n}", recipient="me@a.example"),
                    told(at=minute(70 + n), id=f"m{n}", recipient="x@a.example"),
                )
            )
        )
        pages, before = [], None
        while found := await traces.find("me@a.example", limit=7, before=before):
            pages.append(found)
            before = found[-1].at
        ids = [each.id for page in pages for each in page]
        assert sorted(f"m{n}" for n in range(40)) == sorted(ids)
        times = [each.at for page in pages for each in page]
        assert sorted(times, reverse=True) == times
        assert all(7 <= len(page) < 14 for page in pages[:-1])

    async def test_many_recipients_are_counted_and_few_named(self, keep: Keep, traces: Traces) -> None:
        """States are those of each recipient's last event; a report is no state."""
        people = [f"p{n}@a.example" for n in range(8)]
        await keep(
            *routed("m1", minute(0), *people),
            *(told("deferred", at=minute(1), recipient=each, attempt=1) for each in people[:5]),
            *(told("delivered", at=minute(2), recipient=each, attempt=2) for each in people[:2]),
            told("bounced", at=minute(3), recipient=people[2], attempt=2),
            told("reported", at=minute(3), recipient=people[2], report="r1"),
            told("reported", at=minute(4), recipient=people[3], report="r2"),
        )
        (found,) = await traces.find("m1")
        assert (people[:5], 8, "reported") == (found.recipients, found.recipient_count, found.last_kind)
        assert {"delivered": 2, "bounced": 1, "deferred": 2, "routed": 3} == found.states

    @pytest.mark.parametrize("end", ["delivered", "bounced", "dropped", "failed", "removed"])
    @pytest.mark.parametrize("first", ["routed", "rerouted", "fallback"])
    async def test_clocks_of_two_hosts_differ(self, keep: Keep, traces: Traces, first: Kind, end: Kind) -> None:
        """A list says the same as the trace: what ended is not on its way."""
        at = minute(0)
        await keep(told(end, at=at + timedelta(milliseconds=20)), told(first, at=at + timedelta(milliseconds=30)))
        (found,) = await traces.find("m1")
        (stand,) = standings(await traces.timeline("m1"), {})
        assert ({end: 1}, end) == (found.states, stand.last.kind if stand.last else None)

    @pytest.mark.parametrize(
        ("kinds", "last"),
        [
            (("delivered", "routed"), "delivered"),
            (("delivered", "rerouted"), "delivered"),
            (("delivered", "rerouted", "deferred"), "deferred"),
            (("failed", "rerouted"), "rerouted"),
            (("deferred", "rerouted"), "rerouted"),
            (("routed",), "routed"),
        ],
    )
    async def test_what_happens_after_an_end(
        self, keep: Keep, traces: Traces, kinds: tuple[Kind, ...], last: Kind
    ) -> None:
        """As in a trace, too."""
        await keep(*(told(kind, at=minute(number)) for number, kind in enumerate(kinds)))
        (found,) = await traces.find("m1")
        (stand,) = standings(await traces.timeline("m1"), {})
        assert ({last: 1}, last) == (found.states, stand.last.kind if stand.last else None)

    async def test_recipients_that_are_kept_alike_are_counted(self, keep: Keep, pool: Pool) -> None:
        """By what became of them: one of each, and not only the last."""
        privacy = Privacy(mode="domain")
        await keep(
            *routed("m1", minute(0), "amy@a.example", "bob@a.example", "cy@a.example"),
            told("bounced", at=minute(1)),
            told(at=minute(2), recipient="amy@a.example"),
            told(at=minute(2), recipient="cy@a.example"),
            privacy=privacy,
        )
        (found,) = await Traces(pool, privacy).find("m1")
        assert ({"bounced": 1, "delivered": 2}, 1) == (found.states, found.recipient_count)

    async def test_of_very_many_messages_with_the_same_id_no_more_are_read_than_are_shown(
        self, traces: Traces, pool: Pool, database: str
    ) -> None:
        """Whoever sends chooses the Message-ID: 300,000 equal ones, on the first page and on one in the middle."""
        await Journal(pool, WHOLE).record([batch(1, told(at=START), told(at=minute(6)))], now=now())  # makes the days
        with psycopg.connect(database) as connection:
            connection.execute(MANY, {"at": START})
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("ANALYZE events")
        first = await traces.find("same@from.example")
        second = await traces.find("same@from.example", before=minute(1))
        assert (50, 50) == (len(first), len(second))
        assert all(each.at < minute(1) for each in second)

    async def test_a_message_whose_beginning_is_lost_is_found_all_the_same(self, keep: Keep, traces: Traces) -> None:
        """Its events may have been dropped on the way, or be older than what is kept."""
        await keep(told("deferred", at=minute(0)))
        (found,) = await traces.find("bob@a.example")
        assert (None, None, None, 0) == (found.accepted_at, found.sender, found.header_id, found.size)

    @pytest.mark.parametrize("privacy", [Privacy(mode="domain"), Privacy(mode="hash", key="k" * 16)])
    async def test_addresses_are_searched_as_they_are_kept(self, keep: Keep, pool: Pool, privacy: Privacy) -> None:
        """As the operator knows them, and as a list shows them; and so are records of an earlier setting."""
        await keep(*routed("old", minute(0)))
        await keep(*routed("m1", minute(1)), told(at=minute(2)), privacy=privacy)
        found = await Traces(pool, privacy).find("bob@a.example")
        assert ["m1", "old"] == [each.id for each in found]
        assert "bob" not in found[0].recipients[0]
        again = await Traces(pool, privacy).find(found[0].recipients[0])
        assert ["m1"] == [each.id for each in again]
        other = await Traces(pool, privacy).find("carol@a.example")
        assert (["m1"] if privacy.mode == "domain" else []) == [each.id for each in other]

    async def test_the_recent_ones_of_all(self, keep: Keep, traces: Traces) -> None:
        """What happened last is first, page by page."""
        await keep(
            *(event for n in range(10) for event in (*routed(f"m{n}", minute(n)), told(id=f"m{n}", at=minute(20 - n))))
        )
        first = await traces.recent(limit=4)
        second = await traces.recent(limit=100, before=first[-1].at)
        assert [f"m{n}" for n in range(10)] == [each.id for each in (*first, *second)]


class TestTimeline:
    """What happened to one message."""

    async def test_what_happened_at_once_is_in_an_order_that_can_be(self, keep: Keep, traces: Traces) -> None:
        """A message is not delivered before it has its route, nor its sender told before it is given up."""
        at = minute(0)
        await keep(
            told("reported", at=at, report="r1"),
            told("bounced", at=at, attempt=2),
            told("deferred", at=at, attempt=1),
            told("rerouted", at=at),
            *routed("m1", at),
        )
        kinds = [each.kind for each in await traces.timeline("m1")]
        assert ["routed", "rerouted", "deferred", "bounced", "reported"] == kinds

    async def test_over_days_and_of_very_much_the_newest(self, keep: Keep, traces: Traces) -> None:
        """What an operator wants to know of a message is how it stands."""
        await keep(*(told("deferred", at=START - timedelta(days=n), attempt=9 - n) for n in range(8)))
        assert list(range(2, 10)) == [each.attempt for each in await traces.timeline("m1")]
        assert [8, 9] == [each.attempt for each in await traces.timeline("m1", limit=2)]

    @pytest.mark.parametrize("id_", ["nothing", "a\x00b", "\ud800", ""])
    async def test_of_an_unknown_id_there_is_nothing(self, traces: Traces, id_: str) -> None:
        """And no outage."""
        assert ([], []) == (await traces.timeline(id_), await traces.waiting(id_))

    async def test_what_waits_of_it(self, pool: Pool) -> None:
        """Addresses as the journal keeps them, so that both can be read together."""
        at = now() + timedelta(minutes=5)
        await Deferred(pool).defer(delivery("bob@a.example", "carol@a.example", attempts=2), MESSAGE, at)
        await Deferred(pool).defer(delivery("dan@a.example", id="m2"), MESSAGE, at)
        (waiting,) = await Traces(pool, Privacy(mode="domain")).waiting("m1")
        assert (["@a.example", "@a.example"], 2, at) == (waiting.recipients, waiting.attempts, waiting.next_attempt_at)
