"""Deliver one message over SMTP to the hosts of one destination.

Connection faults try the next host; a refusal stops at once; the last host's fault defers, or with `auto` leaves it to
the next target of the route. Nothing is raised for a refusal.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec

from shared.delivery.resolver import Resolver
from shared.delivery.smtp import TIMEOUTS, ConnectionFault, LoopFault, Session, Timeouts, open_session
from shared.delivery.tls import Contexts
from shared.mail.envelope import Delivery
from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, Unsuited, classify
from shared.mail.reply import Reply
from shared.mail.route import Target
from shared.runtime import main
from shared.runtime.settings import Settings
from workers.smtp.connections import Connections, Hop

MAX_HOPS = 10  # addresses tried in one attempt
# Seconds after which no further address is tried where a next target waits. A host that takes connections and says
# nothing, at several addresses, would use up the attempt (`shared.delivery.actor`), and no other target had a turn.
PATIENCE = 300.0


class SmtpTransport:
    """Speaks SMTP on kept connections."""

    def __init__(self, connections: Connections, resolver: Resolver, *, smtp_port: int) -> None:
        """Use kept connections; `smtp_port` where a route names none."""
        self._connections = connections
        self._resolver = resolver
        self._smtp_port = smtp_port

    async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """Try the hosts of the route in order until one answers."""
        recipients = delivery.envelope.rcpt_to
        hosts = await self._hosts(delivery)
        if not isinstance(hosts, list):
            return dict.fromkeys(recipients, hosts)
        faults: list[Deferred | Failed] = []
        tried, began = 0, asyncio.get_running_loop().time()
        for host, port in hosts:
            addresses = await self._resolver.addresses(host, ruled=bool(delivery.route.targets))
            if not isinstance(addresses, list):
                faults.append(addresses)
                continue
            for address in addresses[: MAX_HOPS - tried]:
                if delivery.has_next and asyncio.get_running_loop().time() - began > PATIENCE:
                    break
                tried += 1
                hop = Hop(host=host, address=address, port=port, tls=delivery.route.tls)
                answer = await self._try(hop, delivery, message)
                if isinstance(answer, Mapping):
                    return answer
                faults.append(answer)
                if isinstance(answer, Failed):
                    # Ourselves: the hosts after us have a worse preference, and would give it back (RFC 5321 5.1).
                    return dict.fromkeys(recipients, _mildest(faults))
        fault = _mildest(faults)
        # No host has answered for the message or may have taken it: the next target cannot get it a second time.
        return dict.fromkeys(recipients, Unsuited(fault.reply) if delivery.has_next else fault)

    async def _hosts(self, delivery: Delivery) -> list[tuple[str, int]] | Deferred | Failed:
        """Return hosts and ports in order. A rule's host is used as it is; without a rule the domain's MX decide."""
        if delivery.route.targets:
            targets = [Target.parse(text) for text in delivery.aims]
            return [(each.host, each.smtp_port or self._smtp_port) for each in targets]
        hosts = await self._resolver.mail_hosts(delivery.domain)
        return [(host, self._smtp_port) for host in hosts] if isinstance(hosts, list) else hosts

    async def _try(self, hop: Hop, delivery: Delivery, message: bytes) -> Mapping[str, Outcome] | Deferred | Failed:
        """Return each recipient's outcome, or why the host cannot be talked to, when another one may be tried."""
        try:
            return await self._send(hop, delivery, message)
        except LoopFault as error:
            if not delivery.route.targets:
                return Failed(error.reply)
            # The rule sends it here, and the operator mends the rule.
            return Deferred(msgspec.structs.replace(error.reply, code=451, enhanced="4.4.6"))
        except ConnectionFault as error:
            # Also a greeting of 554: this host takes no mail at all (RFC 5321 3.1), but another one may.
            fault = Deferred(error.reply)
            # Once the message was on its way, another host would perhaps get it a second time.
            return dict.fromkeys(delivery.envelope.rcpt_to, fault) if error.sent else fault

    async def _send(self, hop: Hop, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """Send on a kept connection; one that the host closed while it was idle is replaced once."""
        session = await self._connections.take(hop)
        kept = session.messages > 0
        try:
            return await self._on(session, hop, delivery, message)
        except ConnectionFault as error:
            if not kept or error.sent:
                raise
        return await self._on(await self._connections.take(hop, fresh=True), hop, delivery, message)

    async def _on(self, session: Session, hop: Hop, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        try:
            replies = await session.send(delivery.envelope, message)
        finally:
            self._connections.give(hop, session)
        return {each: _outcome(replies[each], reports=session.reports) for each in delivery.envelope.rcpt_to}


def _outcome(reply: Reply, *, reports: bool) -> Outcome:
    outcome = classify(reply)
    return Delivered(reply, reports=True) if reports and isinstance(outcome, Delivered) else outcome


def _mildest(faults: Sequence[Deferred | Failed]) -> Deferred | Failed:
    """Return the last temporary fault: one host that can never take mail says nothing of one that is down today."""
    if not faults:
        return Deferred(Reply(code=451, enhanced="4.4.4", text="the destination has no host"))
    return next((each for each in reversed(faults) if isinstance(each, Deferred)), faults[-1])


@contextlib.asynccontextmanager
async def open_transport(settings: Settings, *, patience: Timeouts = TIMEOUTS) -> AsyncIterator[SmtpTransport]:
    """Open the transport on the running loop; end its connections at the end."""
    contexts = Contexts(settings.ca_file)

    async def open_(hop: Hop) -> Session:
        fields = msgspec.structs.asdict(hop)
        return await open_session(**fields, contexts=contexts, hostname=settings.hostname, patience=patience)

    connections = Connections(open_)
    resolver = Resolver(settings.dns_servers, allow_private=settings.allow_private_targets)
    async with main.background(connections.sweep()):
        yield SmtpTransport(connections, resolver, smtp_port=settings.smtp_port)
    await connections.close()
