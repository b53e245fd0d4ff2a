"""Deliver by `POST /mxdeliv`, one request for all recipients of a delivery where that does for all of them.

There is one answer to a request. Where a mail server refused the mail for several recipients or put it off, each is
asked for again in a request of its own, so that one that is gone bounces for itself alone.

An answer of a mail server, good or bad, is final for HTTPS. Where none speaks mxdeliv, a route for HTTPS alone has the
next target tried; with `auto` SMTP has its turn at this target first, also where the fleet remembers that there is no
mxdeliv, or the host does not answer lately. A host that was sent the whole message and did not answer may have taken
it: no other host gets it in this attempt. Nothing is raised for a refusal.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from itertools import chain

import msgspec
import structlog

from shared.delivery.gate import Gate, Turn
from shared.delivery.memory import Memory
from shared.delivery.posting import NoAnswer, Patience, Sessions, open_sessions, post
from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts, for_https
from shared.mail.address import needs_smtputf8, to_ascii_domain
from shared.mail.envelope import Delivery
from shared.mail.mxdeliv import Answer, Subject, interpret, proves, subject
from shared.mail.outcome import Busy, Deferred, Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.route import Target, Tls
from shared.runtime.settings import Settings

log = structlog.get_logger()

_MAX_KNOWN = 10_000  # origins
_ENOUGH = 3  # recipients put off in a row: the host would say so to all
_MAX_TOGETHER = 50  # recipients in a request: hyper and Python's http.server take at most 100 fields in a header
_FIXED = (
    ("Content-Type", "application/octet-stream"),
    ("Accept-Encoding", "identity"),  # a reply that a proxy compressed could not be read: `450 later` in a 200
)


class HttpsTransport:
    """Speaks mxdeliv; one session for each TLS mode, since verification belongs to the connection."""

    def __init__(
        self, sessions: Sessions, fresh: Sessions, gate: Gate, memory: Memory, *, https_port: int, patience: Patience
    ) -> None:
        """Use sessions by TLS mode, the `fresh` ones keep no connection; `https_port` where a route names none."""
        self._gate = gate
        self._memory = memory
        self._sessions = sessions
        self._fresh = fresh
        self._https_port = https_port
        self._patience = patience
        self._known = Known(_MAX_KNOWN)

    async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """Try the targets whose turn it is, in order, until each recipient's speaks mxdeliv or may have the message."""
        nowhere = Unsuited(Reply(code=450, enhanced="4.4.4", text="the route has no target for HTTPS"))
        outcomes: dict[str, Outcome] = dict.fromkeys(delivery.envelope.rcpt_to, nowhere)
        # Before the time for an attempt is over (`shared.delivery.actor`): what some were answered must not be lost.
        deadline = asyncio.get_running_loop().time() + self._patience.attempt
        for number, text in enumerate(delivery.aims):
            left = tuple(each for each, outcome in outcomes.items() if isinstance(outcome, Unsuited))
            if not left:
                break
            target = Target.parse(text)
            url = target.https_url(self._https_port)
            answers = await self._try(target, url, delivery.only(left), message, deadline)
            # Behind a target that was tried, "busy" counts as an attempt: that one would be tried each time again.
            outcomes |= {each: _counted(answer) if number else answer for each, answer in answers.items()}
        return outcomes

    async def _try(
        self, target: Target, url: str, delivery: Delivery, message: bytes, deadline: float
    ) -> Mapping[str, Outcome]:
        """Post to one target, unless it is known to be in vain, or there is no room for it."""
        if delivery.route.transport == "auto" and self._memory.lacks_mxdeliv(url):
            lacking = Unsuited(Reply(code=450, enhanced="4.4.0", text=f"{url} is remembered as without mxdeliv"))
            return _all(delivery, lacking)
        turn = await self._gate.turn(url)
        match turn:
            case Turn():
                with turn:
                    return await self._post(target, url, turn, delivery, message, deadline)
            case Deferred(reply):
                return _all(delivery, Unsuited(reply))
            case busy:
                return _all(delivery, busy)

    async def _post(  # noqa: PLR0917 - all are of this one delivery
        self, target: Target, url: str, turn: Turn, delivery: Delivery, message: bytes, deadline: float
    ) -> Mapping[str, Outcome]:
        """Post request by request; whoever is left when the host has no answer, or none that helps, shares that fate.

        So it does when the time of one request is over: a slow host would hold the turn for a hundred of them.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + self._patience.for_message(len(message))
        outcomes: dict[str, Outcome] = {}
        requests = in_requests(delivery.envelope.rcpt_to)
        later = 0  # in a row
        while requests:
            some = requests.popleft()
            outcome, about = await self._answered(target, url, turn, delivery.only(some), message, deadline)
            if about == "recipients" and len(some) > 1:
                # Each attempt begins with another one, so that nobody waits behind the same one for ever.
                first = (delivery.attempts + delivery.quick) % len(some)
                requests.extendleft((each,) for each in reversed((*some[first:], *some[:first])))
                continue
            outcomes |= dict.fromkeys(some, outcome)
            later = later + 1 if isinstance(outcome, Deferred) else 0
            if later == _ENOUGH:
                about = "host"
            if requests and about != "host" and clock() > end:
                late = Reply(code=450, enhanced="4.4.5", text=f"no time was left to post this to {url}")
                outcome, about = Deferred(late), "host"
            if about == "host":
                return outcomes | dict.fromkeys(chain.from_iterable(requests), outcome)
        return outcomes

    async def _answered(  # noqa: PLR0917
        self, target: Target, url: str, turn: Turn, delivery: Delivery, message: bytes, deadline: float
    ) -> tuple[Outcome, Subject]:
        """Post for all recipients of the delivery. A fault of our own must not undo what others were answered."""
        try:
            return await self._request(target, url, turn, delivery, message, deadline)
        except Exception:
            log.exception("posting broke", id=delivery.id, url=url)
            return Deferred(
                Reply(code=451, enhanced="4.3.0", text="an internal fault; see the log of the worker")
            ), "host"

    async def _request(  # noqa: PLR0917
        self, target: Target, url: str, turn: Turn, delivery: Delivery, message: bytes, deadline: float
    ) -> tuple[Outcome, Subject]:
        """Post for all recipients of the delivery; return what it means for them, and what the answer is about."""
        answer = await self._ask(for_https(delivery.route.tls, target.host), url, delivery, message, deadline)
        if isinstance(answer, NoAnswer):
            turn.missed(Reply.of(450, f"4.4.1 {answer.why}", mta=None))
            return _unanswered(answer, url, alone=delivery.route.transport == "https"), "host"
        turn.reached()
        origin = origin_of(url)
        known, now = origin in self._known, datetime.now(UTC)
        outcome = interpret(answer, url=url, host=target.host, known=known, now=now)
        if proves(answer, outcome):
            self._known.add(origin)
        return outcome, subject(answer, outcome)

    async def _ask(self, tls: Tls, url: str, delivery: Delivery, message: bytes, deadline: float) -> Answer | NoAnswer:
        """Post once; and once more where a server closed a kept connection just as it was used again.

        The second time goes over a connection that was never used, which cannot end so too: the message is posted twice
        at most. On a new connection a second post could be a second message (RFC 9110 9.2.2: POST is not idempotent).
        """
        try:
            fields = _fields(delivery)
        except ValueError as error:
            return NoAnswer(why=str(error), sent=False, stale=False)
        deadline = min(deadline, asyncio.get_running_loop().time() + self._patience.for_message(len(message)))
        first = await post(self._sessions[tls], url, fields, message, deadline=deadline)
        if not isinstance(first, NoAnswer) or not first.stale:
            return first
        second = await post(self._fresh[tls], url, fields, message, deadline=deadline)
        if isinstance(second, NoAnswer) and first.sent:
            # The host may have it from the first time, also where the second did not even reach it.
            return msgspec.structs.replace(second, sent=True)
        return second


def _counted(outcome: Outcome) -> Outcome:
    return Deferred(outcome.reply) if isinstance(outcome, Busy) else outcome


class Known:
    """Origins that have shown that they speak mxdeliv, as long as this process lives; the oldest is forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._origins: dict[str, None] = {}

    def __contains__(self, origin: str) -> bool:
        return origin in self._origins

    def add(self, origin: str) -> None:
        """Know it, as the youngest."""
        self._origins.pop(origin, None)
        self._origins[origin] = None
        if len(self._origins) > self._limit:
            del self._origins[next(iter(self._origins))]


