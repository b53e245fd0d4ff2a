"""`pushpush queue ...`: what waits, made due, bounced and removed; nothing is destroyed without a word."""

import asyncio
import os
import pty
import subprocess
import sys
import unicodedata
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from shared.broker import topology
from shared.mail import event
from shared.mail.reply import Reply
from shared.mail.route import Route
from shared.runtime.settings import Settings
from shared.store.dead import DeadLetters, Letter
from shared.store.deferred import Deferred
from shared.store.hops import NextHops
from shared.store.pool import Pool
from tests.integration.command_line import CommandLine, commands
from tests.integration.conftest import MESSAGE, Queues, Wire, delivery, through
from tests.unit.strategies import hostile_text

pytestmark = [pytest.mark.anyio, pytest.mark.services]

LATER = datetime.now(UTC) + timedelta(hours=1)
GREYLISTED = Reply(code=451, enhanced="4.7.1", text="greylisted", mta="mx.a.example")
FULL = Reply(code=452, enhanced="4.2.2", text="mailbox full", mta="mx.a.example")


@pytest.fixture
async def pushpush(settings: Settings) -> AsyncIterator[CommandLine]:
    """The command line for the private broker and database."""
    async with commands(settings, PUSHPUSH_HOSTNAME="mail.pushpush.example") as pushpush:
        yield pushpush


@pytest.fixture
async def deferred(pool: Pool) -> Deferred:
    """Three messages that wait: two of a.example, of which one is at a rule's target, and an old one."""
    deferred = Deferred(pool)
    ruled = Route(version=1, key="a.example", targets=("x.example:2525",))
    young = datetime.now(UTC)
    await deferred.defer(delivery(id="m1", reply=GREYLISTED, attempts=1, accepted_at=young), MESSAGE, LATER)
    await deferred.defer(delivery(id="m2", reply=FULL, attempts=1, accepted_at=young, route=ruled), MESSAGE, LATER)
    old = young - timedelta(days=2)
    await deferred.defer(delivery(id="m3", domain="b.example", put_off="smtp", accepted_at=old), MESSAGE, LATER)
    return deferred


async def left(deferred: Deferred) -> set[str]:
    """Return the messages that wait."""
    return {each.message_id for each in await deferred.matching()}


