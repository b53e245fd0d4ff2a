"""The dialogue on one connection of a scripted SMTP peer."""

import asyncio
import re
import ssl
from typing import Protocol, cast

from tests.peers.behaviour import END_OF_DATA, GREETING, PAUSE, Behaviour
from tests.peers.inbox import Received, now

SLOWLY = 12  # pauses within one message
SIMPLE = {
    "DATA": "503 5.5.1 need RCPT first",
    "RSET": "250 2.0.0 OK",
    "NOOP": "250 2.0.0 OK",
    "QUIT": "221 2.0.0 bye",
}


class Peer(Protocol):
    """What a dialogue needs of its peer."""

    name: str
    tls: ssl.SSLContext | None

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""

    def saw(self, line: str) -> None:
        """Record one protocol line."""

    def record(self, message: Received, *, accepted: bool = True) -> None:
        """Record one whole message."""


class HungUpError(ConnectionError):
    """The script closes the connection here."""


class Dialogue:
    """Reads commands one by one and answers each as the behaviour says; pipelined commands are answered in order."""

    def __init__(
        self,
        peer: Peer,
        behaviour: Behaviour,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        number: int,
    ) -> None:
        self.peer = peer
        self.behaviour = behaviour
        self.reader = reader
        self.writer = writer
        self.number = number
        self.shut = False  # greeted with a refusal: only QUIT is left (RFC 5321 3.1)
        self.secure = False
        self.helo = ""
        self.messages = 0
        self._reset()

    def _reset(self) -> None:
        self.mail_from: str | None = None
        self.rcpt_to: list[str] = []

    async def run(self) -> None:
        """Greet, then serve until QUIT, the end of the stream, or a hang-up."""
        await self._greet()
        while line := await self.reader.readline():
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            self.peer.saw(text)
            verb, _, argument = text.partition(" ")
            await self._serve(verb.upper(), argument)

    async def _greet(self) -> None:
        await asyncio.sleep(self.behaviour.greeting_after)
        limit = self.behaviour.max_connections
        if limit is not None and self.peer.open_connections > limit:
            await self._send("421 4.7.0 too many connections")
        greeting = self.behaviour.greeting
        if self.behaviour.hang_up_at == GREETING:
            raise HungUpError
        if isinstance(greeting, bytes):
            self.writer.write(greeting)
        elif greeting is not None:
            self.shut = re.match(r"[45]\d\d", greeting) is not None
            await self._reply(GREETING, greeting.replace("{name}", self.peer.name))

    async def _serve(self, verb: str, argument: str) -> None:
        scripted = await self._script(verb)
        if self.shut and verb != "QUIT":
            await self._reply(verb, "503 5.5.1 no service here")
        elif scripted is not None:
            await self._reply(verb, scripted)
        elif verb == "STARTTLS":
            await self._starttls()
        elif verb == "DATA" and (self.rcpt_to or self.behaviour.data_anyway):
            await self._data()
        else:
            await self._reply(verb, self._ordinary(verb, argument))
        if verb == "QUIT":
            raise HungUpError

    async def _script(self, verb: str) -> str | None:
        """Wait, stall or hang up where the behaviour says so; return its reply for the verb, if it has one."""
        if self.behaviour.hang_up_at == verb:
            raise HungUpError
        if self.behaviour.stall_at == verb:
            await self._stall()
        await asyncio.sleep(self.behaviour.delays.get(verb, 0))
        return self.behaviour.replies.get(verb)

    async def _stall(self) -> None:
        """Read and ignore until the client gives up."""
        while await self.reader.read(65536):
            pass
        raise HungUpError

    def _ordinary(self, verb: str, argument: str) -> str:
        match verb:
            case "EHLO" | "HELO":
                return self._hello(verb, argument)
            case "MAIL":
                return self._mail(argument)
            case "RCPT":
                return self._rcpt(argument)
            case "RSET":
                self._reset()
            case _:
                pass
        return SIMPLE.get(verb, "500 5.5.2 command not recognised")

    def _hello(self, verb: str, argument: str) -> str:
        self._reset()
        self.helo = argument
        lines = [self.peer.name]
        if verb == "EHLO":
            lines += self.behaviour.extensions
            lines += ["STARTTLS"] if self._offers_tls else []
        return "\n".join([*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"])

    @property
    def _offers_tls(self) -> bool:
        match self.behaviour.starttls:
            case "hidden":
                return False
            case "honest":
                return self.peer.tls is not None and not self.secure
            case "broken" | "silent":
                return True

    def _mail(self, argument: str) -> str:
        limit = self.behaviour.max_messages
        if limit is not None and self.messages >= limit:
            return "421 4.7.0 enough messages on this connection"
        if self.mail_from is not None:
            return "503 5.5.1 nested MAIL"
        self.mail_from = _path(argument)
        return "250 2.1.0 OK"

    def _rcpt(self, argument: str) -> str:
        if self.mail_from is None:
            return "503 5.5.1 need MAIL first"
        address = _path(argument)
        if refusal := self.behaviour.refuse.get(address):
            return refusal
        limit = self.behaviour.max_recipients
        if limit is not None and len(self.rcpt_to) >= limit:
            return "452 4.5.3 too many recipients"
        self.rcpt_to.append(address)
        return "250 2.1.5 OK"

    async def _data(self) -> None:
        if self.behaviour.reads != "all":
            cast("asyncio.Transport", self.writer.transport).pause_reading()
        await self._reply("DATA", "354 end with a dot")
        await self._linger()
        body = await self._body()
        self.peer.saw(END_OF_DATA)
        message = Received(
            mail_from=self.mail_from or "",
            rcpt_to=tuple(self.rcpt_to),
            body=body,
            at=now(),
            connection=self.number,
            tls=self.secure,
            helo=self.helo,
        )
        self._reset()
        self.messages += 1
        await self._settle(message)

    async def _linger(self) -> None:
        """Read the message as late as the behaviour says; nothing of it is read yet."""
        transport = cast("asyncio.Transport", self.writer.transport)
        if self.behaviour.reads == "slowly":
            for _ in range(SLOWLY):
                await asyncio.sleep(0.1)
                transport.resume_reading()
                await asyncio.sleep(0.001)  # one or two rounds of the loop
                transport.pause_reading()
        if self.behaviour.reads == "nothing":
            await asyncio.sleep(PAUSE)
            transport.resume_reading()
            await self._stall()
        transport.resume_reading()

    async def _body(self) -> bytes:
        """Read to CRLF.CRLF; a dot after a bare LF ends nothing and is not unstuffed (RFC 5321 4.1.1.4)."""
        lines = []
        while (line := await self.reader.readuntil(b"\r\n")) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        return b"".join(lines)

    async def _settle(self, message: Received) -> None:
        """Record first, then reply: a server whose reply is late or lost has the message all the same."""
        usual = "250 2.0.0 queued" if message.rcpt_to else "554 5.5.1 no valid recipients"
        reply = self.behaviour.replies.get(END_OF_DATA, usual)
        unanswered = END_OF_DATA in {self.behaviour.hang_up_at, self.behaviour.stall_at}
        self.peer.record(message, accepted=reply.startswith("2") and not unanswered)
        await self._script(END_OF_DATA)
        await self._reply(END_OF_DATA, reply)

    async def _starttls(self) -> None:
        if not self._offers_tls:
            await self._reply("STARTTLS", "502 5.5.1 no TLS here")
            return
        await self._reply("STARTTLS", "220 2.0.0 go ahead")
        if self.behaviour.starttls == "silent":
            await self._stall()
        if self.behaviour.starttls == "broken" or self.peer.tls is None:
            await self.reader.read(1)  # the client's hello has begun
            self.writer.write(b"this is no TLS record\r\n")
            raise HungUpError
        await self.writer.start_tls(self.peer.tls)
        self.secure, self.helo = True, ""
        self._reset()

    async def _reply(self, verb: str, reply: str) -> None:
        extra = self.behaviour.extra.get(verb)
        if self.behaviour.endless_at == verb:
            await self._endlessly()
        if (raw := self.behaviour.raw.get(verb)) is not None:
            self.writer.write(raw)
        elif extra is None or self.behaviour.extra_after:
            await self._send(reply)
        else:
            await self._send(f"{reply}\n{extra}")
        if extra is not None and self.behaviour.extra_after:
            await asyncio.sleep(self.behaviour.extra_after)
            await self._send(extra)
        if self.behaviour.hang_up_after == verb:
            raise HungUpError

    async def _endlessly(self) -> None:
        while True:
            await self._send("250-and another thing")
            await asyncio.sleep(self.behaviour.drip)

    async def _send(self, reply: str) -> None:
        self.writer.write(reply.replace("\n", "\r\n").encode("utf-8", "surrogateescape") + b"\r\n")
        await self.writer.drain()
        if reply.startswith("421"):
            raise HungUpError


def _path(argument: str) -> str:
    """Return the address between the angle brackets, as it was written; "" for the null path."""
    return argument.partition("<")[2].rpartition(">")[0]
