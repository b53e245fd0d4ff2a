"""Commands and replies on one SMTP connection, and what a reply means for the connection itself."""

from aiosmtplib import SMTPResponse

from shared.delivery.smtp_fault import FAULTS, ConnectionFault, OutOfStep, own
from shared.delivery.smtp_offer import Offer
from shared.delivery.smtp_protocol import Timeouts, Wire
from shared.mail.reply import Reply

CLOSING = 421  # the host closes the channel (RFC 5321 3.8), wherever it says so
_MORE = 3  # the class of "go on", which is for DATA alone
_NEEDS_TLS = (523, 530, 538)  # replies of hosts that take no mail in the clear


class Exchange:
    """One connection that has said EHLO.

    Attributes:
        wire: The bytes.
        host: The host's name, as we looked it up.
        offer: What it said to EHLO.
        patience: How long to wait.
        tls_fault: Why it is in the clear, when the host offered TLS and it failed.
        sent: The message is on its way: the host may have taken it.
    """

    def __init__(self, wire: Wire, host: str, offer: Offer, patience: Timeouts) -> None:
        self.wire = wire
        self.host = host
        self.offer = offer
        self.patience = patience
        self.tls_fault = ""
        self.sent = False
        self._before = self._last = SMTPResponse(0, "")  # the last two replies
        self.ahead = 0  # commands that went out together and whose replies were not read yet

    def send_ahead(self, *commands: bytes) -> None:
        """Send commands together (RFC 2920); each is then asked for its reply in turn, with `command`."""
        self.wire.commands(*commands)
        self.ahead = len(commands)

    async def command(self, line: bytes, seconds: float) -> Reply:
        """Return the reply to a command, which goes out now unless it went ahead.

        Raises:
            ConnectionFault: The host closes the connection, or wants TLS, which failed for now.
        """
        reply = await self.answer(line, seconds)
        if reply.code // 100 == _MORE:
            raise OutOfStep(f"unexpected reply to a command: {reply}")  # that of DATA, since another one is missing
        if self.tls_fault and (reply.code in _NEEDS_TLS or reply.enhanced.startswith("5.7.")):
            # It would have taken the message with TLS.
            raise ConnectionFault(own(454, f"4.7.5 {self.host}: TLS failed: {self.tls_fault}"))
        return reply

    async def answer(self, line: bytes, seconds: float) -> Reply:
        """Return the reply to a command, whatever it is; it goes out now unless it went ahead."""
        if self.ahead:
            self.ahead -= 1
        else:
            self.wire.commands(line)
        return await self.read(seconds)

    async def read(self, seconds: float) -> Reply:
        """Return the next reply."""
        self._before, self._last = self._last, await self.wire.read_response(seconds)
        return self._closing(self._last)

    async def mail(self, line: bytes) -> Reply:
        """Return the reply to MAIL."""
        return await self.command(line, self.patience.mail)

    async def rcpt(self, line: bytes) -> Reply:
        """Return the reply to RCPT."""
        reply = await self.command(line, self.patience.rcpt)
        if reply.code == 552 and not reply.enhanced.startswith("5.2."):  # noqa: PLR2004
            # Too many recipients, in the words of old servers: temporary (RFC 5321 4.5.3.1.10).
            return Reply(code=452, enhanced="4.5.3", text=reply.text, mta=reply.mta)
        return reply

    async def reset(self) -> None:
        """Make ready for the next message. What the host said before counts, whatever becomes of the connection.

        Raises:
            OutOfStep: The host sent a reply too many, so that it is not known to what it said what.
        """
        if isinstance(self.wire.fault, OutOfStep):
            raise self.wire.fault
        if not self.wire.usable:
            return
        try:
            reply = await self.answer(b"RSET", self.patience.mail)
        except OutOfStep:
            raise
        except (ConnectionFault, *FAULTS):
            self.wire.close()
            return
        if not positive(reply):
            # No host refuses RSET (RFC 5321 4.3.2). It was the reply to the command before, and so were all others;
            # unless each had its own time, or the host says the same to whatever it hears.
            self.wire.close()
            if reply.code != CLOSING and self.offer.pipelining and self._last != self._before:
                raise OutOfStep(f"unexpected reply to RSET: {reply}")

    def fault(self, error: BaseException) -> ConnectionFault:
        """Return what a broken connection is for the caller."""
        if isinstance(error, ConnectionFault):
            return error
        return ConnectionFault(own(451, f"4.4.2 {self.host}: {type(error).__name__}: {error}"), sent=self.sent)

    def _closing(self, response: SMTPResponse) -> Reply:
        reply = Reply.of(response.code, response.message, mta=self.host)
        if response.code == CLOSING:
            self.wire.close()
            if not self.sent:
                raise ConnectionFault(reply)
        return reply


def positive(reply: Reply) -> bool:
    """Say whether it is a success."""
    return 200 <= reply.code < 300  # noqa: PLR2004 - the class of success


def negative(reply: Reply) -> bool:
    """Say whether it is a refusal."""
    return 400 <= reply.code < 600  # noqa: PLR2004 - the classes of refusals
