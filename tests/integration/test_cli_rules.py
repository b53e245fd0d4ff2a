"""The commands for one rule: tried before it is set, ended, shared, switched, undone; and mail that waits for it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.runtime.settings import Settings
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides, Versions
from shared.store.pool import Pool
from shared.store.routers import Routers
from tests.integration.command_line import CommandLine, commands
from tests.integration.conftest import MESSAGE, delivery
from tests.integration.rooms import running
from tests.peers.mxdeliv import free_port
from tests.peers.smtp import SmtpPeer
from workers.cli.rules import app

pytestmark = [pytest.mark.anyio, pytest.mark.services]

LATER = datetime.now(UTC) + timedelta(hours=1)
MANUAL = Path(__file__).parent.parent.parent / "docs/operating/rules.md"
SET = ("endpoint-cache", "set", "--no-probe")


@pytest.fixture
async def pushpush(settings: Settings) -> AsyncIterator[CommandLine]:
    """The command line for the private broker, database and DNS; nothing listens for HTTPS."""
    async with commands(settings, PUSHPUSH_HTTPS_PORT=str(free_port())) as pushpush:
        yield pushpush


class TestProbe:
    """`set` tries the target first, and `probe` does only that."""

    async def test_a_target_that_takes_the_mail(self, pushpush: CommandLine) -> None:
        """It is set without a word of warning."""
        async with SmtpPeer() as peer:
            target = f"127.0.0.1:{peer.port}"
            ran = await pushpush("rules", "set", "a.example", target)
            data = await pushpush("rules", "probe", "a.example", target, "--json")
            shown = await pushpush("rules", "probe", "a.example", target)
        assert (0, "") == (ran.code, ran.err)
        assert [True] == [each["usable"] for each in data.data["targets"]]
        assert (0, True) == (shown.code, f"{target}: usable" in shown.out)
        assert not peer.received

    async def test_a_black_hole_is_refused(self, pushpush: CommandLine, pool: Pool) -> None:
        """Exit 1 and why; `--force` sets it, and warns; so it is where another target would do."""
        async with SmtpPeer(refuse={"postmaster@a.example": "550 5.7.1 relaying denied"}) as hole, SmtpPeer() as good:
            target = f"127.0.0.1:{hole.port}"
            refused, second, probed, probed_json = await asyncio.gather(
                pushpush("rules", "set", "a.example", target),
                pushpush("rules", "set", "a.example", f"127.0.0.1:{good.port},{target}", "--json"),
                pushpush("rules", "probe", "a.example", target),
                pushpush("rules", "probe", "a.example", target, "--json"),
            )
            assert Versions(version=0, released=0) == await Overrides(pool).versions()
            forced = await pushpush("rules", "set", "a.example", target, "--force")
            forced_json = await pushpush("rules", "set", "a.example", target, "--force", "--json")
        assert 1 == refused.code
        assert "refuses mail for a.example" in refused.sentence
        assert refused.sentence.endswith("--force sets it all the same; nothing was changed")
        assert (1, "refused") == (second.code, second.object["error"]["kind"])
        assert (1, True) == (probed.code, "NOT usable" in probed.out)
        assert "refuses mail for a.example" in probed_json.object["error"]["message"]
        assert (0, True) == (forced.code, "warning: 127.0.0.1 refuses mail for a.example" in forced.err)
        assert 1 == len(forced_json.data["warnings"])

    async def test_a_target_that_is_down(self, pushpush: CommandLine, pool: Pool) -> None:
        """Alone it is refused; beside one that answers it is only warned of; without the probe nobody asks."""
        down = f"127.0.0.1:{free_port()}"
        refused = await pushpush("rules", "set", "a.example", down)
        assert (1, True) == (refused.code, "connection refused" in refused.sentence)
        assert Versions(version=0, released=0) == await Overrides(pool).versions()
        async with SmtpPeer() as peer:
            ran = await pushpush("rules", "set", "a.example", f"{down},127.0.0.1:{peer.port}")
        assert (0, True) == (ran.code, f"warning: nothing at {down} would take mail for a.example" in ran.err)
        assert (0, "") == ((unasked := await pushpush(*SET, "a.example", down)).code, unasked.err)

    async def test_certificates_that_cannot_be_read(self, pushpush: CommandLine) -> None:
        """It is a fault of the settings."""
        ran = await pushpush("rules", "probe", "a.example", "127.0.0.1", ca_file="/nowhere")
        assert (78, True) == (ran.code, "PUSHPUSH_CA_FILE" in ran.sentence)


class TestChanges:
    """What a rule says, and what is said of a change."""

    async def test_an_end_and_a_share(self, pushpush: CommandLine, pool: Pool) -> None:
        """They are kept, listed and changed; a permanent rule that gets an end is warned of."""
        first = await pushpush(*SET, "a.example", "b.example", "--expires", "2h", "--share", "10%")
        assert (0, "") == (first.code, first.err)
        listed = (await pushpush("rules", "list")).out.splitlines()
        assert ["key", "target", "transport", "tls", "share", "ends", "state"] == listed[0].split()[:7]
        assert "10%    in 1 h  on" in listed[1]
        second = await pushpush(*SET, "a.example", "c.example")
        assert "a.example -> c.example (in place of b.example (10%, until 20" in second.out
        assert "Z)): saved as version 2" in second.out
        third = await pushpush(*SET, "a.example", "d.example", "--expires", "2999-01-31T18:00Z", "--json")
        assert "it is not put back" in third.data["warnings"][0]
        assert ("a.example", "d.example", 3) == tuple(
            third.data[name] for name in ("lookup_key", "target_host", "version")
        )
        async with pool.transaction() as connection:
            await connection.execute("UPDATE dns_overrides SET expires_at = now() - interval '1 minute'")
        assert "ended, waits for a scheduler" in (await pushpush("rules", "list")).out

    async def test_disabled_and_enabled(self, pushpush: CommandLine) -> None:
        """The row stays."""
        await pushpush(*SET, "a.example", "b.example", "why")
        off, on, again = [
            await pushpush("rules", verb, "A.example", "--json") for verb in ("disable", "enable", "enable")
        ]
        assert [(False, True), (True, True), (True, False)] == [
            (each.data["enabled"], each.data["changed"]) for each in (off, on, again)
        ]
        assert "a.example is off: saved as version 4" in (await pushpush("rules", "disable", "a.example")).out
        kept = (await pushpush("rules", "get", "a.example", "--json")).data
        assert ("why", False) == (kept["comment"], kept["enabled"])
        for verb in ("enable", "disable", "remove"):
            ran = await pushpush("rules", verb, "z.example")
            assert (1, True) == (ran.code, "there is no rule for z.example" in ran.sentence)
        assert "a.example" == (await pushpush("rules", "remove", "a.example", "--json")).data["deleted"]

    @pytest.mark.parametrize(
        ("words", "wanted"),
        [
            (("--expires", "yesterday"), "neither a span"),
            (("--expires", "2020-01-01T00:00Z"), "is past"),
            (("--share", "0%"), "not a percentage"),
            (("--actor", "two\nlines"), "the actor must be one line"),
            (("--actor", "a" * 201), "at most 200 characters"),
            (("--actor", "\udcff"), "the actor must be one line"),
            (("--if-version", "7"), "there is no version 7 yet"),
        ],
    )
    async def test_a_bad_option(self, pushpush: CommandLine, pool: Pool, words: tuple[str, ...], wanted: str) -> None:
        """One sentence, and nothing is changed."""
        ran, object_ = await asyncio.gather(
            pushpush(*SET, "a.example", "b.example", *words), pushpush(*SET, "a.example", "b.example", *words, "--json")
        )
        assert (1, True) == (ran.code, wanted in ran.sentence)
        assert wanted in object_.object["error"]["message"]
        assert Versions(version=0, released=0) == await Overrides(pool).versions()

    async def test_two_operators(self, pushpush: CommandLine) -> None:
        """Who changes what somebody else has changed since is told who that was."""
        await pushpush(*SET, "a.example", "b.example", "--actor", "ann")
        await pushpush(*SET, "z.example", "b.example", "--actor", "bob")
        for words in ((*SET, "a.example", "c.example"), ("rules", "remove", "a.example"), ("rules", "rollback", "0")):
            ran = await pushpush(*words, "--if-version", "0")
            assert (1, True) == (ran.code, "look again first" in ran.sentence), ran.out
        assert 0 == (await pushpush(*SET, "a.example", "c.example", "--if-version", "1")).code


class TestWaitingMail:
    """A change makes due what waits for the domains that it touches."""

    async def test_flush(self, pushpush: CommandLine, pool: Pool, settings: Settings) -> None:
        """At once by default, not with `--no-flush`, and by the release where the change was only saved."""
        waiting = Deferred(pool)
        async with running(settings):
            await waiting.defer(delivery(), MESSAGE, LATER)
            await waiting.defer(delivery(id="m2", domain="z.example"), MESSAGE, LATER)
            left = await pushpush(*SET, "a.example", "b.example", "--no-flush")
            saved = await pushpush(*SET, "a.example", "c.example", "--no-reload")
            assert [False, False] == [each.next_attempt_at < LATER for each in await waiting.matching()]
            reloaded = await pushpush("reload")
            assert "applied by 1 of 1 router" in reloaded.out
            assert reloaded.out.endswith("; 1 waiting delivery is due now\n")
            await waiting.defer(delivery(id="m3"), MESSAGE, LATER)
            removed = (await pushpush("rules", "remove", "a.example", "--json")).data
            every = await pushpush(*SET, "*", "b.example", "--no-wait")
        assert (False, False) == ("due" in left.out, "due" in saved.out)
        assert 1 == removed["due"]
        assert "released as version 4, not waited for; 1 waiting delivery is due now" in every.out

    async def test_a_late_router_does_not_keep_it(self, pushpush: CommandLine, pool: Pool) -> None:
        """The other routers have the rule already."""
        await Routers(pool).register("slow-1")
        await Deferred(pool).defer(delivery(), MESSAGE, LATER)
        late = await pushpush(*SET, "a.example", "b.example", "--timeout", "0.2")
        assert (4, True) == (late.code, late.out.endswith("1 waiting delivery is due now\n"))

    async def test_what_others_saved(self, pushpush: CommandLine) -> None:
        """It is released along, and that is said."""
        for key in ("x.example", "y.example"):
            await pushpush(*SET, key, "b.example", "--no-reload")
        ran = await pushpush(*SET, "a.example", "b.example")
        assert "also released 2 earlier changes that were saved with --no-reload" in ran.out
        assert "also released" not in (await pushpush(*SET, "a.example", "c.example")).out


class TestUndo:
    """`history` and `rollback`."""

    async def test_history_and_rollback(self, pushpush: CommandLine, pool: Pool) -> None:
        """Who changed what, the latest first; and back, as one new version."""
        assert "no rule was changed yet" == (await pushpush("rules", "history")).out.strip()
        await pushpush(*SET, "a.example", "b.example", "--actor", "ann")
        await pushpush(*SET, "a.example", "c.example", "--tls", "none", "--actor", "bob")
        await pushpush(*SET, "z.example", "y.example")
        shown, found, one, never = await asyncio.gather(
            pushpush("rules", "history", "a.example"),
            pushpush("rules", "history", "--json"),
            pushpush("rules", "history", "--limit", "1", "--json"),
            pushpush("rules", "history", "never.example"),
        )
        assert "bob  change  a.example  b.example  ->  c.example (tls none)" in shown.out
        assert [3, 2, 1] == [each["version"] for each in found.data["history"]]
        last = found.data["history"][-1]
        assert ("ann", None, "b.example") == (last["actor"], last["before"], last["after"]["target_host"])
        assert [3] == [each["version"] for each in one.data["history"]]
        assert "the rule never.example was never there" == never.out.strip()
        dry = await pushpush("rules", "rollback", "1", "--dry-run")
        assert ["- z.example", "~ a.example: target c.example -> b.example, tls none -> default"] == sorted(
            dry.out.splitlines()[:2]
        )
        assert dry.out.endswith(": nothing was changed\n")
        assert Versions(version=3, released=3) == await Overrides(pool).versions()
        assert (await pushpush("rules", "rollback", "1", "--dry-run", "--json")).data["dry_run"]
        back = await pushpush("rules", "rollback", "1")
        assert "back to version 1, 0 rules added, 1 changed, 1 removed: saved as version 4" in back.out
        assert ["b.example"] == [each.rule.target_host for each in await Overrides(pool).matching()]
        unknown, negative = await asyncio.gather(
            pushpush("rules", "rollback", "9"), pushpush("rules", "rollback", "-1")
        )
        assert (1, True, 2) == (unknown.code, "there is no version 9" in unknown.sentence, negative.code)


async def test_every_command_has_an_example(pushpush: CommandLine) -> None:
    """In its help, and in the operator's manual."""
    manual = MANUAL.read_text(encoding="utf-8")
    names = [each.name or "" for each in app.registered_commands if not each.hidden]
    assert {"set", "get", "rollback", "sync"} < set(names)
    helps = await asyncio.gather(*(pushpush("endpoint-cache", name, "--help") for name in names))
    for name, ran in zip(names, helps, strict=True):
        assert f"Example: pushpush endpoint-cache {name}" in " ".join(ran.out.split())
        assert f"pushpush endpoint-cache {name} " in manual, name
