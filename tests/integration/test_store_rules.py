"""Rules in PostgreSQL: saving, reading and finding them, and what a router is given."""

import asyncio
import random
from datetime import UTC, datetime

import pytest

from shared.mail.rule import Rule, RuleError, make_rule
from shared.mail.rulebook import Rulebook
from shared.store.overrides import Overrides, Released, Saved, Versions
from shared.store.pool import Pool
from shared.store.rulebooks import Rulebooks

pytestmark = [pytest.mark.anyio, pytest.mark.services]

KEYS = ("a.example", "b.example", "*.b.example", "[192.0.2.1]", "[IPv6:2001:db8::1]", "*")


@pytest.fixture
def overrides(pool: Pool) -> Overrides:
    """The rules, none yet."""
    return Overrides(pool)


@pytest.fixture
def rulebooks(pool: Pool) -> Rulebooks:
    """The rules as routers get them."""
    return Rulebooks(pool)


async def save(overrides: Overrides, key: str, target: str, *, release: bool = True) -> Saved:
    """Save a rule."""
    return await overrides.set(make_rule(key, target), actor="ann", release=release)


def contents(book: Rulebook) -> tuple[int, int, dict[str, Rule | None]]:
    """Return what a rulebook says for every key that the tests use."""
    known = {key: book.lookup("x" + key[1:] if key.startswith("*.") else key, "m1") for key in KEYS}
    return book.version, book.size, known


class TestWriting:
    """`set` and `remove`."""

    async def test_a_rule_comes_back_as_it_was_saved(self, overrides: Overrides) -> None:
        """Every field of a rule is kept; its version is that of the write."""
        rule = make_rule(
            "Büro.Example.",
            "b.example:2525,[2001:db8::1]",
            comment="weil «a» nicht geht",
            transport="smtp",
            tls="verify",
        )
        saved = await overrides.set(rule, actor="ann", release=True)
        stored = await overrides.get("xn--bro-hoa.example")
        assert stored is not None
        assert (
            Rule(
                lookup_key="xn--bro-hoa.example",
                target_host="b.example:2525,2001:db8::1",
                comment="weil «a» nicht geht",
                transport="smtp",
                tls="verify",
                version=saved.version,
            )
            == stored.rule
        )

    async def test_an_expiry_keeps_its_zone(self, overrides: Overrides) -> None:
        """A moment is the same moment after the store, whatever zone the database speaks."""
        ends = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
        await overrides.set(make_rule("a.example", "b.example", expires_at=ends), actor="ann", release=True)
        stored = await overrides.get("a.example")
        assert stored is not None
        assert ends == stored.rule.expires_at

    async def test_a_change_moves_updated_at_and_keeps_created_at(self, overrides: Overrides) -> None:
        """`updated_at` says when a rule changed (madmail's never did)."""
        await save(overrides, "a.example", "b.example")
        before = await overrides.get("a.example")
        await save(overrides, "a.example", "c.example")
        after = await overrides.get("a.example")
        assert before is not None
        assert after is not None
        assert before.created_at == after.created_at
        assert before.updated_at < after.updated_at

    async def test_saving_the_same_again_changes_nothing(self, overrides: Overrides) -> None:
        """Setting a rule that is there already takes no version and says so."""
        await save(overrides, "a.example", "b.example")
        saved = await save(overrides, "a.example", "b.example")
        assert (1, False, Released(since=1, version=1)) == (saved.version, saved.changed, saved.released)
        assert Versions(version=1, released=1) == await overrides.versions()

    async def test_removing_what_is_not_there_says_so(self, overrides: Overrides) -> None:
        """None, and no version is taken."""
        assert None is await overrides.remove("a.example", actor="ann", release=True)
        assert Versions(version=0, released=0) == await overrides.versions()

    @pytest.mark.parametrize("circle", [("a", "b"), ("a", "b", "c")])
    async def test_a_circle_is_refused_and_nothing_is_written(
        self, overrides: Overrides, circle: tuple[str, ...]
    ) -> None:
        """The rule that would close a -> b -> a, or a longer circle, is refused; version and rules stay."""
        steps = list(zip(circle, (*circle[1:], circle[0]), strict=True))
        for key, target in steps[:-1]:
            await save(overrides, f"{key}.example", f"{target}.example")
        before = await overrides.versions()
        with pytest.raises(RuleError, match="circle"):
            await save(overrides, f"{steps[-1][0]}.example", f"{steps[-1][1]}.example")
        assert before == await overrides.versions()
        assert None is await overrides.get(f"{steps[-1][0]}.example")

    async def test_two_writers_cannot_close_a_circle_together(self, overrides: Overrides) -> None:
        """What was checked still holds when it is written: of a -> b and b -> a at the same time one is refused."""
        results = await asyncio.gather(
            save(overrides, "a.example", "b.example"),
            save(overrides, "b.example", "a.example"),
            return_exceptions=True,
        )
        assert ["RuleError", "Saved"] == sorted(type(each).__name__ for each in results)

    async def test_concurrent_writers_get_versions_in_commit_order(
        self, overrides: Overrides, rulebooks: Rulebooks
    ) -> None:
        """Each write has its own version; a reader that saw version N has seen every change up to N."""
        seen: list[Rulebook] = [await rulebooks.rulebook()]

        async def read() -> None:
            while seen[-1].version < 40:
                seen.append(await rulebooks.changed_since(seen[-1]))

        reading = asyncio.create_task(read())
        saved = await asyncio.gather(*(save(overrides, f"k{n}.example", "t.example") for n in range(40)))
        await reading
        assert list(range(1, 41)) == sorted(each.version for each in saved)
        assert [book.version for book in seen] == [book.size for book in seen]


