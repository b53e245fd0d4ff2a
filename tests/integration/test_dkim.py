"""DKIM signatures that others put on a message still verify after we have delivered it, whichever way.

A signature covers the octets of the body and of the header fields it names (RFC 6376 3.4), so this is the sum of all
that could go wrong with a message on its way: line ends, dots, white space at the ends, 8-bit octets, the last line.

A signer converts bare LF to CRLF before it signs (RFC 6376 5.3): SMTP has no bare LF, so a signature over one could not
survive it. Over HTTPS the message arrives as it is, and the verifier there reads its LF as the signer did.
"""

import asyncio
import base64
import contextlib
import importlib.util
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import dkim  # type: ignore[import-untyped] # it ships no types
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from shared.delivery.actor import Deliver
from shared.mail import trace
from shared.mail.outcome import Delivered
from shared.mail.route import Route
from shared.runtime.settings import Settings
from tests.integration.conftest import delivery
from tests.peers.inbox import Inbox
from tests.peers.mxdeliv import MxdelivPeer
from tests.peers.postfix import PostfixPeer, unusable
from tests.peers.smtp import ScriptedSmtpPeer, SmtpPeer
from tests.peers.tls import tls_context
from workers.https.transport import open_transport as open_https
from workers.smtp.transport import open_transport as open_smtp

pytestmark = pytest.mark.anyio

US = "mail.pushpush.example"
AT_ONCE = 8
# Debian packs the tests of Python apart from it.
TESTSUITE = f"libpython{sys.version_info.major}.{sys.version_info.minor}-testsuite"

