"""Changes of many rules at once, their undoing, and the end of temporary rules: all or nothing, and never silently."""

import asyncio
import random
from datetime import timedelta

import msgspec
import pytest

from shared.mail.rule import Rule, RuleError, make_rule
from shared.store import overrides as module
from shared.store.overrides import ConflictError, Overrides, Released, Saved, Versions
from shared.store.pool import Pool
from tests.integration.conftest import NOON

pytestmark = [pytest.mark.anyio, pytest.mark.services]

KEYS = ("a.example", "b.example", "*.b.example", "[192.0.2.1]", "[IPv6:2001:db8::1]", "*")
SOON = NOON + timedelta(hours=1)

Table = dict[str, Rule]


@pytest.fixture
def overrides(pool: Pool) -> Overrides:
    """The rules, none yet."""
    return Overrides(pool)


def edits(**targets: str | None) -> dict[str, Rule | None]:
    """Return edits of `NAME.example`; None removes."""
    return {
        f"{name}.example": None if target is None else make_rule(f"{name}.example", target)
        for name, target in targets.items()
    }


async def apply(overrides: Overrides, actor: str = "ann", *, release: bool = True, **targets: str | None) -> Saved:
    """Change rules for `NAME.example`."""
    return await overrides.apply(edits(**targets), actor=actor, release=release)


async def table(overrides: Overrides) -> Table:
    """Return what the rules say, without the versions that wrote them."""
    stored = await overrides.matching()
    return {each.rule.lookup_key: msgspec.structs.replace(each.rule, version=0) for each in stored}


async def targets(overrides: Overrides) -> dict[str, str]:
    """Return the targets by key."""
    return {key: rule.target_host for key, rule in (await table(overrides)).items()}


async def told(overrides: Overrides, version: int | None = None) -> list[tuple[int, str, str, str]]:
    """Return the history, of one version or whole: version, actor, action, key."""
    return [
        (each.version, each.actor, each.action, each.change.lookup_key)
        for each in await overrides.history(limit=1000)
        if version in (None, each.version)
    ]


