"""`pushpush send`: put a message on `mail.outbound`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.broker import topology
from shared.delivery.large import TRAVELS
from shared.mail import codec
from shared.mail.envelope import Envelope
from shared.runtime import tracing
from shared.runtime.chance import new_id
from shared.runtime.clock import now
from shared.runtime.errors import StoreUnavailable
from shared.store.bodies import Bodies
from workers.cli.frame import Fleet, Json, Refusal, Result, run


def send(
    file: Annotated[str, typer.Argument(help="The message (RFC 5322) as a file; - reads it from standard input.")],
    mail_from: Annotated[str, typer.Option("--from", help='The reverse-path; "" is the null one.')],
    rcpt_to: Annotated[list[str], typer.Option("--to", help="A recipient; once for each.")],
    smtputf8: Annotated[bool, typer.Option("--smtputf8", help="The message needs SMTPUTF8.")] = False,
    json: Json = False,
) -> None:
    """Hand a message to the fleet. Returns when the broker has it on disk."""

    async def work(fleet: Fleet) -> Result:
        body = _message(file)
        headers = {"mail_from": mail_from, "rcpt_to": rcpt_to, "smtputf8": smtputf8}
        envelope = codec.from_ingress(
            body, headers, content_type=codec.CONTENT_TYPE, message_id=None, new_id=new_id(), now=now()
        )
        publisher = await fleet.publisher()
        stored = await _stored(fleet, envelope, body)
        with (
            tracing.running(fleet.settings, "cli"),
            tracing.span("send", {}, kind="PRODUCER", id=envelope.id) as span,
        ):
            await publisher.raw(
                topology.OUTBOUND,
                b"" if stored else body,
                message_id=envelope.id,
                content_type=codec.CONTENT_TYPE,
                headers={**headers, **stored, **span.carrier},
            )
        data = {"id": envelope.id, "size": len(body), "rcpt_to": envelope.rcpt_to}
        return Result(data=data, text=f"accepted as {envelope.id}, {len(body)} bytes")

    run("send", work, json=json)


async def _stored(fleet: Fleet, envelope: Envelope, body: bytes) -> dict[str, str]:
    """Store a large body; return the header that refers to it, or none when the body is to travel along.

    Raises:
        StoreUnavailable: It is too large for a queue.
    """
    if len(body) <= min(fleet.settings.inline_body_limit, TRAVELS):
        return {}
    bodies = Bodies(await fleet.pool())
    try:
        await bodies.put(envelope.id, body, message_id=envelope.id, recipients=envelope.rcpt_to)
    except StoreUnavailable as error:
        if len(body) > TRAVELS:
            raise StoreUnavailable(
                f"{len(body)} bytes are too large for a queue and must be stored: {error}"
            ) from error
        return {}
    return {"body_ref": envelope.id}


def _message(file: str) -> bytes:
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise Refusal(f"cannot read the message: {error}") from error
    # A file with Unix line ends is meant as mail; on the wire a line ends with CRLF (RFC 5321 2.3.8).
    return body if b"\r\n" in body else body.replace(b"\n", b"\r\n")
