"""The journal's tables: each batch once, addresses as the setting says, days made and dropped, losses told."""

import asyncio
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest

from shared.mail.privacy import Privacy
from shared.runtime.clock import now
from shared.runtime.errors import StoreUnavailable
from shared.store.journal import Journal, Recorded, UnrecordableError
from shared.store.pool import Pool
from shared.store.traces import Traces
from shared.store.traffic import Traffic
from tests.integration.conftest import Wire, through, until
from tests.integration.journals import batch, count, delivered, told

pytestmark = [pytest.mark.anyio, pytest.mark.services]

WHOLE = Privacy()
SLOW_COMMIT = """
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON event_batches DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION slow();
"""

MANY = """
    INSERT INTO traffic (hour, domain, transport, delivered)
    SELECT %(old)s::timestamptz + make_interval(hours => n / 30000), 'd' || n, 'smtp', 1
    FROM generate_series(1, 50000) AS n
"""
SMALL_PIECES = """
    CREATE FUNCTION small_pieces() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF (SELECT count(*) FROM gone) > 20000 THEN RAISE EXCEPTION 'too many at once'; END IF; RETURN NULL;
    END $$;
    CREATE TRIGGER small_pieces AFTER DELETE ON traffic REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION small_pieces();
"""


@pytest.fixture
def journal(pool: Pool, database: str) -> Journal:
    """A journal that keeps whole addresses, and has no day yet."""
    with psycopg.connect(database) as connection:
        for day in days(database):
            connection.execute(f"DROP TABLE {day}")
    return Journal(pool, WHOLE)


def days(database: str) -> list[str]:
    """Return the names of the partitions."""
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
            "WHERE inhparent = 'events'::regclass ORDER BY relname"
        )
        return [row[0] for row in rows]


