"""`pushpush dead ...`: looked at as often as one likes, shown inert, sent again or thrown away on purpose."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.broker import topology
from shared.mail import codec, event
from shared.runtime.settings import Settings
from shared.store.dead import DeadLetters
from shared.store.pool import Pool
from tests.integration.command_line import CommandLine, commands
from tests.integration.conftest import MESSAGE, Queues, Wire, delivery, through
from tests.integration.rooms import running
from tests.integration.test_dead import reading_only

pytestmark = [pytest.mark.anyio, pytest.mark.services]

GOOD = {"mail_from": "a@from.example", "rcpt_to": ["b@a.example"]}
HOSTILE = b"From: \x1b]0;owned\x07 <x@y>\r\nSubject: =?utf-8?b?G1sySg==?= <script>\r\n\r\n\x00\xff"


@pytest.fixture
async def pushpush(settings: Settings) -> AsyncIterator[CommandLine]:
    """The command line for the private broker and database."""
    async with commands(settings) as pushpush:
        yield pushpush


async def aside(queues: Queues, pool: Pool, body: bytes, reason: str = "no sense", **headers: object) -> int:
    """Set a message aside, as a room does; return the number that it will have."""
    about = {**headers, "reason": reason}
    await queues.put(topology.UNDECODABLE, body, headers=about, content_type="message/rfc822")
    async with pool.statement() as connection:
        [(last,)] = await (
            await connection.execute("SELECT coalesce(pg_sequence_last_value('dead_letters_id_seq'), 0)")
        ).fetchall()
    return int(last) + await queues.depth(topology.UNDECODABLE)


class TestLooking:
    """`list` and `show`."""

    async def test_looking_again_and_again_changes_nothing(
        self, pushpush: CommandLine, queues: Queues, pool: Pool
    ) -> None:
        """More often than RabbitMQ 4 hands one message out before it drops it."""
        number = await aside(queues, pool, b"x", reason="wire \x1b[2J version", message_id="m1")
        for _ in range(3):
            data = (await pushpush("dead", "list", "--json")).data
            assert ([number], 1, 0) == ([each["id"] for each in data["letters"]], data["total"], data["in_queue"])
        text = await pushpush("dead", "list", "--search", "WIRE")
        assert "wire \\x1b[2J version" in text.out
        assert "m1" in text.out
        assert "there are no dead letters" == (await pushpush("dead", "list", "--search", "other")).out.strip()
        assert 0 == await queues.depth(topology.UNDECODABLE)

    async def test_what_a_stranger_wrote_is_inert(self, pushpush: CommandLine, queues: Queues, pool: Pool) -> None:
        """Subject, addresses and headers do nothing to a terminal; --raw gives the bytes as they are."""
        number = str(await aside(queues, pool, HOSTILE, mail_from="a\x1b@x", rcpt_to=["b\x9b@y"], own={"a": [1]}))
        await pushpush("dead", "list")
        shown, ran, raw = await asyncio.gather(
            pushpush("dead", "show", number),
            pushpush("dead", "show", number, "--json"),
            pushpush("dead", "show", number, "--raw"),
        )
        assert all(line.isprintable() for line in shown.out.splitlines())
        assert "field Subject: \\x1b[2J <script>" in shown.out
        assert "header own: {'a': [1]}" in shown.out
        assert ("no sense", {"a": [1]}) == (ran.data["reason"], ran.data["headers"]["own"])
        assert ("message", "a\x1b@x") == (ran.data["opened"]["kind"], ran.data["opened"]["mail_from"])
        assert HOSTILE == raw.bytes

    async def test_a_delivery_is_shown_as_one(self, pushpush: CommandLine, queues: Queues, pool: Pool) -> None:
        """What was on its way between the rooms says to whom, and how often it was tried."""
        number = str(await aside(queues, pool, codec.encode(delivery(attempts=3), MESSAGE)))
        await pushpush("dead", "list")
        shown = await pushpush("dead", "show", number)
        assert "it is: a delivery, tried 3 times" in shown.out
        assert "to: b@a.example" in shown.out
        assert "message id: m1" in shown.out

    async def test_there_is_none(self, pushpush: CommandLine) -> None:
        """An unknown number is a sentence, and a number beyond all is a usage error."""
        for words in (("show", "4711"), ("requeue", "4711"), ("discard", "4711", "--yes")):
            ran = await pushpush("dead", *words)
            assert 1 == ran.code
            assert "there is no dead letter 4711" in ran.out + ran.err
        assert 2 == (await pushpush("dead", "show", "9" * 30)).code
        assert 1 == (await pushpush("dead", "requeue")).code

    async def test_while_something_is_away(
        self, pushpush: CommandLine, settings: Settings, queues: Queues, pool: Pool, store_wire: Wire
    ) -> None:
        """Without the broker what is kept is shown, and a warning; without the store nothing is touched."""
        await aside(queues, pool, b"1")
        await pushpush("dead", "list")
        await aside(queues, pool, b"2")
        alone = await pushpush("dead", "list", amqp_url="amqp://guest:guest@127.0.0.1:1/")
        assert (0, True) == (alone.code, "what is still in the queue is not shown" in alone.err)
        with reading_only(settings.database_url):
            reads = await pushpush("dead", "list", "--json")
        assert [1, None] == [reads.data[name] for name in ("total", "in_queue")]
        assert "read-only" in reads.data["warnings"][0]
        await store_wire.cut()
        ran = await pushpush("dead", "list", database_url=through(settings.database_url, store_wire))
        assert (3, 1) == (ran.code, await queues.depth(topology.UNDECODABLE))


class TestDoing:
    """`requeue` and `discard`."""

    async def test_a_letter_that_would_come_back(self, pushpush: CommandLine, queues: Queues, pool: Pool) -> None:
        """It is refused with the reason; with what is missing it goes, and a router delivers it."""
        number = str(await aside(queues, pool, MESSAGE, mail_from="a@from.example"))
        await pushpush("dead", "list")
        refused = await pushpush("dead", "requeue", number)
        assert (1, True) == (refused.code, "it would come back at once: rcpt_to is missing" in refused.sentence)
        sent = await pushpush("dead", "requeue", number, "--from", "a@from.example", "--to", "b@a.example", "--json")
        assert [topology.OUTBOUND] == [each["queue"] for each in sent.data["sent"]]
        assert MESSAGE == (await queues.take(topology.OUTBOUND)).body
        assert 0 == (await pushpush("dead", "list", "--json")).data["total"]

    async def test_many_at_once(self, pushpush: CommandLine, settings: Settings, queues: Queues, pool: Pool) -> None:
        """Those that can be read again go, the others stay and say why; a router takes those that went."""
        for number in range(3):
            await aside(queues, pool, MESSAGE, reason="fault of ours", **GOOD, message_id=f"m{number}")
        await aside(queues, pool, b"", reason="fault of ours", **GOOD)
        await pushpush("dead", "list")
        ran = await pushpush("dead", "requeue", "--search", "fault of ours", "--json")
        assert (1, 3, 1) == (ran.code, len(ran.object["data"]["sent"]), len(ran.object["data"]["refused"]))
        assert "the body is empty" in ran.object["error"]["message"]
        async with running(settings):
            found = {(await queues.delivery(topology.SMTP))[0].id for _ in range(3)}
        assert {"m0", "m1", "m2"} == found
        assert 1 == await DeadLetters(pool).count()

    async def test_discard_asks_first(self, pushpush: CommandLine, queues: Queues, pool: Pool) -> None:
        """Where nobody can be asked it is refused with the count; what is not there is named."""
        first, second = [await aside(queues, pool, b"%d" % number) for number in range(2)]
        await pushpush("dead", "list")
        for json in ([], ["--json"]):
            ran = await pushpush("dead", "discard", "--all", *json)
            words = ran.object["error"]["message"] if json else ran.sentence
            assert (1, True) == (ran.code, "this would throw 2 dead letters away for good" in words)
        assert 2 == await DeadLetters(pool).count()
        partly = await pushpush("dead", "discard", str(first), "4711", "--yes", "--json")
        assert (1, [first], [4711], []) == (partly.code, *partly.object["data"].values())
        assert "1 letter thrown away" == (await pushpush("dead", "discard", str(second), "--yes")).out.strip()
        assert 0 == await DeadLetters(pool).count()

    async def test_a_delivery_that_is_discarded_is_set_aside_no_longer(
        self, pushpush: CommandLine, queues: Queues, pool: Pool
    ) -> None:
        """The journal is told; when it cannot be, that is said. For what is no delivery no broker is needed."""
        first, second = [await aside(queues, pool, codec.encode(delivery(id=f"m{n}"), MESSAGE)) for n in range(2)]
        other = await aside(queues, pool, MESSAGE)
        await pushpush("dead", "list")
        assert "1 letter thrown away" == (await pushpush("dead", "discard", str(first), "--yes")).out.strip()
        [told] = event.decode((await queues.take(topology.JOURNAL)).body).events
        assert ("removed", "m0", "b@a.example", "operator") == (told.kind, told.id, told.recipient, told.room)
        away = "amqp://guest:guest@127.0.0.1:1/"
        quiet = await pushpush("dead", "discard", str(other), "--yes", amqp_url=away)
        assert (0, "") == (quiet.code, quiet.err)
        untold = await pushpush("dead", "discard", str(second), "--yes", "--json", amqp_url=away)
        assert "1 event could not be published" in untold.data["warnings"][0]

    async def test_a_delivery_is_not_sent_as_a_message(self, pushpush: CommandLine, queues: Queues, pool: Pool) -> None:
        """Whatever is said about sender and recipients: the bytes are the rooms' own."""
        number = str(await aside(queues, pool, codec.encode(delivery(), MESSAGE)))
        await pushpush("dead", "list")
        words = ("--queue", "mail.outbound", "--from", "a@x.example", "--to", "b@y.example", "--force")
        refused = await pushpush("dead", "requeue", number, *words)
        assert (1, True) == (refused.code, "mail.reroute alone takes it" in refused.sentence)
        assert 0 == await queues.depth(topology.OUTBOUND)

    async def test_vague_words(self, pushpush: CommandLine) -> None:
        """It must be said which letters."""
        for words in (("discard",), ("discard", "1", "--all"), ("requeue", "--all", "--search", "x")):
            ran = await pushpush("dead", *words)
            assert (1, True) == (ran.code, "say which letters" in ran.sentence)
