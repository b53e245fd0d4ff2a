"""`pushpush trace` and `pushpush traffic`, as an operator and a script use them."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from shared.mail.event import Event
from shared.mail.privacy import Privacy
from shared.mail.reply import Reply
from shared.runtime.clock import now
from shared.runtime.settings import Settings
from shared.store.deferred import Deferred
from shared.store.journal import Journal
from shared.store.pool import Pool
from tests.integration.command_line import CommandLine, commands
from tests.integration.conftest import MESSAGE, Wire, delivery, through
from tests.integration.journals import batch, told

pytestmark = [pytest.mark.anyio, pytest.mark.services]

# Half an hour past the hour, so that it stays the same number of hours for as long as all tests take.
AT = now().replace(microsecond=0) - timedelta(hours=2, minutes=25)
LATELY = now() - timedelta(minutes=10)  # less than an hour ago
STILL = "`pushpush queue status` shows whether the broker's queues stand still"
Keep = Callable[..., Awaitable[None]]


@pytest.fixture
async def pushpush(settings: Settings) -> AsyncIterator[CommandLine]:
    """The command line for the private broker and database."""
    async with commands(settings) as pushpush:
        yield pushpush


@pytest.fixture
def keep(pool: Pool) -> Keep:
    """Record events, under whole addresses unless told otherwise."""
    numbers = iter(range(1, 1_000))

    async def record(*events: Event, privacy: Privacy | None = None) -> None:
        await Journal(pool, privacy or Privacy()).record([batch(next(numbers), *events)], now=now())

    return record


def life(recipient: str = "bob@a.example") -> list[Event]:
    """Return what happened to a recipient who got the message at the second attempt."""
    routed = {"rule": "a.example", "version": 41, "target": "b.example:2525"}
    return [
        told(
            "routed",
            at=AT,
            recipient=recipient,
            room="router",
            accepted_at=AT - timedelta(milliseconds=3),
            sender="ann@from.example",
            header_id="<1@from.example>",
            size=2_048,
            **routed,
        ),
        told(
            "deferred",
            at=AT + timedelta(seconds=1, milliseconds=234),
            recipient=recipient,
            attempt=1,
            mta="b.example",
            code=451,
            enhanced="4.7.1",
            reply="greylisted",
            ms=812,
            until=AT + timedelta(minutes=1),
            **routed,
        ),
        told("rerouted", at=AT + timedelta(minutes=1), recipient=recipient, room="router", version=42),
        told(
            "delivered",
            at=AT + timedelta(minutes=2),
            recipient=recipient,
            attempt=2,
            mta="mx.a.example",
            code=250,
            reply="ok",
            ms=35,
            version=42,
        ),
    ]


class TestTrace:
    """One message, or those of an address."""

    async def test_the_life_of_a_message(self, keep: Keep, pushpush: CommandLine) -> None:
        """Each step in a line: when, what, who said so and how long it took; and how it ended."""
        await keep(*life())
        ran = await pushpush("trace", "<1@from.example>")
        assert (0, "") == (ran.code, ran.err)
        day = f"{AT:%Y-%m-%d}"
        times = [f"{day} {AT + timedelta(seconds=each):%H:%M:%S}" for each in (0, 1, 60, 120)]
        said, until = "451 4.7.1 greylisted (812 ms)", f"next try {times[2]}Z"
        assert [
            "message m1",
            f"  from ann@from.example, accepted {AT - timedelta(milliseconds=3):%Y-%m-%d %H:%M:%SZ}, 2048 bytes",
            "  Message-ID: <1@from.example>",
            "",
            f"{times[0]}.000Z  routed     bob@a.example: to b.example:2525, by rule a.example (version 41)",
            f"{times[1]}.234Z  deferred   bob@a.example: attempt 1 by smtp at b.example; {said}; {until}",
            f"{times[2]}.000Z  rerouted   bob@a.example: to the MX hosts of a.example, by no rule (version 42)",
            f"{times[3]}.000Z  delivered  bob@a.example: attempt 2 by smtp at mx.a.example; 250 ok (35 ms)",
            "",
            "now:",
            "  bob@a.example was delivered 2 h ago",
        ] == ran.out.splitlines()

    async def test_as_an_object(self, keep: Keep, pushpush: CommandLine) -> None:
        """The same keys whatever was found."""
        await keep(*life())
        data = (await pushpush("trace", "m1", "--json")).data
        assert ["m1"] == [each["id"] for each in data["messages"]]
        assert ["routed", "deferred", "rerouted", "delivered"] == [each["kind"] for each in data["events"]]
        assert ([], "delivered") == (data["waiting"], data["now"][0]["state"])

    async def test_an_address_with_several(self, keep: Keep, pushpush: CommandLine) -> None:
        """A list, and how to see one of them; an object has it without words."""
        people = [f"p{n}@a.example" for n in range(7)]
        await keep(
            *(told("routed", id=f"m{n}", sender="ann@from.example", accepted_at=AT) for n in range(2)),
            *(
                told("routed", id="m2", recipient=each, sender="", accepted_at=AT)
                for each in (*people, "bob@a.example")
            ),
            told("deferred", id="m2", recipient="p1@a.example"),
        )
        ran = await pushpush("trace", "bob@a.example")
        assert 0 == ran.code
        assert "`pushpush trace ID`" in ran.out
        (line,) = (each for each in ran.out.splitlines() if each.startswith("m2"))
        assert "and 3 more" in line
        assert "deferred, 7 routed" in line
        assert "<>" in line
        short = await pushpush("trace", "bob@a.example", "--limit", "2")
        assert (4, True) == (len(short.out.splitlines()), "--limit shows more" in short.out)
        data = (await pushpush("trace", "bob@a.example", "--json")).data
        assert ({"m0", "m1", "m2"}, []) == ({each["id"] for each in data["messages"]}, data["events"])

    async def test_what_waits_has_the_last_word(self, keep: Keep, pool: Pool, pushpush: CommandLine) -> None:
        """Whatever the journal knows, the store of waiting mail is the mail itself."""
        later = now() + timedelta(minutes=5, seconds=30)
        reply = Reply(code=451, text="later")
        await Deferred(pool).defer(delivery("carol@a.example", attempts=1, reply=reply), MESSAGE, later)
        alone = await pushpush("trace", "m1")
        assert "the journal has no event of it" in alone.out
        assert "  carol@a.example waits in the store, is tried in 5 m" in alone.out.splitlines()
        await keep(*life(), told("routed", recipient="carol@a.example", at=AT))
        both = (await pushpush("trace", "m1")).out.splitlines()
        assert [
            "  bob@a.example was delivered 2 h ago",
            "  carol@a.example waits in the store, is tried in 5 m",
        ] == both[-2:]

    @pytest.mark.parametrize(
        ("events", "words"),
        [
            ([told("routed", at=LATELY)], "is on its way, in a queue of the broker or being tried for 10 m"),
            ([told("fallback", at=LATELY)], "is on its way, in a queue of the broker or being tried for 10 m"),
            ([told("routed", at=AT)], f"is on its way, in a queue of the broker or being tried for 2 h; {STILL}"),
            (
                [told("bounced", at=AT, attempt=3, code=550), told("reported", at=AT, report="r1")],
                "was given up 2 h ago; the sender was told, report r1",
            ),
            ([told("bounced", at=AT, attempt=3)], "was given up 2 h ago; no report to the sender is known of"),
            ([told("dropped", at=AT, attempt=3)], "was given up 2 h ago; nobody was told"),
            ([told("removed", at=AT, room="operator", actor="ann")], "was removed 2 h ago"),
            ([told("failed", at=AT)], "could not be settled and was set aside: `pushpush dead list`"),
            (
                [told("deferred", at=AT), told("reported", at=AT, report="r1"), told("delivered", at=AT, attempt=2)],
                "was delivered 2 h ago; the sender was told, report r1",
            ),
        ],
    )
    async def test_where_it_is_now(self, keep: Keep, pushpush: CommandLine, events: list[Event], words: str) -> None:
        """In one sentence for each recipient."""
        await keep(*events)
        said = (await pushpush("trace", "m1")).out.splitlines()[-1]
        assert f"  bob@a.example {words}" == re.sub(r"for [1-5][0-9] m$", "for 10 m", said)

    async def test_what_people_did(self, keep: Keep, pushpush: CommandLine) -> None:
        """Who bounced or removed it stands in the trace."""
        await keep(
            told("bounced", room="operator", actor="ann", reply="given up", at=AT),
            told("removed", room="operator", actor="dan", recipient="c@a.example", at=AT),
            told("postponed", reply="no room", recipient="d@a.example", at=AT),
        )
        out = (await pushpush("trace", "m1")).out
        assert "bounced    bob@a.example: by ann; given up" in out
        assert "removed    c@a.example: by dan, and nobody is told" in out
        assert "postponed  d@a.example: not tried by smtp; no room" in out

    async def test_what_a_peer_said_does_nothing_to_the_terminal(self, keep: Keep, pushpush: CommandLine) -> None:
        """Nor does a Message-ID or an address; also in a list."""
        evil = "\x1b]0;owned\x07\r\nnow: all is well"
        await keep(
            told("routed", sender=evil, header_id=evil, accepted_at=AT, at=AT, recipient=evil, target=evil, rule=evil),
            told("deferred", reply=evil, mta=evil, at=AT, recipient=evil),
            told("routed", id="m2", sender=evil, accepted_at=AT, recipient=evil, header_id=evil),
        )
        for word in ("m1", evil, "m2"):
            ran = await pushpush("trace", word)
            assert 0 == ran.code
            assert [] == [each for each in ran.out + ran.err if not (each.isprintable() or each == "\n")]
            assert "all is well" in ran.out
            assert "now: all is well" not in [each.strip() for each in ran.out.splitlines()]

    @pytest.mark.parametrize("word", ["nothing", "nobody@a.example", "<no@such.id>", "", "--", "\u2028", "%"])
    async def test_what_nothing_is_known_of(self, keep: Keep, pushpush: CommandLine, word: str) -> None:
        """A refusal that says how far the journal reaches, not an empty page."""
        await keep(*life())
        ran = await pushpush("trace", "--", word)
        assert 1 == ran.code
        assert "events are kept for 14 days" in ran.sentence

    async def test_under_a_keyed_hash(self, keep: Keep, pushpush: CommandLine) -> None:
        """Found by the address that the operator knows; it is printed nowhere."""
        key, mode = "k" * 16, "hash"
        await keep(*life(), privacy=Privacy(mode="hash", key=key))
        ran = await pushpush("trace", "bob@a.example", journal_addresses=mode, journal_key=key)
        assert (0, False) == (ran.code, "bob" in ran.out)
        assert "was delivered" in ran.out
        other = await pushpush("trace", "bob@a.example", journal_addresses=mode, journal_key="l" * 16)
        assert 1 == other.code

    async def test_recipients_that_are_kept_alike(self, keep: Keep, pool: Pool, pushpush: CommandLine) -> None:
        """What became of them is counted; nobody is named, and of nobody it is said that it was he."""
        await keep(
            *(told("routed", recipient=f"{each}@a.example", at=AT) for each in ("amy", "bob", "cy", "dan")),
            told("routed", recipient="eve@b.example", domain="b.example", at=AT),
            *(told("delivered", recipient=f"{each}@a.example", attempt=1, at=AT) for each in ("amy", "cy")),
            told("bounced", at=AT, attempt=1, code=550, reply="mailbox Bob is full"),
            told("reported", at=AT, report="r1"),
            told("delivered", recipient="eve@b.example", attempt=1, at=AT),
            privacy=Privacy(mode="domain"),
        )
        later = now() + timedelta(minutes=5, seconds=30)
        await Deferred(pool).defer(delivery("dan@a.example", attempts=1), MESSAGE, later)
        ran = await pushpush("trace", "m1", journal_addresses="domain")
        told_of = "4 routed, 1 bounced, 2 delivered; what waits in the store is tried in 5 m"
        assert [
            f"  recipients at @a.example: {told_of}; the sender was told, report r1",
            "  @b.example was delivered 2 h ago",
        ] == ran.out.splitlines()[-2:]
        assert "bob" not in ran.out.lower()

    async def test_while_the_database_is_away(self, settings: Settings, store_wire: Wire) -> None:
        """Exit code 3, as for every command."""
        await store_wire.cut()
        away = settings.model_copy(update={"database_url": through(settings.database_url, store_wire)})
        async with commands(away) as pushpush:
            for words in (("trace", "m1"), ("traffic",)):
                ran = await pushpush(*words)
                assert (3, True) == (ran.code, "PostgreSQL is away" in ran.sentence)


class TestTraffic:
    """How much went where."""

    async def test_by_domain_with_a_sum(self, keep: Keep, pushpush: CommandLine) -> None:
        """The most first; what was given up in one column."""
        await keep(
            *(told(size=1_500_000, ms=10) for _ in range(2)),
            told("deferred", ms=40),
            told("bounced", domain="b.example"),
            told("dropped", domain="b.example"),
            told("failed", domain="b.example"),
        )
        lines = [each.split() for each in (await pushpush("traffic")).out.splitlines()]
        assert [
            ["a.example", "2", "1", "0", "0", "0", "0", "3", "MB", "20"],
            ["b.example", "0", "0", "3", "0", "0", "0", "0", "B", "0"],
            ["in", "all", "2", "1", "3", "0", "0", "0", "3", "MB", "12"],
        ] == lines[1:]

    async def test_what_an_operator_ended_is_no_attempt(self, keep: Keep, pushpush: CommandLine) -> None:
        """It would make a slow next hop look quick; what was removed is counted, though it was never tried."""
        await keep(
            told(size=1, ms=5_000),
            *(told("bounced", room="operator", actor="ann") for _ in range(99)),
            *(told("removed", room="operator", actor="ann") for _ in range(500)),
            told("dropped", room="router"),
            told("removed", room="operator", actor="ann", domain="b.example"),
        )
        lines = [each.split() for each in (await pushpush("traffic")).out.splitlines()]
        assert [
            ["a.example", "1", "0", "100", "500", "0", "0", "1", "B", "5000"],
            ["b.example", "0", "0", "0", "1", "0", "0", "0", "B", "-"],
            ["in", "all", "1", "0", "100", "501", "0", "0", "1", "B", "5000"],
        ] == lines[1:]
        (hour,) = (await pushpush("traffic", "--by", "hour", "--since", "1m", "--json")).data["traffic"][-1:]
        assert (1, 501, 5_000) == (hour["attempts"], hour["removed"], hour["ms"])
        assert "no mail" not in (await pushpush("traffic", "b.example")).out

    async def test_of_one_domain_by_transport_and_hour(self, keep: Keep, pushpush: CommandLine) -> None:
        """In whatever form the domain is typed."""
        await keep(told(room="https"), told(room="smtp"), told(at=now() - timedelta(hours=2)))
        out = (await pushpush("traffic", "A.Example.")).out
        assert ["https", "smtp", "in"] == [each.split()[0] for each in out.splitlines()[1:]]
        hours = (await pushpush("traffic", "a.example", "--by", "hour", "--since", "2h", "--json")).data["traffic"]
        assert [1, 0, 2] == [each["delivered"] for each in hours]
        this = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        assert this - datetime.fromisoformat(hours[-1]["hour"]) <= timedelta(hours=1)

    async def test_without_any_mail(self, pushpush: CommandLine) -> None:
        """One sentence, or an empty list."""
        assert "no mail to a.example since" in (await pushpush("traffic", "a.example")).out
        assert "no mail since" in (await pushpush("traffic", "--by", "hour")).out
        assert [] == (await pushpush("traffic", "--json")).data["traffic"]

    @pytest.mark.parametrize(
        ("words", "code"),
        [
            (("--since", "yesterday"), 1),
            (("--since", "99999999999d"), 1),
            (("a b",), 1),
            (("\x00",), 1),
            (("--by", "transport"), 1),
            (("a.example", "--by", "domain"), 1),
            (("--by", "week"), 2),
            (("--limit", "0"), 2),
        ],
    )
    async def test_what_is_not_understood(self, pushpush: CommandLine, words: tuple[str, ...], code: int) -> None:
        """Refused in a sentence."""
        if "\x00" in words[0]:
            words = ("\udcff",)  # an argument cannot hold NUL; a byte that is no text it can
        ran = await pushpush("traffic", *words)
        assert code == ran.code
        assert "Traceback" not in ran.err
