"""Make true what was decided, confirmed, before the message is acked.

A crash between the two delivers twice; the other order loses mail. Every hop holds this.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol, assert_never

import msgspec
import structlog
from prometheus_client import Counter

from shared.broker import topology
from shared.broker.publisher import Publisher
from shared.mail import codec, dsn
from shared.mail.disposition import Bounce, Disposition, Done, Drop, FallBack, NextTarget, RetryAt, Wait, give_up
from shared.mail.envelope import Delivery
from shared.mail.event import Emit, reported, to_nobody
from shared.mail.reply import Reply
from shared.mail.retry import Schedule
from shared.runtime.chance import new_id
from shared.runtime.clock import Clock, now
from shared.runtime.errors import BrokerUnavailable, StoreUnavailable

log = structlog.get_logger()

_REPORTS = Counter("pushpush_reports_total", "Reports to senders, by what they say", ["action"])
_SET_ASIDE = Counter("pushpush_set_aside_total", "Messages that could not be read or settled, kept as dead letters")
_COURTESY = 20.0  # seconds: a broker that is short of memory confirms nothing, and the job waits
_PAUSE = 0.5  # seconds between two tries
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
        self,
        publisher: Publisher,
        waiting: WaitingRoom,
        *,
        hostname: str,
        schedule: Schedule,
        clock: Clock = now,
        emit: Emit = to_nobody,
        room: str = "router",
    ) -> None:
        """Use a publisher and a waiting room; reports are signed with the hostname, and told of by the room."""
        self._publisher = publisher
        self._waiting = waiting
        self._hostname = hostname
        self._schedule = schedule
        self._now = clock
        self._emit = emit
        self._room = room

    async def settle(self, delivery: Delivery, message: bytes, verdicts: Mapping[str, Disposition]) -> list[str]:
        """Do what was decided for each recipient, and tell the sender, in one report for each kind of news.

        Whoever settles again what was not confirmed does less twice by calling `carry_out` for parts of the verdicts,
        and then `tell` for all.

        Args:
            delivery: The delivery as it was taken from the queue.
            message: The whole message; of a stored one, as much as a report may give back is enough.
            verdicts: By recipient.

        Returns:
            The recipients whose delivery has ended: nobody needs the message for them any more.

        Raises:
            BrokerUnavailable: Something was not confirmed: the delivery must stay in its queue.
        """
        ended = await self.carry_out(delivery, message, verdicts)
        await self.tell(delivery, message, verdicts)
        return ended

    async def carry_out(self, delivery: Delivery, message: bytes, verdicts: Mapping[str, Disposition]) -> list[str]:
        """Do what was decided, but for courtesies; recipients with the same verdict stay together.

        When this raises and is called again, what was confirmed before is done twice. So what does least harm twice
        comes first, a report, and what hardly ever fails comes last: to wait, which store and limbo both would have to
        refuse. A broker that is away is noticed before anything is stored.

        Args:
            delivery: The delivery as it was taken from the queue.
            message: The whole message; of a stored one, as much as a report may give back is enough.
            verdicts: By recipient.

        Returns:
            The recipients whose delivery has ended: nobody needs the message for them any more, but `tell`.

        Raises:
            BrokerUnavailable: Something was not confirmed: the delivery must stay in its queue.
        """
        if failed := _to_report(verdicts, "failed"):
            await self._report(delivery, message, failed, "failed")
        together: dict[Disposition, list[str]] = defaultdict(list)
        for recipient, verdict in verdicts.items():
            together[verdict].append(recipient)
        for verdict, recipients in sorted(together.items(), key=lambda each: isinstance(each[0], RetryAt | Wait)):
            await self._do(verdict, delivery.only(tuple(recipients)), message)
        return [recipient for recipient, verdict in verdicts.items() if isinstance(verdict, Bounce | Done | Drop)]

    async def tell(self, delivery: Delivery, message: bytes, verdicts: Mapping[str, Disposition]) -> None:
        """Tell the sender who is late, and who was passed on, in one report each.

        A courtesy, and nothing is raised: to settle all again for its sake would store or deliver the mail twice.
        """
        actions: tuple[dsn.Action, ...] = ("delayed", "relayed")
        for action in actions:
            if told := _to_report(verdicts, action):
                try:
                    async with asyncio.timeout(_COURTESY):
                        await self._report_in_the_end(delivery, message, told, action)
                except TimeoutError:
                    log.warning("the sender was not told: no confirm in time", id=delivery.id, action=action)
                except Exception:
                    log.exception("the sender could not be told", id=delivery.id, action=action)

    async def _report_in_the_end(
        self, delivery: Delivery, message: bytes, told: Mapping[str, Disposition], action: dsn.Action
    ) -> None:
        while True:
            try:
                await self._report(delivery, message, told, action)
            except BrokerUnavailable as error:
                log.warning("the sender cannot be told now", id=delivery.id, action=action, error=str(error))
                await asyncio.sleep(_PAUSE)
            else:
                return

    async def withdraw(self, delivery: Delivery, message: bytes, *, tried_at: datetime | None) -> str:
        """Tell the sender that those who run the fleet gave up a delivery that waited.

        Args:
            delivery: The delivery as it waited.
            message: The whole message, or as much as a report may give back.
            tried_at: When it was tried last; None when it never was.

        Returns:
            The id of the report; "" when nobody is told, since it is a report itself or its sender wants none.

        Raises:
            BrokerUnavailable: The report was not confirmed.
        """
        envelope = delivery.envelope
        reply = delivery.reply or Reply(code=0)
        if isinstance(give_up(envelope, reply, expired=False), Drop):
            return ""
        report = dsn.Report(
            delivery=delivery,
            action="failed",
            replies=dict.fromkeys(envelope.rcpt_to, reply),
            hostname=self._hostname,
            id=new_id(),
            now=self._now(),
            withdrawn=True,
            tried_at=tried_at,
        )
        await self._publish(report, message)
        return report.id

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
        _SET_ASIDE.inc()
        log.error("undecodable", id=message_id, reason=reason, size=len(data))

    async def _do(self, verdict: Disposition, part: Delivery, message: bytes) -> None:
        """Do what was decided for some recipients, but for reports: those are of many verdicts."""
        match verdict:
            case Bounce() | Done() | Drop():
                pass
            case FallBack(reply, lacking=lacking):
                fallen = part.but(quick=0, reply=reply, lacking=lacking, put_off=None)
                await self._publisher.delivery(topology.SMTP, fallen, message)
            case NextTarget(reply):
                await self._publisher.delivery(topology.HTTPS, part.at_next_target().but(reply=reply), message)
            case Wait(at, reply, by=by, warn=warn):
                await self.park(part.but(reply=reply, put_off=by, warned=part.warned or warn), message, at)
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
            case _:
                assert_never(verdict)

    async def _report(
        self, delivery: Delivery, message: bytes, verdicts: Mapping[str, Disposition], action: dsn.Action
    ) -> None:
        envelope = delivery.envelope
        report = dsn.Report(
            delivery=delivery,
            action=action,
            replies={recipient: verdict.reply for recipient, verdict in verdicts.items()},
            expired=frozenset(
                each for each, verdict in verdicts.items() if isinstance(verdict, Bounce) and verdict.expired
            ),
            hostname=self._hostname,
            id=new_id(),
            now=self._now(),
            retry_until=envelope.accepted_at + self._schedule.max_age if action == "delayed" else None,
        )
        await self._publish(report, message)

    async def _publish(self, report: dsn.Report, message: bytes) -> None:
        delivery, recipients = report.delivery, list(report.replies)
        await self._publisher.raw(
            topology.OUTBOUND,
            dsn.compose(report, message),
            message_id=report.id,
            content_type=codec.CONTENT_TYPE,
            headers={
                "mail_from": "",
                "rcpt_to": [delivery.envelope.mail_from],
                "smtputf8": report.smtputf8,
                **delivery.envelope.trace,
            },
        )
        _REPORTS.labels(report.action).inc()
        log.info(
            "reported",
            id=delivery.id,
            recipient=delivery.domain,
            recipients=len(recipients),
            action=report.action,
            report=report.id,
        )
        told = reported(delivery, recipients, room=self._room, action=report.action, report=report.id, at=report.now)
        self._emit(told)


def _to_report(verdicts: Mapping[str, Disposition], action: dsn.Action) -> dict[str, Disposition]:
    """Return the verdicts of which the sender is to hear by a report of that kind."""
    return {recipient: verdict for recipient, verdict in verdicts.items() if _reported(verdict) == action}


def _reported(verdict: Disposition) -> dsn.Action | None:
    match verdict:
        case Bounce():
            return "failed"
        case RetryAt(warn=True, quick=False) | Wait(warn=True):
            return "delayed"
        case Done(relayed=True):
            return "relayed"
        case _:
            return None