HEADER = (
    b"From: Alice <a@from.example>\r\nTo: b@a.example\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=,\r\n\tfolded  twice\r\n"
    b" and  spaced \r\nDate: Mon, 01 Jun 2026 12:00:00 +0000\r\nMessage-ID: <1@from.example>\r\nMIME-Version: 1.0\r\n"
)
TEXT = HEADER + b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
MULTIPART = (
    HEADER + b'Content-Type: multipart/mixed; boundary="=_x"\r\n\r\nPreamble.\r\n--=_x\r\n\r\nHello.\r\n--=_x\r\n'
    b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\nAAECAwQ=\r\n--=_x--\r\n"
    b"Epilogue.\r\n"
)
SHAPES = {
    "one line": TEXT + b"Hello.\r\n",
    "multipart": MULTIPART,
    "8 bit": TEXT + "Grüße, мир, 世界.\r\n".encode() + bytes(range(128, 256)) + b"\r\n",
    "no final line end": TEXT + b"Hello.\r\nBye.",
    "leading dots": TEXT + b".\r\n..\r\n.dot\r\n\r\n.\r\n...three\r\n.\r\n",
    "a dot without line end": TEXT + b"Hello.\r\n.",
    "empty body": TEXT,
    "header only": TEXT[:-2],
    "control characters": TEXT + b"a\0b\x07c\x1ad\x7f\x0b\x0c\r\n",
    "empty lines only": TEXT + b"\r\n\r\n\r\n",
    "empty lines at both ends": TEXT + b"\r\n\r\nHello.\r\n\r\n\r\n",
    "white space at the ends": TEXT + b"a \r\nb\t\r\n \t \r\nc  d\t\te\r\n  \r\n",
    "long lines": TEXT + b"x" * 998 + b"\r\n." + b"y" * 996 + b"\r\n",
    "looks like an mbox": TEXT + b"From b@a.example Mon Jun  1 12:00:00 2026\r\n>From here\r\n",
    "long header": b"References:" + b"".join(b"\r\n <%d@from.example>" % n for n in range(200)) + b"\r\n" + TEXT,
    "longer lines than allowed": TEXT + b"x" * 1500 + b"\r\n." + b"y" * 9000 + b"\r\n",
    "large": TEXT + b"".join(b"%d: %s\r\n" % (n, b"." * (n % 70)) for n in range(10_000)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A signer's key, and what the DNS says of it."""

    algorithm: bytes
    private: bytes
    record: bytes

    @property
    def selector(self) -> bytes:
        """The name of the key; each has another one."""
        return self.algorithm.partition(b"-")[0]


def rsa_key() -> Key:
    """Make a key of 2048 bits."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Key(algorithm=b"rsa-sha256", private=pem, record=b"v=DKIM1; k=rsa; p=" + base64.b64encode(public))


def ed25519_key() -> Key:
    """Make a key as in RFC 8463."""
    key = ed25519.Ed25519PrivateKey.generate()
    record = b"v=DKIM1; k=ed25519; p=" + base64.b64encode(key.public_key().public_bytes_raw())
    return Key(algorithm=b"ed25519-sha256", private=base64.b64encode(key.private_bytes_raw()), record=record)


KEYS = {"rsa": rsa_key(), "ed25519": ed25519_key()}
RECORDS = {key.selector + b"._domainkey.from.example.": key.record for key in KEYS.values()}


def sign(message: bytes, key: Key, canonicalization: bytes) -> bytes:
    """Return the message with a signature on top, whose lines end as the message's do."""
    line_end = b"\r\n" if b"\r\n" in message else b"\n"
    signer = dkim.DKIM(message, signature_algorithm=key.algorithm, linesep=line_end)
    field: bytes = signer.sign(
        key.selector, b"from.example", key.private, canonicalize=tuple(canonicalization.split(b"/"))
    )
    return field + message


def verifies(message: bytes) -> bool:
    """Say whether the signature of a message is good; the DNS is `RECORDS`."""
    try:
        return bool(dkim.DKIM(message).verify(dnsfunc=lambda name, timeout=5: RECORDS[name]))  # noqa: ARG005
    except dkim.DKIMException:
        return False


def wire(message: bytes) -> bytes:
    """Return the message with CRLF as its only line end."""
    return re.sub(rb"\r\n|\n|\r", b"\r\n", message)


def corpus() -> dict[str, bytes]:
    """Return the messages of Python's own email tests, with LF, that dkimpy can sign."""
    try:
        found = importlib.util.find_spec("test.test_email")
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        pytest.skip(f"the messages of Python's email tests are not installed (Debian: apt-get install {TESTSUITE})")
    messages = {}
    for path in sorted((Path(found.origin).parent / "data").glob("msg_*.txt")):
        lines = path.read_bytes().replace(b"\r\n", b"\n").removeprefix(b"\n")
        body = lines.partition(b"\n")[2] if lines.startswith(b"From ") else lines  # an mbox's line is no header
        message = body if re.search(rb"(?im)^from:", body) else b"From: a@from.example\n" + body
        with contextlib.suppress(dkim.DKIMException):  # broken on purpose: its header is none
            sign(message, KEYS["ed25519"], b"simple/simple")
            messages[path.stem] = message
    return messages


class Way:
    """A transport, where it is told to deliver to, and where a message then comes out.

    Attributes:
        line_limit: The longest line that the peer takes, as RFC 5321 4.5.3.1.6 says; None if it takes all.
    """

    def __init__(self, transport: Deliver, target: str, far: Inbox, *, line_limit: int | None = None) -> None:
        self.line_limit = line_limit
        self._transport = transport
        self._route = Route(version=1, key="a.example", targets=(target,), tls="encrypt")
        self._far = far
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def carry(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        """Deliver messages with our Received field on top, as the actor does; return each as it came."""
        self._far.received.clear()
        await asyncio.gather(*(self._deliver(f"{n}@a.example", each) for n, each in enumerate(messages.values())))
        came = {each.rcpt_to: each.body for each in await self._far.wait_for(len(messages), within=30)}
        return {name: came[f"{n}@a.example",] for n, name in enumerate(messages)}

    async def _deliver(self, recipient: str, message: bytes) -> None:
        part = delivery(recipient, route=self._route)
        async with self._turns:
            outcomes = await self._transport.deliver(part, trace.received(part, US) + message)
        assert isinstance(outcomes[recipient], Delivered), outcomes


SETTINGS = Settings(amqp_url="amqp://unused", database_url="postgresql://unused", hostname=US)


@contextlib.asynccontextmanager
async def by_https() -> AsyncIterator[Way]:
    """By POST to an mxdeliv server."""
    async with MxdelivPeer(authority=trustme.CA()) as peer, open_https(SETTINGS) as transport:
        yield Way(transport, peer.url, peer)


@contextlib.asynccontextmanager
async def by_smtp() -> AsyncIterator[Way]:
    """By SMTP to aiosmtpd."""
    async with SmtpPeer(tls=tls_context(trustme.CA())) as peer, open_smtp(SETTINGS) as transport:
        yield Way(transport, f"127.0.0.1:{peer.port}", peer, line_limit=998)


@contextlib.asynccontextmanager
async def through_postfix() -> AsyncIterator[Way]:
    """By SMTP to a Postfix, and by it to the next host."""
    if why := unusable():
        pytest.skip(why)
    with PostfixPeer(authority=trustme.CA()) as postfix:
        async with ScriptedSmtpPeer(port=postfix.relay_port) as far, open_smtp(SETTINGS) as transport:
            yield Way(transport, f"127.0.0.1:{postfix.port}", far)


WAYS: dict[str, Callable[[], contextlib.AbstractAsyncContextManager[Way]]] = {
    "https": by_https,
    "smtp": by_smtp,
    "postfix": through_postfix,
}


CANONICALIZATIONS = (b"relaxed/relaxed", b"simple/simple")


@pytest.fixture(params=WAYS, scope="module")
async def way(request: pytest.FixtureRequest) -> AsyncIterator[Way]:
    """Each way in turn."""
    async with WAYS[request.param]() as way:
        yield way


@pytest.fixture(params=["shapes", "corpus"], scope="module")
def messages(request: pytest.FixtureRequest) -> dict[str, bytes]:
    """Messages with CRLF: ours, and those of Python's email tests."""
    return SHAPES if request.param == "shapes" else {name: wire(each) for name, each in corpus().items()}


@pytest.mark.parametrize("canonicalization", CANONICALIZATIONS)
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
async def test_signatures_survive(way: Way, messages: Mapping[str, bytes], key: Key, canonicalization: bytes) -> None:
    """Ours is on top, and not an octet below it has changed; but SMTP ends the last line if it does not end."""
    short = {name: each for name, each in messages.items() if not way.line_limit or longest(each) <= way.line_limit}
    signed = {name: sign(each, key, canonicalization) for name, each in short.items()}
    came = await way.carry(signed)
    assert [] == [name for name, each in came.items() if not verifies(each)]
    assert [] == [name for name, each in came.items() if not each.endswith((signed[name], signed[name] + b"\r\n"))]


@pytest.mark.parametrize("canonicalization", CANONICALIZATIONS)
async def test_bare_line_feeds(way: Way, canonicalization: bytes) -> None:
    """As programs of Unix hand in mail: the signature holds, although SMTP makes each of them a CRLF."""
    messages = {name: each.replace(b"\r\n", b"\n") for name, each in SHAPES.items()}
    short = {name: each for name, each in messages.items() if not way.line_limit or longest(each) <= way.line_limit}
    signed = {name: sign(each, KEYS["rsa"], canonicalization) for name, each in short.items()}
    came = await way.carry(signed)
    assert [] == [name for name, each in came.items() if not verifies(each)]


def test_a_changed_message_does_not_verify() -> None:
    """Or the tests above would say nothing."""
    for key in KEYS.values():
        for canonicalization in CANONICALIZATIONS:
            signed = sign(SHAPES["one line"], key, canonicalization)
            assert verifies(signed)
            assert not verifies(signed.replace(b"Hello.", b"Hallo."))
            assert not verifies(signed.replace(b"From: Alice", b"From: Alicia"))


def test_the_corpus_is_whole() -> None:
    """Two of its 48 messages have no header that could be signed."""
    assert len(corpus()) >= 46


def longest(message: bytes) -> int:
    """Return the octets of the longest line."""
    return max(map(len, message.splitlines()))
