"""What the page of logs says is written, is."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operating/logs.md").read_text(encoding="utf-8")
OUTCOMES = {"delivered", "deferred", "failed", "unsuited", "busy"}  # names of classes


def test_every_event_that_is_named_is_written_somewhere() -> None:
    """By its name, as a program that reads the log would look for it."""
    code = "\n".join(
        each.read_text(encoding="utf-8") for top in ("shared", "workers") for each in (ROOT / top).rglob("*.py")
    )
    rows = re.findall(
        r"^\| ((?:`[^`]+`(?:, )?)+) \|", PAGE.partition("## One line")[2].partition("## Spans")[0], re.MULTILINE
    )
    events = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    fields = {"id", "recipient", "transport", "rule", "version", "attempt", "code", "enhanced", "reply", "mta", "ms"}
    assert {"reported", "woken", "undecodable", "rules applied"} | OUTCOMES <= events
    written = re.findall(r'log\.(?:debug|info|warning|error|exception)\(\s*"([^"]+)"', code)
    assert set() == events - fields - OUTCOMES - set(written) - {"event"}
