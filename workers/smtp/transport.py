"""Deliver one message over SMTP to the hosts of one destination.

Connection faults try the next host; a refusal stops at once; the last host's fault defers, or with `auto` leaves it to
the next target of the route. Without a rule the hosts are the domain's own, and its MTA-STS policy is kept (RFC 8461).
Nothing is raised for a refusal.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
import structlog

from shared.delivery.gate import Gate, Turn
from shared.delivery.memory import Memory
from shared.delivery.mta_sts import Policies, Store
from shared.delivery.resolver import Resolver
from shared.delivery.smtp import TIMEOUTS, ConnectionFault, LoopFault, Session, Timeouts, open_session
from shared.delivery.tls import Contexts
from shared.mail.envelope import Delivery
from shared.mail.mta_sts import Demand, Policy, demand, listed
from shared.mail.outcome import Busy, Deferred, Delivered, Failed, Outcome, Unsuited, classify
from shared.mail.reply import Reply
from shared.mail.route import Target, Tls
from shared.runtime import main
from shared.runtime.settings import Settings
from workers.smtp.connections import Connections, Hop

log = structlog.get_logger()

MAX_HOPS = 10  # addresses of one next hop tried in one attempt
# Seconds after which no further address is tried where a next target waits. A host that takes connections and says
# nothing, at several addresses, would use up the attempt (`shared.delivery.actor`), and no other target had a turn.
PATIENCE = 300.0

# Seconds for all addresses of one next hop together to get ready for a message: a host that takes connections and says
# nothing must leave time for those after it.
READY = 600.0
_PARTS = 5  # the least that each has is one of so many parts: two minutes, in which most slow hosts greet

# RFC 8461 5.1: it may be a mistake that the domain mends, or an attack that ends; the mail waits for both.
_NONE_LISTED = Deferred(
    Reply(code=451, enhanced="4.7.5", text="the domain's MTA-STS policy lists none of its mail hosts")
)

Way = tuple[str, int, Tls | None]  # a host, its port, and what TLS has to be


class SmtpTransport:
    """Speaks SMTP on kept connections."""

    def __init__(
        self,
        connections: Connections,
        resolver: Resolver,
        policies: Policies,
        gate: Gate,
        memory: Memory,
        *,
        smtp_port: int,
        https_port: int,
        ready: float = READY,
    ) -> None:
        """Use kept connections; the ports are those of routes that name none."""
        self._ready = ready
        self._connections = connections
        self._resolver = resolver
        self._policies = policies
        self._gate = gate
        self._memory = memory
        self._smtp_port = smtp_port
        self._https_port = https_port

    async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """Try the next hops of the route in order until one answers: a rule's targets, or the domain's mail hosts."""
        recipients = delivery.envelope.rcpt_to
        faults: list[Deferred | Failed] = []
        targets: list[Target | None] = [Target.parse(text) for text in delivery.aims]
        for target in targets or [None]:
            answer = await self._at(target, delivery, message)
            if isinstance(answer, Mapping):
                self._learn(delivery, answer)
                return answer
            if isinstance(answer, Busy):
                # Behind a target that was tried, it counts as an attempt: that one would be tried each time again.
                return dict.fromkeys(recipients, Deferred(answer.reply) if faults else answer)
            faults.append(answer)
        fault = _mildest(faults)
        # No host has answered for the message or may have taken it: the next target cannot get it a second time.
        return dict.fromkeys(recipients, Unsuited(fault.reply) if delivery.has_next else fault)

    async def _at(
        self, target: Target | None, delivery: Delivery, message: bytes
    ) -> Mapping[str, Outcome] | Busy | Deferred | Failed:
        """Deliver to one next hop, unless it does not answer lately, or there is no room for it."""
        port = self._smtp_port if target is None else target.smtp_port or self._smtp_port
        turn = await self._gate.turn(
            delivery.domain if target is None else str(Target(host=target.host, smtp_port=port))
        )
        if not isinstance(turn, Turn):
            return turn
        with turn:
            if target is None:
                ways = await self._mail_hosts(delivery)
            else:
                ways = [(target.host, port, delivery.route.tls)]
            if not isinstance(ways, list):
                return ways  # DNS has said so; nothing is learned of the hosts
            try:
                answer = await self._hosts(ways, turn, delivery, message)
            except asyncio.CancelledError:
                # The time for an attempt is over (`shared.delivery.actor`): a host that stalls is as good as dead.
                turn.missed(Reply(code=451, enhanced="4.4.2", text="it did not get done within an attempt"))
                raise
            if isinstance(answer, Deferred) and target is not None:
                self._memory.may_have_mxdeliv(target.https_url(self._https_port))
            return answer

    async def _hosts(
        self, ways: Sequence[Way], turn: Turn, delivery: Delivery, message: bytes
    ) -> Mapping[str, Outcome] | Deferred | Failed:
        """Try hosts in order, each at all its addresses; return why none can be talked to."""
        faults: list[Deferred | Failed] = []
        missed: Deferred | None = None
        tried, began = 0, asyncio.get_running_loop().time()
        ruled = bool(delivery.route.targets)
        for host, port, tls in ways:
            addresses = await self._resolver.addresses(host, ruled=ruled)
            if not isinstance(addresses, list):
                faults.append(addresses)
                continue
            ready = self._ready / min(len(ways) * len(addresses), _PARTS)
            for address in addresses[: MAX_HOPS - tried]:
                if delivery.has_next and asyncio.get_running_loop().time() - began > PATIENCE:
                    break
                tried += 1
                hop = Hop(host=host, address=address, port=port, tls=tls, ruled=ruled)
                try:
                    outcomes = await self._send(hop, delivery, message, ready)
                except LoopFault as error:
                    # The hosts after us have a worse preference, and would give it back (RFC 5321 5.1).
                    return _mildest([*faults, Deferred(error.reply)])
                except ConnectionFault as error:
                    # Also a greeting of 554: this host takes no mail at all (RFC 5321 3.1), but another one may.
                    missed = Deferred(error.reply)
                    faults.append(missed)
                    if error.sent:  # another host would perhaps get it a second time
                        turn.missed(error.reply)
                        return dict.fromkeys(delivery.envelope.rcpt_to, missed)
                else:
                    turn.reached()
                    return outcomes
        if missed is not None:  # else DNS has said it all, and nothing is learned of the hosts
            turn.missed(missed.reply)
        return _mildest(faults)

    async def _mail_hosts(self, delivery: Delivery) -> list[Way] | Deferred | Failed:
        """Return the domain's own hosts, best first, as far as its policy lets them be used."""
        hosts = await self._resolver.mail_hosts(delivery.domain)
        if not isinstance(hosts, list):
            return hosts
        policy = await self._policies.of(delivery.domain)
        demands = {host: _demand(policy, host, delivery) for host in hosts}
        tls = delivery.route.tls
        ways: list[Way] = [
            (host, self._smtp_port, "verify" if demands[host] is Demand.VERIFY else tls)
            for host in hosts
            if demands[host] is not Demand.SKIP
        ]
        return ways or _NONE_LISTED

    def _learn(self, delivery: Delivery, outcomes: Mapping[str, Outcome]) -> None:
        if delivery.lacking and any(isinstance(each, Delivered) for each in outcomes.values()):
            self._memory.found_without_mxdeliv(delivery.lacking, str(delivery.reply or ""))

    async def _send(self, hop: Hop, delivery: Delivery, message: bytes, ready: float) -> Mapping[str, Outcome]:
        """Send on a kept connection; one that the host closed while it was idle is replaced once."""
        session = await self._take(hop, ready)
        kept = session.messages > 0
        try:
            return await self._on(session, hop, delivery, message)
        except ConnectionFault as error:
            if not kept or error.sent:
                raise
        return await self._on(await self._take(hop, ready, fresh=True), hop, delivery, message)

    async def _take(self, hop: Hop, ready: float, *, fresh: bool = False) -> Session:
        try:
            async with asyncio.timeout(ready):
                return await self._connections.take(hop, fresh=fresh)
        except TimeoutError as error:
            text = f"{hop.host} ({hop.address}) port {hop.port}: it was not ready within {ready:.0f} s"
            raise ConnectionFault(Reply(code=450, enhanced="4.4.1", text=text)) from error

    async def _on(self, session: Session, hop: Hop, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        try:
            replies = await session.send(delivery.envelope, message)
        finally:
            self._connections.give(hop, session)
        return {each: _outcome(replies[each], reports=session.reports) for each in delivery.envelope.rcpt_to}


def _outcome(reply: Reply, *, reports: bool) -> Outcome:
    outcome = classify(reply)
    return Delivered(reply, reports=True) if reports and isinstance(outcome, Delivered) else outcome


def _demand(policy: Policy | None, host: str, delivery: Delivery) -> Demand:
    """Return what the domain's MTA-STS policy demands of a host, and tell of a host that it does not list."""
    if policy is not None and policy.mode != "none" and not listed(policy, host):
        log.warning("host not listed by MTA-STS", id=delivery.id, domain=delivery.domain, host=host, mode=policy.mode)
    return demand(policy, host)


def _mildest(faults: Sequence[Deferred | Failed]) -> Deferred | Failed:
    """Return the last temporary fault: one host that can never take mail says nothing of one that is down today."""
    if not faults:
        return Deferred(Reply(code=451, enhanced="4.4.4", text="the destination has no host"))
    return next((each for each in reversed(faults) if isinstance(each, Deferred)), faults[-1])


@contextlib.asynccontextmanager
async def open_transport(
    settings: Settings,
    *,
    gate: Gate | None = None,
    memory: Memory | None = None,
    store: Store | None = None,
    patience: Timeouts = TIMEOUTS,
    policy_port: int = 443,
    ready: float = READY,
) -> AsyncIterator[SmtpTransport]:
    """Open the transport on the running loop; end its connections at the end.

    Without a memory and a store this process has its own of next hops and policies.
    """
    memory = memory or Memory()
    gate = gate or Gate(settings.share, told=memory)
    contexts = Contexts(settings.ca_file)

    async def open_(hop: Hop) -> Session:
        fields = msgspec.structs.asdict(hop)
        return await open_session(**fields, contexts=contexts, hostname=settings.hostname, patience=patience)

    connections = Connections(open_)
    resolver = Resolver(settings.dns_servers, allow_private=settings.allow_private_targets, hostname=settings.hostname)
    policies = Policies(resolver, contexts, store, https_port=policy_port)
    async with main.background(connections.sweep()), policies:
        yield SmtpTransport(
            connections,
            resolver,
            policies,
            gate,
            memory,
            smtp_port=settings.smtp_port,
            https_port=settings.https_port,
            ready=ready,
        )
    await connections.close()
