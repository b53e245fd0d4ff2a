"""What the documentation says can be done, can be: commands parse, settings are settings, links lead somewhere."""

import importlib.util
import re
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from shared.runtime.settings import PREFIX, Settings
from tests.doc_commands import PAGES, ROOT, Command, named, split
from workers.cli.main import app

_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_SETTING = re.compile(rf"{PREFIX}([A-Z_]+)\b(?!\*)")
# Where a page stands for a number, and the command line wants one.
_NUMBERS = {"VERSION": "7", "N": "3"}
GROUP = get_command(app)
assert isinstance(GROUP, TyperGroup)
# What Typer raises for words that it does not understand.
Refused = cast("type[Exception]", typer.BadParameter.__base__)


def parse(words: tuple[str, ...]) -> None:
    """Have the command line read words, and do nothing.

    Raises:
        Refused: It would refuse them.
    """
    command: Any = GROUP
    left = [_NUMBERS.get(word, word) for word in words]
    while isinstance(command, TyperGroup):
        name = left.pop(0) if left else ""
        found = command.commands.get(name)
        if found is None:
            raise Refused(f"there is no {name!r} here")
        command = found
    command.make_context("pushpush", left)


@pytest.mark.parametrize("command", named("pushpush"), ids=str)
def test_the_command_line_takes_what_the_pages_say(command: Command) -> None:
    """Commands, options and their values."""
    parse(command.words[1:])


@pytest.mark.parametrize("words", [("rules", "sett"), ("queue", "status", "--dommain", "a"), ("nothing",), ("trace",)])
def test_what_is_misspelt_is_found(words: tuple[str, ...]) -> None:
    """A check that takes everything would check nothing."""
    with pytest.raises(Refused):
        parse(words)


def test_there_are_commands_to_check() -> None:
    """And they are taken apart as a shell would."""
    line = "printf 'a|b' | pushpush send - --from me > file && pushpush check"
    assert [("printf", "a|b"), ("pushpush", "send", "-", "--from", "me"), ("pushpush", "check")] == list(split(line))
    assert {"install.md", "rules.md", "README.md", "upgrade.md"} <= {each.page.name for each in named("pushpush")}


@pytest.mark.parametrize("command", [*named("python"), *named("python3")], ids=str)
def test_modules_exist(command: Command) -> None:
    """`python -m X`."""
    assert "-m" == command.words[1]
    assert importlib.util.find_spec(command.words[2]) is not None


@pytest.mark.parametrize("command", named("make"), ids=str)
def test_targets_of_make_exist(command: Command) -> None:
    """`make X`; a word with = is a variable."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {word for word in command.words[1:] if "=" not in word} <= set(targets)


@pytest.mark.parametrize("command", [*named("kubectl"), *named("sh")], ids=str)
def test_files_that_commands_name_exist(command: Command) -> None:
    """`kubectl apply -k PATH`, `sh PATH`; names of one's own are in capitals."""
    paths = [word for word in command.words[1:] if re.fullmatch(r"(?:\./)?(?:deploy|docs|tests|workers)/\S+", word)]
    assert [] == [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("command", named("kubectl"), ids=str)
def test_objects_that_commands_name_exist(command: Command) -> None:
    """`deployment/router`; what an operator calls their own is in capitals."""
    rooms = {path.parent.name for path in ROOT.glob("workers/*/__main__.py")} - {"cli"}
    names = [word.partition("/")[2] for word in command.words if re.fullmatch(r"(?:deployment|deploy)/[a-z]+", word)]
    assert set(names) <= rooms


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the checkout, and a heading in it."""
    broken = []
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_every_page_of_the_handbook_is_in_its_index() -> None:
    """Whoever looks for one finds it."""
    index = ROOT / "docs/operating/README.md"
    linked = {link.partition("#")[0] for link in _LINK.findall(index.read_text(encoding="utf-8"))}
    assert {page.name for page in index.parent.glob("*.md")} - {"README.md"} <= linked


def test_every_setting_is_documented() -> None:
    """In the README's table, and nothing else is."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Settings")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = [name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)]
    assert sorted(name.upper() for name in Settings.model_fields) == sorted(documented)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_pages_name_exist(page: Path) -> None:
    """PUSHPUSH_X, or PUSHPUSH_X_FILE; `PUSHPUSH_X` alone stands for any."""
    names = {name.lower() for name in _SETTING.findall(page.read_text(encoding="utf-8"))}
    others = {"x", "x_file", "screenshots"}  # the last is of `make screenshots`
    assert [] == [
        name for name in names - others if not {name, name.removesuffix("_file")} & set(Settings.model_fields)
    ]


@pytest.mark.parametrize("command", [each for each in GROUP.commands.values() if not each.hidden])
def test_every_command_is_in_the_readme(command: TyperCommand) -> None:
    """Its table says what there is."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"`pushpush {command.name}\b|, `{command.name}\b", readme)
