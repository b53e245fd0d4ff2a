"""The shape of the repository: what ARCHITECTURE.md names exists, the layers hold, and no machine shows through."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# `workers/router/handler.py`, `docs/adr/`, `pyproject.toml`; not `/mxdeliv`, `a/b|c`, `host:port/x`, `POST /x`.
_PATH = re.compile(r"(?:[\w.-]+/)+[\w.-]*|[\w.-]+\.(?:py|md|toml)")
_MEDIA_TYPE = re.compile(r"(?:application|audio|image|message|multipart|text|video)/")
# Written in two halves, or this file would be the first to be found.
_MACHINE = re.compile(r"(?<![\w.-])/(?:" + "work" + r"|root/\.(?:" + "pyenv" + r"|cache|local))/")
_UNREAD = {".git", ".venv", ".run", "dist", "__pycache__"}


def paths_named_in(text: str) -> set[str]:
    """Return what looks like a path among the words in backticks; a function may follow after a colon."""
    words = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    stripped = {word.partition("::")[0].removeprefix("./") for word in words}
    named = {word for word in stripped if _PATH.fullmatch(word) and not _MEDIA_TYPE.match(word)}
    return {word for word in named if not word.startswith(".run/")}  # made by a run, not part of the checkout


def exists(name: str) -> bool:
    """Say whether a path from the root exists, or, for a bare file name, any file of that name."""
    if (ROOT / name).exists():
        return True
    return "/" not in name and any(path.name == name for path in files())


def files() -> list[Path]:
    """Return the files of the repository: what git tracks or would add; without git, all but what a run makes."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not _UNREAD & set(path.relative_to(ROOT).parts)]
    return [path for path in found if path.is_file()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see `shared/mail/codec.py` and `docs/adr/`", {"shared/mail/codec.py", "docs/adr/"}),
        ("`pyproject.toml`, `handler.py`", {"pyproject.toml", "handler.py"}),
        ("`./tests/unit` `tests/unit/test_x.py::test_y`", {"tests/unit", "tests/unit/test_x.py"}),
        ("`/mxdeliv` `POST /mxdeliv` `https://b.com/x` `message/rfc822` `.run/x` `a.com` `mail.outbound`", set()),
        ("no/backticks.py and ```code/fence.py```", set()),
    ],
)
def test_paths_are_told_from_other_words(text: str, expected: set[str]) -> None:
    """A check that finds no paths would check nothing."""
    assert expected == paths_named_in(text)


def test_every_path_in_the_architecture_exists() -> None:
    """A map that names places which are gone leads astray."""
    named = paths_named_in((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert named
    assert sorted(name for name in named if not exists(name)) == []


def test_the_import_contracts_hold() -> None:
    """Rooms never import each other, shared never imports a room, and shared.mail does no I/O (pyproject.toml)."""
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_file_names_a_place_on_one_machine() -> None:
    """A checkout works wherever it is."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files()
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1)
        if _MACHINE.search(line)
    ]
    assert not found


def test_the_lock_names_packages_and_hashes_only() -> None:
    """Which index they come from is the matter of whoever installs them; the hashes hold for each."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    forms = (
        r"[a-z0-9._-]+(?:\[[a-z0-9,_-]+\])?==[^\s;]+(?: ; [^\\]+)? \\",
        r"    --hash=sha256:[0-9a-f]{64}(?: \\)?",
        r"(?: *#.*)?",
    )
    lines = [line for line in lock.splitlines() if not any(re.fullmatch(form, line) for form in forms)]
    assert not lines
    assert "://" not in lock
