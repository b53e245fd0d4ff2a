"""What rooms of this release put on queues and into tables is read by those of earlier ones, which run beside them."""

from pathlib import Path

import msgspec
import pytest

from shared.mail import codec, event
from shared.mail.envelope import Delivery
from shared.mail.event import Batch
from tests.e2e.releases import REVISIONS, Release, before, before_change, tree
from tests.unit.test_golden import BODY, EVERY_FIELD, EVERY_KIND, TRACED

BEFORE = {f"before-{revision}": before(revision) for revision in REVISIONS[1:]}
BEFORE["before its last change"] = before_change("shared/mail/envelope.py")

_DELIVERY = """
import sys, msgspec
from shared.mail import codec
delivery, body = codec.decode(open(sys.argv[1], "rb").read())
print(msgspec.json.encode([delivery, body]).decode())
"""
_BATCH = """
import sys, msgspec
from shared.mail import event
print(msgspec.json.encode(event.decode(open(sys.argv[1], "rb").read())).decode())
"""


async def _read(commit: str, script: str, data: bytes, folder: Path) -> bytes:
    """Return what the code of a commit has read, as JSON."""
    release = Release(tree(commit, folder), folder, {})
    await release.check()
    (folder / "bytes").write_bytes(data)
    return (await release.run("-c", script, str(folder / "bytes"))).encode()


@pytest.mark.parametrize("commit", BEFORE.values(), ids=BEFORE)
async def test_an_older_release_reads_a_delivery_of_today(commit: str, tmp_path: Path) -> None:
    """What it does not know it passes over; who gets what, by which way, and how often it was tried, it reads."""
    data = codec.encode(TRACED, BODY)
    read, body = msgspec.json.decode(await _read(commit, _DELIVERY, data, tmp_path), type=tuple[Delivery, bytes])
    assert BODY == body
    added = msgspec.structs.replace(
        read.envelope, traceparent=TRACED.envelope.traceparent, tracestate=TRACED.envelope.tracestate
    )
    assert TRACED == read.but(envelope=added, lacking=TRACED.lacking, put_off=TRACED.put_off)


async def test_the_release_before_reads_events_of_today(tmp_path: Path) -> None:
    """A journal that is not replaced yet records what new rooms tell."""
    commit = before_change("shared/mail/event.py")
    for batch in (EVERY_FIELD, EVERY_KIND):
        assert batch == msgspec.json.decode(await _read(commit, _BATCH, event.encode(batch), tmp_path), type=Batch)
