"""The envelope of a message (RFC 5321 2.3.1), and a delivery: the part of it that goes one way."""

from datetime import datetime
from typing import Literal, Self

import msgspec

from shared.mail.reply import Reply
from shared.mail.route import Route

MAX_RECIPIENTS = 1_000  # of one message at the ingress
MAX_RECIPIENTS_PER_DELIVERY = 100  # RFC 5321 4.5.3.1.8: every server takes at least so many

Ret = Literal["FULL", "HDRS"]


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who sends to whom, and what the sender asked for.

    Attributes:
        id: The queue id of the message: what logs, reports and operators call it.
        mail_from: The reverse-path; "" is the null one: a bounce, never bounced again (RFC 5321 6.1).
        rcpt_to: The forward-paths, as the sender wrote them.
        accepted_at: When the fleet took responsibility, UTC.
        smtputf8: The sender asked for SMTPUTF8 (RFC 6531).
        envid: The sender's own id, given back in reports (RFC 3461 4.4).
        ret: How much of the message a report gives back (RFC 3461 4.3).
        notify: When to report (RFC 3461 4.1), for example `NEVER` or `FAILURE,DELAY`; None for the default.
        body_ref: The id of the stored body, when it is too large to travel along.
        traceparent: The W3C trace context that its spans belong to; nothing of the mail depends on it.
        tracestate: What comes with it.
    """

    id: str
    mail_from: str
    rcpt_to: tuple[str, ...]
    accepted_at: datetime
    smtputf8: bool = False
    envid: str | None = None
    ret: Ret | None = None
    notify: str | None = None
    body_ref: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None

    @property
    def trace(self) -> dict[str, str]:
        """The trace context, as it stands in headers; empty when there is none."""
        if self.traceparent is None:
            return {}
        return {"traceparent": self.traceparent} | ({"tracestate": self.tracestate} if self.tracestate else {})

    @property
    def is_report(self) -> bool:
        """Say whether this is itself a report, which must never cause another (RFC 3461 6.1)."""
        return not self.mail_from


class Delivery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Recipients of one message at one domain, on one route.

    Attributes:
        envelope: The envelope, with the recipients of this delivery only.
        domain: The recipients' domain, normalised.
        route: Where the router sends it; within an attempt its targets are those whose turn is still to end.
        attempts: How often its transports have been through with it; 0 before the first attempt.
        quick: How often HTTPS was told "later" by this target in the current attempt.
        warned: The sender has been told that it is late.
        retry_at: Not before this time, UTC; None when it is due.
        reply: What was answered last.
        put_off: The transport that had no room for it, perhaps in the middle of an attempt, which goes on there; None
            when the attempt is over.
        lacking: The URL that had no mxdeliv just before, in the same attempt; "" when HTTPS was not tried, or is there.
    """

    envelope: Envelope
    domain: str
    route: Route
    attempts: int = 0
    quick: int = 0
    warned: bool = False
    retry_at: datetime | None = None
    reply: Reply | None = None
    lacking: str = ""
    put_off: Literal["https", "smtp"] | None = None

    @property
    def id(self) -> str:
        """The id of the message it is part of."""
        return self.envelope.id

    @property
    def aims(self) -> tuple[str, ...]:
        """The targets that a transport goes through now: with `auto` only one, so that SMTP has its turn there too."""
        return self.route.targets[:1] if self.route.transport == "auto" else self.route.targets

    @property
    def has_next(self) -> bool:
        """Say whether another target has its turn when neither transport gets through to this one."""
        return self.route.transport == "auto" and len(self.route.targets) > 1

    def only(self, recipients: tuple[str, ...]) -> Self:
        """Return the same delivery for some of its recipients."""
        if recipients == self.envelope.rcpt_to:
            return self
        return self.but(envelope=msgspec.structs.replace(self.envelope, rcpt_to=recipients))

    @property
    def by_https(self) -> bool:
        """Say which transport has its turn: the first of the route, or the one that had no room for it."""
        return self.route.by_https_first and self.put_off != "smtp"

    def rerouted(self, route: Route) -> Self:
        """Return the same delivery on the route that the rules of this moment give it.

        An attempt that is not over goes on where it was, while the rule still ends with the targets that are left. One
        that began at the first target again would come by each with a fresh count of quick tries, or hand the message
        again to a host that may have taken it, and so go round without ending an attempt.
        """
        rest = self.route.targets
        same = (route.key, route.transport, route.tls) == (self.route.key, self.route.transport, self.route.tls)
        if (self.quick > 0 or self.put_off) and same and (not rest or route.targets[-len(rest) :] == rest):
            return self.but(route=msgspec.structs.replace(route, targets=rest or route.targets))
        return self.but(route=route, lacking="", put_off=None)

    def at_next_target(self) -> Self:
        """Return the same attempt at the next target, which there must be (`has_next`).

        The route loses the target that had its turn. A field for the progress would be dropped by workers of an older
        release, and the delivery would go round for ever.
        """
        route = msgspec.structs.replace(self.route, targets=self.route.targets[1:])
        return self.but(route=route, quick=0, lacking="", put_off=None)

    def but(self, **changes: object) -> Self:
        """Return the same delivery with some fields changed."""
        return msgspec.structs.replace(self, **changes)
