"""What the demo plays on: a fleet of its own, peers on loopback, and the real command line."""

import asyncio
import contextlib
import json
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import trustme

from deploy.local.fleet import Fleet, environment
from deploy.local.services import open_services
from shared.broker import topology
from tests.peers.dns import DnsPeer
from tests.peers.mxdeliv import MxdelivPeer, free_port
from tests.peers.smtp import SmtpPeer

REFUSED = "nobody@refused.example"
SENDER = "you@sender.example"


class Differs(Exception):  # noqa: N818 - what was seen differs from what must be
    """Something is not as it must be; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Peers and fleet, all on 127.0.0.1.

    Attributes:
        https: A partner that speaks mxdeliv.
        smtp: A partner that speaks only SMTP, and refuses one recipient.
        home: The sender's own server, where reports must arrive.
        env: The environment of the command line.
        channel: A channel to the fleet's broker.
    """

    https: MxdelivPeer
    smtp: SmtpPeer
    home: SmtpPeer
    env: dict[str, str]
    channel: aio_pika.abc.AbstractChannel
    commands: list[str] = field(default_factory=list)

    async def pushpush(self, *words: str, text: bytes = b"") -> dict[str, Any]:
        """Run a command as an operator would, and return its `data`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.cli",
            *words,
            "--json",
            env=self.env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(text), 60)
        if process.returncode != 0:
            raise Differs(f"`pushpush {' '.join(words)}` ended with {process.returncode}: {(out + err).decode()}")
        data: dict[str, Any] = json.loads(out)["data"]
        return data

    async def send(self, subject: str, recipient: str, *, sender: str = SENDER) -> bytes:
        """Send a message with the command line; return it as it was sent."""
        text = message(subject, sender, recipient)
        await self.pushpush("send", "-", "--from", sender, "--to", recipient, text=text)
        return text

    async def publish(self, body: bytes, headers: dict[str, Any]) -> None:
        """Put a message on the queue, as a mail server would."""
        await self.channel.default_exchange.publish(
            aio_pika.Message(
                body,
                headers=headers,
                content_type="message/rfc822",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            ),
            topology.OUTBOUND,
        )


def message(subject: str, sender: str, recipient: str) -> bytes:
    """Return a small message with an 8-bit character in it."""
    return (
        f"From: {sender}\r\nTo: {recipient}\r\nSubject: {subject}\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße\r\n.a dot\r\n"
    ).encode()


@contextlib.asynccontextmanager
async def opened(folder: Path, say: Any) -> AsyncIterator[Stage]:
    """Set the stage in an empty folder, and clear it at the end.

    Args:
        folder: Emptied first.
        say: Called with one line for each step, since setting up takes some seconds.
    """
    await asyncio.to_thread(_empty, folder)
    authority = trustme.CA()
    async with contextlib.AsyncExitStack() as stack:
        say("starting a private RabbitMQ and PostgreSQL (about 10 seconds)")
        services = await asyncio.to_thread(stack.enter_context, open_services(folder))
        say("starting three peers: an mxdeliv server over HTTPS, and two SMTP servers")
        https = await stack.enter_async_context(MxdelivPeer(authority=authority))
        smtp = await stack.enter_async_context(
            SmtpPeer(name="mx.partner.example", refuse={REFUSED: "550 5.1.1 no such user here"})
        )
        home = await stack.enter_async_context(SmtpPeer(name="mx.sender.example"))
        dns = await stack.enter_async_context(DnsPeer())
        # down.example has an MX host where nothing listens.
        dns.add("down.example", "MX", "10 mx.down.example.")
        dns.add("mx.down.example", "A", "127.0.0.1")
        env = {
            "PUSHPUSH_CA_FILE": str(https.ca_file(folder / "ca.pem")),
            "PUSHPUSH_DNS_SERVERS": dns.address,
            "PUSHPUSH_SMTP_PORT": str(free_port()),
            "PUSHPUSH_HTTPS_PORT": str(free_port()),
            "PUSHPUSH_ALLOW_PRIVATE_TARGETS": "true",
            "PUSHPUSH_RETRY_SCHEDULE": "1h",
            "PUSHPUSH_HOSTNAME": "mail.pushpush.example",
        }
        say("starting the fleet: two routers, an https worker, an smtp worker, a scheduler, a journal")
        fleet = await stack.enter_async_context(
            Fleet(
                folder,
                amqp_url=services.amqp_url,
                database_url=services.database_url,
                rooms={"router": 2, "https": 1, "smtp": 1, "scheduler": 1, "journal": 1},
                env=env,
            )
        )
        await fleet.wait_ready()
        connection = await stack.enter_async_context(await aio_pika.connect(services.amqp_url))
        yield Stage(
            https=https,
            smtp=smtp,
            home=home,
            env=environment(amqp_url=services.amqp_url, database_url=services.database_url, extra=env),
            channel=await connection.channel(),
        )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