class TestApplying:
    """`apply`."""

    async def test_several_edits_are_one_version(self, overrides: Overrides) -> None:
        """Set, change and remove together: one version, one row of history each, released together."""
        await apply(overrides, a="x.example", b="x.example")
        saved = await apply(overrides, actor="bob", a="y.example", b=None, c="x.example")
        assert (2, Released(since=1, version=2)) == (saved.version, saved.released)
        assert {"a.example": "y.example", "c.example": "x.example"} == await targets(overrides)
        assert [
            (2, "bob", "change", "a.example"),
            (2, "bob", "remove", "b.example"),
            (2, "bob", "set", "c.example"),
        ] == await told(overrides, 2)

    async def test_only_what_differs_is_written(self, overrides: Overrides) -> None:
        """Rules that are as asked keep their version and their date, and do not enter the history."""
        await apply(overrides, a="x.example", b="x.example")
        before = await overrides.get("b.example")
        saved = await apply(overrides, a="y.example", b="x.example", c=None)
        assert ["a.example"] == [each.lookup_key for each in saved.changes]
        assert [(2, "ann", "change", "a.example")] == await told(overrides, 2)
        assert before == await overrides.get("b.example")

    async def test_nothing_that_differs_takes_no_version(self, overrides: Overrides) -> None:
        """The same edits again change nothing; no edits at all change nothing."""
        await apply(overrides, a="x.example")
        assert () == (await apply(overrides, a="x.example", b=None)).changes
        assert () == (await overrides.apply({}, actor="ann", release=True)).changes
        assert Versions(version=1, released=1) == await overrides.versions()

    async def test_dry_changes_nothing_and_tells_what_would(self, overrides: Overrides) -> None:
        """Neither rules nor version nor release nor history move, whatever is staged."""
        await apply(overrides, a="x.example", b="x.example")
        await apply(overrides, b="y.example", release=False)
        before = (await table(overrides), await overrides.versions(), await told(overrides))
        saved = await overrides.apply(
            edits(a="z.example", c="x.example"), actor="ann", release=True, whole=True, dry=True
        )
        assert {"a.example": "z.example", "c.example": "x.example", "b.example": None} == {
            each.lookup_key: each.after and each.after.target_host for each in saved.changes
        }
        assert (2, None) == (saved.version, saved.released)
        assert before == (await table(overrides), await overrides.versions(), await told(overrides))

    async def test_dry_refuses_what_would_be_refused(self, overrides: Overrides) -> None:
        """A try that passes is no promise unless it checks as much as the change itself."""
        await apply(overrides, a="b.example")
        with pytest.raises(RuleError, match="circle"):
            await overrides.apply(edits(b="a.example"), actor="ann", release=True, dry=True)
        with pytest.raises(ConflictError):
            await overrides.apply(edits(a="c.example"), actor="ann", release=True, dry=True, if_version=0)

    async def test_whole_removes_the_rest(self, overrides: Overrides) -> None:
        """The edits are the table, as one version; an empty one empties it."""
        await apply(overrides, a="x.example", b="x.example", c="x.example")
        saved = await overrides.apply(
            edits(b="x.example", d="x.example"), actor="bob", release=True, whole=True, action="import"
        )
        assert 2 == saved.version
        assert {"b.example": "x.example", "d.example": "x.example"} == await targets(overrides)
        assert [(2, "bob", "import", f"{name}.example") for name in "acd"] == await told(overrides, 2)
        await overrides.apply({}, actor="bob", release=True, whole=True)
        assert {} == await table(overrides)

    async def test_a_circle_in_one_edit_spoils_all(self, overrides: Overrides) -> None:
        """All or nothing: the good edits beside a circle are not written either, and no version is taken."""
        await apply(overrides, a="b.example")
        for circle in (edits(b="a.example", c="x.example"), edits(d="e.example", e="d.example", c="x.example")):
            with pytest.raises(RuleError, match="circle"):
                await overrides.apply(circle, actor="ann", release=True)
        assert {"a.example": "b.example"} == await targets(overrides)
        assert Versions(version=1, released=1) == await overrides.versions()

    async def test_edits_that_turn_a_rule_round_close_no_circle(self, overrides: Overrides) -> None:
        """What is removed or changed in the same version no longer counts."""
        await apply(overrides, a="b.example")
        await apply(overrides, a="c.example", b="a.example")
        await apply(overrides, a="b.example", b=None)
        assert {"a.example": "b.example"} == await targets(overrides)

    async def test_progress_is_told(self, overrides: Overrides, monkeypatch: pytest.MonkeyPatch) -> None:
        """How many of how many, up to all; rules that do not differ are not counted."""
        monkeypatch.setattr(module, "_PIECE", 2)
        heard: list[tuple[int, int]] = []
        await apply(overrides, a="x.example")
        await overrides.apply(
            edits(**dict.fromkeys("abcdef", "x.example")),
            actor="ann",
            release=True,
            progress=lambda done, of: heard.append((done, of)),
        )
        assert [(2, 5), (4, 5), (5, 5)] == heard
        assert 6 == len(await table(overrides))
        assert Versions(version=2, released=2) == await overrides.versions()

    async def test_an_action_does_not_outlive_its_change(self, overrides: Overrides, pool: Pool) -> None:
        """The name and the actor of one change never stick to the next one on the same connection."""
        await overrides.apply(edits(a="x.example"), actor="bob", release=True, action="import")
        for _ in range(8):  # more than the pool has connections
            async with pool.transaction() as connection:
                await connection.execute("UPDATE dns_overrides SET comment = comment || '.'")
        assert {("pushpush", "change")} == {each[1:3] for each in await told(overrides) if each[0] > 1}


