"""Who still needs a stored body: asked before a delivery, told after it. Router and workers judge alike.

A recipient that is noted as ended has been settled for good, so whatever comes for it again is a double. One that is
not noted has not ended: if its body is gone all the same, the mail is kept for people to see, never passed over.
"""

from collections.abc import Collection

import msgspec
import structlog

from shared.mail.envelope import Envelope
from shared.runtime.errors import StoreUnavailable
from shared.store.bodies import Bodies, Head

log = structlog.get_logger()


class BodyGoneError(Exception):
    """Recipients need a body that is not there; the message is the reason.

    Attributes:
        recipients: Those who need it.
        envelope: Of the message, with others too.
    """

    def __init__(self, reason: str, recipients: tuple[str, ...], envelope: Envelope) -> None:
        super().__init__(reason)
        self.recipients = recipients
        self.envelope = envelope


def without(envelope: Envelope, recipients: Collection[str]) -> Envelope:
    """Return the envelope without some recipients; it may be left with none."""
    left = tuple(each for each in envelope.rcpt_to if each not in recipients)
    return envelope if left == envelope.rcpt_to else msgspec.structs.replace(envelope, rcpt_to=left)


def still_due(envelope: Envelope, head: Head | None) -> Envelope:
    """Return the envelope for those whose deliveries have not ended; it may be left with none.

    Args:
        envelope: With a `body_ref`.
        head: What the store knows of that body, and of these recipients.

    Raises:
        BodyGoneError: Some have not ended, and the body is not there.
    """
    if head is None:
        raise BodyGoneError(f"body {envelope.body_ref} is not in the store", envelope.rcpt_to, envelope)
    left = without(envelope, head.ended)
    if ended := len(envelope.rcpt_to) - len(left.rcpt_to):
        log.warning("a double: it has ended already", id=envelope.id, body=envelope.body_ref, recipients=ended)
    if head.freed and left.rcpt_to:
        # A message that names what `pushpush send` or a router stored for another: nobody knew of it in time.
        raise BodyGoneError(f"body {envelope.body_ref} was freed before these had ended", left.rcpt_to, envelope)
    return left


async def end(bodies: Bodies, envelope: Envelope, recipients: Collection[str]) -> None:
    """Say that these need the stored body no longer; without a stored body that costs nothing.

    Nothing is held up or raised for it: the mail is settled, and would be delivered again. What is not freed for a
    fault is pruned by its age.
    """
    if envelope.body_ref is None or not recipients:
        return
    try:
        if await bodies.end(envelope.body_ref, envelope.id, list(recipients)):
            log.info("body freed", id=envelope.id, body=envelope.body_ref)
    except StoreUnavailable as error:
        log.warning("store away, a large body is not freed", id=envelope.id, body=envelope.body_ref, error=str(error))
    except Exception:
        log.exception("a large body could not be freed", id=envelope.id, body=envelope.body_ref)
