"""One message on an open SMTP connection: MAIL, RCPT for each recipient, DATA (RFC 5321 3.3).

With PIPELINING the three go out together (RFC 2920 3.1) and the message follows when the host wants it; without it
each waits for the reply before. Either way each recipient gets its own reply, and the replies are judged in order.
"""

from collections.abc import Mapping, Sequence

from aiosmtplib import SMTPReadTimeoutError

from shared.delivery.smtp_exchange import Exchange, negative, positive
from shared.delivery.smtp_fault import FAULTS, ConnectionFault, OutOfStep
from shared.mail import wire
from shared.mail.address import needs_smtputf8
from shared.mail.envelope import Envelope
from shared.mail.reply import Reply

_NO_UTF8 = Reply(code=553, enhanced="5.6.7", text="SMTPUTF8 is needed, not offered")
_GO_AHEAD = 354
_REFUSED = 5  # the class


class Transaction:
    """One message to the recipients of an envelope."""

    def __init__(self, exchange: Exchange, envelope: Envelope, message: bytes) -> None:
        self._exchange = exchange
        self._envelope = envelope
        self._body = wire.normalised(message)
        # The host has asked for the message. Nothing but DATA is answered so: whatever came before it was in step, and
        # counts even when a reply too many comes after it.
        self._wanted = False

    async def run(self) -> Mapping[str, Reply]:
        """Return the reply that decides for each recipient.

        Raises:
            ConnectionFault: The connection broke; nothing is known of any recipient. Other faults as they come.
        """
        told, rest = self._foreseen()
        if not rest:
            return told
        mail, *rcpts = commands = self._commands(rest)
        if self._exchange.offer.pipelining:
            self._exchange.send_ahead(*commands, b"DATA")
        reply = await self._exchange.mail(mail)
        if not positive(reply):
            await self._leave(begun=False)
            return told | dict.fromkeys(rest, reply)
        told |= await self._recipients(rest, rcpts)
        accepted = [each for each in rest if positive(told[each])]
        if not accepted:
            await self._leave(begun=True)
            return told
        decided = await self._data(alone=len(accepted) == len(self._envelope.rcpt_to))
        if not positive(decided):
            await self._over()
        return told | dict.fromkeys(accepted, decided)

    def _foreseen(self) -> tuple[dict[str, Reply], Sequence[str]]:
        """Return whom the host would refuse by what it said to EHLO, and the others."""
        offer, everyone = self._exchange.offer, self._envelope.rcpt_to
        if 0 < offer.limit < len(self._body):
            # It would say so to MAIL or, some hosts, only after the whole message (RFC 1870 6.1).
            text = f"the message has {len(self._body)} bytes, {self._exchange.host} takes at most {offer.limit}"
            return dict.fromkeys(everyone, Reply(code=552, enhanced="5.3.4", text=text)), ()
        lacking = [each for each in everyone if offer.lacks_utf8(self._envelope.mail_from, each)]
        return dict.fromkeys(lacking, _NO_UTF8), [each for each in everyone if each not in lacking]

    def _commands(self, rest: Sequence[str]) -> list[bytes]:
        offer, envelope = self._exchange.offer, self._envelope
        utf8 = envelope.smtputf8 or any(map(needs_smtputf8, (envelope.mail_from, *rest)))
        mail = offer.mail(envelope, size=len(self._body), ascii_only=self._body.isascii(), utf8=utf8)
        return [mail, *(offer.rcpt(each, notify=envelope.notify) for each in rest)]

    async def _recipients(self, rest: Sequence[str], commands: Sequence[bytes]) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        try:
            for each, command in zip(rest, commands, strict=True):
                replies[each] = await self._exchange.rcpt(command)
        except (ConnectionFault, *FAULTS) as error:
            refused = {each: reply for each, reply in replies.items() if reply.code // 100 == _REFUSED}
            if not refused or isinstance(error, OutOfStep):
                raise
            # A host that hangs up on too many unknown recipients would do so each time: the refused are told now, and
            # the next attempt is without them.
            self._exchange.wire.close()
            return dict.fromkeys(rest, self._exchange.fault(error).reply) | refused
        return replies

    async def _leave(self, *, begun: bool) -> None:
        """End a transaction in which nobody gets the message. What the host said counts, whatever comes now.

        Raises:
            SMTPReadTimeoutError: A reply is missing, perhaps an earlier one; then each of the others was another's.
        """
        try:
            if self._exchange.ahead and not await self._nothing_to_send(begun=begun):
                self._exchange.wire.close()
        except SMTPReadTimeoutError:
            self._exchange.wire.close()
            raise
        except (ConnectionFault, *FAULTS):
            self._exchange.wire.close()
        await self._exchange.reset()

    async def _nothing_to_send(self, *, begun: bool) -> bool:
        """Read the replies to what went ahead, DATA at the end; say whether the connection is as before.

        A host that wants a message for nobody gets an empty one, which it has to refuse (RFC 2920 3.1). One that has
        refused MAIL and wants the message nevertheless gets nothing: it may take it, from and for whomever.
        """
        exchange = self._exchange
        while exchange.ahead > 1:
            await exchange.answer(b"", exchange.patience.rcpt)
        reply = await exchange.answer(b"", exchange.patience.data)
        if reply.code != _GO_AHEAD:
            return negative(reply)
        if not begun:
            return False
        exchange.wire.write(b".\r\n")
        try:
            return negative(await exchange.read(exchange.patience.dot))
        except SMTPReadTimeoutError:
            return False  # after 354 nothing was missing

    async def _data(self, *, alone: bool) -> Reply:
        """Return the reply that decides for the accepted recipients.

        With `alone` there are no others: a fault is the caller's. Else the others keep the replies they have.
        """
        try:
            return await self._message_sent()
        except (ConnectionFault, *FAULTS) as error:
            # A reply that does not come may be an earlier one, where commands went together: each was another's then.
            missing = isinstance(error, SMTPReadTimeoutError) and self._exchange.offer.pipelining
            if alone or (not self._wanted and (missing or isinstance(error, OutOfStep))):
                raise
            self._exchange.wire.close()
            return self._exchange.fault(error).reply

    async def _over(self) -> None:
        try:
            await self._exchange.reset()
        except OutOfStep:
            self._exchange.wire.close()
            if not self._wanted:
                raise

    async def _message_sent(self) -> Reply:
        exchange, patience = self._exchange, self._exchange.patience
        reply = await exchange.answer(b"DATA", patience.data)
        if negative(reply):
            return reply
        if reply.code != _GO_AHEAD:
            raise OutOfStep(f"unexpected reply to DATA: {reply}")
        self._wanted = True
        try:
            await exchange.wire.send(wire.framed(self._body), patience.block)
        finally:
            # Without the final dot it has not taken the message, and another host may.
            exchange.sent = exchange.wire.handed
        decided = await exchange.read(patience.dot)
        if exchange.wire.early:  # it did not wait for the end of the message, of which it gets no more
            exchange.wire.close()
            if positive(decided):
                raise OutOfStep(f"it had not the whole message when it said {decided}")
        if not (positive(decided) or negative(decided)):
            raise OutOfStep(f"unexpected reply to the message: {decided}")
        return decided