class TestRecording:
    """Batches become rows and counters."""

    async def test_an_event_is_kept_whole(self, journal: Journal, pool: Pool) -> None:
        """What comes out is what went in, every field of it."""
        at = now()
        event = told(
            "deferred",
            at=at,
            attempt=3,
            rule="a.example",
            version=41,
            target="b.example:2525",
            mta="mx.b.example",
            code=451,
            enhanced="4.7.1",
            reply="Greylisted; try\tlater \\ \n \N{SNOWMAN}",
            ms=812,
            size=2048,
            until=at + timedelta(minutes=15),
            accepted_at=at - timedelta(hours=1),
            sender="",
            header_id="<1@from.example>",
            report="r1",
            actor="ann",
        )
        assert Recorded(events=1, doubles=0, late=0) == await journal.record([batch(1, event)], now=now())
        assert [event] == await Traces(pool, WHOLE).timeline("m1")

    async def test_a_batch_that_comes_twice_counts_once(self, journal: Journal, database: str) -> None:
        """Beside others in one transaction, in a later one, and twice in the same."""
        first, second = batch(1, told(), told()), batch(2, told(), told())
        await journal.record([first, first], now=now())
        assert Recorded(events=2, doubles=1, late=0) == await journal.record([second, first], now=now())
        assert (4, 4) == (count(database), delivered(database))

    async def test_two_journals_that_have_the_same_batches_at_once(
        self, journal: Journal, pool: Pool, database: str
    ) -> None:
        """Redelivered while the first still records: each counts once, in whatever order, and nobody waits for ever."""
        batches = [batch(1, *(told(id=f"m{n}"), told(domain=f"d{n}.example")), source=f"s{n}") for n in range(30)]
        other = Journal(pool, WHOLE)
        records = [
            each.record(order, now=now())
            for each, order in itertools.product((journal, other), (batches, batches[::-1]))
        ]
        found = await asyncio.gather(*records)
        assert (60, 90) == (sum(each.events for each in found), sum(each.doubles for each in found))
        assert (60, 60) == (count(database), delivered(database))

    async def test_text_that_the_store_cannot_hold_is_cut_to_what_it_can(self, journal: Journal, database: str) -> None:
        """NUL, a Message-ID or a name longer than an index takes, times that cannot be read again: still recorded."""
        hostile = told(
            id="m" * 300,
            recipient="\x00" + "r" * 9_000 + "@a.example",
            domain="d" * 9_000,
            header_id="<" + "h" * 90_000 + "\x00>",
            sender="s" * 9_000,
            reply="\x00" * 5 + "x" * 90_000,
            rule="r" * 9_000,
            target="t" * 90_000,
            until=datetime(1, 1, 1, tzinfo=UTC) + timedelta(hours=1),
            accepted_at=datetime(9999, 12, 31, 23, 59, tzinfo=UTC),
        )
        assert 1 == (await journal.record([batch(1, hostile)], now=now())).events
        assert 1 == count(database)

    @pytest.mark.parametrize("field", ["attempt", "code", "version"])
    async def test_values_that_it_cannot_hold_are_told_apart_from_an_outage(
        self, journal: Journal, database: str, field: str
    ) -> None:
        """Whoever took that for an outage would try the same batch for ever."""
        with pytest.raises(UnrecordableError):
            await journal.record(
                [batch(1, told()), batch(2, msgspec.structs.replace(told(), **{field: 2**70}))], now=now()
            )
        assert (0, 0, 0) == (count(database), delivered(database), count(database, "event_batches"))

    async def test_an_absurd_event_does_not_fill_up_the_counters_of_its_hour(
        self, journal: Journal, pool: Pool, database: str
    ) -> None:
        """Whatever comes after it in that hour would not fit, and be dropped."""
        for number, absurd in enumerate((2**63 - 1, 2**63 - 1, 2**63 - 1, -(2**63)), start=1):
            await journal.record([batch(number, told(size=absurd, ms=absurd))], now=now())
        await journal.record([batch(9, told(size=7, ms=5))], now=now())
        assert (5, 5) == (count(database), delivered(database))
        (found,) = await Traffic(pool).by_domain(since=now())
        assert (3 * 2**40 + 7, 3 * 86_400_000 + 5) == (found.bytes, found.ms)
        assert [0, 7, 2**40, 2**40, 2**40] == sorted(each.size for each in await Traces(pool, WHOLE).timeline("m1"))

    async def test_a_batch_without_events_is_known_too(self, journal: Journal, database: str) -> None:
        """It is no fault, and needs no day."""
        assert Recorded(events=0, doubles=0, late=0) == await journal.record([batch(1)], now=now())
        assert 1 == count(database, "event_batches")

    async def test_while_the_store_is_away_it_says_so(self, store_wire: Wire, database: str) -> None:
        """Also when it goes in the middle; recording the same again after that counts it once."""
        pool = Pool(through(database, store_wire), name="test", timeout=0.5)
        await pool.open()
        journal = Journal(pool, WHOLE)
        await journal.record([batch(1, told())], now=now())
        await store_wire.cut()
        with pytest.raises(StoreUnavailable):
            await journal.record([batch(2, told())], now=now())
        await store_wire.mend()
        for _ in range(2):
            await until(lambda: _recorded(journal), within=15)
        assert 2 == count(database)
        await pool.close()

    async def test_a_commit_whose_answer_is_lost_counts_once(self, store_wire: Wire, database: str) -> None:
        """The store has it, and the journal cannot know: it records the batch again."""
        pool = Pool(through(database, store_wire), name="test", timeout=0.5)
        await pool.open()
        journal = Journal(pool, WHOLE)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(SLOW_COMMIT)
            try:
                recording = asyncio.create_task(journal.record([batch(1, told())], now=now()))
                await until(lambda: _commits(connection))
                await store_wire.cut()
                with pytest.raises(StoreUnavailable):
                    await recording
                await until(lambda: count(database) == 1)
            finally:
                connection.execute("DROP FUNCTION slow CASCADE")
        await store_wire.mend()
        await until(lambda: _recorded(journal, 1), within=15)
        assert (1, 1) == (count(database), delivered(database))
        await pool.close()


async def _recorded(journal: Journal, number: int = 2) -> bool:
    try:
        await journal.record([batch(number, told())], now=now())
    except StoreUnavailable:
        return False
    return True


def _commits(connection: psycopg.Connection) -> bool:
    rows = connection.execute("SELECT FROM pg_stat_activity WHERE query ILIKE 'commit' AND wait_event = 'PgSleep'")
    return rows.fetchone() is not None


class TestPrivacy:
    """What is kept of addresses."""

    @pytest.mark.parametrize(
        ("privacy", "secrets"),
        [
            (Privacy(mode="domain"), ("bob", "ann")),
            (Privacy(mode="hash", key="k" * 16), ("bob", "ann")),
        ],
        ids=["domain", "hash"],
    )
    async def test_no_local_part_is_anywhere_in_the_table(
        self, pool: Pool, database: str, privacy: Privacy, secrets: tuple[str, str]
    ) -> None:
        """Neither as recipient or sender nor in the words of a peer."""
        words = (
            "550 5.1.1 <bob@a.example>: no such user bob@a.example.",
            "550 5.1.1 user Bob unknown",
            "550 see https://a.example/?r=bob%40a.example",
            "550 mailbox bob is full, told to ANN@from.example, and to ann",
            "550 bob @ a.example, bob\uff20a.example, b\x00ob",
        )
        events = [told(sender="ann@from.example", reply=each) for each in words]
        await Journal(pool, privacy).record([batch(1, *events)], now=now())
        with psycopg.connect(database) as connection:
            rows = connection.execute("SELECT lower(to_jsonb(e)::text) FROM events AS e").fetchall()
        assert [] == [(each, row) for row in rows for each in secrets if each in row[0]]
        assert all("a.example" in row[0] and "550 " in row[0] for row in rows)