class TestConflicts:
    """`if_version`."""

    async def test_a_changed_key_is_refused_with_who_and_when(self, overrides: Overrides) -> None:
        """The sentence names actor, key and version, and nothing is written."""
        await apply(overrides, a="x.example", b="x.example")
        await apply(overrides, actor="bob", a="y.example")
        words = "^bob changed a.example in version 2, after version 1: look again first$"
        with pytest.raises(ConflictError, match=words):
            await overrides.apply(edits(a="z.example", b="z.example"), actor="ann", release=True, if_version=1)
        with pytest.raises(ConflictError, match=words):
            await overrides.remove("a.example", actor="ann", release=True, if_version=1)
        with pytest.raises(ConflictError, match=words):
            await overrides.enable("a.example", enabled=False, actor="ann", release=True, if_version=1)
        with pytest.raises(ConflictError, match=words):
            await overrides.rollback(0, actor="ann", release=True, now=NOON, if_version=1)
        assert {"a.example": "y.example", "b.example": "x.example"} == await targets(overrides)

    async def test_keys_that_are_not_touched_do_not_matter(self, overrides: Overrides) -> None:
        """Colleagues who work on other domains are no conflict; for a whole table they are."""
        await apply(overrides, a="x.example")
        await apply(overrides, actor="bob", b="y.example")
        with pytest.raises(ConflictError, match=r"bob changed b\.example"):
            await overrides.apply(edits(a="z.example"), actor="ann", release=True, if_version=1, whole=True)
        assert 3 == (await overrides.apply(edits(a="z.example"), actor="ann", release=True, if_version=1)).version
        assert 2 == len(await table(overrides))

    @pytest.mark.parametrize("removed", [True, False])
    async def test_removed_and_new_rules_are_conflicts_too(self, overrides: Overrides, removed: bool) -> None:
        """A rule that is there no longer, or was not there before, was changed."""
        await overrides.apply(edits(**{"a" if removed else "b": "x.example"}), actor="ann", release=True)
        await apply(overrides, actor="bob", a=None if removed else "y.example")
        with pytest.raises(ConflictError, match=r"bob changed a\.example in version 2"):
            await overrides.set(make_rule("a.example", "z.example"), actor="ann", release=True, if_version=1)

    async def test_of_two_at_once_one_is_refused(self, overrides: Overrides) -> None:
        """No change is lost between the look and the write."""
        await apply(overrides, a="x.example")
        results = await asyncio.gather(
            *(
                overrides.apply(edits(a=target), actor="ann", release=True, if_version=1)
                for target in ("y.example", "z.example")
            ),
            return_exceptions=True,
        )
        assert ["ConflictError", "Saved"] == sorted(type(each).__name__ for each in results)

    async def test_a_version_of_the_future_is_refused(self, overrides: Overrides) -> None:
        """It would let everything pass."""
        with pytest.raises(ConflictError, match="no version 1 yet: the latest is 0"):
            await overrides.apply(edits(a="x.example"), actor="ann", release=True, if_version=1)


class TestSwitching:
    """`enable`."""

    async def test_off_and_on_again(self, overrides: Overrides) -> None:
        """The rule is kept as it is; the history says who did what."""
        rule = make_rule("a.example", "x.example", comment="why", tls="verify", share=10)
        await overrides.set(rule, actor="ann", release=True)
        for enabled in (False, False, True):
            await overrides.enable("a.example", enabled=enabled, actor="bob", release=True)
            assert {"a.example": msgspec.structs.replace(rule, enabled=enabled)} == await table(overrides)
        assert [
            (3, "bob", "enable", "a.example"),
            (2, "bob", "disable", "a.example"),
            (1, "ann", "set", "a.example"),
        ] == await told(overrides)

    async def test_none_where_there_is_none(self, overrides: Overrides) -> None:
        """Nothing is made, and nothing that is staged is released."""
        await apply(overrides, b="x.example", release=False)
        assert None is await overrides.enable("a.example", enabled=True, actor="bob", release=True)
        assert Versions(version=1, released=0) == await overrides.versions()

    async def test_enabling_closes_no_circle(self, overrides: Overrides) -> None:
        """While a rule is out of use its opposite may be made; then it cannot come back."""
        await apply(overrides, a="b.example")
        await overrides.enable("a.example", enabled=False, actor="bob", release=True)
        await apply(overrides, b="a.example")
        with pytest.raises(RuleError, match="circle"):
            await overrides.enable("a.example", enabled=True, actor="bob", release=True)
        assert 3 == (await overrides.versions()).version


