"""Find the MTA-STS policy of a domain (RFC 8461): announced by DNS, fetched by HTTPS, kept until it ends.

Whatever fails, a policy in force stays in force, and where there is none, mail goes on without one (RFC 8461 3.3).
The store only makes policies outlive the process: while it is away, the process goes on with what it has.
"""

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from socket import AddressFamily
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import msgspec
import structlog
from prometheus_client import Counter

from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts
from shared.mail.domain import as_address, literal_address
from shared.mail.mta_sts import MAX_POLICY, MEDIA_TYPE, Held, Policy, record_id
from shared.mail.outcome import Deferred
from shared.runtime.clock import Clock, now
from shared.runtime.errors import StoreUnavailable

if TYPE_CHECKING:
    import aiohttp  # 8 MB, imported when the first domain announces a policy

log = structlog.get_logger()

PATIENCE = 15.0  # seconds for a whole fetch; deliveries to the domain wait for it
STORE_PATIENCE = 2.0  # seconds for the store
_SHORTEST, _LONGEST = 60.0, 3_600.0  # seconds until a record is looked up again, whatever its TTL says
_PAUSE = timedelta(minutes=5)  # before a host that gave no policy is asked again (RFC 8461 3.3)
_STORE_PAUSE = timedelta(minutes=1)  # before a store that was away is asked again: each new domain would wait for it
_MOST = 20_000  # domains of which something is known at once; a policy that is forgotten is in the store
_LONG_AGO = datetime.min.replace(tzinfo=UTC)

_RESULTS = Counter("pushpush_mta_sts_total", "MTA-STS policies fetched, by mode, and fetches that failed", ["result"])

T = TypeVar("T")


class Store(Protocol):
    """Where policies outlive the process."""

    async def get(self, domain: str) -> Held | None:
        """Return the policy of a domain, in force or not, or raise StoreUnavailable."""

    async def put(self, domain: str, held: Held) -> None:
        """Keep the policy of a domain unless a later one is there, or raise StoreUnavailable."""


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a domain; its record is looked up at `look_at`, its host not asked before `fetch_at`.

    `synced`: the store was asked, and has what is held.
    """

    held: Held | None = None
    synced: bool = False
    look_at: datetime = _LONG_AGO
    fetch_at: datetime = _LONG_AGO


class Policies:
    """The policies of domains, an asynchronous context manager."""

    def __init__(
        self,
        resolver: Resolver,
        contexts: Contexts,
        store: Store | None = None,
        *,
        clock: Clock = now,
        https_port: int = 443,
        patience: float = PATIENCE,
        store_patience: float = STORE_PATIENCE,
    ) -> None:
        """Describe where policies come from; nothing is opened before the first is fetched.

        Args:
            resolver: DNS; where it leads mail without a rule, it leads this.
            contexts: TLS; policy hosts are verified by name.
            store: None keeps policies in this process only.
            clock: The time.
            https_port: Where policy hosts listen.
            patience: Seconds for a fetch.
            store_patience: Seconds for the store.
        """
        self._resolver = resolver
        self._context = contexts.verify
        self._store = store
        self._now = clock
        self._port = https_port
        self._patience = patience
        self._store_patience = store_patience
        self._store_at = _LONG_AGO
        self._known: dict[str, _Known] = {}
        self._looks: dict[str, asyncio.Task[_Known]] = {}
        self._asked: set[asyncio.Task[Any]] = set()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End what runs; who still waits for a policy is cancelled, since mail must not go without it."""
        left = [*self._looks.values(), *self._asked]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=self._store_patience)
        if self._session is not None:
            await self._session.close()

    async def of(self, domain: str) -> Policy | None:
        """Return the policy in force for a normalised domain, None without one; literals have none. Nothing is raised.

        At the first mail to a domain this takes a DNS lookup, and where there is a policy the time to fetch it.
        """
        if literal_address(domain) is not None:
            return None
        known = self._known.get(domain)
        if known is None or self._now() >= known.look_at:
            known = await self._one_look(domain)
        held = known.held
        return held.policy if held is not None and held.in_force(self._now()) else None

    async def _one_look(self, domain: str) -> _Known:
        """Look with all who want to know at the same time; who gives up waiting takes it from nobody."""
        look = self._looks.get(domain)
        if look is None:
            look = self._looks[domain] = asyncio.create_task(self._look(domain))
            look.add_done_callback(lambda _: self._looks.pop(domain, None))
        await asyncio.wait([look])
        return look.result()

    async def _look(self, domain: str) -> _Known:
        known = self._known.get(domain, _Known())
        texts = await self._resolver.texts(f"_mta-sts.{domain}")
        announced, ttl = (None, 0.0) if isinstance(texts, Deferred) else (record_id(texts.records), texts.ttl)
        if not known.synced or _is_due(known.held, announced, self._now()):
            known = await self._sync(domain, known)
        if _is_due(known.held, announced, self._now()) and self._now() >= known.fetch_at:
            known = await self._renew(domain, known, announced)
        look_at = _look_at(known, ttl, self._now())
        if self._store is not None and not known.synced:
            # The store may have a policy in force, whose announcement somebody withholds.
            look_at = min(look_at, self._now() + timedelta(seconds=_SHORTEST))
        known = msgspec.structs.replace(known, look_at=look_at)
        self._known.pop(domain, None)
        self._known[domain] = known  # at the end
        while len(self._known) > _MOST:
            self._known.pop(next(iter(self._known)))  # the one looked up longest ago
        return known

    async def _renew(self, domain: str, known: _Known, announced: str | None) -> _Known:
        """Fetch the policy, and keep it; when that fails, what was there stays and the host is left alone a while."""
        in_force = known.held is not None and known.held.in_force(self._now())
        try:
            async with asyncio.timeout(self._patience):
                text = await self._get(domain)
            held = Held.of(announced or (known.held.id if known.held else ""), text.decode(), self._now())
        except (OSError, ValueError) as error:
            _RESULTS.labels("failed").inc()
            why = str(error) or type(error).__name__
            log.warning("no MTA-STS policy fetched", domain=domain, error=why[:500], earlier_in_force=in_force)
            return msgspec.structs.replace(known, fetch_at=self._now() + _PAUSE)
        _RESULTS.labels(held.policy.mode).inc()
        log.info("MTA-STS policy fetched", domain=domain, id=held.id, mode=held.policy.mode, mx=held.policy.mx)
        return await self._sync(domain, _Known(held=held))

    async def _sync(self, domain: str, known: _Known) -> _Known:
        """Take over what the store has that is newer, or give it what we have."""
        if self._store is None or self._now() < self._store_at:
            return known
        held = known.held
        try:
            stored = await self._in_time(self._store.get(domain))
            if stored is not None and (held is None or stored.fetched_at > held.fetched_at):
                held = stored
            elif held is not None and held != stored:
                await self._in_time(self._store.put(domain, held))
        except StoreUnavailable as error:
            self._store_at = self._now() + _STORE_PAUSE
            log.warning("store away, MTA-STS policies last as long as this process", error=str(error))
            return known
        return msgspec.structs.replace(known, held=held, synced=True)

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the store, not longer than our patience: to cancel a query takes a frozen server's time as well."""
        task = asyncio.create_task(work)
        self._asked.add(task)
        task.add_done_callback(self._answered)
        await asyncio.wait([task], timeout=self._store_patience)
        if task.done():
            return task.result()
        task.cancel()
        raise StoreUnavailable(f"PostgreSQL did not answer within {self._store_patience:g} s")

    def _answered(self, task: asyncio.Task[Any]) -> None:
        self._asked.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be left who looks at it

    async def _get(self, domain: str) -> bytes:
        """Get the policy file.

        Raises:
            OSError: There is none to be had.
        """
        import aiohttp  # noqa: PLC0415 - most domains have no policy, and it costs memory

        if self._session is None:
            self._session = _open_session(self._resolver, self._context)
        # Redirects are not followed, HTTP caches not used (RFC 8461 3.3).
        url = f"https://mta-sts.{domain}:{self._port}/.well-known/mta-sts.txt"
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                return await _text_of(response)
        except aiohttp.ClientError as error:
            raise OSError(f"{type(error).__name__}: {error}") from error


