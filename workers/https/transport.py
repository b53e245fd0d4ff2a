"""Deliver by `POST /mxdeliv`, one request for all recipients of a delivery.

Targets are tried in order while none of them speaks mxdeliv; an answer of a mail server, good or bad, is final for
HTTPS. Nothing is raised for a refusal. Only this module knows httpx and aiohttp.
"""

import asyncio
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
from shared.delivery.tls import Contexts, for_https
from shared.mail.address import to_ascii_domain
from shared.mail.domain import as_address
from shared.mail.envelope import Delivery
from shared.mail.mxdeliv import MAX_ANSWER, interpret
from shared.mail.outcome import Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.route import Target, Tls
from shared.runtime.settings import Settings

CONNECT = 15.0  # seconds to reach a host; then SMTP is tried
WHOLE = 60.0  # seconds for the whole request: what senders of the neighbouring projects allow
IDLE = 30.0  # seconds a connection is kept for the next message

_FAULTS = (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, TimeoutError, ValueError)

_CUT_OFF = (aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError)


class HttpsTransport:
    """Speaks mxdeliv; one client for each TLS mode, since verification belongs to the connection."""

    def __init__(self, clients: Mapping[Tls, httpx.AsyncClient], *, https_port: int) -> None:
        """Use clients by TLS mode; `https_port` where a route names none."""
        self._clients = clients
        self._https_port = https_port

    async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """Try the route's targets in order until one speaks mxdeliv."""
        outcome: Outcome = Unsuited(Reply(code=450, enhanced="4.4.4", text="the route has no target for HTTPS"))
        for text in delivery.route.targets:
            outcome = await self._post(Target.parse(text), delivery, message)
            if not isinstance(outcome, Unsuited):
                break
        return dict.fromkeys(delivery.envelope.rcpt_to, outcome)

    async def _post(self, target: Target, delivery: Delivery, message: bytes) -> Outcome:
        client = self._clients[for_https(delivery.route.tls, target.host)]
        url = target.https_url(self._https_port)
        try:
            async with asyncio.timeout(WHOLE):
                try:
                    return await self._once(client, url, target, delivery, message)
                except _FAULTS as error:
                    # A server may close a kept connection just as it is used again; that says nothing of mxdeliv.
                    if not isinstance(error.__cause__, _CUT_OFF):
                        raise
                return await self._once(client, url, target, delivery, message)
        except _FAULTS as error:
            return Unsuited(Reply(code=450, enhanced="4.4.1", text=f"{url}: {type(error).__name__}: {error}"[:500]))

    async def _once(
        self, client: httpx.AsyncClient, url: str, target: Target, delivery: Delivery, message: bytes
    ) -> Outcome:
        async with client.stream("POST", url, headers=_headers(delivery), content=message) as response:
            body = await _first_bytes(response)
        return interpret(
            status=response.status_code,
            content_type=response.headers.get("content-type", ""),
            body=body,
            host=target.host,
        )


@contextlib.asynccontextmanager
async def open_transport(settings: Settings) -> AsyncIterator[HttpsTransport]:
    """Open the clients on the running loop, and close them at the end."""
    contexts = Contexts(settings.ca_file)
    resolver = Resolver(settings.dns_servers)
    async with contextlib.AsyncExitStack() as stack:
        clients: dict[Tls, httpx.AsyncClient] = {}
        for tls, context in (("verify", contexts.verify), ("encrypt", contexts.encrypt)):
            connector = aiohttp.TCPConnector(
                ssl=context,
                resolver=_Names(resolver),
                limit=settings.concurrency,
                keepalive_timeout=IDLE,
                use_dns_cache=False,
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
        yield HttpsTransport(clients, https_port=settings.https_port)


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


def _headers(delivery: Delivery) -> list[tuple[bytes, bytes]]:
    """Return the envelope as header fields; addresses are bare, and not ASCII as UTF-8."""
    envelope = delivery.envelope
    fields: list[tuple[bytes, bytes]] = [
        (b"Content-Type", b"application/octet-stream"),
        (b"Accept-Encoding", b"identity"),  # a reply that a proxy compressed could not be read: `450 later` in a 200
    ]
    if envelope.mail_from:
        fields.append((b"X-Mail-From", to_ascii_domain(envelope.mail_from).encode()))
    fields += [(b"X-Mail-To", to_ascii_domain(each).encode()) for each in envelope.rcpt_to]
    return fields


async def _first_bytes(response: Any) -> bytes:
    """Return the beginning of the answer; a longer one is not read to its end."""
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= MAX_ANSWER:
            break
    return body[:MAX_ANSWER]
