"""SMTP peers: an ordinary server on aiosmtpd, and (from `scripted`) one that misbehaves on request.

aiosmtpd is a second reading of the RFCs, by other people: a client that suits only our own server is found out here.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

from aiosmtpd import smtp as aiosmtpd

from tests.peers.behaviour import CLOSES_IDLE, END_OF_DATA, EXTENSIONS, HELO_ONLY, WELL_BEHAVED, Behaviour
from tests.peers.inbox import Inbox, Received, now
from tests.peers.scripted import ScriptedSmtpPeer
from tests.peers.tls import ca_file, tls_context

__all__ = [
    "CLOSES_IDLE",
    "END_OF_DATA",
    "HELO_ONLY",
    "WELL_BEHAVED",
    "Behaviour",
    "Received",
    "ScriptedSmtpPeer",
    "SmtpPeer",
    "ca_file",
    "tls_context",
]


class SmtpPeer(Inbox):
    """A well-behaved SMTP server on aiosmtpd, in the running loop.

    `refuse` maps a recipient to the reply for its RCPT; `extensions` are the EHLO keywords (STARTTLS comes with `tls`).
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str = "mx.peer.example",
        extensions: tuple[str, ...] = EXTENSIONS,
        tls: ssl.SSLContext | None = None,
        refuse: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.host = host
        self.port = port
        self.name = name
        self.extensions = extensions
        self.tls = tls
        self.refuse = dict(refuse or {})
        self._server: asyncio.Server | None = None
        self._sessions: list[_Session] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(self._session, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*(session.shut() for session in self._sessions))
        await self._server.wait_closed()

    def _session(self) -> "_Session":
        session = _Session(self)
        self._sessions.append(session)
        return session


class _Session(aiosmtpd.SMTP):
    """One connection, and aiosmtpd's handler for it."""

    def __init__(self, peer: SmtpPeer) -> None:
        self.peer = peer
        self.number = peer.connected()
        sizes = [int(keyword[5:]) for keyword in peer.extensions if keyword.startswith("SIZE ")]
        super().__init__(
            _Handler(),
            hostname=peer.name,
            ident="ESMTP",
            tls_context=peer.tls,
            enable_SMTPUTF8="SMTPUTF8" in peer.extensions,
            data_size_limit=max(sizes, default=None),
            loop=asyncio.get_running_loop(),
        )
        self._smtp_methods = {verb: self._seen(verb, method) for verb, method in self._smtp_methods.items()}

    def _seen(self, verb: str, method: Callable[[str | None], Awaitable[None]]) -> Callable[[str | None], Any]:
        async def wrapped(argument: str | None) -> None:
            self.peer.saw(verb if argument is None else f"{verb} {argument}")
            await method(argument)

        return wrapped

    @property
    def keywords(self) -> list[str]:
        offered = list(self.peer.extensions)
        if self.tls_context and not self._tls_protocol:
            offered.append("STARTTLS")
        return offered

    async def shut(self) -> None:
        """Close the connection and wait for its task."""
        for transport in (self.transport, self._original_transport):
            if transport is not None:
                transport.close()
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()
            await asyncio.gather(self._handler_coroutine, return_exceptions=True)


class _Handler:
    """The hooks aiosmtpd calls; it finds them by their names, and counts their arguments."""

    async def handle_exception(self, error: Exception) -> str:
        """Let a failed handshake pass without a traceback in the log: it is the client's choice."""
        if not isinstance(error, aiosmtpd.TLSSetupException):
            raise error
        return "454 4.7.0 TLS failed"

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, server: _Session, session: aiosmtpd.Session, _envelope: aiosmtpd.Envelope, name: str, _replies: list[str]
    ) -> list[str]:
        session.host_name = name
        lines = [server.peer.name, *server.keywords]
        return [*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"]

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self,
        server: _Session,
        _session: aiosmtpd.Session,
        envelope: aiosmtpd.Envelope,
        address: str,
        options: list[str],
    ) -> str:
        if refusal := server.peer.refuse.get(address):
            return refusal
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, server: _Session, session: aiosmtpd.Session, envelope: aiosmtpd.Envelope
    ) -> str:
        server.peer.record(
            Received(
                mail_from="" if envelope.mail_from in {None, "<>"} else str(envelope.mail_from),
                rcpt_to=tuple(envelope.rcpt_tos),
                body=envelope.original_content or b"",
                at=now(),
                connection=server.number,
                tls=session.ssl is not None,
                helo=session.host_name or "",
            )
        )
        return "250 2.0.0 queued"
