"""HTTP clients for whoever only asks, such as the probe; messages are posted by `shared.delivery.posting`.

Only shared.delivery knows httpx and aiohttp, and the https room the latter.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from multidict import CIMultiDict

from shared.delivery.posting import Patience, open_sessions
from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts
from shared.mail.mxdeliv import MAX_ANSWER
from shared.mail.route import Tls

FAULTS = (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, TimeoutError, ValueError)

Clients = Mapping[Tls, httpx.AsyncClient]


@contextlib.asynccontextmanager
async def open_clients(contexts: Contexts, resolver: Resolver, *, limit: int) -> AsyncIterator[Clients]:
    """Open an httpx client for each TLS mode; close them at the end. Arguments as for `open_sessions`."""
    patience = Patience()
    async with open_sessions(contexts, resolver, limit=limit, patience=patience) as sessions:
        clients: dict[Tls, httpx.AsyncClient] = {}
        for tls, session in sessions.items():
            context = contexts.verify if tls == "verify" else contexts.encrypt
            clients[tls] = httpx.AsyncClient(
                transport=_Transport(client=session, verify=context, trust_env=False),
                trust_env=False,
                follow_redirects=False,
                timeout=httpx.Timeout(patience.whole, connect=patience.connect),
            )
        yield clients


async def first_bytes(response: Any) -> bytes:
    """Return the beginning of an answer to an httpx client; a longer one is not read to its end."""
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= MAX_ANSWER:
            break
    return body[:MAX_ANSWER]


class _Transport(AiohttpTransport):
    """httpx-aiohttp's transport, with repeated header fields kept apart (it would join them with commas)."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = request.headers
        request.headers = CIMultiDict(headers.multi_items())  # type: ignore[assignment] # only handed on
        try:
            return await super().handle_async_request(request)
        finally:
            request.headers = headers
