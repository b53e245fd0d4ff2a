"""docs/delivery.md names a source and a test for each behaviour: the tests are there, and no behaviour stands twice."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent
COLUMNS = ["behaviour", "source", "test"]

_TEST = re.compile(r"(?P<file>tests/(?:\w+/)*test_\w+\.py)::(?P<name>(?:Test\w*::)?test_\w+)")
_ADR = re.compile(r"\bADR ([0-9]+)")


class Row(NamedTuple):
    """One behaviour; `named` is what stands in backticks in its last column, `beside` what else does."""

    behaviour: str
    source: str
    named: list[str]
    beside: str


def tables_in(text: str) -> Iterator[list[list[str]]]:
    """Give the cells of each table, line by line."""
    for piped, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if piped:
            yield [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def read(text: str) -> tuple[list[Row], list[str]]:
    """Return the rows of all tables, and what cannot be read as one."""
    rows, unread = [], []
    for head, *lines in tables_in(text):
        if head != COLUMNS or not lines or not all(re.fullmatch(r"-+", cell) for cell in lines[0]):
            unread.append(f"a table begins: {' | '.join(head)}")
            continue
        for cells in lines[1:]:
            if len(cells) == len(COLUMNS):
                behaviour, source, tests = cells
                rows.append(Row(behaviour, source, re.findall(r"`([^`]*)`", tests), re.sub(r"`[^`]*`", "", tests)))
            else:
                unread.append(f"{len(cells)} cells: {' | '.join(cells)}")
    return rows, unread


def faults_in(text: str, root: Path) -> list[str]:
    """Return whatever is wrong with the tables of a text, whose tests and decisions are below a folder."""
    rows, faults = read(text)
    if not rows:
        faults.append("there is no row")
    counts = Counter(row.behaviour.casefold() for row in rows)
    faults += [f"stands twice: {behaviour}" for behaviour, count in counts.items() if count > 1]
    for row in rows:
        faults += [f"{row.behaviour}: {fault}" for fault in faults_of(row, root)]
    return faults


def faults_of(row: Row, root: Path) -> Iterator[str]:
    """Give what is wrong with one row."""
    if not row.behaviour or not row.source:
        yield "a cell is empty"
    if not row.named:
        yield "names no test"
    if row.beside.strip(", "):
        yield f"beside its tests stands {row.beside.strip(', ')}"
    for name, count in Counter(row.named).items():
        if count > 1:
            yield f"names {name} twice"
        if not exists(name, root):
            yield f"there is no {name}"
    for number in _ADR.findall(row.source):
        if not [*(root / "docs" / "adr").glob(f"{int(number):04}-*.md")]:
            yield f"there is no ADR {number}"


def exists(name: str, root: Path) -> bool:
    """Say whether a test is defined: `tests/unit/test_x.py::test_y`, or with its class before it."""
    found = _TEST.fullmatch(name)
    return found is not None and found["name"] in defined_in(root / found["file"])


@lru_cache
def defined_in(path: Path) -> frozenset[str]:
    """Return the tests that a file defines, those of a class as `TestY::test_z`; none when there is no file."""
    if not path.is_file():
        return frozenset()
    return frozenset(_names(ast.parse(path.read_bytes()).body))


def _names(body: list[ast.stmt]) -> Iterator[str]:
    for each in body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            yield each.name
        elif isinstance(each, ast.ClassDef):
            yield from (f"{each.name}::{name}" for name in _names(each.body))


def test_every_behaviour_has_a_source_and_a_test_that_exists() -> None:
    """A table that names tests which are gone shows nothing."""
    text = (ROOT / "docs" / "delivery.md").read_text(encoding="utf-8")
    assert [] == faults_in(text, ROOT)


HEAD = "# Delivery\n\n| behaviour | source | test |\n|---|---|---|\n"
ONE = "| one | RFC 1 2 | `tests/unit/test_x.py::test_y` |\n"
TWO = "| two | ADR 7 | `tests/unit/test_x.py::test_w`, `tests/unit/test_x.py::TestX::test_z` |\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "there is no row"),
        ("# Delivery\n\nbehaviour, source, test\n", "there is no row"),
        (HEAD, "there is no row"),
        (HEAD + ONE + "| three | RFC 1 | |\n", "three: names no test"),
        (HEAD + "| three | RFC 1 | `` |\n", "three: there is no "),
        (HEAD + "| three | RFC 1 | `test_x.py::test_y` |\n", "three: there is no test_x.py::test_y"),
        (HEAD + ONE.replace("test_x", "test_v"), "one: there is no tests/unit/test_v.py::test_y"),
        (HEAD + ONE.replace("test_y", "test_z"), "one: there is no tests/unit/test_x.py::test_z"),
        (HEAD + ONE.replace("test_y", "test_in"), "one: there is no tests/unit/test_x.py::test_in"),
        (HEAD + ONE.replace("::test_y", ""), "one: there is no tests/unit/test_x.py"),
        (HEAD + ONE.replace("::test_y", "::TestX"), "one: there is no tests/unit/test_x.py::TestX"),
        (HEAD + ONE.replace("tests/", "tests/../"), "one: there is no tests/../unit/test_x.py::test_y"),
        (HEAD + TWO.replace("TestX", "TestY"), "two: there is no tests/unit/test_x.py::TestY::test_z"),
        (HEAD + TWO.replace("test_w", "help_w"), "two: there is no tests/unit/test_x.py::help_w"),
        (HEAD + TWO.replace("ADR 7", "RFC 1; ADR 8"), "two: there is no ADR 8"),
        (HEAD + TWO.replace("TestX::test_z", "test_w"), "two: names tests/unit/test_x.py::test_w twice"),
        (HEAD + ONE.replace("` |", "` and more |"), "one: beside its tests stands and more"),
        (HEAD + ONE.replace("` |", "`, test_w |"), "one: beside its tests stands test_w"),
        (HEAD + "| | RFC 1 | `tests/unit/test_x.py::test_y` |\n", ": a cell is empty"),
        (HEAD + ONE.replace("RFC 1 2", ""), "one: a cell is empty"),
        (HEAD + ONE + TWO + ONE.replace("one", "One"), "stands twice: one"),
        (HEAD + ONE + "\n## More\n\n" + HEAD + ONE, "stands twice: one"),
        (HEAD + ONE + "| three | RFC 1 |\n", "2 cells: three | RFC 1"),
        (HEAD + TWO + "\n" + HEAD.replace("source", "RFC") + ONE, "a table begins: behaviour | RFC | test"),
        (HEAD + TWO + "\n" + HEAD.replace("|---|---|---|\n", "") + ONE, "a table begins: behaviour | source | test"),
        (HEAD + ONE + "\n| lost |\n", "a table begins: lost"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(tmp_path: Path, text: str, fault: str) -> None:
    """A check that cannot fail would check nothing."""
    assert [fault] == faults_in(text, made_up(tmp_path))


def test_what_is_right_is_let_be(tmp_path: Path) -> None:
    """Functions and methods, also asynchronous ones, of several tables."""
    text = HEAD + ONE + "\n## More\n\n" + HEAD + TWO
    assert [] == faults_in(text, made_up(tmp_path))
    rows, _ = read(text)
    assert [("one", 1), ("two", 2)] == [(row.behaviour, len(row.named)) for row in rows]


def made_up(folder: Path) -> Path:
    """Return a folder with a file of tests and a decision."""
    (folder / "tests" / "unit").mkdir(parents=True)
    (folder / "tests" / "unit" / "test_x.py").write_text(
        "def test_y():\n    def test_in(): ...\nasync def test_w(): ...\ndef help_w(): ...\n"
        "class TestX:\n    async def test_z(self): ...\n",
        encoding="utf-8",
    )
    (folder / "docs" / "adr").mkdir(parents=True)
    (folder / "docs" / "adr" / "0007-decided.md").touch()
    return folder
