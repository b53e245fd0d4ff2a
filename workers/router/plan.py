"""Which deliveries a message becomes. Pure."""

from shared.mail.address import domain_of
from shared.mail.envelope import MAX_RECIPIENTS_PER_DELIVERY, Delivery, Envelope
from shared.mail.rulebook import Rulebook


def plan(envelope: Envelope, rules: Rulebook) -> list[Delivery]:
    """Return one delivery for each domain of the recipients, split where there are more than 100 at one.

    Recipients of different domains are never mixed, even on the same route: they succeed and fail on their own.
    """
    by_domain: dict[str, list[str]] = {}
    for recipient in envelope.rcpt_to:
        by_domain.setdefault(domain_of(recipient), []).append(recipient)
    return [
        Delivery(envelope=envelope, domain=domain, route=rules.route(domain)).only(tuple(recipients[start:end]))
        for domain, recipients in by_domain.items()
        for start, end in _chunks(len(recipients))
    ]


def _chunks(count: int) -> list[tuple[int, int]]:
    size = MAX_RECIPIENTS_PER_DELIVERY
    return [(start, start + size) for start in range(0, count, size)]