def _is_due(held: Held | None, announced: str | None, moment: datetime) -> bool:
    """Say whether a policy is to be fetched: a new one, or again one that half its time is over.

    The latter also without an announcement: who can suppress that could otherwise wait for the end (RFC 8461 10.2).
    """
    if held is None or not held.in_force(moment):
        return announced is not None
    return (announced is not None and announced != held.id) or moment >= held.refresh_at


def _look_at(known: _Known, ttl: float, moment: datetime) -> datetime:
    """Return when to look again: as its TTL says, or as soon as there is something to fetch."""
    times = [moment + timedelta(seconds=min(ttl, _LONGEST))]
    if known.held is not None and known.held.in_force(moment):
        times.append(known.held.refresh_at)
    if known.fetch_at > moment:
        times.append(known.fetch_at)
    return max(min(times), moment + timedelta(seconds=_SHORTEST))


async def _text_of(response: "aiohttp.ClientResponse") -> bytes:
    if response.status != 200:  # noqa: PLR2004 - nothing else counts, RFC 8461 3.3
        raise OSError(f"the policy host answered {response.status}")
    if response.content_type != MEDIA_TYPE:
        raise OSError(f"the policy host answered with {response.content_type}")
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_POLICY:
            raise OSError(f"the policy is longer than {MAX_POLICY} bytes")
    return body


def _open_session(resolver: Resolver, context: Any) -> "aiohttp.ClientSession":
    """Open an HTTPS client that goes only where mail without a rule goes."""
    import aiohttp  # noqa: PLC0415 - as above
    from aiohttp.abc import AbstractResolver, ResolveResult  # noqa: PLC0415 - as above

    class Names(AbstractResolver):
        """Lets aiohttp resolve by our resolver: the address that was found to be public is the one connected to."""

        async def resolve(
            self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_INET
        ) -> list[ResolveResult]:
            del family  # every address is a way to the host
            found = await resolver.addresses(host, ruled=False)
            if not isinstance(found, list):
                raise OSError(found.reply.text)
            return [
                ResolveResult(hostname=host, host=each, port=port, family=_family(each), proto=0, flags=0)
                for each in found
            ]

        async def close(self) -> None:
            """Nothing is open."""

    return aiohttp.ClientSession(
        # No limit: hosts that say nothing would use it up, and the others time out waiting for their turn.
        connector=aiohttp.TCPConnector(ssl=context, resolver=Names(), limit=0, force_close=True, use_dns_cache=False),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),  # ours covers all
        auto_decompress=False,  # a small answer must not become a large one
        headers={"Accept-Encoding": "identity", "User-Agent": "pushpush"},
    )


def _family(address: str) -> AddressFamily:
    parsed = as_address(address)
    v6 = parsed is not None and parsed.version == 6  # noqa: PLR2004 - the protocol's name
    return AddressFamily.AF_INET6 if v6 else AddressFamily.AF_INET
