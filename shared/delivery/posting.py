"""Post messages by HTTP/1.1: names resolved by our resolver, TLS by mode, nothing kept from one message to the next.

With aiohttp itself: it costs a third of what httpx on top of it does, and it lets us know how far a request came. What
has left us whole may have been taken, though no answer came (docs/adr/0016-aiohttp-for-deliveries.md).
"""

import asyncio
import contextlib
import errno
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from socket import AddressFamily
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, AbstractStreamWriter, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from multidict import CIMultiDict

from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts
from shared.mail.domain import as_address
from shared.mail.mxdeliv import MAX_ANSWER, Answer
from shared.mail.route import Tls

_FAULTS = (aiohttp.ClientError, OSError, TimeoutError, ValueError)

_CHUNK = 65_536  # bytes handed over at a time; the next ones wait until the peer reads
_MAX_HEADERS = 32_768  # bytes of an answer before its body, over all interim answers
_CUT_OFF = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)

Sessions = Mapping[Tls, aiohttp.ClientSession]


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait for a peer, in seconds, and how long to keep a connection.

    Attributes:
        connect: To reach a host, TLS included; then SMTP is tried.
        whole: For the whole request: what senders of the neighbouring projects allow.
        attempt: For all the requests of one delivery, to however many targets.
        rate: Bytes a second that the message has on top of it; 70 MB is what madmail takes by default.
        idle: How long a connection is kept for the next message.
        messages: Answers on one connection; then another machine behind the same name gets its turn.
    """

    connect: float = 15.0
    whole: float = 60.0
    attempt: float = 800.0
    rate: float = 100_000.0
    idle: float = 30.0
    messages: int = 200

    def for_message(self, size: int) -> float:
        """Return the seconds that a request with a message of this size may take."""
        return self.whole + size / self.rate


class NoAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """No answer that can be read.

    Attributes:
        why: The fault, in a phrase of our own.
        sent: The whole request had left us: the host may have taken the message.
        stale: A kept connection ended just as it was used again, without a byte of an answer: the usual end of an idle
            one, which says nothing of the host.
    """

    why: str
    sent: bool
    stale: bool


@contextlib.asynccontextmanager
async def open_sessions(
    contexts: Contexts, resolver: Resolver, *, limit: int, patience: Patience
) -> AsyncIterator[Sessions]:
    """Open a session for each TLS mode, since verification belongs to the connection; close them at the end.

    Args:
        contexts: TLS contexts.
        resolver: Names to addresses.
        limit: The most connections of a session.
        patience: How long to wait for a peer.
    """
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    async with contextlib.AsyncExitStack() as stack:
        sessions: dict[Tls, aiohttp.ClientSession] = {}
        for tls, context in (("verify", contexts.verify), ("encrypt", contexts.encrypt)):
            connector = _Connector(
                patience.messages,
                ssl=context,
                resolver=_Names(resolver),
                limit=limit,
                keepalive_timeout=patience.idle,
                use_dns_cache=False,
            )
            # No cookies: a session would carry them from one message to the next.
            session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=patience.connect),
                headers={"User-Agent": "pushpush"},
                skip_auto_headers=("Accept",),
                # A few bytes may hold gigabytes; `_read` looks at what is compressed.
                auto_decompress=False,
                trace_configs=[trace],
            )
            sessions[tls] = await stack.enter_async_context(session)  # type: ignore[index] # the two modes above
        # `none` demands nothing of a certificate; over https that is the same as encrypting only.
        sessions["none"] = sessions["encrypt"]
        yield sessions


async def post(
    session: aiohttp.ClientSession, url: str, fields: Iterable[tuple[str, str]], message: bytes, *, deadline: float
) -> Answer | NoAnswer:
    """Post a message, once; `deadline` is of the loop's clock. No redirect is followed, and no fault is raised."""
    upload = _Upload(message)
    try:
        async with (
            asyncio.timeout_at(deadline),
            session.post(
                url, headers=CIMultiDict(fields), data=upload, allow_redirects=False, trace_request_ctx=upload
            ) as response,
        ):
            answer = await _read(response, upload)
    except _FAULTS as error:
        return _fault(error, upload)
    finally:
        upload.hurry()
    if not upload.begun:
        return NoAnswer(why="the answer came before the request", sent=False, stale=upload.reused)
    return answer


async def _read(response: aiohttp.ClientResponse, upload: "_Upload") -> Answer:
    early, headers, body = not upload.sent, response.headers, b""
    while len(body) < MAX_ANSWER and (chunk := await response.content.readany()):
        body += chunk
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise aiohttp.ClientPayloadError("the answer is compressed, though that was not asked for")
    return Answer(
        status=response.status,
        content_type=headers.get("Content-Type", ""),
        retry_after=headers.get("Retry-After", ""),
        body=body[:MAX_ANSWER],
        early=early,
    )


