"""One SMTP connection: greeting, EHLO, STARTTLS, then any number of messages (RFC 5321 3.1 to 3.3).

The phase calls are used one by one, each with the time-out of RFC 5321 4.5.3.2, so that every recipient gets its own
reply. Only this module knows aiosmtplib. Faults of the connection are raised as `ConnectionFault`, refusals returned.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping, Sequence

import msgspec
from aiosmtplib import SMTP, SMTPConnectResponseError, SMTPDataError, SMTPException, SMTPResponse, SMTPResponseException

from shared.delivery.tls import Contexts
from shared.mail.address import needs_smtputf8, to_ascii_domain
from shared.mail.domain import as_address
from shared.mail.reply import Reply
from shared.mail.route import Tls

# Seconds, RFC 5321 4.5.3.2.
CONNECT, GREETING, COMMAND, DATA, QUIT = 30.0, 300.0, 300.0, 600.0, 5.0

_NEEDS_TLS = (523, 530, 538)  # replies of hosts that take no mail in the clear
_FAULTS = (SMTPException, OSError, TimeoutError, ssl.SSLError, ValueError, RuntimeError)


class ConnectionFault(Exception):  # noqa: N818 - a fault, not a mistake
    """The host cannot be talked to; another one may.

    Attributes:
        reply: What to say of it.
        sent: The message was on its way: the host may have taken it.
    """

    def __init__(self, reply: Reply, *, sent: bool = False) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.sent = sent


class Session:
    """One open connection."""

    def __init__(self, smtp: SMTP, host: str) -> None:
        """Wrap a connection that has said EHLO; `open_session` makes one."""
        self._smtp = smtp
        self._host = host
        self.messages = 0
        self.tls_fault = ""  # why it is in the clear, when the host offered TLS and it failed
        self._sent = False

    @property
    def usable(self) -> bool:
        """Say whether the connection is still there, and nothing lies in it that no command asked for."""
        return self._smtp.is_connected and not self._surplus

    @property
    def _surplus(self) -> bool:
        # A host that sends one reply too many would have it read as the answer to the next command, and the next
        # message taken for delivered by the word for this one.
        protocol = self._smtp.protocol
        return protocol is not None and bool(protocol._buffer)  # noqa: SLF001 - aiosmtplib does not say it otherwise

    async def send(
        self, mail_from: str, rcpt_to: Sequence[str], message: bytes, *, smtputf8: bool = False
    ) -> Mapping[str, Reply]:
        """Send one message; return the reply that decides for each recipient.

        With `smtputf8` the message is announced as internationalised where the host knows that word; what cannot be
        sent without it (RFC 6531 3.2) is refused here.

        Raises:
            ConnectionFault: The connection broke; nothing is known of any recipient.
        """
        self.messages += 1
        self._sent = False
        try:
            return await self._transaction(mail_from, rcpt_to, message, smtputf8=smtputf8)
        except _FAULTS as error:
            self.close()
            raise self._fault(error) from error
        except BaseException:
            self.close()  # also when cancelled: the next message must not meet this one's replies
            raise

    @property
    def peer_certificate(self) -> bytes | None:
        """The host's certificate as DER, whether it verifies or not; None in the clear, or when the host is gone."""
        if not self._smtp.is_connected:
            return None
        tls: ssl.SSLObject | None = self._smtp.get_transport_info("ssl_object")
        return None if tls is None else tls.getpeercert(binary_form=True)

    async def ask(self, recipient: str) -> Reply:
        """Ask whether mail for an address would be taken, and send none: MAIL from nobody, RCPT, RSET; never DATA.

        Returns:
            The refusal of MAIL, else the reply to RCPT.

        Raises:
            ConnectionFault: The connection broke; nothing is known of the recipient.
        """
        self._sent = False
        try:
            reply = await self._command(b"MAIL", b"FROM:<>")
            if _positive(reply):
                reply = await self._rcpt(recipient)
            await self._reset()
        except _FAULTS as error:
            self.close()
            raise self._fault(error) from error
        except BaseException:
            self.close()
            raise
        return reply

    async def _transaction(
        self, mail_from: str, rcpt_to: Sequence[str], message: bytes, *, smtputf8: bool
    ) -> Mapping[str, Reply]:
        offered = self._smtp.supports_extension("smtputf8")
        lacking = [] if offered else [each for each in rcpt_to if needs_smtputf8(mail_from) or needs_smtputf8(each)]
        replies = dict.fromkeys(lacking, Reply(code=553, enhanced="5.6.7", text="SMTPUTF8 is needed, not offered"))
        rest = [each for each in rcpt_to if each not in replies]
        if not rest:
            return replies
        utf8 = offered and (smtputf8 or any(map(needs_smtputf8, (mail_from, *rest))))
        reply = await self._mail(mail_from, message, utf8=utf8)
        if not _positive(reply):
            await self._reset()
            return replies | dict.fromkeys(rest, reply)
        replies |= await self._recipients(rest)
        accepted = [each for each in rest if _positive(replies[each])]
        if not accepted:
            await self._reset()
            return replies
        decided = await self._data(message)
        if not _positive(decided):
            await self._reset()
        return replies | dict.fromkeys(accepted, decided)

    async def _recipients(self, rcpt_to: Sequence[str]) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        try:
            for each in rcpt_to:
                replies[each] = await self._rcpt(each)
        except (ConnectionFault, *_FAULTS) as error:
            refused = {each: reply for each, reply in replies.items() if reply.code // 100 == 5}  # noqa: PLR2004
            if not refused:
                raise
            # A host that hangs up on too many unknown recipients would do so each time: the refused are told now, and
            # the next attempt is without them.
            self.close()
            fault = error if isinstance(error, ConnectionFault) else self._fault(error)
            return dict.fromkeys(rcpt_to, fault.reply) | refused
        return replies

    async def _mail(self, mail_from: str, message: bytes, *, utf8: bool) -> Reply:
        options = []
        if self._smtp.supports_extension("size"):
            options.append(f"SIZE={len(message)}".encode())
        if self._smtp.supports_extension("8bitmime") and not message.isascii():
            options.append(b"BODY=8BITMIME")
        if utf8:
            options.append(b"SMTPUTF8")
        path = b"FROM:<" + to_ascii_domain(mail_from).encode() + b">" if mail_from else b"FROM:<>"
        return await self._command(b"MAIL", path, *options)

    async def _rcpt(self, recipient: str) -> Reply:
        path = b"TO:<" + to_ascii_domain(recipient).encode() + b">"
        reply = await self._command(b"RCPT", path)
        if reply.code == 552 and not reply.enhanced.startswith("5.2."):  # noqa: PLR2004
            # Too many recipients, in the words of old servers: temporary (RFC 5321 4.5.3.1.10).
            return msgspec.structs.replace(reply, code=452, enhanced="4.5.3")
        return reply

    async def _command(self, *words: bytes) -> Reply:
        if self._surplus:
            raise OSError("the host is out of step: it sent a reply that no command asked for")
        reply = self._reply(await self._smtp.execute_command(*words, timeout=COMMAND))
        if self.tls_fault and (reply.code in _NEEDS_TLS or reply.enhanced.startswith("5.7.")):
            # It would have taken the message with TLS, which only failed for now.
            raise ConnectionFault(_own(454, f"4.7.5 {self._host}: TLS failed: {self.tls_fault}"))
        return reply

    async def _data(self, message: bytes) -> Reply:
        """Send the message. Line ends are CRLF and dots are stuffed on the way (RFC 5321 4.5.2)."""
        protocol = self._smtp.protocol
        if protocol is None or self._surplus:
            raise OSError("the connection is gone, or out of step")
        self._sent = True
        try:
            return self._reply(await protocol.execute_data_command(message, timeout=DATA))
        except SMTPDataError as error:
            if error.code // 100 not in (4, 5):
                # Not a refusal, and not 354 or 250 either: whether the message went at all is not known.
                raise OSError(f"unexpected reply to DATA: {error.code} {error.message}") from error
            return self._reply(SMTPResponse(error.code, error.message))

    async def _reset(self) -> None:
        """Make ready for the next message. What the host said before counts, whatever becomes of the connection."""
        try:
            if self.usable and not _positive(self._reply(await self._smtp.execute_command(b"RSET", timeout=COMMAND))):
                self.close()  # the next message would be refused as nested in this one
        except (ConnectionFault, *_FAULTS):
            self.close()

    def _reply(self, response: SMTPResponse) -> Reply:
        reply = Reply.of(response.code, response.message, mta=self._host)
        if response.code == 421:  # noqa: PLR2004 - the host closes the channel (RFC 5321 3.8), wherever it says so
            self.close()
            if not self._sent:
                raise ConnectionFault(reply)
        return reply

    def _fault(self, error: BaseException) -> ConnectionFault:
        return ConnectionFault(_own(451, f"4.4.2 {self._host}: {type(error).__name__}: {error}"), sent=self._sent)

    async def quit(self) -> None:
        """End the connection politely, and in any case."""
        with contextlib.suppress(*_FAULTS):
            await self._smtp.quit(timeout=QUIT)
        self.close()

    def close(self) -> None:
        """End the connection at once."""
        self._smtp.close()


async def open_session(
    host: str, address: str, port: int, *, tls: Tls | None, contexts: Contexts, hostname: str
) -> Session:
    """Connect to one address of a host and get ready to send.

    Args:
        host: The next hop's name, by which its certificate is verified.
        address: The address to connect to.
        port: The port.
        tls: `verify` and `encrypt` require STARTTLS, `none` leaves it out; None uses it where it works.
        contexts: TLS contexts.
        hostname: What we call ourselves in EHLO.

    Raises:
        ConnectionFault: The host cannot be reached, or refuses the connection, or its TLS is not as demanded.
    """
    try:
        return await _open(host, address, port, tls=tls, contexts=contexts, hostname=hostname)
    except _TlsBroken as error:
        # Opportunistic TLS (RFC 7435): a broken offer is no worse than none, so try again in the clear.
        session = await _open(host, address, port, tls="none", contexts=contexts, hostname=hostname)
        session.tls_fault = repr(error.__cause__)
        return session


class _TlsBroken(Exception):  # noqa: N818
    """STARTTLS was offered and failed, and nothing demands it."""


async def _open(host: str, address: str, port: int, *, tls: Tls | None, contexts: Contexts, hostname: str) -> Session:
    smtp = SMTP(local_hostname=hostname, timeout=GREETING, start_tls=False, use_tls=False)
    try:
        await _connect(smtp, address, port)
        await _hello(smtp)
        if tls != "none":
            await _start_tls(smtp, host, tls, contexts)
    except SMTPConnectResponseError as error:
        smtp.close()
        raise ConnectionFault(Reply.of(error.code, error.message, mta=host)) from error
    except _FAULTS as error:
        smtp.close()
        where = f"{host} ({address}) port {port}"
        raise ConnectionFault(_own(450, f"4.4.1 {where}: {type(error).__name__}: {error}")) from error
    except BaseException:
        smtp.close()  # also when cancelled: a host that stalls would keep the connection
        raise
    return Session(smtp, host)


async def _connect(smtp: SMTP, address: str, port: int) -> None:
    parsed = as_address(address)
    v6 = parsed is not None and parsed.version == 6  # noqa: PLR2004 - the protocol's name
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(CONNECT):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    await smtp.connect(hostname=None, port=None, sock=sock, timeout=GREETING)


async def _hello(smtp: SMTP) -> None:
    try:
        await smtp.ehlo(timeout=COMMAND)
    except SMTPResponseException:
        await smtp.helo(timeout=COMMAND)


async def _start_tls(smtp: SMTP, host: str, tls: Tls | None, contexts: Contexts) -> None:
    if not smtp.supports_extension("starttls"):
        if tls is None:
            return
        text = f"{host} does not offer STARTTLS, which the route requires"
        raise ConnectionFault(Reply(code=454, enhanced="4.7.5", text=text))
    context = contexts.verify if tls == "verify" else contexts.encrypt
    try:
        await smtp.starttls(server_hostname=host, tls_context=context, timeout=COMMAND)
        await smtp.ehlo(timeout=COMMAND)
    except _FAULTS as error:
        if tls is None:
            raise _TlsBroken from error
        raise ConnectionFault(_own(454, f"4.7.5 {host}: TLS failed: {type(error).__name__}: {error}")) from error


def _own(code: int, text: str) -> Reply:
    """Return words of our own. They may quote what a host sent, so they are cleaned like a host's."""
    return Reply.of(code, text[:500], mta=None)


def _positive(reply: Reply) -> bool:
    return 200 <= reply.code < 300  # noqa: PLR2004 - the class of success