class TestFinding:
    """`matching` and `get`."""

    async def test_search_looks_at_key_target_and_comment(self, overrides: Overrides) -> None:
        """The text is found wherever a person would look for it, in any case of letters, and `%` means itself."""
        await overrides.set(make_rule("a.example", "partner.example"), actor="ann", release=True)
        await overrides.set(make_rule("partner.net", "c.example"), actor="ann", release=True)
        await overrides.set(make_rule("d.example", "e.example", comment="PARTNER, 100%"), actor="ann", release=True)
        await overrides.set(make_rule("f.example", "g.example"), actor="ann", release=True)
        found = {text: [each.rule.lookup_key for each in await overrides.matching(text)] for text in ("Partner", "0%")}
        assert {"Partner": ["a.example", "d.example", "partner.net"], "0%": ["d.example"]} == found
        assert 4 == len(await overrides.matching())


class TestReleasing:
    """What routers are given: the released rules, not one change more or less."""

    async def test_unreleased_changes_are_hidden(self, overrides: Overrides, rulebooks: Rulebooks) -> None:
        """A new rule, a changed one and a removed one, all unreleased: the rulebook is as it was released."""
        await save(overrides, "a.example", "old.example")
        await save(overrides, "b.example", "old.example")
        released = contents(await rulebooks.rulebook())
        await save(overrides, "a.example", "new.example", release=False)
        await save(overrides, "a.example", "newer.example", release=False)
        await overrides.remove("b.example", actor="ann", release=False)
        await save(overrides, "*", "new.example", release=False)
        await save(overrides, "[192.0.2.1]", "new.example", release=False)
        await overrides.remove("[192.0.2.1]", actor="ann", release=False)
        assert released == contents(await rulebooks.rulebook())
        assert Versions(version=8, released=2) == await overrides.versions()
        assert Released(since=2, version=8) == await overrides.release()
        assert "newer.example" == (await rulebooks.rulebook()).route("a.example", "m1").targets[0]
        assert "new.example" == (await rulebooks.rulebook()).route("b.example", "m1").targets[0]

    async def test_a_disabled_rule_is_not_given_out(
        self, pool: Pool, overrides: Overrides, rulebooks: Rulebooks
    ) -> None:
        """A row that is out of use decides nothing, also when it is disabled and enabled while unreleased."""
        await save(overrides, "a.example", "b.example")
        book = await rulebooks.rulebook()
        for enabled, size in ((False, 0), (True, 1)):
            async with pool.transaction() as connection:
                await connection.execute("UPDATE dns_overrides SET enabled = %s", (enabled,))
            assert contents(book) == contents(await rulebooks.rulebook())
            await overrides.release()
            book = await rulebooks.changed_since(book)
            assert size == book.size
            assert contents(book) == contents(await rulebooks.rulebook())

    @pytest.mark.parametrize("seed", range(3))
    async def test_the_delta_is_the_same_as_a_fresh_load(
        self, pool: Pool, overrides: Overrides, rulebooks: Rulebooks, seed: int
    ) -> None:
        """After any sequence of edits, `changed_since` an older rulebook equals `rulebook()`, and reports no more."""
        dice = random.Random(seed)
        books = [await rulebooks.rulebook()]
        for _ in range(40):
            key, release = dice.choice(KEYS), dice.random() < 0.5
            match dice.randrange(4):
                case 0:
                    await overrides.remove(key, actor="ann", release=release)
                case 1:
                    async with pool.transaction() as connection:
                        await connection.execute(
                            "UPDATE dns_overrides SET enabled = NOT enabled WHERE lookup_key = %s", (key,)
                        )
                case 2:
                    await overrides.release()
                case _:
                    await save(overrides, key, f"t{dice.randrange(5)}.example", release=release)
            fresh = contents(await rulebooks.rulebook())
            for book in dice.sample(books, min(3, len(books))):
                assert fresh == contents(await rulebooks.changed_since(book))
            books.append(await rulebooks.changed_since(books[-1]))
        assert books[-1].version == (await overrides.versions()).released

    @pytest.mark.parametrize("count", [3_000, 30_000])
    async def test_a_large_change_is_a_delta_like_any_other(
        self, overrides: Overrides, rulebooks: Rulebooks, count: int
    ) -> None:
        """An import of many rules reaches a router in moments, and brings it to where a fresh load would."""
        book = await rulebooks.rulebook()
        edits = {f"k{n}.example": make_rule(f"k{n}.example", "t.example") for n in range(count)}
        saved = await overrides.apply(edits, actor="ann", release=True)
        async with asyncio.timeout(5):  # a plan that looks at every row for each row takes minutes
            after = await rulebooks.changed_since(book)
        assert (saved.version, count) == (after.version, after.size)
        assert ("t.example",) == after.route(f"k{count - 1}.example", "m1").targets
        assert after is await rulebooks.changed_since(after)