class TestLooking:
    """`status`, `list`, `stats` and `top`."""

    async def test_status(self, pushpush: CommandLine, pool: Pool, deferred: Deferred) -> None:
        """Queues, waiting mail, what was put off, dead letters, and next hops that are left alone."""
        del deferred
        await NextHops(pool).remember("mx.a.example:25", "suspended", 30, "no answer \x1b[2J")
        await NextHops(pool).remember("https://c.example/mxdeliv", "without mxdeliv", 1800, "404")
        await NextHops(pool).remember("mx.d.example:25", "suspended", 0, "over")
        await DeadLetters(pool).keep([Letter(headers={}, data=b"x", reason="r")])
        text, ran = await asyncio.gather(pushpush("queue", "status"), pushpush("queue", "status", "--json"))
        assert "mx.a.example:25 is suspended" in text.out
        assert "\\x1b[2J" in text.out
        assert "https://c.example/mxdeliv is without mxdeliv" in text.out
        assert "mx.d.example" not in text.out
        assert "1 of them put off for want of room" in text.out
        data = ran.data
        assert (3, 1, 1) == (data["waiting"], data["put_off"], data["dead_letters"])
        assert ["mx.a.example:25"] == [each["hop"] for each in data["suspended"]]
        assert ["https://c.example/mxdeliv"] == [each["hop"] for each in data["without_mxdeliv"]]

    @pytest.mark.parametrize(
        ("options", "found"),
        [
            ([], {"m1", "m2", "m3"}),
            (["m2"], {"m2"}),
            (["--domain", "A.Example."], {"m1", "m2"}),
            (["--target", "X.example:2525"], {"m2"}),
            (["--target", ""], {"m1", "m3"}),
            (["--older", "1d"], {"m3"}),
            (["--error", "MAILBOX"], {"m2"}),
            (["--error", "4", "--domain", "a.example", "--target", ""], {"m1"}),
            (["--domain", "c.example"], set()),
        ],
    )
    async def test_list(self, pushpush: CommandLine, deferred: Deferred, options: list[str], found: set[str]) -> None:
        """By message, domain, target, age and answer, each narrowing the others."""
        del deferred
        data = (await pushpush("queue", "list", *options, "--json")).data
        assert (found, len(found)) == ({each["message_id"] for each in data["waiting"]}, data["total"])

    async def test_a_list_says_what_it_leaves_out(self, pushpush: CommandLine, deferred: Deferred) -> None:
        """With a limit nobody takes the part for the whole."""
        del deferred
        listed = await pushpush("queue", "list", "--limit", "1")
        assert "warning: shown are 1 of 3" in listed.err

    async def test_stats_and_top(self, pushpush: CommandLine, deferred: Deferred) -> None:
        """What waits alike, and how old it is."""
        del deferred
        by_answer, by_target, top, top_text = await asyncio.gather(
            pushpush("queue", "stats", "--by", "answer", "--json"),
            pushpush("queue", "stats", "--by", "target"),
            pushpush("queue", "top", "--json"),
            pushpush("queue", "top"),
        )
        assert {"", "451 4.7.1 greylisted", "452 4.2.2 mailbox full"} == {
            each["name"] for each in by_answer.data["shares"]
        }
        assert "the MX hosts" in by_target.out
        domains = {each["domain"]: each for each in top.data["domains"]}
        assert 2 == domains["a.example"]["counts"][0]
        assert 1 == domains["b.example"]["counts"][-1]
        assert ["domain", "oldest", "total", "5m", "10m"] == top_text.out.split()[:5]

    async def test_a_message_with_very_many_recipients_is_shown_whole(self, pushpush: CommandLine, pool: Pool) -> None:
        """Nobody takes a part for the whole."""
        for number in range(150):
            await Deferred(pool).defer(delivery(id="big", domain=f"d{number}.example"), MESSAGE, LATER)
        data = (await pushpush("queue", "show", "big", "--json")).data
        assert (150, 150) == (len(data["waiting"]), data["total"])

    async def test_bad_words(self, pushpush: CommandLine) -> None:
        """One sentence for what cannot be understood."""
        for words in (
            ("list", "--older", "soon"),
            ("list", "--domain", "a..b"),
            ("list", "--target", "x:y:z"),
            ("list", "--error", "a\x1bb"),
            ("bounce",),
            ("bounce", "m1", "--all"),
            ("retry", "--all", "--domain", "a.example"),
        ):
            ran = await pushpush("queue", *words)
            assert (1, True) == (ran.code, ran.sentence.startswith(f"pushpush queue {words[0]}: ")), words


