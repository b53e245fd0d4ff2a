"""Who of a delivery has ended otherwise, and what is told of those whom an operator ends."""

from datetime import datetime

from shared.mail.envelope import Delivery
from shared.mail.event import Event, Kind
from shared.store.bodies import Bodies


async def without_ended(delivery: Delivery, bodies: Bodies) -> Delivery:
    """Return the delivery for those recipients who have not ended: a crash may have left a double of it.

    It can be told of a message with a stored body only.

    Raises:
        StoreUnavailable: It cannot be asked.
    """
    envelope = delivery.envelope
    if envelope.body_ref is None:
        return delivery
    head = await bodies.head(envelope.body_ref, envelope.id, envelope.rcpt_to)
    if head is None:
        return delivery
    return delivery.only(tuple(each for each in envelope.rcpt_to if each not in head.ended))


def events_of(delivery: Delivery, kind: Kind, *, at: datetime, actor: str, report: str = "") -> list[Event]:
    """Return what is told of the recipients of a delivery that an operator ended, with what was answered last."""
    reply = delivery.reply
    return [
        Event(
            at=at,
            kind=kind,
            id=delivery.id,
            recipient=recipient,
            domain=delivery.domain,
            room="operator",
            rule=delivery.route.key,
            version=delivery.route.version,
            target=",".join(delivery.route.targets),
            mta=(reply.mta or "") if reply else "",
            code=reply.code if reply else 0,
            enhanced=reply.enhanced if reply else "",
            reply=reply.text if reply else "",
            report=report,
            actor=actor,
        )
        for recipient in delivery.envelope.rcpt_to
    ]
