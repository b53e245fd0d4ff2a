"""Who of a delivery has ended otherwise: a crash may leave a double of it, and nothing untrue is told of them."""

from shared.mail.envelope import Delivery
from shared.store.bodies import Bodies


async def without_ended(delivery: Delivery, bodies: Bodies) -> Delivery:
    """Return the delivery for those recipients who have not ended: of a message with a stored body that is known.

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
