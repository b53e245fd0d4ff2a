"""One SMTP connection: greeting, EHLO, STARTTLS, then any number of messages (RFC 5321 3.1 to 3.3).

Each phase has the time-out of RFC 5321 4.5.3.2, and every recipient gets its own reply. Only this module and those
named `smtp_` beside it know aiosmtplib. Faults of the connection are raised as `ConnectionFault`, refusals returned.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from aiosmtplib import SMTPResponse

from shared.delivery.smtp_exchange import CLOSING, Exchange, positive
from shared.delivery.smtp_fault import FAULTS, ConnectionFault, LoopFault, own
from shared.delivery.smtp_offer import Offer
from shared.delivery.smtp_protocol import TIMEOUTS, Timeouts, Wire
from shared.delivery.smtp_transaction import Transaction
from shared.delivery.tls import Contexts
from shared.mail.address import to_ascii_domain
from shared.mail.domain import as_address
from shared.mail.envelope import Envelope
from shared.mail.reply import Reply
from shared.mail.route import Tls

__all__ = ["TIMEOUTS", "ConnectionFault", "LoopFault", "Session", "Timeouts", "open_session"]

_GREETING, _DONE = 220, 250
# Octets that the kernel takes beyond what is on its way. With the megabytes it would take, a slow host that reads all
# the time would for minutes look like one that has stopped (`Timeouts.block`).
_UNSENT = 131_072
_T = TypeVar("_T")


class Session:
    """One open connection."""

    def __init__(self, exchange: Exchange) -> None:
        """Wrap a connection that has said EHLO; `open_session` makes one."""
        self._exchange = exchange
        self._wire = exchange.wire
        self.messages = 0

    @property
    def usable(self) -> bool:
        """Say whether the connection is still there, and nothing lies in it that no command asked for."""
        return self._wire.usable

    @property
    def reports(self) -> bool:
        """Say whether the host takes responsibility for the reports that senders asked for (RFC 3461 5.2.1)."""
        return self._exchange.offer.dsn

    @property
    def peer_certificate(self) -> bytes | None:
        """The host's certificate as DER, whether it verifies or not; None in the clear, or when the host is gone."""
        transport = self._wire.transport
        tls: ssl.SSLObject | None = None if transport is None else transport.get_extra_info("ssl_object")
        return None if tls is None else tls.getpeercert(binary_form=True)

    async def send(self, envelope: Envelope, message: bytes) -> Mapping[str, Reply]:
        """Send one message to the recipients of the envelope; return the reply that decides for each.

        What the host cannot be asked for by what it offers, or takes not so large, is refused here without asking.
        Whoever has a reply of her own keeps it, also when the connection breaks later.

        Raises:
            ConnectionFault: The connection broke; nothing is known of any recipient.
        """
        self.messages += 1
        self._exchange.sent = False
        return await self._guarded(Transaction(self._exchange, envelope, message).run())

    async def ask(self, recipient: str) -> Reply:
        """Ask whether mail for an address would be taken, and send none: MAIL from nobody, RCPT, RSET; never DATA.

        Returns:
            The refusal of MAIL, else the reply to RCPT.

        Raises:
            ConnectionFault: The connection broke; nothing is known of the recipient.
        """
        self._exchange.sent = False
        return await self._guarded(self._ask(recipient))

    async def _ask(self, recipient: str) -> Reply:
        reply = await self._exchange.mail(b"MAIL FROM:<>")
        if positive(reply):
            reply = await self._exchange.rcpt(b"RCPT TO:<" + to_ascii_domain(recipient).encode() + b">")
        await self._exchange.reset()
        return reply

    async def _guarded(self, talk: Awaitable[_T]) -> _T:
        try:
            return await talk
        except (ConnectionFault, *FAULTS) as error:
            self.close()
            if isinstance(error, ConnectionFault):
                raise
            raise self._exchange.fault(error) from error
        except BaseException:
            self.close()  # also when cancelled: the next message must not meet this one's replies
            raise

    async def quit(self) -> None:
        """End the connection politely, and in any case."""
        if self.usable:
            with contextlib.suppress(*FAULTS):
                await self._wire.execute_command(b"QUIT", timeout=self._exchange.patience.quit)
                self._wire.end()
                return
        self.close()

    def close(self) -> None:
        """End the connection at once."""
        self._wire.close()


