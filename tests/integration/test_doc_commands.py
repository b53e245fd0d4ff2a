"""The commands of the documentation, run one after the other on a private broker and database."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.runtime.settings import Settings
from tests.doc_commands import named
from tests.integration.command_line import CommandLine, commands
from tests.peers.mxdeliv import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.services]

MAIL = b"From: you@x.example\r\nSubject: hello\r\n\r\nHello!\r\n"
# What the pages refer to without having made it: no such version, token, dead letter; hosts that nobody has.
_MAY_REFUSE = ("set", "probe", "rollback", "revoke", "requeue", "explain", "check", "trace", "import")


@pytest.fixture
async def pushpush(settings: Settings, tmp_path: Path) -> AsyncIterator[CommandLine]:
    """The command line, in a folder with the files that the pages name."""
    (tmp_path / "rules.yaml").write_text("- lookup_key: a.com\n  target_host: b.com\n")
    (tmp_path / "rules.csv").write_text("lookup_key,target_host\na.com,b.com\n")
    with sqlite3.connect(tmp_path / "madmail.db") as database:
        database.execute(
            "CREATE TABLE dns_overrides (lookup_key text, target_host text, comment text, created_at datetime, "
            "updated_at datetime)"
        )
    async with commands(settings, PUSHPUSH_HTTPS_PORT=str(free_port())) as line:
        line.folder = tmp_path
        yield line


async def test_they_run(pushpush: CommandLine, tmp_path: Path) -> None:
    """None is misunderstood, and none breaks; refused are only those that name what is not there."""
    pages: dict[tuple[str, ...], str] = {each.words: each.page.name for each in named("pushpush")}
    wrong, well = [], 0
    await pushpush("endpoint-cache", "set", "a.com", "b.com", "--force")
    for words, page in pages.items():
        if words[1:4] == ("endpoint-cache", "get", "a.com"):  # one before took it away
            await pushpush("endpoint-cache", "set", "a.com", "b.com", "--force")
        given = [str(tmp_path / "madmail.db") if word.endswith("madmail.db") else word for word in words[1:]]
        once = ["--once"] if given == ["queue", "top"] else []
        ran = await pushpush(*given, *once, stdin=b"[]" if "json" in given else MAIL)
        refused = ran.code == 1 and "Traceback" not in ran.err and any(word in given for word in _MAY_REFUSE)
        well += ran.code == 0
        if ran.code and not refused:
            wrong.append(f"{page}: {' '.join(words)}: {ran.code}: {ran.err[-300:] or ran.out[-300:]}")
    assert not wrong, "\n".join(wrong)
    assert well > len(pages) / 2
