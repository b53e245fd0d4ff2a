"""HTTP clients for mxdeliv: names resolved by our resolver, TLS by mode, nothing kept from one message to the next.

Only this module and the https room know httpx and aiohttp.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from socket import AddressFamily
from typing import Any

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport
from multidict import CIMultiDict

from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts
from shared.mail.domain import as_address
from shared.mail.mxdeliv import MAX_ANSWER
from shared.mail.route import Tls

CONNECT = 15.0  # seconds to reach a host; then SMTP is tried
WHOLE = 60.0  # seconds for the whole request: what senders of the neighbouring projects allow
IDLE = 30.0  # seconds a connection is kept for the next message

FAULTS = (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, TimeoutError, ValueError)

Clients = Mapping[Tls, httpx.AsyncClient]


@contextlib.asynccontextmanager
async def open_clients(contexts: Contexts, resolver: Resolver, *, limit: int) -> AsyncIterator[Clients]:
    """Open a client for each TLS mode, since verification belongs to the connection; close them at the end.

    Args:
        contexts: TLS contexts.
        resolver: Names to addresses.
        limit: The most connections of a client.
    """
    async with contextlib.AsyncExitStack() as stack:
        clients: dict[Tls, httpx.AsyncClient] = {}
        for tls, context in (("verify", contexts.verify), ("encrypt", contexts.encrypt)):
            connector = aiohttp.TCPConnector(
                ssl=context, resolver=_Names(resolver), limit=limit, keepalive_timeout=IDLE, use_dns_cache=False
            )
            # No cookies: a client would carry them from one message to the next.
            session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
            client = httpx.AsyncClient(
                transport=_Transport(client=session, verify=context, trust_env=False),
                trust_env=False,
                follow_redirects=False,
                timeout=httpx.Timeout(WHOLE, connect=CONNECT),
            )
            clients[tls] = await stack.enter_async_context(client)  # type: ignore[index] # the two modes above
        # `none` demands nothing of a certificate; over https that is the same as encrypting only.
        clients["none"] = clients["encrypt"]
        yield clients


async def first_bytes(response: Any) -> bytes:
    """Return the beginning of the answer; a longer one is not read to its end."""
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= MAX_ANSWER:
            break
    return body[:MAX_ANSWER]


class _Transport(AiohttpTransport):
    """httpx-aiohttp's transport, with repeated header fields kept apart (it would join X-Mail-To with commas)."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = request.headers
        request.headers = CIMultiDict(headers.multi_items())  # type: ignore[assignment] # only handed on
        try:
            return await super().handle_async_request(request)
        finally:
            request.headers = headers


class _Names(AbstractResolver):
    """Lets aiohttp resolve by our resolver, so that the address looked up is the very one connected to."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_UNSPEC
    ) -> list[ResolveResult]:
        del family  # every address is a way to the host
        found = await self._resolver.addresses(host, ruled=True)
        if not isinstance(found, list):
            raise OSError(found.reply.text)
        return [_result(host, port, address) for address in found]

    async def close(self) -> None:
        """Nothing is open."""


def _result(host: str, port: int, address: str) -> ResolveResult:
    parsed = as_address(address)
    v6 = parsed is not None and parsed.version == 6  # noqa: PLR2004 - the protocol's name
    family = AddressFamily.AF_INET6 if v6 else AddressFamily.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
