"""Many rules at once: import, export and sync, all or nothing."""

import json
import os
import pty
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.mail.rule import make_rule
from shared.runtime.settings import Settings
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides, Versions
from shared.store.pool import Pool
from tests.integration.command_line import CommandLine, commands
from tests.integration.conftest import MESSAGE, NOON, delivery
from tests.integration.rooms import running

pytestmark = [pytest.mark.anyio, pytest.mark.services]

CSV = b"lookup_key,target_host,comment\na.example,b.example,one\n*.c.example,d.example:2525,two\n"


@pytest.fixture
async def pushpush(settings: Settings) -> AsyncIterator[CommandLine]:
    """The command line for the private broker and database."""
    async with commands(settings) as pushpush:
        yield pushpush


async def table(pool: Pool) -> dict[str, str]:
    """Return key and target of every rule."""
    return {each.rule.lookup_key: each.rule.target_host for each in await Overrides(pool).matching()}


class TestImport:
    """`import FILE`."""

    async def test_a_file(self, pushpush: CommandLine, pool: Pool, settings: Settings, tmp_path: Path) -> None:
        """The difference is shown, and written as one version under the name `import`; routers apply it."""
        file = tmp_path / "rules.csv"
        file.write_bytes(CSV)
        await Overrides(pool).set(make_rule("a.example", "x.example"), actor="ann", release=True)
        await Overrides(pool).set(make_rule("z.example", "y.example"), actor="ann", release=True)
        await Deferred(pool).defer(delivery(id="m2", domain="x.c.example"), MESSAGE, NOON.replace(year=2999))
        dry = await pushpush("rules", "import", str(file), "--dry-run")
        assert Versions(version=2, released=2) == await Overrides(pool).versions()
        async with running(settings):
            ran = await pushpush("rules", "import", str(file), "--actor", "CI")
        difference = [
            "~ a.example: target x.example -> b.example, comment '' -> 'one'",
            "+ *.c.example -> d.example:2525",
        ]
        assert [sorted(difference)] * 2 == [sorted(each.out.splitlines()[:2]) for each in (dry, ran)]
        assert "import of 2 rules, 1 rule added, 1 changed, 0 removed: nothing was changed" == dry.out.splitlines()[2]
        assert ("", True, True) == (ran.err, "applied by 1 of 1 router" in ran.out, "1 waiting delivery" in ran.out)
        assert {"a.example": "b.example", "*.c.example": "d.example:2525", "z.example": "y.example"} == await table(
            pool
        )
        assert [(3, "CI", "import")] * 2 == [
            (each.version, each.actor, each.action) for each in (await Overrides(pool).history())[:2]
        ]
        again = (await pushpush("rules", "import", str(file), "--json")).data
        assert (False, [], {"added": 0, "altered": 0, "removed": 0}) == (
            again["changed"],
            again["changes"],
            again["difference"],
        )

    async def test_faults(self, pushpush: CommandLine, pool: Pool, tmp_path: Path) -> None:
        """Each row at fault has a line of its own, and nothing is written."""
        bad = b"lookup_key,target_host\na.example,b.example\na..example,b.example\nc.example,d.example:0\n"
        ran = await pushpush("rules", "import", "-", "--format", "csv", stdin=bad)
        assert (1, "", 2) == (ran.code, ran.out, len(ran.err.splitlines()))
        assert ["row 3: the key" in ran.err, "row 4: the target" in ran.err] == [True, True]
        said = await pushpush("rules", "import", "-", "--format", "csv", "--json", stdin=bad)
        assert "\nrow 4: " in said.object["error"]["message"]
        (tmp_path / "rules.txt").write_bytes(CSV)
        for words, wanted in (
            (["-"], "--format csv"),
            ([str(tmp_path / "none.csv")], "No such file"),
            ([str(tmp_path)], "Is a directory"),
            ([str(tmp_path / "rules.txt")], "does not tell what it holds"),
            (["-", "--format", "sqlite"], "name its path"),
        ):
            ran = await pushpush("rules", "import", *words)
            assert (1, True) == (ran.code, wanted in ran.sentence)
        circle = b"lookup_key,target_host\na.example,b.example\nb.example,a.example\n"
        assert "circle" in (await pushpush("rules", "import", "-", "--format", "csv", stdin=circle)).sentence
        assert Versions(version=0, released=0) == await Overrides(pool).versions()

    async def test_the_database_of_madmail(self, pushpush: CommandLine, pool: Pool, tmp_path: Path) -> None:
        """It is known by its content."""
        database = sqlite3.connect(tmp_path / "imap")
        database.execute("CREATE TABLE dns_overrides (lookup_key TEXT, target_host TEXT, comment TEXT)")
        database.execute("INSERT INTO dns_overrides VALUES ('A.Example', 'b.example', NULL)")
        database.commit()
        database.close()
        assert 1 == (await pushpush("rules", "import", str(tmp_path / "imap"), "--json")).data["rules"]
        assert {"a.example": "b.example"} == await table(pool)

    async def test_a_long_difference(self, pushpush: CommandLine) -> None:
        """Its first lines are shown."""
        rows = b"".join(b"n%d.example,b.example\n" % number for number in range(60))
        ran = await pushpush("rules", "import", "-", "--format", "csv", stdin=b"lookup_key,target_host\n" + rows)
        assert (52, "and 10 more") == (len(ran.out.splitlines()), ran.out.splitlines()[50])

    async def test_a_bar_on_a_terminal(self, pushpush: CommandLine, tmp_path: Path) -> None:
        """Only standard error has it, and only where it is a terminal."""
        (tmp_path / "rules.csv").write_bytes(CSV)
        ours, theirs = pty.openpty()
        words = (sys.executable, "-m", "workers.cli", "rules", "import", str(tmp_path / "rules.csv"))
        env = pushpush.env | {"TERM": "xterm"}
        ran = subprocess.run(words, stdout=subprocess.PIPE, stderr=theirs, check=False, env=env)  # noqa: ASYNC221
        os.close(theirs)
        shown = os.read(ours, 65536)
        os.close(ours)
        assert (0, True, False) == (ran.returncode, b"writing rules" in shown, b"writing rules" in ran.stdout)