async def open_session(
    host: str,
    address: str,
    port: int,
    *,
    tls: Tls | None,
    contexts: Contexts,
    hostname: str,
    ruled: bool = True,
    patience: Timeouts = TIMEOUTS,
) -> Session:
    """Connect to one address of a host and get ready to send.

    Args:
        host: The next hop's name, by which its certificate is verified.
        address: The address to connect to.
        port: The port.
        tls: `verify` and `encrypt` require STARTTLS, `none` leaves it out; None uses it where it works.
        contexts: TLS contexts.
        hostname: What we call ourselves in EHLO.
        ruled: A rule names the host; else one with our own name counts as ourselves.
        patience: How long to wait for what.

    Raises:
        ConnectionFault: The host cannot be reached, or refuses the connection, or its TLS is not as demanded.
        LoopFault: The host is ourselves, and no rule names it.
    """
    opening = _Opening(host, address, port, contexts, hostname, patience, may_be_ourselves=ruled)
    try:
        return Session(await opening.run(tls))
    except _TlsBroken as error:
        # Opportunistic TLS (RFC 7435): a broken offer is no worse than none, so try again in the clear.
        exchange = await opening.run("none")
        exchange.tls_fault = repr(error.__cause__)
        return Session(exchange)


class _TlsBroken(Exception):  # noqa: N818
    """STARTTLS was offered and failed, and nothing demands it."""


class _Opening:
    """The way to an open connection."""

    def __init__(  # noqa: PLR0917 - as in `open_session`
        self,
        host: str,
        address: str,
        port: int,
        contexts: Contexts,
        hostname: str,
        patience: Timeouts,
        *,
        may_be_ourselves: bool,
    ) -> None:
        self._host = host
        self._address = address
        self._port = port
        self._contexts = contexts
        self._hostname = hostname
        self._patience = patience
        self._may_be_ourselves = may_be_ourselves

    async def run(self, tls: Tls | None) -> Exchange:
        wire = Wire()
        try:
            await self._connect(wire)
            offer = await self._hello(wire)
            if tls != "none":
                offer = await self._secured(wire, offer, tls)
        except FAULTS as error:
            wire.close()
            where = f"{self._host} ({self._address}) port {self._port}"
            raise ConnectionFault(own(450, f"4.4.1 {where}: {type(error).__name__}: {error}")) from error
        except BaseException:
            wire.close()  # also when cancelled: a host that stalls would keep the connection
            raise
        if not self._may_be_ourselves and offer.name.lower() == self._hostname.lower():
            wire.close()
            raise LoopFault(self._host)
        return Exchange(wire, self._host, offer, self._patience)

    async def _connect(self, wire: Wire) -> None:
        parsed = as_address(self._address)
        v6 = parsed is not None and parsed.version == 6  # noqa: PLR2004 - the protocol's name
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(self._patience.connect):
                await loop.sock_connect(sock, (self._address, self._port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):  # not every kernel knows it, and nothing else depends on it
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
            await loop.create_connection(lambda: wire, sock=sock)
        except BaseException:
            sock.close()
            raise
        greeting = await wire.read_response(self._patience.greeting)
        if greeting.code != _GREETING:
            raise self._unwilling(greeting)

    async def _hello(self, wire: Wire) -> Offer:
        name = self._hostname.strip().encode()
        response = await wire.execute_command(b"EHLO", name, timeout=self._patience.mail)
        if response.code not in (_DONE, CLOSING):
            response = await wire.execute_command(b"HELO", name, timeout=self._patience.mail)
        if response.code != _DONE:
            raise self._unwilling(response)
        return Offer.of(response.message)

    def _unwilling(self, response: SMTPResponse) -> ConnectionFault:
        return ConnectionFault(Reply.of(response.code, response.message, mta=self._host))

    async def _secured(self, wire: Wire, offer: Offer, tls: Tls | None) -> Offer:
        """Start TLS; return what the host offers under it. What it said before counts no more (RFC 3207 4.2)."""
        if not offer.starttls:
            if tls is None:
                return offer
            text = f"{self._host} does not offer STARTTLS, which the route requires"
            raise ConnectionFault(Reply(code=454, enhanced="4.7.5", text=text))
        context = self._contexts.verify if tls == "verify" else self._contexts.encrypt
        try:
            patience = self._patience.mail if tls else min(self._patience.tls, self._patience.mail)
            await wire.start_tls(context, server_hostname=self._host, timeout=patience)
            return await self._hello(wire)
        except (ConnectionFault, *FAULTS) as error:
            if tls is None:
                raise _TlsBroken from error
            text = f"4.7.5 {self._host}: TLS failed: {type(error).__name__}: {error}"
            raise ConnectionFault(own(454, text)) from error
