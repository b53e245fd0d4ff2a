"""Several recipients over HTTPS: one answer comes for all of a request, and yet each has an outcome of its own."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import trustme

from shared.delivery.posting import Patience
from shared.mail.outcome import Deferred, Delivered, Failed, Outcome, Unsuited
from tests.integration.test_https_transport import Room, open_room
from tests.peers import answers
from tests.peers.answers import Answer
from tests.peers.inbox import Received
from tests.peers.mxdeliv import MxdelivPeer

pytestmark = pytest.mark.anyio

ALL = ("gone@a.example", "b@a.example", "full@a.example")
GONE = Answer(status=400, body=b"550 5.1.1 no such user")


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """The transport."""
    async with open_room(trustme.CA(), tmp_path, Patience(connect=3, whole=2)) as room:
        yield room


class Mailboxes:
    """Answers for all recipients of a request at once: with the first error there is, and then nobody has the mail.

    Attributes:
        asked: The recipients of each request.
    """

    def __init__(self, **errors: Answer) -> None:
        self.errors = errors
        self.asked: list[str] = []

    def __call__(self, message: Received) -> Answer:
        """Answer."""
        names = [each.partition("@")[0] for each in message.rcpt_to]
        self.asked.append(" ".join(names))
        return next((self.errors[each] for each in names if each in self.errors), answers.FILTERMAIL_OK)


def kinds(outcomes: Mapping[str, Outcome]) -> list[type[Outcome]]:
    """Return the kind of each outcome."""
    return [type(each) for each in outcomes.values()]


async def test_of_three_one_is_delivered_one_deferred_and_one_refused(room: Room) -> None:
    """One that is gone must not bounce the others. It takes a request for all, and one for each."""
    mailboxes = Mailboxes(gone=GONE, full=answers.MADMAIL_QUOTA)
    async with MxdelivPeer(answer=mailboxes) as peer:
        outcomes = await room.outcomes(peer.url, rcpt_to=ALL)
        assert [Failed, Delivered, Deferred] == kinds(outcomes)
        assert ["gone b full", "gone", "b", "full"] == mailboxes.asked
        assert 1 == peer.connections
        assert [("b@a.example",)] == [each.rcpt_to for each in peer.received]


@pytest.mark.parametrize("answer", [answers.MADMAIL_QUOTA, answers.FILTERMAIL_GREYLISTED, GONE])
async def test_a_refusal_of_some_does_not_spread_to_the_next_request(room: Room, answer: Answer) -> None:
    """Those of the second fifty are asked for together."""
    mailboxes = Mailboxes(r7=answer)
    async with MxdelivPeer(answer=mailboxes) as peer:
        outcomes = await room.outcomes(peer.url, rcpt_to=tuple(f"r{each}@a.example" for each in range(60)))
        assert 59 == kinds(outcomes).count(Delivered)
        assert (1 + 50 + 1, 10) == (len(mailboxes.asked), len(mailboxes.asked[-1].split()))


@pytest.mark.parametrize(
    "answer",
    [
        answers.UNAVAILABLE,
        answers.TOO_MANY_REQUESTS,
        answers.EXCHANGER_FAILED,
        answers.FILTERMAIL_TOO_LARGE,
        answers.NGINX_TOO_LARGE,
        answers.WEBSITE,
        Answer(status=400, body=b"421 4.3.2 going down"),
        Answer(status=429, body=b"450 4.7.1 rate limited"),
        Answer(status=400, body=b"450 4.7.1 rate limited", headers={"Retry-After": "3600"}),
    ],
)
async def test_what_holds_for_everybody_is_asked_once(room: Room, answer: Answer) -> None:
    """The host is not well, or has no mxdeliv, or the message is too large."""
    async with MxdelivPeer(answer=answer) as peer:
        assert 1 == len(set((await room.outcomes(peer.url, rcpt_to=ALL)).values()))
        assert 1 == len(peer.commands)


@pytest.mark.parametrize(("fault", "kind"), [(answers.HANGS_UP, Deferred), (answers.UNAVAILABLE, Deferred)])
async def test_who_is_left_is_not_posted_once_the_host_is_of_no_more_use(
    room: Room, fault: Answer, kind: type[Outcome]
) -> None:
    """A host that dies meanwhile would be waited for a hundred times."""
    mailboxes = Mailboxes(gone=GONE, b=fault)
    async with MxdelivPeer(answer=mailboxes) as peer:
        outcomes = await room.outcomes(peer.url, rcpt_to=ALL, transport="https")
        assert [Failed, kind, kind] == kinds(outcomes)
        assert outcomes["b@a.example"] == outcomes["full@a.example"]
        assert "full" not in mailboxes.asked


async def test_one_that_a_host_stumbles_over_does_not_hold_up_the_others(room: Room) -> None:
    """Each attempt begins with another recipient; three put off in a row are enough to know the host."""
    mailboxes = Mailboxes(bad=answers.MADMAIL_ERROR)
    recipients = ("bad@a.example", "b@a.example")
    async with MxdelivPeer(answer=mailboxes) as peer:
        assert [Deferred, Delivered] == kinds(await room.outcomes(peer.url, rcpt_to=recipients))
        mailboxes.errors = dict.fromkeys("pqrstuv", answers.MADMAIL_ERROR)
        mailboxes.asked.clear()
        many = tuple(f"{each}@a.example" for each in "pqrstuvw")
        assert [Deferred] * 8 == kinds(await room.outcomes(peer.url, rcpt_to=many))
        assert ["p q r s t u v w", "p", "q", "r"] == mailboxes.asked
        assert Delivered in kinds(await room.outcomes(peer.url, rcpt_to=many, attempts=7))


async def test_what_some_were_answered_outlives_the_time_for_an_attempt(tmp_path: Path) -> None:
    """The second fifty find no time any more; the first must not get the message again for that."""
    hangs = Answer(body=b"OK", after=30)
    async with (
        open_room(trustme.CA(), tmp_path, Patience(whole=20, attempt=1)) as room,
        MxdelivPeer(answer=Mailboxes(r55=hangs)) as peer,
    ):
        many = tuple(f"r{each}@a.example" for each in range(60))
        async with asyncio.timeout(10):
            outcomes = await room.outcomes(peer.url, rcpt_to=many, transport="https")
        assert [Delivered] * 50 + [Deferred] * 10 == kinds(outcomes)


async def test_a_slow_host_does_not_hold_the_turn_for_everybody(tmp_path: Path) -> None:
    """Once the time of one request is over, who is left comes another time."""
    mailboxes = Mailboxes(gone=Answer(status=400, body=GONE.body, after=0.6))
    async with open_room(trustme.CA(), tmp_path, Patience(whole=1)) as room, MxdelivPeer(answer=mailboxes) as peer:
        outcomes = await room.outcomes(peer.url, rcpt_to=ALL)
        assert [Failed, Deferred, Deferred] == kinds(outcomes)
        assert ["gone b full", "gone"] == mailboxes.asked


async def test_the_next_target_is_for_whom_the_first_left(room: Room) -> None:
    """A server that cannot read an address answers an error for it alone; the others have their mail already."""
    mailboxes = Mailboxes(jürgen=answers.MADMAIL_BAD_REQUEST)
    recipients = ("b@a.example", "jürgen@a.example")
    async with MxdelivPeer(answer=mailboxes) as peer, MxdelivPeer() as other:
        assert [Delivered, Unsuited] == kinds(await room.outcomes(peer.url, rcpt_to=recipients))
        outcomes = await room.outcomes(peer.url, other.url, rcpt_to=recipients, transport="https")
        assert [Delivered, Delivered] == kinds(outcomes)
        assert [recipients[1:]] == [each.rcpt_to for each in other.received]
