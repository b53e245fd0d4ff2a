"""The bytes of an SMTP connection: commands go out alone or together, replies come in and queue (RFC 2920).

aiosmtplib's own protocol has room for one reply and drops what comes while it is taken. Here replies are cut out of
the stream as they come, each belongs to the oldest command without one, and whatever is more than was asked for ends
the connection. aiosmtplib still does single commands and STARTTLS.
"""

import asyncio
import re
from collections import deque
from collections.abc import Iterator
from typing import Final, cast

import msgspec
from aiosmtplib import SMTPReadTimeoutError, SMTPResponse, SMTPResponseException, SMTPServerDisconnected
from aiosmtplib.protocol import SMTPProtocol

from shared.delivery.smtp_fault import OutOfStep

LONGEST = 32_768  # octets of one reply with all its lines; EHLO has a few thousand at most

_LINE = re.compile(rb"[2-5][0-9][0-9](?![0-9])")  # RFC 5321 4.2.1 knows no other class
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_PIECE = 65_536  # octets of a message written at once
_LOOKS = 10  # at a stalled writer within the time it may stall


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, RFC 5321 4.5.3.2; what it says nothing of is ours.

    Attributes:
        connect: For TCP.
        greeting: For the 220.
        mail: For MAIL, and for EHLO, STARTTLS with its handshake, and RSET.
        rcpt: For each RCPT.
        data: For the 354.
        block: While the host takes nothing of the message. As long as it takes some, sending may last.
        dot: For the reply to the final dot: the host may do all its checks before it.
        tls: For STARTTLS with its handshake where the clear is good enough, too, and is to have its turn.
        quit: For the 221, which nothing depends on.
    """

    connect: float = 30.0
    greeting: float = 300.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0
    dot: float = 600.0
    tls: float = 30.0
    quit: float = 5.0


TIMEOUTS: Final = Timeouts()


class Replies:
    """Cuts replies out of the stream. What it has looked at it does not look at again, however slowly bytes drip."""

    def __init__(self) -> None:
        """Begin between two replies."""
        self._rest = b""
        self._class = b""
        self._lines: list[bytes] = []
        self._size = 0

    @property
    def begun(self) -> bool:
        """Say whether a part of a reply lies here."""
        return bool(self._rest or self._lines)

    def feed(self, data: bytes) -> Iterator[SMTPResponse]:
        """Return the replies that end in what came.

        Raises:
            SMTPResponseException: It is no reply, or none that ends.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if (reply := self._line(line)) is not None:
                yield reply
        if self._size + len(self._rest) > LONGEST:
            raise SMTPResponseException(-1, "Response too long")

    def _line(self, line: bytes) -> SMTPResponse | None:
        self._size += len(line) + 1
        if self._size > LONGEST:
            raise SMTPResponseException(-1, "Response too long")
        if not _LINE.match(line) or (self._lines and line[:1] != self._class):
            # Also when half a reply is followed by the reply to another command.
            raise SMTPResponseException(-1, f"Malformed SMTP response line: {line[:200].decode(errors='replace')}")
        self._class = line[:1]
        self._lines.append(line[4:].strip())
        if line[3:4] == b"-":
            return None
        text = b"\n".join(self._lines).decode("utf-8", "surrogateescape")
        self._lines, self._size = [], 0
        return SMTPResponse(int(line[:3]), text)


