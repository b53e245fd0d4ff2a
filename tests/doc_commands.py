"""The commands that the documentation tells people to type."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(?:^|\s)#\s.*$")
_ENDS = {"|", "||", "&&", ";", ">", ">>", "<", "<<<"}  # of a command's own words
# Programs of others, which the pages call too.
_FOREIGN = {
    *(
        "apt-get",
        "base64",
        "cd",
        "cosign",
        "curl",
        "export",
        "git",
        "journalctl",
        "kill",
        "nslookup",
        "openssl",
        "printf",
    ),
    *("buildah", "docker", "podman", "kustomize"),
    *("pg_basebackup", "pg_dump", "pg_restore", "promtool", "psql"),
    *("rabbitmq-queues", "rabbitmqctl", "systemctl"),
}


class Command(NamedTuple):
    """A line of a code block that is meant to be typed."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {' '.join(self.words)}"


def commands(page: Path) -> Iterator[Command]:
    """Yield every command of a page, one for each part of a pipe; what a program prints is no command."""
    for _, language, block in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language not in ("", "sh"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            yield from (Command(page, words) for words in split(line) if _is_program(words[0]))


def split(line: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command of a line, as a shell takes them apart; redirections are left out."""
    try:
        lexer = shlex.shlex(_COMMENT.sub("", line), posix=True, punctuation_chars="|;<>&")
        lexer.commenters = ""  # amid a word it is none
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:
        return  # a sentence with an apostrophe: what a program prints
    part: list[str] = []
    into_file = False
    for word in [*words, ";"]:
        if word in _ENDS:
            if part and not into_file:
                yield tuple(part)
            part, into_file = [], word in {">", ">>", "<", "<<<"}
        elif into_file:
            into_file = False  # the file's name
        else:
            part.append(word)


def _is_program(word: str) -> bool:
    name = word.rpartition("/")[2]
    return name in {"pushpush", "python", "python3", "make", "sh", "kubectl", *_FOREIGN}


COMMANDS = [each for page in PAGES for each in commands(page)]


def named(program: str) -> list[Command]:
    """Return the commands that call a program."""
    return [each for each in COMMANDS if each.words[0].rpartition("/")[2] == program]
