"""What is written of an exception, for people and for machines."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging, structlog
from shared.runtime import log
log.set_up(form={form!r}, level="info", room="test")

def asked(cookie):
    raise ValueError("it broke")

try:
    asked("the" + " secret" + " word")
except ValueError:
    structlog.get_logger().exception("first")
    logging.getLogger("other").exception("second")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_tells_no_secrets(form: str) -> None:
    """Where it was, and nothing of what was in the variables there."""
    code = [sys.executable, "-c", PROGRAM.format(form=form)]
    wrote = subprocess.run(code, capture_output=True, text=True, check=True, timeout=60).stderr
    assert 2 == wrote.count("ValueError: it broke")
    assert "in asked" in wrote
    assert "the secret word" not in wrote