def in_requests(recipients: tuple[str, ...]) -> deque[tuple[str, ...]]:
    """Share recipients out among requests; one whose address is not ASCII is asked for alone.

    filtermail cannot read its field, and leaves it out without a word when there are others. Alone, it says an error.
    """
    if len(recipients) == 1:
        return deque((recipients,))
    plain = [each for each in recipients if not needs_smtputf8(each)]
    requests = deque(tuple(plain[at : at + _MAX_TOGETHER]) for at in range(0, len(plain), _MAX_TOGETHER))
    if len(plain) < len(recipients):
        requests.extend((each,) for each in recipients if needs_smtputf8(each))
    return requests


def origin_of(url: str) -> str:
    """Return `scheme://host:port` of a target's URL."""
    return url[: url.index("/", len("https://"))]


@contextlib.asynccontextmanager
async def open_transport(
    settings: Settings, *, gate: Gate | None = None, memory: Memory | None = None, patience: Patience | None = None
) -> AsyncIterator[HttpsTransport]:
    """Open the sessions on the running loop, and close them at the end; without a memory this process has its own."""
    memory = memory or Memory()
    gate = gate or Gate(settings.share, told=memory)
    patience = patience or Patience()
    resolver = Resolver(settings.dns_servers)
    contexts = Contexts(settings.ca_file)
    for context in (contexts.verify, contexts.encrypt):
        # A server that speaks nothing but HTTP/2 then ends the handshake (RFC 7301 3.2), before it has the message.
        context.set_alpn_protocols(["http/1.1"])
    once, limit = msgspec.structs.replace(patience, messages=1), settings.concurrency
    async with (
        open_sessions(contexts, resolver, limit=limit, patience=patience) as sessions,
        open_sessions(contexts, resolver, limit=limit, patience=once) as fresh,
    ):
        yield HttpsTransport(sessions, fresh, gate, memory, https_port=settings.https_port, patience=patience)


