"""Which of the mail that waits is meant: by id, message, domain, target, age, or what was answered last."""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from shared.mail.privacy import Privacy


class Selection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Waiting deliveries that fulfil all that is given; without anything, all that waits.

    Attributes:
        message_id: The queue id of the message.
        domain: The recipients' domain, normalised.
        target: Where the last attempt went, as `Waiting.target` has it; "" for the domain's own MX hosts.
        older: Accepted longer ago than this.
        error: A part of what was answered last; upper and lower case are the same.
        ids: These deliveries.
        accepted_before: The moment that `older` means.
        up_to: No delivery with a higher id, which is one that began to wait later.
    """

    message_id: str | None = None
    domain: str | None = None
    target: str | None = None
    older: timedelta | None = None
    error: str | None = None
    ids: tuple[int, ...] | None = None
    accepted_before: datetime | None = None
    up_to: int | None = None

    @property
    def everything(self) -> bool:
        """Say whether it chooses nothing: all that waits is meant."""
        return self.but(up_to=None) == EVERYTHING

    def as_of(self, now: datetime, newest: int) -> "Selection":
        """Return it for what waits at this moment: what begins to match later is not meant.

        Whoever counts before a person is asked, counts and acts by this, so that no more is ended than was told of.

        Args:
            now: The time.
            newest: The highest id of what waits (`Deferred.newest`).
        """
        before = self.accepted_before if self.older is None else now - self.older
        return self.but(older=None, accepted_before=before, up_to=newest if self.up_to is None else self.up_to)

    def but(self, **changes: object) -> "Selection":
        """Return the same selection with some fields changed."""
        return msgspec.structs.replace(self, **changes)

    def told(self, privacy: Privacy) -> str:
        """Return it in words, as the audit log keeps it: what an answer has in it may name somebody."""
        return str(self if self.error is None else self.but(error=privacy.text(self.error)))

    def __str__(self) -> str:
        """Return it in words."""
        words = [
            f"message {self.message_id}" if self.message_id is not None else "",
            f"domain {self.domain}" if self.domain is not None else "",
            f"target {self.target or 'MX hosts'}" if self.target is not None else "",
            f"older than {self.older}" if self.older is not None else "",
            f"accepted before {self.accepted_before:%Y-%m-%d %H:%M:%S}" if self.accepted_before is not None else "",
            f"answer with {self.error!r}" if self.error is not None else "",
            f"deliveries {', '.join(map(str, self.ids[:_NAMED]))}{', ...' * (len(self.ids) > _NAMED)}"
            if self.ids is not None
            else "",
        ]
        return "; ".join(filter(None, words)) or "all that waits"


_NAMED = 20  # ids that words have
EVERYTHING = Selection()

# Only what is asked for stands in a statement: with `x IS NULL OR ...` PostgreSQL may plan for a filter that is none.
_CONDITIONS = {
    "message_id": "message_id = %(message_id)s",
    "domain": "domain = %(domain)s",
    "target": "target = %(target)s",
    "older": "accepted_at < now() - %(older)s",
    "accepted_before": "accepted_at < %(accepted_before)s",
    "error": "position(lower(%(error)s) IN lower(reply)) > 0",
    "ids": "id = ANY(%(ids)s)",
    "up_to": "id <= %(up_to)s",
}


def where(selection: Selection) -> tuple[str, dict[str, Any]]:
    """Return the condition for rows of `deferred`, and its values."""
    given = {name: value for name, value in msgspec.structs.asdict(selection).items() if value is not None}
    condition = " AND ".join(_CONDITIONS[name] for name in given) or "true"
    return condition, {name: list(value) if name == "ids" else value for name, value in given.items()}
