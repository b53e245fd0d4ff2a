"""The image is made of the same pins as everything else: its locks are parts of requirements.lock."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_the_locks_of_the_image_are_parts_of_the_lock(name: str) -> None:
    """What was tested is what is shipped; `make lock` makes all of them."""
    whole = _pins(ROOT / "requirements.lock")
    part = _pins(ROOT / "deploy/image" / name)
    assert part
    assert {each: whole.get(each) for each in part} == part
    assert all("--hash=sha256:" in pin for pin in part.values())


def test_the_image_has_every_library_that_pushpush_names() -> None:
    """Those of traces, too: one image for all; and nothing of the tools of developers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["traces"]]
    shipped = _pins(ROOT / "deploy/image/requirements.lock").keys()
    assert {_name(each) for each in named} <= shipped
    assert not {_name(each) for each in project["dependency-groups"]["dev"]} & shipped
    (builder,) = project["build-system"]["requires"]
    assert _name(builder) in _pins(ROOT / "deploy/image/build.lock")


def _pins(lock: Path) -> dict[str, str]:
    """Return version, condition and hashes by the name of the package."""
    entries = re.findall(r"(?m)^([a-z0-9-]+)(\S* .*\n(?:    .*\n)*)", lock.read_text())
    return dict(entries)


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9-]+", requirement)
    assert found is not None
    return found[0].lower()
