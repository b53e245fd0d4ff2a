"""An SMTP server that follows a script, for every fault a well-behaved library cannot show.

Addresses, order of commands and sizes are not checked: what the client sends is recorded as it is.
"""

import asyncio
import ssl
from typing import Self

from tests.peers.behaviour import WELL_BEHAVED, Behaviour
from tests.peers.dialogue import Dialogue
from tests.peers.inbox import Inbox

LONGEST_LINE = 2**27  # a whole message may be one line


class ScriptedSmtpPeer(Inbox):
    """An SMTP server whose connections each follow a `Behaviour`.

    The first connection follows the first behaviour, the second the second, and all others the last one; so "fails
    once, then recovers" is `ScriptedSmtpPeer(Behaviour(hang_up_at="MAIL"), Behaviour())`. `behave` changes it later.
    """

    def __init__(
        self,
        *behaviours: Behaviour,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str = "mx.peer.example",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__()
        self.host = host
        self.port = port
        self.name = name
        self.tls = tls
        self.behave(*behaviours)
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], Dialogue] = {}

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    def behave(self, *behaviours: Behaviour) -> None:
        """Let the connections from now on follow these behaviours; open ones keep theirs."""
        self._script = list(behaviours) or [WELL_BEHAVED]

    def mend(self, behaviour: Behaviour = WELL_BEHAVED) -> None:
        """Let every connection follow this behaviour from its next command on, also those that are open."""
        self.behave(behaviour)
        for dialogue in self._open.values():
            dialogue.behaviour = behaviour

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, self.host, self.port, limit=LONGEST_LINE)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        behaviour = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        dialogue = self._open[task] = Dialogue(self, behaviour, reader, writer, number=self.connections + 1)
        self.connected()
        try:
            await dialogue.run()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError, RuntimeError):
            pass  # the client is gone, for which uvloop has a RuntimeError, or the peer is closing
        finally:
            del self._open[task]
            await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(0.2):
            await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.CancelledError):
        writer.transport.abort()