def _all(delivery: Delivery, outcome: Outcome) -> Mapping[str, Outcome]:
    return dict.fromkeys(delivery.envelope.rcpt_to, outcome)


def _unanswered(answer: NoAnswer, url: str, *, alone: bool) -> Outcome:
    """Return what no answer means; `alone`: the rule allows no other transport.

    SMTP may have its turn though the host may have the message: so much mail would wait for so little. Once SMTP has
    succeeded the URL is remembered, so at most one message is delivered twice.
    """
    if answer.sent and alone:
        return Deferred(Reply.of(451, f"4.4.2 {url}: {answer.why}", mta=None))
    enhanced = "4.4.2" if answer.sent else "4.4.1"
    return Unsuited(Reply.of(450, f"{enhanced} {url}: {answer.why}", mta=None), url)


def _fields(delivery: Delivery) -> list[tuple[str, str]]:
    """Return the envelope as header fields; addresses are bare, and not ASCII as UTF-8.

    Raises:
        ValueError: An address has a domain that is none, or what UTF-8 cannot hold: aiohttp would leave it out.
    """
    sender = delivery.envelope.mail_from
    recipients = [to_ascii_domain(each) for each in delivery.envelope.rcpt_to]
    "".join((sender, *recipients)).encode()
    fields = [*_FIXED]
    if sender:
        fields.append(("X-Mail-From", to_ascii_domain(sender)))
    fields += [("X-Mail-To", each) for each in recipients]
    return fields
