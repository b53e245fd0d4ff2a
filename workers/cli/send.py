"""`pushpush send`: put a message on `mail.outbound`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.broker import topology
from shared.mail import codec
from shared.runtime.chance import new_id
from shared.runtime.clock import now
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
        await publisher.raw(
            topology.OUTBOUND, body, message_id=envelope.id, content_type=codec.CONTENT_TYPE, headers=headers
        )
        data = {"id": envelope.id, "size": len(body), "rcpt_to": envelope.rcpt_to}
        return Result(data=data, text=f"accepted as {envelope.id}, {len(body)} bytes")

    run("send", work, json=json)


def _message(file: str) -> bytes:
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise Refusal(f"cannot read the message: {error}") from error
    # A file with Unix line ends is meant as mail; on the wire a line ends with CRLF (RFC 5321 2.3.8).
    return body if b"\r\n" in body else body.replace(b"\n", b"\r\n")