@given(hostile_text, st.sampled_from(["--domain", "--target", "--older", "--error", "--"]), st.booleans())
@profile(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
async def test_whatever_is_typed(
    pushpush: CommandLine, deferred: Deferred, text: str, option: str, as_json: bool
) -> None:
    """A command finds something, or refuses with one sentence; without --yes nothing is ever destroyed."""
    word = text.replace("\x00", "").encode("utf-8", "replace").decode()
    words = ["--", word] if option == "--" else [f"{option}={word}"]
    before = await left(deferred)
    ran = await asyncio.gather(
        *(
            pushpush(*command, *["--json"] * as_json, *words)
            for command in (("queue", "list"), ("queue", "retry"), ("queue", "bounce"), ("queue", "remove"))
        ),
        pushpush("dead", "list", *["--json"] * as_json, f"--search={word}"),
    )
    for each in ran:
        assert each.code in {0, 1, 2}, (words, each.out, each.err)
        assert "Traceback" not in each.out + each.err
        assert not {unicodedata.category(character) for character in each.err.replace("\n", "")} & {
            "Cc",
            "Cs",
            "Zl",
            "Zp",
        }
    assert before == await left(deferred)


class TestRetry:
    """`retry`."""

    async def test_what_is_due_already_is_counted_apart(self, pushpush: CommandLine, deferred: Deferred) -> None:
        """Of what is chosen; a message that does not wait is an error."""
        assert "1 delivery made due" == (await pushpush("queue", "retry", "m1")).out.strip()
        text = await pushpush("queue", "retry", "--domain", "a.example")
        assert "1 delivery made due; 1 was due already" == text.out.strip()
        again = await pushpush("queue", "retry", "--all", "--json")
        assert {"retried": 1, "due_already": 2} == again.data
        assert 3 == await deferred.due(now=datetime.now(UTC))
        unknown = await pushpush("queue", "retry", "m9")
        assert (1, True) == (unknown.code, "no message m9 waits" in unknown.sentence)

    async def test_the_audit_log_keeps_no_address_that_is_not_kept(
        self, pushpush: CommandLine, pool: Pool, deferred: Deferred
    ) -> None:
        """Whatever is done by an answer that names somebody."""
        reply = Reply(code=550, text="no bob@secret.example here")
        for verb in ("retry", "bounce", "remove"):
            await deferred.defer(delivery(id=verb, reply=reply), MESSAGE, LATER)
            yes = [] if verb == "retry" else ["--yes"]
            ran = await pushpush("queue", verb, "--error", "bob@secret.example", *yes, journal_addresses="domain")
            assert 0 == ran.code, ran.err
        async with pool.statement() as connection:
            audited = await (await connection.execute("SELECT object FROM audit")).fetchall()
        assert {("answer with '@secret.example'",)} == set(audited)


class TestEnding:
    """`bounce` and `remove`."""

    @pytest.mark.parametrize("verb", ["bounce", "remove"])
    @pytest.mark.parametrize("json", [[], ["--json"]])
    async def test_without_a_word_nothing_is_destroyed(
        self, pushpush: CommandLine, deferred: Deferred, queues: Queues, verb: str, json: list[str]
    ) -> None:
        """Where nobody can be asked it is refused, with the count."""
        ran = await pushpush("queue", verb, "--domain", "a.example", *json)
        words = ran.object["error"]["message"] if json else ran.sentence
        assert (1, True, True) == (ran.code, f"this would {verb} 2 deliveries" in words, "--yes does it" in words)
        assert ({"m1", "m2", "m3"}, 0) == (await left(deferred), await queues.depth(topology.OUTBOUND))

    async def test_bounce(self, pushpush: CommandLine, deferred: Deferred, queues: Queues, pool: Pool) -> None:
        """The sender is told, the journal too, and it stands in the audit log."""
        ran = await pushpush("queue", "bounce", "--error", "mailbox", "--yes", "--actor", "ann", "--json")
        assert (1, 1, 1, 0) == tuple(ran.data[name] for name in ("matched", "bounced", "reports", "left"))
        assert {"m1", "m3"} == await left(deferred)
        message = await queues.take(topology.OUTBOUND)
        assert b"452 4.2.2 mailbox full" in message.body
        assert b"MAILER-DAEMON@mail.pushpush.example" in message.body
        told = event.decode((await queues.take(topology.JOURNAL)).body).events
        assert [("reported", ""), ("bounced", "ann")] == [(each.kind, each.actor) for each in told]
        async with pool.statement() as connection:
            audited = await (await connection.execute("SELECT actor, via, action, object FROM audit")).fetchall()
        assert [("ann", "cli", "queue bounce", "answer with 'mailbox'")] == audited
        text = await pushpush("queue", "bounce", "--all", "--yes")
        assert "2 deliveries bounced; 2 reports sent" == text.out.strip()

    async def test_remove(self, pushpush: CommandLine, deferred: Deferred, queues: Queues) -> None:
        """Nobody is told but the journal."""
        ran = await pushpush("queue", "remove", "m1", "--yes")
        assert (0, "1 delivery removed") == (ran.code, ran.out.strip())
        assert ({"m2", "m3"}, 0) == (await left(deferred), await queues.depth(topology.OUTBOUND))
        [told] = event.decode((await queues.take(topology.JOURNAL)).body).events
        assert ("removed", "m1", "operator") == (told.kind, told.id, told.room)
        assert 2 == (await pushpush("queue", "delete", "--all", "--yes", "--json")).data["removed"]

    async def test_nothing_matches(self, pushpush: CommandLine, deferred: Deferred) -> None:
        """A message that does not wait is an error; a filter that finds nothing is not."""
        del deferred
        none, unknown = await asyncio.gather(
            pushpush("queue", "bounce", "--domain", "c.example", "--json"), pushpush("queue", "bounce", "m9", "--yes")
        )
        assert {"matched": 0, "bounced": 0, "warnings": []} == none.data
        assert (1, True) == (unknown.code, "no message m9 waits" in unknown.sentence)

    async def test_the_broker_is_away(self, pushpush: CommandLine, deferred: Deferred) -> None:
        """A bounce changes nothing; a removal goes on, for it needs nobody else."""
        url = "amqp://guest:guest@127.0.0.1:1/"
        bounced, removed = await asyncio.gather(
            pushpush("queue", "bounce", "m1", "--yes", amqp_url=url),
            pushpush("queue", "remove", "m2", "--yes", amqp_url=url),
        )
        assert (3, True) == (bounced.code, "0 deliveries were ended before, the rest waits on" in bounced.sentence)
        assert (0, {"m1", "m3"}) == (removed.code, await left(deferred))
        assert "warning: 1 event could not be published" in removed.err
        told = await pushpush("queue", "remove", "m3", "--yes", "--json", amqp_url=url)
        assert "1 event could not be published" in told.data["warnings"][0]

    async def test_the_store_is_away(self, pushpush: CommandLine, settings: Settings, store_wire: Wire) -> None:
        """One sentence, exit 3."""
        await store_wire.cut()
        url = through(settings.database_url, store_wire)
        for words in (("bounce", "--all", "--yes"), ("remove", "--all", "--yes"), ("top",), ("stats",)):
            ran = await pushpush("queue", *words, database_url=url)
            assert (3, True) == (ran.code, "PostgreSQL is away" in ran.sentence)

    @pytest.mark.parametrize(("answer", "code", "ended"), [("y", 0, True), ("n", 1, False), ("", 1, False)])
    async def test_a_person_is_asked(
        self, pushpush: CommandLine, deferred: Deferred, answer: str, code: int, ended: bool
    ) -> None:
        """At a terminal: the count and what it means; only a yes does it."""
        ran, said = await asyncio.to_thread(_at_terminal, pushpush, ["queue", "bounce", "m1"], f"{answer}\n")
        assert code == ran
        assert "This will bounce 1 delivery (message m1), and tell their senders. Go on? [y/N]:" in said
        assert ended is ("m1" not in await left(deferred))

    async def test_top_is_live_until_interrupted(self, pushpush: CommandLine, deferred: Deferred) -> None:
        """At a terminal it is drawn again and again; Ctrl-C is how it ends, and no fault."""
        del deferred
        code, said = await asyncio.to_thread(_at_terminal, pushpush, ["queue", "top"], "\x03", wait_for="b.example")
        assert 0 == code, said
        assert "a.example" in said


def _at_terminal(pushpush: CommandLine, words: list[str], typed: str, *, wait_for: str = "Go on?") -> tuple[int, str]:
    """Run a command at a terminal, type something once it has said something; return its code and all it said."""
    ours, theirs = pty.openpty()
    env = {**os.environ, **pushpush.env, "TERM": "xterm"}
    command = ["setsid", "--ctty", sys.executable, "-m", "workers.cli", *words]  # so that Ctrl-C means this one
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        said = ""
        try:
            while chunk := os.read(ours, 65536):
                said += chunk.decode("utf-8", "replace")
                if typed and wait_for in said:
                    os.write(ours, typed.encode())
                    typed = ""
        except OSError:
            pass  # the other side is closed
        code = process.wait(30)
    os.close(ours)
    return code, " ".join(said.split())
