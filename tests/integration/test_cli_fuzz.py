"""Whatever is typed: a command does it, or refuses with one sentence and changes nothing; the rules stay readable."""

import asyncio
import csv
import io
import json
import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from shared.mail.rule import RuleError, make_rule, parse_expiry, parse_share
from shared.runtime.errors import StoreUnavailable
from shared.runtime.settings import Settings
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.rulebooks import Rulebooks
from tests.integration.command_line import CommandLine, Ran, commands
from tests.unit.strategies import domains, hostile_text

pytestmark = [pytest.mark.anyio, pytest.mark.services]

FAULTS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
NOW = datetime(2026, 6, 1, tzinfo=UTC)

# argv holds no NUL; bytes that are no UTF-8 arrive as lone surrogates.
_words = st.one_of(hostile_text, st.binary(max_size=12).map(os.fsdecode)).map(
    lambda text: os.fsdecode(text.encode("utf-8", "surrogateescape" if _escaped(text) else "replace")).replace("\0", "")
)
_keys = st.one_of(_words, domains)
_option = st.sampled_from(["--comment", "--expires", "--share", "--actor", "--transport", "--tls", "--if-version"])


def _escaped(text: str) -> bool:
    """Say whether the surrogates in a text are those of bytes in argv."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _yaml(rows: Sequence[Sequence[str]]) -> bytes:
    return "".join(f"- lookup_key: {key}\n  target_host: {target}\n" for key, target in rows).encode(
        "utf-8", "surrogatepass"
    )


def _json(rows: Sequence[Sequence[str]]) -> bytes:
    return json.dumps([{"lookup_key": key, "target_host": target} for key, target in rows]).encode()


_rows = st.lists(st.tuples(st.one_of(hostile_text, domains), st.one_of(hostile_text, domains)), max_size=3)
_files = st.one_of(
    st.tuples(st.just("csv"), _rows.map(lambda rows: _csv([("lookup_key", "target_host"), *rows]))),
    st.tuples(st.just("yaml"), _rows.map(_yaml)),
    st.tuples(st.just("json"), _rows.map(_json)),
    st.tuples(st.sampled_from(["csv", "yaml", "json", "sqlite"]), st.binary(max_size=60)),
)


@pytest.fixture
async def pushpush(settings: Settings) -> AsyncIterator[CommandLine]:
    """The command line for the private broker and database."""
    async with commands(settings) as pushpush:
        yield pushpush


async def _tried(pool: Pool, pushpush: CommandLine, *words: str, stdin: bytes = b"") -> Ran:
    """Run a command and check what holds for each of them."""
    before = await Overrides(pool).versions()
    ran = await pushpush(*words, stdin=stdin)
    shown = (words, ran.code, ran.out, ran.err)
    event(f"{words[1]}: {ran.code}")
    assert ran.code in {0, 1, 2}, shown
    assert "Traceback" not in ran.out + ran.err, shown
    if ran.code == 0:
        await Overrides(pool).matching()
        await Overrides(pool).history()
        await Rulebooks(pool).rulebook()
    else:
        assert before == await Overrides(pool).versions(), shown
    if ran.code == 1 and "--json" in words:
        assert ran.object["error"]["kind"] in {"refused", "usage"}, shown
    elif ran.code == 1:
        assert "" == ran.out, shown
        assert all(line.isprintable() for line in ran.err.split("\n")), shown
        assert stdin or 1 == ran.err.count("\n"), shown
    return ran


@given(
    st.one_of(st.tuples(_keys, _keys), st.just(("a.example", "b.example"))),
    st.lists(st.tuples(_option, _words), max_size=3),
    st.booleans(),
)
@settings(max_examples=25, **FAULTS)  # type: ignore[arg-type]  # by name
async def test_set(
    pushpush: CommandLine, pool: Pool, rule: tuple[str, str], options: list[tuple[str, str]], as_json: bool
) -> None:
    """A rule is made of the words, or not; hosts are not asked."""
    words = [f"{name}={value}" for name, value in options] + ["--json"] * as_json
    await _tried(pool, pushpush, "rules", "set", "--no-probe", *words, "--", *rule)


@given(st.one_of(_words, st.sampled_from(["a.example", "0", "1", "9" * 30])), _words, st.booleans())
@settings(max_examples=8, **FAULTS)  # type: ignore[arg-type]  # by name
async def test_the_other_commands(pushpush: CommandLine, pool: Pool, word: str, actor: str, as_json: bool) -> None:
    """Each of them takes one text."""
    await pushpush("rules", "set", "--no-probe", "a.example", "b.example")
    also = ["--json"] * as_json
    await asyncio.gather(
        *(
            _tried(pool, pushpush, "rules", *words)
            for words in (
                ["get", *also, "--", word],
                ["list", *also, f"--search={word}"],
                ["history", *also, "--", word],
            )
        )
    )
    for words in (
        ["remove", f"--actor={actor}", *also, "--", word],
        ["disable", f"--actor={actor}", *also, "--", word],
        ["rollback", f"--actor={actor}", *also, "--", word],
        ["import", *also, "--", word],
    ):
        await _tried(pool, pushpush, "rules", *words)


@given(_files, st.sampled_from(["import", "sync"]), st.booleans())
@settings(max_examples=25, **FAULTS)  # type: ignore[arg-type]  # by name
async def test_files(pushpush: CommandLine, pool: Pool, file: tuple[str, bytes], command: str, as_json: bool) -> None:
    """A file is taken whole, or each of its faults is told."""
    form, data = file
    await _tried(pool, pushpush, "rules", command, "-", "--format", form, *["--json"] * as_json, stdin=data or b"\n")


@given(st.lists(st.tuples(_keys, _keys, hostile_text), max_size=3), hostile_text, hostile_text, hostile_text)
@settings(max_examples=40, **FAULTS)  # type: ignore[arg-type]  # by name
async def test_the_store(pool: Pool, rows: list[tuple[str, str, str]], actor: str, search: str, when: str) -> None:
    """What `make_rule` lets through can be stored and read; what PostgreSQL cannot hold changes nothing."""
    edits = {}
    for key, target, comment in rows:
        try:
            rule = make_rule(key, target, comment=comment)
        except RuleError:
            continue
        edits[rule.lookup_key] = rule
    for parse in (parse_share, lambda text: parse_expiry(text, NOW)):
        try:
            parse(when)
        except RuleError:
            continue
    rules = Overrides(pool)
    before = await rules.versions()
    try:
        saved = await rules.apply(edits, actor=actor, release=True, whole=True)
    except (ValueError, StoreUnavailable):
        assert before == await rules.versions()
    else:
        assert edits == {
            each.rule.lookup_key: make_rule(each.rule.lookup_key, each.rule.target_host, comment=each.rule.comment)
            for each in await rules.matching()
        }
        recorded = await rules.history(limit=max(1, len(saved.changes)))
        if saved.changed:
            assert {actor or recorded[0].actor} == {each.actor for each in recorded}
    try:
        await rules.matching(search)
    except (ValueError, StoreUnavailable):
        assert not _storable(search)
    await Rulebooks(pool).rulebook()


def _storable(text: str) -> bool:
    return "\0" not in text and text.isascii() | (text == text.encode("utf-8", "ignore").decode())