class TestDays:
    """Partitions by day, and what is too old."""

    async def test_each_day_has_its_own(self, journal: Journal, database: str) -> None:
        """Made when it is first needed, with the indexes of all."""
        noon = datetime(2026, 6, 2, 12, tzinfo=UTC)
        at = (noon - timedelta(days=3), noon - timedelta(hours=12, microseconds=1), noon, noon - timedelta(hours=12))
        await journal.record([batch(1, *(told(at=each) for each in at))], now=noon)
        assert ["events_20260530", "events_20260601", "events_20260602"] == days(database)
        assert [1, 1, 2] == [count(database, each) for each in days(database)]
        with psycopg.connect(database) as connection:
            (indexes,) = connection.execute(
                "SELECT count(*) FROM pg_indexes WHERE tablename = 'events_20260602'"
            ).fetchone() or (0,)
            (wanted,) = connection.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'events'").fetchone() or (
                0,
            )
        assert wanted == indexes > 3

    async def test_tomorrow_is_made_ahead(self, journal: Journal, database: str) -> None:
        """Nobody waits for it at midnight; making it again does nothing."""
        for _ in range(2):
            await journal.prepare(now())
        tomorrow = now() + timedelta(days=1)
        assert [f"events_{each:%Y%m%d}" for each in (now(), tomorrow)] == days(database)

    async def test_many_make_the_same_day_at_once(self, journal: Journal, pool: Pool, database: str) -> None:
        """Each journal of a fleet gets there at midnight."""
        del journal
        await asyncio.gather(*(Journal(pool, WHOLE).prepare(datetime(2026, 2, 1, tzinfo=UTC)) for _ in range(8)))
        assert ["events_20260201", "events_20260202"] == days(database)

    async def test_what_is_older_than_the_retention_goes_by_the_day(
        self, pool: Pool, journal: Journal, database: str
    ) -> None:
        """A day is dropped when all of it is too old; its events do not come back by a late batch."""
        noon = datetime(2026, 6, 30, 12, tzinfo=UTC)
        ages = [timedelta(days=each) for each in (1, 14, 15)]
        short = Journal(pool, WHOLE, retention=timedelta(days=14))
        await Journal(pool, WHOLE, retention=timedelta(days=99)).record(
            [batch(1, *(told(at=noon - each) for each in ages))], now=noon
        )
        pruned = await short.prune(now=noon, traffic_before=noon - timedelta(days=14))
        assert (2, 1) == (count(database), pruned.traffic)
        assert "events_20260615" not in days(database)
        late = await journal.record([batch(2, *(told(at=noon - each) for each in ages))], now=noon)
        assert Recorded(events=2, doubles=0, late=1) == late
        assert "events_20260615" not in days(database)

    async def test_a_clock_that_is_far_ahead_is_not_believed(self, journal: Journal, pool: Pool, database: str) -> None:
        """Nor one that is far behind; neither makes days that nobody ever drops, nor stops the others."""
        at = now()
        events = [told(at=at + timedelta(days=400)), told(at=datetime(1, 1, 1, tzinfo=UTC)), told(at=at)]
        assert Recorded(events=2, doubles=0, late=1) == await journal.record([batch(1, *events)], now=at)
        assert [at, at] == [each.at for each in await Traces(pool, WHOLE).timeline("m1")]
        assert [f"events_{at:%Y%m%d}"] == days(database)

    async def test_a_day_that_somebody_dropped_is_made_again(self, journal: Journal, database: str) -> None:
        """By hand, or another journal whose clock is ahead."""
        await journal.record([batch(1, told())], now=now())
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"DROP TABLE events_{now():%Y%m%d}")
        await journal.record([batch(2, told())], now=now())
        assert 1 == count(database)

    async def test_a_day_that_somebody_detached_takes_events_again(self, journal: Journal, database: str) -> None:
        """Its table is still there under the same name."""
        await journal.record([batch(1, told())], now=now())
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"ALTER TABLE events DETACH PARTITION events_{now():%Y%m%d}")
        await journal.record([batch(2, told())], now=now())
        assert 2 == count(database)

    async def test_a_day_that_is_being_read_waits_and_holds_nobody_up(self, journal: Journal, database: str) -> None:
        """A long reader, such as pg_dump, neither is broken nor stops those who record."""
        old = now() - timedelta(days=3)
        await journal.record([batch(1, told(at=old))], now=now())
        far = now() + timedelta(days=13)
        with psycopg.connect(database) as reader:
            reader.execute("SELECT count(*) FROM events")
            pruned = await journal.prune(now=far, traffic_before=old)
            assert 0 == pruned.days
            await asyncio.wait_for(journal.record([batch(2, told())], now=now()), 5)
        assert 1 == (await journal.prune(now=far, traffic_before=old)).days
        assert 1 == count(database)

    async def test_making_a_day_does_not_wait_for_readers(self, journal: Journal, database: str) -> None:
        """Neither for one, nor for somebody who writes: else midnight would stand still for a backup."""
        await journal.record([batch(1, told())], now=now())
        with psycopg.connect(database) as reader:
            reader.execute("SELECT count(*) FROM events")
            await asyncio.wait_for(journal.prepare(datetime(2026, 3, 1, tzinfo=UTC)), 5)
        assert "events_20260302" in days(database)


