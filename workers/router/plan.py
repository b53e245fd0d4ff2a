"""Which deliveries a message becomes, and which messages become none. Pure."""

from shared.mail import trace
from shared.mail.address import domain_of
from shared.mail.envelope import MAX_RECIPIENTS_PER_DELIVERY, Delivery, Envelope
from shared.mail.reply import Reply
from shared.mail.rulebook import Rulebook

MAX_HOPS = 50  # Received fields; so many mean a loop (RFC 5321 6.3)


def plan(envelope: Envelope, rules: Rulebook) -> list[Delivery]:
    """Return one delivery for each domain of the recipients, split where there are more than 100 at one.

    Recipients of different domains are never mixed, even on the same route: they succeed and fail on their own.
    """
    by_domain: dict[str, list[str]] = {}
    for recipient in envelope.rcpt_to:
        by_domain.setdefault(domain_of(recipient), []).append(recipient)
    return [
        Delivery(envelope=envelope, domain=domain, route=rules.route(domain, envelope.id)).only(
            tuple(recipients[start:end])
        )
        for domain, recipients in by_domain.items()
        for start, end in _chunks(len(recipients))
    ]


def _chunks(count: int) -> list[tuple[int, int]]:
    size = MAX_RECIPIENTS_PER_DELIVERY
    return [(start, start + size) for start in range(0, count, size)]


def refusal(start: bytes, size: int, *, max_size: int) -> Reply | None:
    """Return why a message of this size is not delivered at all: it is too large, or goes round in a circle.

    Its beginning is enough: every hop puts its Received field on top.
    """
    if size > max_size:
        return Reply(code=552, enhanced="5.3.4", text=f"{size} bytes, more than {max_size}")
    if (hops := trace.hops(start)) >= MAX_HOPS:
        return Reply(code=554, enhanced="5.4.6", text=f"{hops} Received fields: it goes round in a circle")
    return None
