"""Mail of every kind that flows through a fleet, at most so many messages under way at once, and what became of each.

Bounded by a count and not by a rate: however slow the machine is, no queue grows, and every consumer has room.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.broker import topology
from shared.broker.publisher import Publisher
from tests.peers.answers import FILTERMAIL_GREYLISTED, FILTERMAIL_REFUSED, MADMAIL_OK, Answer
from tests.peers.behaviour import Behaviour
from tests.peers.inbox import Inbox, Received

WINDOW = 48  # messages under way at once
SMALL, LARGE = 1_000, 300_000  # bytes; the larger ones are over the inline limit, and travel as a reference
LOOK = 0.01  # seconds between two looks what has arrived

Kind = Literal["plain", "later", "never"]

LATER, NEVER = "later", "never"
REPORTS = "senders.example"  # where the senders are, and the reports go
# By rules: to HTTPS, to SMTP, and to a host that is tried by HTTPS first and has none.
BY_HTTPS, BY_SMTP, FALLS_BACK = "https.example", "smtp.example", "falls-back.example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One message of the load.

    Attributes:
        number: of the message.
        kind: `later` is refused once, and `never` always, so that a report goes to the sender.
        domain: of the recipient; it says which way the message goes.
        size: of the body.
    """

    number: int
    kind: Kind
    domain: str
    size: int

    @property
    def recipient(self) -> str:
        """To whom."""
        return f"{self.kind}-{self.number}@{self.domain}"

    @property
    def sender(self) -> str:
        """From whom; nobody else sends from there, so a report tells whose it is."""
        return f"from-{self.number}@{REPORTS}"

    @property
    def arrives(self) -> str:
        """Who gets something for it in the end: the recipient, or the sender a report."""
        return self.sender if self.kind == NEVER else self.recipient

    @property
    def body(self) -> bytes:
        """The message."""
        line = b"x" * 78 + b"\r\n"
        head = f"From: {self.sender}\r\nTo: {self.recipient}\r\nSubject: {self.number}\r\n\r\n"
        return head.encode() + line * (self.size // len(line))


def mail(number: int) -> Mail:
    """Return the message of that number: half of all go by HTTPS and half by SMTP, whatever else is special of them."""
    half, pair = number % 2, number // 2
    kind: Kind = LATER if pair % 25 == 3 else NEVER if pair % 50 == 7 else "plain"  # type: ignore[assignment]
    domain = (BY_HTTPS, FALLS_BACK if pair % 40 == 11 else BY_SMTP)[half]
    return Mail(number=number, kind=kind, domain=domain, size=LARGE if pair % 60 == 17 else SMALL)


class _Refusing(Mapping[str, str]):
    """What an SMTP peer refuses: `never` always, and `later` the first time."""

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def get(self, recipient: str, default: object = None) -> str | None:  # type: ignore[override]
        """Return the reply for a recipient, None when it is taken."""
        del default
        return _refusal(recipient, self._asked)

    def __getitem__(self, recipient: str) -> str:
        raise KeyError(recipient)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _refusal(recipient: str, asked: set[str]) -> str | None:
    if recipient.startswith(NEVER):
        return "550 5.1.1 no such user"
    if recipient.startswith(LATER) and recipient not in asked:
        asked.add(recipient)
        return "451 4.2.1 try again later"
    return None


def smtp_behaviour() -> Behaviour:
    """Return how the SMTP peer of the load behaves."""
    return Behaviour(refuse=_Refusing())


class HttpsAnswers:
    """How the mxdeliv peer of the load answers."""

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def __call__(self, message: Received) -> Answer:
        """Return the answer to a message."""
        refusal = _refusal(message.rcpt_to[0], self._asked)
        if refusal is None:
            return MADMAIL_OK
        return FILTERMAIL_REFUSED if refusal.startswith("5") else FILTERMAIL_GREYLISTED


class Load:
    """Hands messages in, and the next one when one has arrived."""

    def __init__(self, publisher: Publisher, peers: Sequence[Inbox]) -> None:
        """Publish with a publisher to a fleet that delivers to these peers."""
        self._publisher = publisher
        self._peers = peers
        self._seen = [0] * len(peers)
        self._numbers = itertools.count()
        self._under_way = 0
        self._coming: set[str] = set()  # who frees a place when it arrives
        self._stopped = False
        self.sent: list[Mail] = []
        self.arrived: Counter[str] = Counter()

    async def some(self, count: int) -> None:
        """Hand in so many messages; return when what is not refused at first has arrived."""
        until = len(self.sent) + count
        while len(self.sent) < until or self._coming:
            self._look()
            while len(self._coming) < WINDOW and len(self.sent) < until:
                await self._hand_in()
            await asyncio.sleep(LOOK)

    async def run(self, stop: asyncio.Event) -> None:
        """Hand messages in until the event is set."""
        while not stop.is_set():
            await self.some(WINDOW)

    async def all_arrived(self, *, within: float) -> None:
        """Return when something has arrived for every message.

        Raises:
            AssertionError: That took longer; it names what is missing.
        """
        missing: list[str] = []
        try:
            async with asyncio.timeout(within):
                while missing := self.missing():
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{len(missing)} of {len(self.sent)} are missing: {missing[:20]}") from None

    def missing(self) -> list[str]:
        """Return who has got nothing though they must."""
        self._look()
        return [each.arrives for each in self.sent if each.arrives not in self.arrived]

    def doubled(self) -> dict[str, int]:
        """Return who has got something more than once."""
        return {recipient: count for recipient, count in self.arrived.items() if count > 1}

    def unwanted(self) -> list[str]:
        """Return who has got something though they must not, such as a report of what was delivered."""
        return sorted(self.arrived.keys() - {each.arrives for each in self.sent})

    async def hand_in(self, count: int) -> None:
        """Hand in so many messages, and wait for nothing but the broker's word."""
        for _ in range(count):
            await self._hand_in()

    def missing_plain(self) -> list[str]:
        """Return who has got nothing though no host refuses it."""
        self._look()
        return [each.recipient for each in self.sent if each.kind == "plain" and each.recipient not in self.arrived]

    async def _hand_in(self) -> None:
        each = mail(next(self._numbers))
        if each.kind == "plain":
            self._coming.add(each.arrives)
        self.sent.append(each)
        headers = {"mail_from": each.sender, "rcpt_to": [each.recipient]}
        await self._publisher.raw(topology.OUTBOUND, each.body, content_type="message/rfc822", headers=headers)

    def _look(self) -> None:
        for place, peer in enumerate(self._peers):
            for message in peer.received[self._seen[place] :]:
                self.arrived.update(message.rcpt_to)
                self._coming.difference_update(message.rcpt_to)
            self._seen[place] = len(peer.received)
