"""Make true what was decided, confirmed, before the message is acked.

A crash between the two delivers twice; the other order loses mail. Every hop holds this.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Literal, Protocol, assert_never

import msgspec
import structlog

from shared.broker import topology
from shared.broker.publisher import Publisher
from shared.mail import codec, dsn
from shared.mail.disposition import Bounce, Disposition, Done, Drop, FallBack, NextTarget, RetryAt, Wait
from shared.mail.envelope import Delivery
from shared.mail.retry import Schedule
from shared.runtime.chance import new_id
from shared.runtime.clock import Clock, now
from shared.runtime.errors import BrokerUnavailable, StoreUnavailable

log = structlog.get_logger()

_COURTESY = 5.0  # seconds: a broker that is short of memory confirms nothing, and the job waits
_HEADERS = 60_000  # characters of headers that certainly fit into a frame (frame_max is 128 KiB)


class WaitingRoom(Protocol):
    """Where deliveries wait for their next attempt."""

    async def defer(self, delivery: Delivery, body: bytes, at: datetime) -> None:
        """Keep a delivery until then; when this returns it is committed.

        Raises:
            StoreUnavailable: It was not committed.
        """


class Settler:
    """Carries out dispositions."""

    def __init__(
        self, publisher: Publisher, waiting: WaitingRoom, *, hostname: str, schedule: Schedule, clock: Clock = now
    ) -> None:
        """Use a publisher and a waiting room; reports are signed with the hostname."""
        self._publisher = publisher
        self._waiting = waiting
        self._hostname = hostname
        self._schedule = schedule
        self._now = clock

    async def settle(self, delivery: Delivery, message: bytes, verdicts: Mapping[str, Disposition]) -> list[str]:
        """Do what was decided for each recipient; recipients with the same verdict stay together.

        Args:
            delivery: The delivery as it was taken from the queue.
            message: The whole message; of a stored one, as much as a report may give back is enough.
            verdicts: By recipient.

        Returns:
            The recipients whose delivery has ended: nobody needs the message for them any more.

        Raises:
            BrokerUnavailable: Something was not confirmed: the delivery must stay in its queue.
        """
        together: dict[Disposition, list[str]] = defaultdict(list)
        for recipient, verdict in verdicts.items():
            together[verdict].append(recipient)
        ended: list[str] = []
        for verdict, recipients in together.items():
            if await self._do(verdict, delivery.only(tuple(recipients)), message):
                ended += recipients
        return ended

    async def park(self, delivery: Delivery, message: bytes, at: datetime) -> None:
        """Keep a delivery until then: in the store, or in limbo while the store is away.

        Raises:
            BrokerUnavailable: Neither took it.
        """
        try:
            await self._waiting.defer(delivery.but(retry_at=None), message, at)
        except StoreUnavailable as error:
            log.warning("store away, delivery waits in limbo", id=delivery.id, error=str(error))
            await self._publisher.delivery(topology.LIMBO, delivery.but(retry_at=at), message)

    async def set_aside(
        self,
        data: bytes,
        reason: str,
        headers: Mapping[str, object],
        message_id: str | None,
        content_type: str | None = None,
    ) -> None:
        """Keep what cannot be read in `mail.undecodable`, whole, with the reason.

        It is as large as it came: RabbitMQ 4 lets in no more than 16 MiB, RabbitMQ 3 gives back what it took.

        Raises:
            BrokerUnavailable: It was not confirmed.
        """
        log.error("undecodable", id=message_id, reason=reason, size=len(data))
        # The id is a header field here: one sender may give many messages the same, and the property must be unique.
        if len(repr(headers)) > _HEADERS:
            # With the reason they would exceed a frame, and the broker would end the connection. They go before it.
            apart = msgspec.json.encode(dict(headers), enc_hook=repr)
            about = {
                "reason": "headers of the message that follows",
                **({"message_id": message_id} if message_id else {}),
            }
            await self._publisher.raw(topology.UNDECODABLE, apart, headers=about, content_type="application/json")
            headers = {}
        kept = {**headers, "reason": reason} | ({"message_id": message_id} if message_id else {})
        await self._publisher.raw(topology.UNDECODABLE, data, headers=kept, content_type=content_type)

    async def _do(self, verdict: Disposition, part: Delivery, message: bytes) -> bool:  # noqa: C901 - a case each
        """Do what was decided; return whether that ends the delivery."""
        match verdict:
            case Done(relayed=True):
                await self._tell(part, message, verdict, "relayed")
                return True
            case Bounce():
                await self._report(part, message, verdict, "failed")
                return True
            case Done() | Drop():
                return True
            case FallBack(reply, lacking=lacking):
                fallen = part.but(quick=0, reply=reply, lacking=lacking, put_off=None)
                await self._publisher.delivery(topology.SMTP, fallen, message)
            case NextTarget(reply):
                await self._publisher.delivery(topology.HTTPS, part.at_next_target().but(reply=reply), message)
            case Wait(at, reply, by=by, warn=warn):
                await self.park(part.but(reply=reply, put_off=by, warned=part.warned or warn), message, at)
                if warn:
                    await self._tell(part, message, verdict, "delayed")
            case RetryAt(at, reply, quick=True):
                await self.park(part.but(quick=part.quick + 1, reply=reply, put_off=None), message, at)
            case RetryAt(at, reply, warn=warn):
                # With `quick=0` the router gives it the whole route again: every attempt begins at the first target,
                # where the operator wants the mail once it is up again.
                warned = part.warned or warn
                later = part.but(
                    attempts=part.attempts + 1, quick=0, reply=reply, warned=warned, lacking="", put_off=None
                )
                await self.park(later, message, at)
                if warn:
                    await self._tell(part, message, verdict, "delayed")
            case _:
                assert_never(verdict)
        return False

    async def _tell(
        self, part: Delivery, message: bytes, verdict: RetryAt | Wait | Done, action: Literal["delayed", "relayed"]
    ) -> None:
        """Tell the sender that it is late, or was passed on.

        A courtesy: to settle all again for its sake would store or deliver the mail twice.
        """
        try:
            async with asyncio.timeout(_COURTESY):
                await self._report(part, message, verdict, action)
        except (BrokerUnavailable, TimeoutError) as error:
            log.warning("the sender was not told", id=part.id, action=action, error=str(error) or "no confirm in time")

    async def _report(
        self, part: Delivery, message: bytes, verdict: Bounce | RetryAt | Wait | Done, action: dsn.Action
    ) -> None:
        report = dsn.Report(
            delivery=part,
            action=action,
            reply=verdict.reply,
            expired=isinstance(verdict, Bounce) and verdict.expired,
            hostname=self._hostname,
            id=new_id(),
            now=self._now(),
            retry_until=part.envelope.accepted_at + self._schedule.max_age if action == "delayed" else None,
        )
        await self._publisher.raw(
            topology.OUTBOUND,
            dsn.compose(report, message),
            message_id=report.id,
            content_type=codec.CONTENT_TYPE,
            headers={"mail_from": "", "rcpt_to": [part.envelope.mail_from], "smtputf8": report.smtputf8},
        )
        log.info("reported", id=part.id, action=action, report=report.id)
