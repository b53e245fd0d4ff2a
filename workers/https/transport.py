"""Deliver by `POST /mxdeliv`, one request for all recipients of a delivery.

An answer of a mail server, good or bad, is final for HTTPS. Where none speaks mxdeliv, a route for HTTPS alone has the
next target tried; with `auto` SMTP has its turn at this target first, also where the fleet remembers that there is no
mxdeliv, or the host does not answer lately. A host that was sent the whole message and did not answer may have taken
it: no other host gets it in this attempt. Nothing is raised for a refusal.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

import aiohttp

from shared.delivery.gate import Gate, Turn
from shared.delivery.memory import Memory
from shared.delivery.posting import NoAnswer, Patience, Sessions, open_sessions, post
from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts, for_https
from shared.mail.address import to_ascii_domain
from shared.mail.envelope import Delivery
from shared.mail.mxdeliv import Answer, interpret, proves
from shared.mail.outcome import Deferred, Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.route import Target
from shared.runtime.settings import Settings

_MAX_KNOWN = 10_000  # origins
_FIXED = (
    ("Content-Type", "application/octet-stream"),
    ("Accept-Encoding", "identity"),  # a reply that a proxy compressed could not be read: `450 later` in a 200
)


class HttpsTransport:
    """Speaks mxdeliv; one session for each TLS mode, since verification belongs to the connection."""

    def __init__(self, sessions: Sessions, gate: Gate, memory: Memory, *, https_port: int, patience: Patience) -> None:
        """Use sessions by TLS mode; `https_port` where a route names none."""
        self._gate = gate
        self._memory = memory
        self._sessions = sessions
        self._https_port = https_port
        self._patience = patience
        self._known = Known(_MAX_KNOWN)

    async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """Try the targets whose turn it is, in order, until one speaks mxdeliv or may have taken the message."""
        outcome: Outcome = Unsuited(Reply(code=450, enhanced="4.4.4", text="the route has no target for HTTPS"))
        for text in delivery.aims:
            target = Target.parse(text)
            outcome = await self._try(target, target.https_url(self._https_port), delivery, message)
            if not isinstance(outcome, Unsuited):
                break
        return dict.fromkeys(delivery.envelope.rcpt_to, outcome)

    async def _try(self, target: Target, url: str, delivery: Delivery, message: bytes) -> Outcome:
        """Post to one target, unless it is known to be in vain, or there is no room for it."""
        if delivery.route.transport == "auto" and self._memory.lacks_mxdeliv(url):
            return Unsuited(Reply(code=450, enhanced="4.4.0", text=f"{url} is remembered as without mxdeliv"))
        turn = await self._gate.turn(url)
        match turn:
            case Turn():
                with turn:
                    return await self._post(target, url, turn, delivery, message)
            case Deferred(reply):
                return Unsuited(reply)
            case busy:
                return busy

    async def _post(self, target: Target, url: str, turn: Turn, delivery: Delivery, message: bytes) -> Outcome:
        session = self._sessions[for_https(delivery.route.tls, target.host)]
        answer = await self._ask(session, url, delivery, message)
        if isinstance(answer, NoAnswer):
            turn.missed(Reply.of(450, f"4.4.1 {answer.why}", mta=None))
            return _unanswered(answer, url, alone=delivery.route.transport == "https")
        turn.reached()
        origin = origin_of(url)
        known, now = origin in self._known, datetime.now(UTC)
        outcome = interpret(answer, url=url, host=target.host, known=known, now=now)
        if proves(answer, outcome):
            self._known.add(origin)
        return outcome

    async def _ask(
        self, session: aiohttp.ClientSession, url: str, delivery: Delivery, message: bytes
    ) -> Answer | NoAnswer:
        """Post once; and once more where a server closed a kept connection just as it was used again.

        On a new connection a second post could be a second message (RFC 9110 9.2.2: POST is not idempotent).
        """
        try:
            fields = _fields(delivery)
        except ValueError as error:
            return NoAnswer(why=str(error), sent=False, stale=False)
        deadline = asyncio.get_running_loop().time() + self._patience.for_message(len(message))
        answer = await post(session, url, fields, message, deadline=deadline)
        if isinstance(answer, NoAnswer) and answer.stale:
            answer = await post(session, url, fields, message, deadline=deadline)
        return answer


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
    async with open_sessions(contexts, resolver, limit=settings.concurrency, patience=patience) as sessions:
        yield HttpsTransport(sessions, gate, memory, https_port=settings.https_port, patience=patience)


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
