"""Ask the room of this container how it is: `python -m shared.runtime.probe [readyz|healthz]`, a health command.

`readyz`, the default, asks whether the room does its work, `healthz` whether it is alive. It asks 127.0.0.1 on
PUSHPUSH_METRICS_PORT, and prints in words what is wrong. Exit code 0 means well; 1 not well, or no answer; 2 that
it was called wrongly. Imports next to nothing: it is started every few seconds, in every container.
"""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_SECONDS = 4.0  # for each step: connect, send, read
_LARGEST = 65_536  # bytes of an answer
_QUESTIONS = {"readyz": "ready", "healthz": "alive"}
_USAGE = "usage: python -m shared.runtime.probe [readyz|healthz]"


def probe(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """Return the exit code, and what to print.

    Args:
        arguments: What stands after the program's name.
        environ: Where PUSHPUSH_METRICS_PORT is looked up.
    """
    if len(arguments) > 1 or not _QUESTIONS.keys() >= set(arguments):
        return 2, _USAGE
    question = arguments[0] if arguments else "readyz"
    port = environ.get("PUSHPUSH_METRICS_PORT", "").strip()
    if not port.isdecimal() or not 0 < int(port) < 65_536:  # noqa: PLR2004 - ports have 16 bits
        return 1, f"PUSHPUSH_METRICS_PORT is {port or 'not set'}: without a port the room cannot be asked"
    try:
        status, body = _get(int(port), question)
    except OSError as error:
        return 1, f"no answer on 127.0.0.1 port {port}: {error}"
    faults = _faults(body)
    if status == "200":
        return 0, "\n".join([_QUESTIONS[question], *faults])
    return 1, "\n".join([f"not {_QUESTIONS[question]} ({status or 'not HTTP'})", *faults])


def _get(port: int, question: str) -> tuple[str, bytes]:
    """Return the status and the body of the answer.

    Raises:
        OSError: There is none, or not in time.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        connection.sendall(f"GET /{question} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            head, _, body = answer.read(_LARGEST).partition(b"\r\n\r\n")
    words = head.partition(b"\r\n")[0].decode("latin-1").split()
    return (words[1] if len(words) > 1 and words[0].startswith("HTTP/") else ""), body


def _faults(body: bytes) -> list[str]:
    """Return a line for each fault that the body names."""
    try:
        said: Any = json.loads(body)
    except ValueError:
        return []
    faults = said.get("faults") if isinstance(said, dict) else None
    return [f"{need}: {why}" for need, why in faults.items()] if isinstance(faults, dict) else []


if __name__ == "__main__":
    code, text = probe(sys.argv[1:], os.environ)
    print(text, file=sys.stderr if code else sys.stdout)
    sys.exit(code)
