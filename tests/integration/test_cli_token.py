"""`pushpush token`: made once, shown once, ended at once."""

import re
from collections.abc import AsyncIterator

import pytest

from shared.runtime.settings import Settings
from shared.store.audit import Audit
from shared.store.pool import Pool
from shared.store.tokens import Access, Tokens
from tests.integration.command_line import CommandLine, commands


@pytest.fixture
async def pushpush(settings: Settings) -> AsyncIterator[CommandLine]:
    """The command line, with no tokens."""
    async with commands(settings) as line:
        yield line


async def test_a_token_is_made_listed_and_revoked(pushpush: CommandLine, pool: Pool) -> None:
    """Its secret is alone on standard output, and the lists never have it."""
    made = await pushpush("token", "make", "ann", "--role", "operator", "--expires", "90d", "--actor", "root")
    secret = made.out.strip()
    assert (0, 1) == (made.code, len(made.out.splitlines()))
    assert re.fullmatch(r"pp_[A-Za-z0-9_-]{43}", secret)
    assert "the only time" in made.err
    access = await Tokens(pool).find(secret)
    assert access is not None
    assert ("ann", "operator") == (access.name, access.role)
    listed, listed_json = await pushpush("token", "list"), await pushpush("token", "list", "--json")
    assert ["ann", "operator", "live"] == listed.out.splitlines()[1].split()[:3]
    assert ("root", None) == (listed_json.data["tokens"][0]["created_by"], listed_json.data["tokens"][0]["revoked_at"])
    assert secret not in listed.out + listed_json.out
    revoked = [(await pushpush("token", "revoke", "ann", "--actor", "root")).out.strip() for _ in range(2)]
    assert ["ann is revoked", "ann is revoked, as it was"] == revoked
    assert None is await Tokens(pool).find(secret)
    assert [("root", "cli", "token revoke", "ann"), ("root", "cli", "token make", "ann")] == [
        (each.actor, each.via, each.action, each.object) for each in await Audit(pool).page()
    ]


async def test_what_is_refused(pushpush: CommandLine) -> None:
    """With one sentence, and exit 1."""
    await pushpush("token", "make", "ann", "--role", "viewer")
    for words, told in (
        (("make", "ann", "--role", "admin"), "there was a token 'ann' before"),
        (("make", "admin-token", "--role", "admin"), "is none for a token"),
        (("make", "a\x1b[31m", "--role", "admin"), "is none for a token"),
        (("make", "bob", "--role", "admin", "--expires", "yesterday"), "neither a span"),
        (("make", "bob", "--role", "admin", "--expires", "2020-01-01T00:00Z"), "is past"),
        (("revoke", "bob"), "there is no token bob"),
    ):
        ran = await pushpush("token", *words)
        assert 1 == ran.code
        assert told in ran.sentence
    unknown = await pushpush("token", "make", "bob", "--role", "root")
    assert 2 == unknown.code


async def test_as_an_object(pushpush: CommandLine) -> None:
    """One JSON object, as every command."""
    made = (await pushpush("token", "make", "ci", "--role", "admin", "--json")).data
    assert ("ci", "admin", None) == (made["name"], made["role"], made["expires_at"])
    assert (await pushpush("token", "revoke", "ci", "--json")).data == {"name": "ci", "changed": True}
    assert "no tokens" not in (await pushpush("token", "list")).out


async def test_roles() -> None:
    """Each may also do what those before it may, and nothing more."""
    may = {
        role: [Access(id="1", name="x", role=role).may(each) for each in ("viewer", "operator", "admin")]
        for role in ("viewer", "operator", "admin")
    }
    assert {"viewer": [True, False, False], "operator": [True, True, False], "admin": [True, True, True]} == may