class TestRollback:
    """`rollback`."""

    @pytest.mark.parametrize("seed", range(4))
    async def test_it_restores_exactly(self, overrides: Overrides, pool: Pool, seed: int) -> None:
        """After any sequence of edits, by whomever, every earlier version comes back; so does one before a rollback."""
        dice = random.Random(seed)
        known: dict[int, Table] = {0: {}}

        def rule(key: str) -> Rule:
            return make_rule(
                key,
                f"t{dice.randrange(4)}.example",
                comment=dice.choice(("", "why")),
                share=dice.choice((None, 10)),
                tls=dice.choice((None, "verify")),
                expires_at=dice.choice((None, SOON)),
                enabled=dice.random() < 0.8,
            )

        for _ in range(30):
            some = dice.sample(KEYS, dice.randrange(1, 4))
            match dice.randrange(6):
                case 0:
                    async with pool.transaction() as connection:
                        await connection.execute("DELETE FROM dns_overrides WHERE lookup_key = ANY(%s)", (some,))
                        await connection.execute("UPDATE dns_overrides SET share = 7 WHERE lookup_key LIKE 'a%'")
                case 1:
                    await overrides.enable(some[0], enabled=dice.random() < 0.5, actor="ann", release=True)
                case 2 | 3:
                    version = dice.choice(list(known))
                    dry = await overrides.rollback(version, actor="ann", release=True, now=NOON, dry=True)
                    saved = await overrides.rollback(
                        version, actor="ann", release=dice.random() < 0.5, now=NOON, if_version=max(known)
                    )
                    assert dry.changes == saved.changes
                    assert known[version] == await table(overrides)
                case _:
                    made = {key: rule(key) if dice.random() < 0.7 else None for key in some}
                    await overrides.apply(made, actor="ann", release=dice.random() < 0.5, whole=dice.random() < 0.2)
            version = (await overrides.versions()).version
            now = await table(overrides)
            assert known.setdefault(version, now) == now
            assert sorted(known) == list(range(version + 1))

    async def test_the_history_says_so_and_nothing_is_forgotten(self, overrides: Overrides) -> None:
        """A rollback is a change like any other: with its actor, and the way back from it."""
        await apply(overrides, a="x.example")
        await apply(overrides, a="y.example", b="y.example")
        saved = await overrides.rollback(1, actor="bob", release=True, now=NOON)
        assert Released(since=2, version=3) == saved.released
        assert [
            (3, "bob", "rollback to 1", "a.example"),
            (3, "bob", "rollback to 1", "b.example"),
        ] == await told(overrides, 3)
        await overrides.rollback(2, actor="bob", release=True, now=NOON)
        assert {"a.example": "y.example", "b.example": "y.example"} == await targets(overrides)
        assert 6 - 1 + 2 == len(await told(overrides))

    async def test_ended_rules_stay_away(self, overrides: Overrides) -> None:
        """A temporary rule of then would end again at once, and mail would go the wrong way until it has."""
        for key, ends in (("a.example", NOON), ("b.example", SOON), ("c.example", None)):
            await overrides.set(make_rule(key, "x.example", expires_at=ends), actor="ann", release=True)
        await overrides.apply({}, actor="ann", release=True, whole=True)
        await overrides.rollback(3, actor="ann", release=True, now=NOON)
        assert ["b.example", "c.example"] == sorted(await table(overrides))

    @pytest.mark.parametrize("version", [-1, 2])
    async def test_a_version_there_is_not_is_refused(self, overrides: Overrides, version: int) -> None:
        """The sentence names the latest; nothing changes."""
        await apply(overrides, a="x.example")
        with pytest.raises(ConflictError, match=f"there is no version {version}: the latest is 1"):
            await overrides.rollback(version, actor="ann", release=True, now=NOON)
        assert 1 == (await overrides.versions()).version

    async def test_dry_changes_and_releases_nothing(self, overrides: Overrides) -> None:
        """It only tells."""
        await apply(overrides, a="x.example")
        await apply(overrides, a="y.example", release=False)
        saved = await overrides.rollback(0, actor="ann", release=True, now=NOON, dry=True)
        assert (["a.example"], None) == ([each.lookup_key for each in saved.changes], saved.released)
        assert Versions(version=2, released=1) == await overrides.versions()
        assert {"a.example": "y.example"} == await targets(overrides)


