"""Jobs for operators: what the manifests run, run here against a real broker, database and router."""

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from shared.runtime.settings import Settings
from tests.integration.command_line import CommandLine, commands
from tests.integration.manifests import ROOT, Object, containers, of_kind, pods, rendered, template
from tests.integration.rooms import running
from workers.cli.main import app

pytestmark = [pytest.mark.anyio, pytest.mark.services]

BIN = Path(sys.executable).parent
# The README's line, from the pipe on: what goes into it comes from a cluster.
MARK = "kubectl set env --local"


@pytest.fixture
async def pushpush(settings: Settings) -> AsyncIterator[CommandLine]:
    """The command line, and a router that applies what it does."""
    async with commands(settings) as pushpush, running(settings):
        yield pushpush


def job(name: str) -> Object:
    """Return the Job that `kubectl create job --from=cronjob/NAME` makes."""
    spec = of_kind(rendered("base"), "CronJob")[name]["spec"]["jobTemplate"]["spec"]
    metadata = {"name": f"{name}-1", "namespace": "pushpush"}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


async def run(it: Object, pushpush: CommandLine) -> tuple[int, str]:
    """Run the one container of a Job, with the variables of the command line; return its code and what it said."""
    found = template(it)
    assert found is not None
    [container] = containers(found)
    ours = {each["name"]: each["value"] for each in container.get("env", ())}
    process = await asyncio.create_subprocess_exec(
        *container["command"],
        env=pushpush.env | ours | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, said.decode()


def readme(start: str, *, has: str = "") -> str:
    """Return the one command of the README that begins, and goes on, like this."""
    lines = (ROOT / "deploy/k8s/README.md").read_text().splitlines()
    [found] = {each for each in lines if each.startswith(start) and has in each}
    return found


async def test_edit_rule_by_the_line_of_the_readme(pushpush: CommandLine) -> None:
    """The rule is there, with its words, and applied."""
    line = readme("kubectl -n pushpush create job --from=cronjob/edit-rule", has=MARK)
    _, middle, last = line.split(" | ")
    assert "kubectl create -f -" == last
    words = [each.replace("kubectl", str(BIN / "kubectl"), 1) for each in shlex.split(middle)]
    given = yaml.safe_dump(job("edit-rule")).encode()
    made = await asyncio.to_thread(subprocess.run, words, input=given, capture_output=True, check=True, timeout=60)
    it: Object = yaml.safe_load(made.stdout)
    [env] = it["spec"]["template"]["spec"]["containers"][0]["env"]
    env["value"] += " --no-probe"  # there is no b.com here to try
    code, said = await run(it, pushpush)
    assert (0, True) == (code, "applied by 1 of 1 router" in said), said
    found = (await pushpush("endpoint-cache", "get", "a.com", "--json")).data
    assert ("b.com", "a.com is blocked here") == (found["target_host"], found["comment"])
    [change] = (await pushpush("endpoint-cache", "history", "a.com", "--json")).data["history"]
    assert "ann" == change["actor"]


async def test_edit_rule_without_words(pushpush: CommandLine) -> None:
    """It says what can be said, and changes nothing."""
    code, said = await run(job("edit-rule"), pushpush)
    assert (0, True) == (code, "Make a rule, or change the one with this key" in said)


async def test_no_shell_reads_the_words(pushpush: CommandLine) -> None:
    """What a person typed as a comment is a comment."""
    it = job("edit-rule")
    it["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = (
        "set a.example b.example --no-probe --comment '$(id); `id` | cat'"
    )
    code, said = await run(it, pushpush)
    assert 0 == code, said
    found = (await pushpush("endpoint-cache", "get", "a.example", "--json")).data
    assert "$(id); `id` | cat" == found["comment"]


async def test_reload(pushpush: CommandLine) -> None:
    """What was saved is released, and applied when it ends."""
    saved = await pushpush("endpoint-cache", "set", "a.example", "b.example", "--no-probe", "--no-reload")
    assert 0 == saved.code, saved.err
    code, said = await run(job("reload"), pushpush)
    assert (0, True) == (code, "applied by 1 of 1 router" in said), said
    assert {1} == {each["applied"] for each in (await pushpush("routers", "--json")).data["routers"]}


async def test_sync_rules(pushpush: CommandLine, tmp_path: Path) -> None:
    """The rules become those of the file, others go; again, nothing is done; without the file, it says so."""
    await pushpush("endpoint-cache", "set", "old.example", "b.example", "--no-probe")
    it = job("sync-rules")
    [container] = it["spec"]["template"]["spec"]["containers"]
    [mount] = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "rules"]
    container["command"] = [each.replace(mount, str(tmp_path)) for each in container["command"]]
    missing, said = await run(it, pushpush)
    assert (1, True) == (missing, f"{tmp_path}/rules.yaml" in said), said
    (tmp_path / "rules.yaml").write_text("- lookup_key: new.example\n  target_host: c.example\n")
    for version in (2, 2):
        code, said = await run(it, pushpush)
        assert 0 == code, said
        listed = (await pushpush("endpoint-cache", "list", "--json")).data
        assert ["new.example"] == [each["lookup_key"] for each in listed["overrides"]]
        assert version == (await pushpush("routers", "--json")).data["released"]


def test_every_command_line_is_one() -> None:
    """What pods run of `pushpush` is understood by it; nothing else is run but rooms."""
    ours = [each["command"] for pod in pods(rendered("base")).values() for each in containers(pod)]
    assert {"python", "pushpush"} == {each[0] for each in ours}
    for words in (each for each in ours if each[0] == "pushpush"):
        _parse(words[1:])
    assert [] == [each for each in ours if each[0] == "python" and each[1] not in ("-m", "-c")]


def _parse(words: list[str]) -> None:
    command: Any = get_command(app)
    while isinstance(command, TyperGroup):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("pushpush", list(words))
