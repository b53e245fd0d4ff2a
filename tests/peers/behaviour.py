"""How a scripted SMTP peer misbehaves, as one value that reads like a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

END_OF_DATA: Final = "."
"""The name of the final dot wherever a command is named."""

GREETING: Final = "GREETING"
"""The name of the greeting where a command is named, for `extra`, `raw`, `endless_at` and hanging up."""

EXTENSIONS: Final = ("PIPELINING", "SIZE 67108864", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")

PAUSE: Final = 2.0
"""Seconds for which a peer that reads nothing of a message reads nothing."""

Reads = Literal["all", "slowly", "nothing"]
StartTls = Literal["honest", "hidden", "broken", "silent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    r"""One connection's behaviour; without arguments a well-behaved server.

    Commands are named by their verb in capitals ("EHLO", "MAIL", "RCPT", "DATA", "STARTTLS", ...); the final dot is
    `END_OF_DATA`. Replies are written as on the wire without the last CRLF; several lines are separated by "\n", each
    with its own code ("450-first\n450 second").

    Attributes:
        greeting: First line; "{name}" is the peer's name. A 4yz or 5yz greeting makes every later command but QUIT 503
            (a 421 also closes). Anything else, gibberish too, is sent as it is. None sends nothing.
        greeting_after: Seconds before the greeting.
        extensions: EHLO keywords; STARTTLS is added by `starttls`.
        starttls: "honest" offers STARTTLS if the peer has a TLS context; "hidden" never does; "broken" offers it and
            answers the client's handshake with garbage; "silent" offers it and never answers the handshake.
        replies: Verb to the reply sent in place of the ordinary one. 421 closes the connection.
        refuse: Recipient to the reply for its RCPT.
        delays: Verb to seconds before its reply.
        extra: Verb to lines sent right after its reply, which no command asked for.
        extra_after: Seconds before they are sent; 0 sends them with the reply.
        raw: Verb to the bytes sent in place of its reply, with nothing added.
        endless_at: The reply to this command never ends.
        drip: Seconds between two lines of it.
        data_anyway: DATA gets 354 although no recipient, or no sender, was accepted.
        reads: What of a message: "slowly" is a part of it at a time, "nothing" is all only after `PAUSE`, and no reply.
        hang_up_at: Close before the reply to this command.
        hang_up_after: Close right after the reply to this command.
        stall_at: Never reply to this command, and keep the connection open.
        max_connections: More at once are greeted with 421 and closed.
        max_recipients: More in one transaction get 452 4.5.3 (RFC 5321 4.5.3.1.10).
        max_messages: After that many on one connection, MAIL gets 421.
    """

    greeting: str | bytes | None = "220 {name} ESMTP"
    greeting_after: float = 0
    extensions: tuple[str, ...] = EXTENSIONS
    starttls: StartTls = "honest"
    replies: Mapping[str, str] = field(default_factory=dict)
    refuse: Mapping[str, str] = field(default_factory=dict)
    delays: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    extra_after: float = 0
    raw: Mapping[str, bytes] = field(default_factory=dict)
    endless_at: str | None = None
    drip: float = 0
    data_anyway: bool = False
    reads: Reads = "all"
    hang_up_at: str | None = None
    hang_up_after: str | None = None
    stall_at: str | None = None
    max_connections: int | None = None
    max_recipients: int | None = None
    max_messages: int | None = None


WELL_BEHAVED: Final = Behaviour()
HELO_ONLY: Final = Behaviour(replies={"EHLO": "502 5.5.1 command not implemented"})
CLOSES_IDLE: Final = Behaviour(hang_up_after=END_OF_DATA)
"""Accepts one message and closes, without a word, the connection that a client may have kept for the next one."""