class TestPruningCounters:
    """Counters that are too old."""

    async def test_however_many_there_are_no_statement_deletes_more_than_a_piece(
        self, journal: Journal, database: str
    ) -> None:
        """One of millions would take longer than we wait for an answer, and be undone and tried anew for ever."""
        old = now() - timedelta(days=500)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(MANY, {"old": old})
            await journal.record([batch(1, told())], now=now())
            connection.execute(SMALL_PIECES)
            try:
                pruned = await journal.prune(now=now(), traffic_before=now() - timedelta(days=400))
            finally:
                connection.execute("DROP FUNCTION small_pieces CASCADE")
        assert (50_000, 1, 1) == (pruned.traffic, count(database, "traffic"), count(database, "traffic_hours"))

    async def test_two_journals_prune_at_once(self, journal: Journal, pool: Pool, database: str) -> None:
        """Neither waits for the other, nor do they delete anything twice."""
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(MANY, {"old": now() - timedelta(days=500)})
        both = (journal, Journal(pool, WHOLE))
        pruned = await asyncio.gather(*(each.prune(now=now(), traffic_before=now()) for each in both))
        assert (50_000, 0) == (sum(each.traffic for each in pruned), count(database, "traffic"))


class TestLost:
    """How much was lost on the way."""

    @pytest.fixture
    def aged(self, database: str) -> Callable[[str], None]:
        """Make every batch so much older."""

        def age(by: str) -> None:
            with psycopg.connect(database) as connection:
                connection.execute("UPDATE event_batches SET recorded_at = recorded_at - %s::interval", (by,))

        return age

    async def test_what_is_missing_is_counted(self, journal: Journal, aged: Callable[[str], None]) -> None:
        """Batches that never came, and events that made room before the first, or between."""
        await journal.record([batch(1, told(), emitted=4), batch(3, told(), told(), emitted=9)], now=now())
        await journal.record([batch(n, told(), source="whole") for n in (1, 2)], now=now())
        assert 0 == await journal.lost()  # what was emitted a moment ago may be on its way
        aged("2 minutes")
        assert 6 == await journal.lost()
        await journal.record([batch(2, told(), told(), emitted=7)], now=now())
        assert 4 == await journal.lost()

    async def test_a_source_that_goes_on_is_looked_at_too(self, journal: Journal, aged: Callable[[str], None]) -> None:
        """Its last batch is always young."""
        await journal.record([batch(1, told()), batch(2, told(), emitted=5)], now=now())
        aged("2 minutes")
        await journal.record([batch(4, told(), emitted=7)], now=now())
        assert 3 == await journal.lost()

    async def test_numbers_that_are_too_old_are_forgotten_and_nothing_counts_as_lost(
        self, journal: Journal, aged: Callable[[str], None], database: str
    ) -> None:
        """After a day without any batch the newest stay: they may come again when the journals start."""
        await journal.record([batch(2, told()), batch(3, told())], now=now())
        aged("25 hours")
        assert 0 == (await journal.prune(now=now(), traffic_before=now())).batches
        await journal.record([batch(4, told()), batch(5, told())], now=now())
        assert 2 == (await journal.prune(now=now(), traffic_before=now())).batches
        aged("2 minutes")
        assert (0, 2) == (await journal.lost(), count(database, "event_batches"))