class Wire(SMTPProtocol):
    """One connection. Nothing that lies on it unasked is ever read as an answer."""

    def __init__(self) -> None:
        """Expect the greeting."""
        super().__init__()
        self._parser = Replies()
        self._queue: deque[SMTPResponse] = deque()
        self._owed = 1  # replies that were asked for and not read; the greeting needs no asking
        self.fault: Exception | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._sending = False  # a message, of which not every piece was written
        self.handed = False  # the last piece of a message was written: the host may have it all
        self.early = False  # the last reply came before everything was sent

    @property
    def usable(self) -> bool:
        """Say whether the connection is still there and in step."""
        return self.fault is None and self._owed == 0 and self.is_connected

    @property
    def _unsent(self) -> int:
        transport = cast("asyncio.WriteTransport | None", self.transport)
        return 0 if transport is None else transport.get_write_buffer_size()

    def write(self, data: bytes | memoryview) -> None:
        """Write what is answered with one reply."""
        if self.fault is not None:
            raise self.fault
        self._owed += 1
        super().write(data)  # type: ignore[arg-type] # transports take any buffer

    def commands(self, *lines: bytes) -> None:
        """Write command lines at once; each will have a reply.

        Raises:
            ValueError: A line has a control character, and would be more than one command.
        """
        if any(map(_CONTROL.search, lines)):
            raise ValueError("a command contains a control character")
        self.write(b"\r\n".join((*lines, b"")))
        self._owed += len(lines) - 1

    async def read_response(self, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109 - aiosmtplib's
        """Return the next reply.

        Replies that came before the connection broke are read all the same: a refusal counts, whatever follows it.

        Raises:
            SMTPReadTimeoutError: It is not here, whole, after so many seconds.
            SMTPServerDisconnected: The host hung up.
            SMTPResponseException: What came is no reply, or is out of step.
        """
        deadline = None if timeout is None else self._loop.time() + timeout
        while not self._queue:
            if self.fault is not None:
                raise self.fault
            if not await self._news(None if deadline is None else deadline - self._loop.time()):
                raise SMTPReadTimeoutError("Timed out waiting for server response")
        self._owed -= 1
        return self._queue.popleft()

    async def send(self, message: bytes, patience: float) -> None:
        """Write a message piece by piece as the host takes it, to its end or until the host says something.

        In one piece it would pass TLS at once, and lie where nobody sees how much of it the host has taken.

        Raises:
            SMTPReadTimeoutError: For so many seconds it took nothing at all (RFC 5321 4.5.3.2.5).
        """
        whole = memoryview(message)
        self.handed = len(whole) <= _PIECE
        self.write(whole[:_PIECE])
        if self.handed:
            return
        self._sending = True
        cast("asyncio.WriteTransport", self.transport).set_write_buffer_limits(high=_PIECE)
        for start in range(_PIECE, len(whole), _PIECE):
            await self._flushed(patience)
            if self._queue or self.fault is not None:
                return
            self.handed = start + _PIECE >= len(whole)
            super().write(whole[start : start + _PIECE])  # type: ignore[arg-type] # as above
        self._sending = False
        await self._flushed(patience)

    async def _flushed(self, patience: float) -> None:
        """Wait until the host has taken what was written, but for what the buffers hold, or has said something.

        Raises:
            SMTPReadTimeoutError: For so many seconds it took nothing at all (RFC 5321 4.5.3.2.5).
        """
        left, since = self._unsent, self._loop.time()
        while self._paused and not self._queue and self.fault is None:
            await self._news(patience / _LOOKS)
            if self._unsent < left:
                left, since = self._unsent, self._loop.time()
            elif self._loop.time() - since >= patience:
                raise SMTPReadTimeoutError(f"the host took nothing of the message for {patience:g} s")

    def end(self) -> None:
        """End the connection, with the close_notify of TLS."""
        if self.transport is not None:
            self.transport.close()

    def close(self) -> None:
        """End the connection at once; what is unsent is dropped, or a host that reads nothing would keep it open."""
        if self.transport is not None:
            cast("asyncio.WriteTransport", self.transport).abort()

    def data_received(self, data: bytes) -> None:
        """Queue what came."""
        if self.fault is not None:
            return
        try:
            self._queue.extend(self._parser.feed(data))
        except SMTPResponseException as error:
            self._broken(error)
        if len(self._queue) + self._parser.begun > self._owed:
            self._surplus()
        if self._queue:
            self.early = self._sending or self._unsent > 0
            self._wake()

    def eof_received(self) -> bool:
        """Take the end of the stream for the end of the connection."""
        self._broken(SMTPServerDisconnected("Unexpected EOF received"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        super().connection_lost(exc)
        error = SMTPServerDisconnected("Connection lost")
        error.__cause__ = exc
        self._broken(error)

    def resume_writing(self) -> None:
        """Tell whoever waits for the host to take more."""
        super().resume_writing()
        self._wake()

    def _surplus(self) -> None:
        """End the connection. Its next reply would be read as the answer to the next command.

        Among the replies to a group of commands it is not known which one is too many, so none of them counts. The
        answer to a single command was its first reply.
        """
        kept = [*self._queue][: self._owed] if self._owed == 1 else []
        self._queue = deque(kept)
        self._broken(OutOfStep())

    def _broken(self, error: Exception) -> None:
        self.fault = self.fault or error
        self.close()
        self._wake()

    async def _news(self, seconds: float | None) -> bool:
        """Wait until something has happened; False when the time is over before."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiter = waiter
        timer = None if seconds is None else self._loop.call_later(seconds, _expire, waiter)
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)


def _expire(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
