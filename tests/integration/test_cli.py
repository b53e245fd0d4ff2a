"""The command line as an operator and a script use it: output, exit codes, and what is written."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.broker import topology
from shared.mail.reply import Reply
from shared.runtime.settings import Settings
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides, Versions
from shared.store.pool import Pool
from shared.store.routers import Routers
from tests.integration.command_line import CommandLine, commands
from tests.integration.conftest import MESSAGE, Queues, Wire, delivery, through
from tests.integration.rooms import running

pytestmark = [pytest.mark.anyio, pytest.mark.services]

LATER = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
async def pushpush(settings: Settings) -> AsyncIterator[CommandLine]:
    """The command line for the private broker, database and DNS."""
    async with commands(settings) as pushpush:
        yield pushpush


class TestRules:
    """`pushpush endpoint-cache ...`."""

    async def test_the_life_of_a_rule(self, pushpush: CommandLine, settings: Settings) -> None:
        """Set, get, list, change and remove, with a router that applies each before the command returns."""
        async with running(settings):
            words = (
                "endpoint-cache",
                "set",
                "A.Example.",
                "b.example:2525",
                "blocked here",
                "--actor",
                "ann",
                "--no-probe",
            )
            first = await pushpush(*words)
            assert (0, "") == (first.code, first.err)
            assert "a.example -> b.example:2525: applied by 1 of 1 router in " in first.out
            again = (await pushpush(*words, "--json")).data
            assert (False, 1, []) == (again["changed"], len(again["applied"]), again["late"])
            changed = (
                await pushpush("rules", "set", "a.example", "c.example", "--tls", "verify", "--no-probe", "--json")
            ).data
            assert (True, 2, "verify") == (
                changed["changed"],
                changed["version"],
                (await pushpush("dns-cache", "get", "a.example", "--json")).data["tls"],
            )
            listed, found, none, shown = await asyncio.gather(
                pushpush("endpoint-cache", "list"),
                pushpush("endpoint-cache", "list", "--search", "C.EX", "--json"),
                pushpush("endpoint-cache", "list", "--search", "nothing"),
                pushpush("endpoint-cache", "get", "a.example"),
            )
            assert ["a.example", "c.example", "auto", "verify"] == listed.out.splitlines()[1].split()[:4]
            assert (1, "a.example") == (found.data["total"], found.data["overrides"][0]["lookup_key"])
            assert "no rule has 'nothing' in its key, target or comment" == none.out.strip()
            assert "target_host: c.example" in shown.out
            removed = await pushpush("endpoint-cache", "delete", "a.example")
            assert "a.example removed: applied by 1 of 1 router" in removed.out
            gone = await pushpush("endpoint-cache", "remove", "a.example")
            assert (1, True) == (gone.code, "there is no rule for a.example" in gone.sentence)

    async def test_no_reload_waits_for_reload(self, pushpush: CommandLine, pool: Pool, settings: Settings) -> None:
        """Saved, but not released, until `pushpush reload`, which waits for the routers."""
        async with running(settings):
            saved = await pushpush("endpoint-cache", "set", "a.example", "b.example", "--no-reload", "--no-probe")
            assert "a.example -> b.example: saved as version 1; `pushpush reload` applies it" == saved.out.strip()
            assert Versions(version=1, released=0) == await Overrides(pool).versions()
            assert ["0", "current"] == (await pushpush("routers")).out.splitlines()[1].split()[1:20:7]
            reloaded = (await pushpush("reload", "--json")).data
            assert (1, []) == (reloaded["version"], reloaded["late"])
            state = (await pushpush("routers", "--json")).data
            assert (1, 1, 1) == (state["released"], state["routers"][0]["applied"], len(state["routers"]))

    async def test_a_late_router_is_named(self, pushpush: CommandLine, pool: Pool) -> None:
        """Exit 4, after the time that was given; with --no-wait nobody waits and nobody is late."""
        await Routers(pool).register("slow-1")
        late = await pushpush("endpoint-cache", "set", "a.example", "b.example", "--timeout", "0.3", "--no-probe")
        late_json, unwaited = await asyncio.gather(
            pushpush("reload", "--timeout", "0.3", "--json"),
            pushpush("endpoint-cache", "set", "c.example", "d.example", "--no-wait", "--no-probe"),
        )
        assert (4, True) == (late.code, "not applied in time by slow-1" in late.out)
        assert (4, ["slow-1"]) == (late_json.code, late_json.object["data"]["late"])
        assert "slow-1" in late_json.object["error"]["message"]
        assert (0, False) == (unwaited.code, "slow-1" in unwaited.out)

    @pytest.mark.parametrize(
        "words",
        [
            ("a..example", "b.example"),
            ("a.example", "b.example:99999"),
            ("a.example", "b.example", "--comment", "two\nlines", "--json"),
            ("z.example", "y.example"),
            ("z.example", "y.example", "--json"),
        ],
    )
    async def test_a_bad_rule_is_refused_with_one_sentence(
        self, pushpush: CommandLine, pool: Pool, words: tuple[str, ...]
    ) -> None:
        """Exit 1 and a sentence, as text and as JSON; nothing is written."""
        async with pool.transaction() as connection:
            await connection.execute(
                "INSERT INTO dns_overrides (lookup_key, target_host) VALUES ('y.example', 'z.example')"
            )
        ran = await pushpush("endpoint-cache", "set", "--no-probe", *words)
        if "--json" in words:
            assert (1, "refused") == (ran.code, ran.object["error"]["kind"])
        else:
            assert (1, True) == (ran.code, ran.sentence.startswith("pushpush endpoint-cache set: "))
        assert Versions(version=1, released=0) == await Overrides(pool).versions()


class TestMail:
    """`pushpush send` and `pushpush queue ...`."""

    async def test_send(self, pushpush: CommandLine, queues: Queues, tmp_path: Path) -> None:
        """A file or standard input becomes a message on `mail.outbound`, as the contract says."""
        file = tmp_path / "mail.eml"
        file.write_bytes(MESSAGE.replace(b"\r\n", b"\n"))
        sent = await pushpush("send", str(file), "--from", "", "--to", "b@a.example", "--to", "c@a.example", "--json")
        message = await queues.take(topology.OUTBOUND)
        assert (sent.data["id"], MESSAGE) == (message.message_id, message.body)
        assert ("", ["b@a.example", "c@a.example"]) == (message.headers["mail_from"], message.headers["rcpt_to"])
        piped = await pushpush("send", "-", "--from", "a@from.example", "--to", "b@a.example", stdin=MESSAGE)
        assert (0, MESSAGE) == (piped.code, (await queues.take(topology.OUTBOUND)).body)
        bad, missing, empty = await asyncio.gather(
            pushpush("send", str(file), "--from", "a", "--to", "b@a.example"),
            pushpush("send", str(tmp_path / "none"), "--from", "", "--to", "b@a.example", "--json"),
            pushpush("send", "-", "--from", "", "--to", "b@a.example"),
        )
        assert (1, 1, 1) == (bad.code, missing.code, empty.code)
        assert "'a' has no domain" in bad.sentence
        assert "cannot read the message" in missing.object["error"]["message"]
        assert "body is empty" in empty.sentence
        assert 0 == await queues.depth(topology.OUTBOUND)

    async def test_the_queue(self, pushpush: CommandLine, pool: Pool, queues: Queues) -> None:
        """What waits is counted, listed, shown and made due."""
        part = delivery(attempts=3, reply=Reply(code=451, enhanced="4.7.1", text="greylisted"))
        await Deferred(pool).defer(part, MESSAGE, LATER)
        await Deferred(pool).defer(delivery(id="m2", domain="xn--bcher-kva.example"), MESSAGE, LATER)
        await queues.put(topology.LIMBO, b"x")
        status, status_json, listed, listed_json, shown, unknown, vague = await asyncio.gather(
            pushpush("queue", "status"),
            pushpush("queue", "status", "--json"),
            pushpush("queue", "list"),
            pushpush("queue", "list", "--domain", "Bücher.example", "--json"),
            pushpush("queue", "show", "m1"),
            pushpush("queue", "show", "m9", "--json"),
            pushpush("queue", "retry"),
        )
        assert "waiting for a.example" in status.out
        assert (2, 1) == (status_json.data["waiting"], status_json.data["queues"][topology.LIMBO])
        assert "451 4.7.1 greylisted" in listed.out
        assert ["m2"] == [each["message_id"] for each in listed_json.data["waiting"]]
        assert "target: the MX hosts of a.example" in shown.out
        assert (1, "refused") == (unknown.code, unknown.object["error"]["kind"])
        assert (1, True) == (vague.code, "--all" in vague.sentence)
        assert 1 == (await pushpush("queue", "retry", "m1", "--json")).data["retried"]
        again = await pushpush("queue", "retry", "--all")
        assert "1 delivery made due; 1 was due already" == again.out.strip()
        assert all(each.next_attempt_at < LATER for each in await Deferred(pool).matching())


class TestFleet:
    """`pushpush migrate`, `check`, and what happens while something is away."""

    async def test_migrate(self, pushpush: CommandLine) -> None:
        """Migrating again does nothing."""
        migrated, migrated_json = await asyncio.gather(pushpush("migrate"), pushpush("migrate", "--json"))
        assert "the database is at revision 0004" == migrated.out.strip()
        assert {"revision": "0004"} == migrated_json.data

    async def test_without_a_database(self, pushpush: CommandLine, settings: Settings, store_wire: Wire) -> None:
        """Exit 3 and a sentence that names PostgreSQL; `check` still looks at the rest."""
        await store_wire.cut()
        url = through(settings.database_url, store_wire)
        *results, check = await asyncio.gather(
            pushpush("endpoint-cache", "list", database_url=url),
            pushpush("endpoint-cache", "set", "a.example", "b.example", "--no-probe", database_url=url),
            pushpush("migrate", database_url=url),
            pushpush("check", "--json", database_url=url),
        )
        for each in results:
            assert (3, True) == (each.code, "PostgreSQL is away" in each.sentence), each.err
        assert (1, True, False) == (check.code, *(check.object["data"][name]["ok"] for name in ("broker", "database")))

    async def test_without_a_broker(self, pushpush: CommandLine, pool: Pool, tmp_path: Path) -> None:
        """Exit 3 where the broker is needed; a rule is saved all the same, and the sentence says what is missing."""
        (tmp_path / "mail.eml").write_bytes(MESSAGE)
        url = "amqp://guest:guest@127.0.0.1:1/"
        send, status, changed = await asyncio.gather(
            pushpush("send", str(tmp_path / "mail.eml"), "--from", "", "--to", "b@a.example", amqp_url=url),
            pushpush("queue", "status", "--json", amqp_url=url),
            pushpush("endpoint-cache", "set", "a.example", "b.example", "--no-probe", amqp_url=url),
        )
        assert (3, True) == (send.code, "RabbitMQ is away" in send.sentence)
        assert (3, "broker_unavailable") == (status.code, status.object["error"]["kind"])
        assert (0, True) == (changed.code, "the reload event could not be published" in changed.out)
        assert Versions(version=1, released=1) == await Overrides(pool).versions()

    async def test_usage_and_settings(self, pushpush: CommandLine) -> None:
        """2 for what cannot be understood, 78 for settings; both as an object for whoever asked for objects."""
        command = (sys.executable, "-m", "workers.cli", "--version")  # the real thing, not forked
        version = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
        unknown, option, config = await asyncio.gather(
            pushpush("frobnicate", "--json"),
            pushpush("endpoint-cache", "set", "a.example", "--json"),
            pushpush("routers", "--json", smtp_prot="25"),
        )
        assert (0, b"pushpush 0.") == (version.returncode, version.stdout[:11])
        assert (2, 2) == (unknown.code, option.code)
        assert {"usage"} == {each.object["error"]["kind"] for each in (unknown, option)}
        assert (78, "PUSHPUSH_SMTP_PROT is not a setting of pushpush; is it misspelt?") == (
            config.code,
            config.object["error"]["message"],
        )