class TestExport:
    """`export`, and back."""

    @pytest.mark.parametrize("form", ["csv", "yaml", "json"])
    async def test_and_back(self, pushpush: CommandLine, pool: Pool, tmp_path: Path, form: str) -> None:
        """What is exported is taken again and makes the same table, in each form."""
        await pushpush("rules", "import", "-", "--format", "csv", stdin=CSV)
        made = await pushpush("rules", "export", "--format", form)
        file = tmp_path / f"rules.{form}"
        written = await pushpush("rules", "export", "--output", str(file), "--json")
        assert (0, made.out) == (made.code, file.read_text())
        assert {"output": str(file), "format": form, "total": 2} == written.data
        before = await table(pool)
        await pushpush("rules", "remove", "a.example")
        assert 0 == (await pushpush("rules", "import", str(file))).code
        assert before == await table(pool)

    async def test_what_cannot_be(self, pushpush: CommandLine, tmp_path: Path) -> None:
        """One sentence; no rules are a file, too; with `--json` it is an object as `list` has."""
        for name, wanted in (("none/rules.csv", "No such file"), ("rules.db", "not exported as a database")):
            ran = await pushpush("rules", "export", "--output", str(tmp_path / name))
            assert (1, True) == (ran.code, wanted in ran.sentence)
        assert "lookup_key,target_host," == (await pushpush("rules", "export")).out[:23]
        assert {"overrides": [], "total": 0} == (await pushpush("rules", "export", "--json")).data


class TestSync:
    """`sync FILE` makes the table equal to the file."""

    async def test_a_file(self, pushpush: CommandLine, pool: Pool) -> None:
        """Rules that it does not name are removed, all as one version."""
        await Overrides(pool).set(make_rule("z.example", "y.example"), actor="ann", release=True)
        words = ("rules", "sync", "-", "--format", "csv")
        refused = await pushpush(*words, "--if-version", "0", stdin=CSV)
        assert (1, True) == (refused.code, "ann changed z.example in version 1" in refused.sentence)
        ran = await pushpush(*words, "--if-version", "1", stdin=CSV)
        assert "- z.example" in ran.out.splitlines()
        assert "sync of 2 rules, 2 rules added, 0 changed, 1 removed: saved as version 2" in ran.out
        assert {"a.example": "b.example", "*.c.example": "d.example:2525"} == await table(pool)

    async def test_a_file_without_rules(self, pushpush: CommandLine, pool: Pool) -> None:
        """It is a mistake more often than a wish."""
        await pushpush("rules", "import", "-", "--format", "csv", stdin=CSV)
        words = ("rules", "sync", "-", "--format", "json")
        refused = await pushpush(*words, stdin=b"[]")
        assert refused.sentence.endswith("the file has no rules: --force removes all 2 rules")
        dry = await pushpush(*words, "--dry-run", stdin=b"[]")
        assert ["- *.c.example", "- a.example"] == sorted(dry.out.splitlines()[:2])
        assert 2 == len(await table(pool))
        assert 2 == (await pushpush(*words, "--force", "--json", stdin=b"[]")).data["difference"]["removed"]
        assert {} == await table(pool)

    async def test_what_list_prints(self, pushpush: CommandLine, pool: Pool) -> None:
        """The object of `list --json` is a file, too."""
        await pushpush("rules", "import", "-", "--format", "csv", stdin=CSV)
        listed = await pushpush("rules", "list", "--json")
        ran = await pushpush("rules", "sync", "-", "--format", "json", stdin=json.dumps(listed.object).encode())
        assert (0, True) == (ran.code, "no difference" in ran.out)
        assert 2 == len(await table(pool))