def _fault(error: Exception, upload: "_Upload") -> NoAnswer:
    cut_off = isinstance(error, OSError) and (
        error.errno in _CUT_OFF or isinstance(error.__cause__, ConnectionResetError)
    )
    cut_off = cut_off or isinstance(error, aiohttp.ServerDisconnectedError)
    # What does not even begin like HTTP/1 (the greeting of an SMTP server, a frame of HTTP/2) has not understood us. On
    # a kept connection it may be the end of the answer before.
    no_http = isinstance(error, aiohttp.ClientResponseError) and "Expected HTTP/" in error.message and not upload.reused
    return NoAnswer(
        why=f"{type(error).__name__}: {error}"[:400],
        sent=upload.sent and not no_http,
        # Once an answer had begun, the host had read the request, however the connection ended.
        stale=upload.reused and ((cut_off and upload.unanswered) or not upload.begun),
    )


class _Upload(aiohttp.Payload):
    """The message on its way, with its length told (the known servers expect it), and how far it came.

    Attributes:
        reused: It goes over a connection that was used before.
        begun: Its first byte was handed over.
        sent: Its last byte was handed over.
    """

    def __init__(self, message: bytes) -> None:
        super().__init__(message)
        self._message = memoryview(message)
        self._size = len(message)
        self.reused = self.begun = self.sent = False
        self._transport: asyncio.Transport | None = None
        self._protocol: object = None

    @property
    def unanswered(self) -> bool:
        """Not one byte of an answer has come."""
        return isinstance(self._protocol, _Handler) and self._protocol.silent

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Hand the message over, piece by piece as the peer reads it."""
        del content_length  # it is our own
        self._protocol = protocol = getattr(writer, "protocol", None)
        self._transport = getattr(writer, "transport", None)
        if getattr(protocol, "should_close", False) or self._transport is None or self._transport.is_closing():
            # It has ended; or something came on it while nothing was asked, which would pass for our answer.
            raise ConnectionResetError(errno.ECONNRESET, "the kept connection is of no more use")
        self.begun = True
        last = max(0, len(self._message) - 1) // _CHUNK * _CHUNK
        for start in range(0, last, _CHUNK):
            await writer.write(self._message[start : start + _CHUNK])
        # Before the bytes go: the host may have them as soon as they are handed over.
        self.sent = True
        await writer.write(self._message[last:])

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Hand the message over."""
        await self.write_with_length(writer, None)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the message as text; nobody asks for it."""
        return bytes(self._message).decode(encoding, errors)

    def hurry(self) -> None:
        """End the connection now if it is being closed: a peer that neither reads nor hangs up could keep it for long.

        One that is kept may carry the next message already.
        """
        if self._transport is not None and self._transport.is_closing():
            with contextlib.suppress(AttributeError):  # asyncio's own, which has ended, has no loop any more
                self._transport.abort()


async def _note_reuse(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    del session, params
    if isinstance(context.trace_request_ctx, _Upload):
        context.trace_request_ctx.reused = True


class _Connector(aiohttp.TCPConnector):
    """Makes connections that look at how much comes before an answer, and count the answers."""

    def __init__(self, messages: int, **options: Any) -> None:
        super().__init__(**options)
        handler: Callable[..., ResponseHandler] = _Handler
        self._factory = partial(handler, messages, loop=asyncio.get_running_loop())


class _Handler(ResponseHandler):
    """Ends a connection on which nothing but interim answers (1xx, RFC 9110 15.2) comes.

    aiohttp reads them for as long as they come; at the speed of a network nothing else would run in this process.
    After the last answer it may give, a connection is not kept.
    """

    def __init__(self, messages: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._room = math.inf
        self._left = messages

    @property
    def silent(self) -> bool:
        """Nothing has come since an answer is waited for."""
        return self._room == _MAX_HEADERS

    def set_response_params(self, **params: Any) -> None:
        """Begin to wait for an answer."""
        self._room = _MAX_HEADERS
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, aiohttp.StreamReader], size: int = 0) -> None:
        """Take the header of an answer."""
        if data[0].code >= 200:  # noqa: PLR2004 - the first that is final
            self._room = math.inf
            self._left -= 1
            if self._left <= 0:
                self.force_close()  # as a `Connection: close` does: once this answer has been read
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        within, beyond = data, b""
        if len(data) > self._room:
            within, beyond = data[: int(self._room)], data[int(self._room) :]
        self._room -= len(within)
        super().data_received(within)
        if beyond and self._room < math.inf:
            self.set_exception(aiohttp.ClientPayloadError("the header of the answer does not end"))
            if self.transport is not None:
                self.transport.abort()
        elif beyond:
            super().data_received(beyond)


class _Names(AbstractResolver):
    """Lets aiohttp resolve by our resolver, so that the address looked up is the very one connected to."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_UNSPEC
    ) -> list[ResolveResult]:
        del family  # every address is a way to the host
        found = await self._resolver.addresses(host, ruled=True)
        if not isinstance(found, list):
            raise OSError(found.reply.text)
        return [_result(host, port, address) for address in found]

    async def close(self) -> None:
        """Nothing is open."""


def _result(host: str, port: int, address: str) -> ResolveResult:
    parsed = as_address(address)
    v6 = parsed is not None and parsed.version == 6  # noqa: PLR2004 - the protocol's name
    family = AddressFamily.AF_INET6 if v6 else AddressFamily.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
