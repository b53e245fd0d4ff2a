"""A small authoritative DNS server, UDP and TCP on one port, with faults per name.

Names are exact: adding mx.a.example does not make a.example exist. A CNAME is followed among the peer's own names.
"""

import asyncio
import contextlib
from collections import Counter
from enum import StrEnum
from typing import Any, Self, cast

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

PORT_TRIES = 20


class Fault(StrEnum):
    """How the server misbehaves for a name."""

    NXDOMAIN = "nxdomain"
    SERVFAIL = "servfail"
    REFUSED = "refused"
    SILENT = "silent"  # no answer at all: the resolver times out
    TRUNCATED = "truncated"  # TC over UDP, the whole answer over TCP


class DnsPeer:
    """An authoritative server for whatever is added.

    Attributes:
        queries: How often each (name, type) was asked, such as `peer.queries["a.example", "MX"]`.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port
        self.queries: Counter[tuple[str, str]] = Counter()
        self._records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self._faults: dict[tuple[str, str | None], Fault] = {}
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """The server as `PUSHPUSH_DNS_SERVERS` takes it: "127.0.0.1:port"."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def add(self, name: str, kind: str, *values: str, ttl: int = 60) -> None:
        """Add records of one type, each in zone-file form: `add("a.example", "MX", "10 mx.a.example.")`."""
        key = (_key(name), kind.upper())
        _, held = self._records.get(key, (ttl, []))
        self._records[key] = (ttl, [*held, *values])

    def clear(self, name: str | None = None, kind: str | None = None) -> None:
        """Forget records and faults: all, those of a name, or those of a name and type."""
        self._records = {key: held for key, held in self._records.items() if not _matches(key, name, kind)}
        self._faults = {key: fault for key, fault in self._faults.items() if not _matches(key, name, kind)}

    def fault(self, name: str, fault: Fault, kind: str | None = None) -> None:
        """Misbehave for a name, for one type or all, until `clear`."""
        self._faults[_key(name), kind and kind.upper()] = fault

    async def __aenter__(self) -> Self:
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                await self._listen()
            except OSError:  # the port that UDP was given is taken on TCP
                if self.port or not tries_left:
                    raise
            else:
                break
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._udp is not None
        assert self._tcp is not None
        self._udp.close()
        self._tcp.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._tcp.wait_closed()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), local_addr=(self.host, self.port))
        port = udp.get_extra_info("sockname")[1]
        try:
            self._tcp = await asyncio.start_server(self._stream, self.host, port)
        except OSError:
            udp.close()
            raise
        self._udp, self.port = udp, port

    def answer(self, wire: bytes, *, tcp: bool) -> bytes | None:
        """Return the answer to one query, or None when there is to be none."""
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        question = query.question[0]
        name, kind = _key(question.name.to_text()), dns.rdatatype.to_text(question.rdtype)
        self.queries[name, kind] += 1
        fault = self._faults.get((name, kind)) or self._faults.get((name, None))
        if fault is Fault.SILENT:
            return None
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        if fault is Fault.TRUNCATED and not tcp:
            response.flags |= dns.flags.TC
        elif fault in {None, Fault.TRUNCATED}:
            self._fill(response, name, kind)
        else:
            response.set_rcode(dns.rcode.from_text(str(fault)))
        return _wire(response, tcp=tcp)

    def _fill(self, response: dns.message.Message, name: str, kind: str) -> None:
        """Add the records; NXDOMAIN where the name has none of any type."""
        if not any(held == name for held, _ in self._records):
            response.set_rcode(dns.rcode.NXDOMAIN)
            return
        self._append(response, name, kind)
        alias = self._records.get((name, "CNAME"))
        if alias and kind != "CNAME" and len(response.answer) <= len(self._records):
            self._append(response, name, "CNAME")
            self._fill(response, _key(alias[1][0]), kind)

    def _append(self, response: dns.message.Message, name: str, kind: str) -> None:
        ttl, values = self._records.get((name, kind), (0, []))
        if values:
            response.answer.append(dns.rrset.from_text_list(f"{name}.", ttl, dns.rdataclass.IN, kind, values))

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            size = int.from_bytes(await reader.readexactly(2), "big")
            if (answer := self.answer(await reader.readexactly(size), tcp=True)) is not None:
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await writer.drain()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, peer: DnsPeer) -> None:
        self.peer = peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)  # uvloop's transports are no subclasses

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if (answer := self.peer.answer(data, tcp=False)) is not None:
            self.transport.sendto(answer, addr)


def _wire(response: dns.message.Message, *, tcp: bool) -> bytes:
    """Return the bytes; an answer too long for UDP is cut, with TC set (RFC 2181 9)."""
    try:
        return response.to_wire(max_size=65535 if tcp else response.request_payload or 512)
    except dns.exception.TooBig:
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire()


def _key(name: str) -> str:
    return name.lower().rstrip(".")


def _matches(entry: tuple[str, str | None], name: str | None, kind: str | None) -> bool:
    return (name is None or entry[0] == _key(name)) and (kind is None or entry[1] == kind.upper())
