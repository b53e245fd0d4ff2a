"""Deliver by `POST /mxdeliv`, one request for all recipients of a delivery.

An answer of a mail server, good or bad, is final for HTTPS. Where none speaks mxdeliv, a route for HTTPS alone has the
next target tried; with `auto` SMTP has its turn at this target first. Nothing is raised for a refusal.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import aiohttp
import httpx

from shared.delivery.https import FAULTS, WHOLE, Clients, first_bytes, open_clients
from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts, for_https
from shared.mail.address import to_ascii_domain
from shared.mail.envelope import Delivery
from shared.mail.mxdeliv import interpret
from shared.mail.outcome import Outcome, Unsuited
from shared.mail.reply import Reply
from shared.mail.route import Target
from shared.runtime.settings import Settings

_CUT_OFF = (aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError)


class HttpsTransport:
    """Speaks mxdeliv; one client for each TLS mode, since verification belongs to the connection."""

    def __init__(self, clients: Clients, *, https_port: int) -> None:
        """Use clients by TLS mode; `https_port` where a route names none."""
        self._clients = clients
        self._https_port = https_port

    async def deliver(self, delivery: Delivery, message: bytes) -> Mapping[str, Outcome]:
        """Try the targets whose turn it is, in order, until one speaks mxdeliv."""
        outcome: Outcome = Unsuited(Reply(code=450, enhanced="4.4.4", text="the route has no target for HTTPS"))
        for text in delivery.aims:
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
                except FAULTS as error:
                    # A server may close a kept connection just as it is used again; that says nothing of mxdeliv.
                    if not isinstance(error.__cause__, _CUT_OFF):
                        raise
                return await self._once(client, url, target, delivery, message)
        except FAULTS as error:
            return Unsuited(Reply(code=450, enhanced="4.4.1", text=f"{url}: {type(error).__name__}: {error}"[:500]))

    async def _once(
        self, client: httpx.AsyncClient, url: str, target: Target, delivery: Delivery, message: bytes
    ) -> Outcome:
        async with client.stream("POST", url, headers=_headers(delivery), content=message) as response:
            body = await first_bytes(response)
        return interpret(
            status=response.status_code,
            content_type=response.headers.get("content-type", ""),
            body=body,
            host=target.host,
        )


@contextlib.asynccontextmanager
async def open_transport(settings: Settings) -> AsyncIterator[HttpsTransport]:
    """Open the clients on the running loop, and close them at the end."""
    resolver = Resolver(settings.dns_servers)
    async with open_clients(Contexts(settings.ca_file), resolver, limit=settings.concurrency) as clients:
        yield HttpsTransport(clients, https_port=settings.https_port)


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