class TestExpiry:
    """`expire`."""

    async def test_two_at_once_end_a_rule_once(self, overrides: Overrides) -> None:
        """One version, told as the scheduler's; rules that end later or never are left alone."""
        for key, ends in (("a.example", NOON), ("b.example", SOON), ("c.example", None), ("d.example", NOON)):
            await overrides.set(make_rule(key, "x.example", expires_at=ends), actor="ann", release=True)
        results = await asyncio.gather(*(overrides.expire(NOON) for _ in range(2)))
        ended = [each for each in results if each is not None]
        assert [Released(since=4, version=5)] == [each.released for each in ended]
        assert [
            (5, "scheduler", "expire", "a.example"),
            (5, "scheduler", "expire", "d.example"),
        ] == await told(overrides, 5)
        assert ["b.example", "c.example"] == sorted(await table(overrides))
        (change,) = [each.change for each in await overrides.history("a.example", limit=1)]
        assert change.before is not None
        assert ("x.example", NOON, None) == (change.before.target_host, change.before.expires_at, change.after)

    async def test_not_a_moment_early(self, overrides: Overrides) -> None:
        """None, and no version is taken."""
        await overrides.set(make_rule("a.example", "x.example", expires_at=NOON), actor="ann", release=True)
        assert None is await overrides.expire(NOON - timedelta(microseconds=1))
        assert Versions(version=1, released=1) == await overrides.versions()

    async def test_a_rule_that_is_put_off_meanwhile_survives(self, overrides: Overrides, pool: Pool) -> None:
        """Who puts a rule off in the last moment has it put off."""
        await overrides.set(make_rule("a.example", "x.example", expires_at=NOON), actor="ann", release=True)
        async with pool.transaction() as connection:
            await connection.execute("UPDATE dns_overrides SET expires_at = %s", (SOON,))
            ending = asyncio.create_task(overrides.expire(NOON))
            await asyncio.sleep(0.2)  # it has seen the rule as it was, and waits for us
        assert None is await ending
        assert ["a.example"] == list(await table(overrides))


class TestHistory:
    """`history`, `changed_keys` and what is staged."""

    async def test_the_latest_come_first(self, overrides: Overrides) -> None:
        """By version, then by key; of one key, and no more than asked for."""
        await apply(overrides, b="x.example", a="x.example")
        await apply(overrides, a="y.example")
        await apply(overrides, b=None)
        assert [(3, "b.example"), (2, "a.example"), (1, "a.example"), (1, "b.example")] == [
            (version, key) for version, *_, key in await told(overrides)
        ]
        assert [3, 2] == [each.version for each in await overrides.history(limit=2)]
        assert [2, 1] == [each.version for each in await overrides.history("a.example")]
        assert [] == await overrides.history("c.example")

    async def test_each_change_begins_where_the_last_one_ended(self, overrides: Overrides) -> None:
        """`before` of a version is `after` of the one before it, so the history tells the whole story of a key."""
        for target in ("x.example", "y.example", None, "z.example"):
            await apply(overrides, a=target)
        await overrides.rollback(2, actor="ann", release=True, now=NOON)
        story = [each.change for each in reversed(await overrides.history("a.example"))]
        assert None is story[0].before
        assert [each.after for each in story[:-1]] == [each.before for each in story[1:]]

    async def test_times_do_not_go_back(self, overrides: Overrides, pool: Pool) -> None:
        """A change that waited for another one was made after it, and the history says so."""
        await apply(overrides, a="x.example")
        async with pool.transaction() as connection:
            await connection.execute("SELECT FROM rulebook FOR UPDATE")
            waiting = asyncio.create_task(apply(overrides, a="y.example"))
            await asyncio.sleep(0.2)
            await connection.execute("UPDATE dns_overrides SET target_host = 'z.example'")
        await waiting
        times = [each.at for each in reversed(await overrides.history())]
        assert sorted(times) == times

    async def test_a_release_takes_what_is_staged_with_it(self, overrides: Overrides) -> None:
        """What was saved without release goes out with the next release, and its keys with it."""
        await apply(overrides, a="x.example")
        assert None is (await apply(overrides, b="x.example", c="x.example", release=False)).released
        await apply(overrides, c=None, release=False)
        saved = await apply(overrides, d="x.example")
        assert Released(since=1, version=4) == saved.released
        assert ["b.example", "c.example", "d.example"] == sorted(await overrides.changed_keys(saved.released))
        again = await overrides.release()
        assert Released(since=4, version=4) == again
        assert [] == await overrides.changed_keys(again)

    async def test_of_two_releases_each_says_what_it_did(self, overrides: Overrides, pool: Pool) -> None:
        """A release that waited for another one begins where that one ended."""
        await apply(overrides, a="x.example", release=False)
        async with pool.transaction() as connection:
            await connection.execute("UPDATE rulebook SET released = version")
            releasing = asyncio.create_task(overrides.release())
            await asyncio.sleep(0.2)
        assert Released(since=1, version=1) == await releasing
