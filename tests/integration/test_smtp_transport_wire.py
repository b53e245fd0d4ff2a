"""Delivery by SMTP: what is on the wire, byte by byte, and under which TLS."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from shared.mail import trace
from shared.mail.outcome import Deferred, Delivered, Failed, Outcome
from shared.mail.route import Route, Tls
from tests.integration.conftest import MESSAGE, delivery
from tests.integration.rooms import SmtpRoom, open_smtp
from tests.peers.smtp import Behaviour, SmtpPeer, ca_file, tls_context

pytestmark = pytest.mark.anyio

WITHOUT_UTF8 = ("SIZE 1000000", "8BITMIME")
# Signed by a stranger: not one byte may change, or the DKIM signature breaks.
AWKWARD = (
    b"DKIM-Signature: v=1; a=rsa-sha256;\r\n\tb=abc=\r\nSubject:  two  spaces \r\n\r\n"
    b".\r\n..\r\n.one\r\n...three\r\n \t \r\n\r\n\r\nno 7 bits: \xff\x00\x80\r\n"
    + b"x" * 900
    + b"\r\n.\r\nQUIT\r\n\r\n"
)


@pytest.fixture
async def room() -> AsyncIterator[SmtpRoom]:
    """The transport, with a DNS server that knows nothing yet."""
    async with open_smtp() as room:
        yield room


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the peers' certificates."""
    return trustme.CA()


@pytest.fixture
async def trusting(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[SmtpRoom]:
    """The transport, trusting that authority."""
    async with open_smtp(ca=ca_file(authority, tmp_path / "ca.pem")) as room:
        yield room


async def deliver(room: SmtpRoom, *rcpt_to: str, message: bytes = MESSAGE, **fields: object) -> list[Outcome]:
    """Deliver and return the outcomes in the order of the recipients."""
    outcomes = await room.transport.deliver(delivery(*rcpt_to, **fields), message)
    return list(outcomes.values())


def via(host: str, tls: Tls | None = None) -> Route:
    """Return the route of a rule."""
    return Route(version=1, key="a.example", targets=(host,), tls=tls)


class TestBytes:
    """The message arrives as it is."""

    @pytest.mark.parametrize("kind", ["scripted", "aiosmtpd"])
    async def test_dots_are_stuffed_once_and_nothing_else_is_touched(self, room: SmtpRoom, kind: str) -> None:
        """Below our Received field the message is byte for byte what came in; on a kept connection too."""
        stamped = trace.received(delivery(), "mail.pushpush.example") + AWKWARD
        peer = room.peer("10 mx1.example.")
        if kind == "aiosmtpd":
            peer = SmtpPeer(host=peer.host, port=peer.port)  # type: ignore[assignment] # the other kind of peer
        async with peer:
            for _ in range(2):
                assert [Delivered] == [type(each) for each in await deliver(room, message=stamped)]
            assert [stamped, stamped] == [each.body for each in peer.received]

    async def test_a_megabyte_without_line_ends_and_a_missing_last_one(self, room: SmtpRoom) -> None:
        """Only the CRLF that SMTP cannot do without is added at the end."""
        async with room.peer("10 mx1.example.") as peer:
            await deliver(room, message=MESSAGE + b"y" * 2**20)
            assert MESSAGE + b"y" * 2**20 + b"\r\n" == peer.received[0].body

    async def test_bare_line_ends_do_not_pass(self, room: SmtpRoom) -> None:
        """RFC 5321 2.3.8: no bare LF on the wire; a smuggled end of data stays data."""
        async with room.peer("10 mx1.example.") as peer:
            await deliver(room, message=b"Subject: x\n\n1\n.\nMAIL FROM:<evil@from.example>\r.\r2\n")
            assert [b"Subject: x\r\n\r\n1\r\n.\r\nMAIL FROM:<evil@from.example> . 2\r\n"] == [
                each.body for each in peer.received
            ]
            assert 1 == sum(line.startswith("MAIL") for line in peer.commands)

    async def test_size_and_body_are_announced(self, room: SmtpRoom) -> None:
        """Where the host offers them, so that it can refuse before the message is sent."""
        async with room.peer("10 mx1.example.") as peer:
            await deliver(room, message=AWKWARD, mail_from="")
            assert f"MAIL FROM:<> SIZE={len(AWKWARD)} BODY=8BITMIME" in peer.commands


class TestAddresses:
    """Addresses of any script, and hosts that know only ASCII."""

    async def test_domains_are_sent_as_a_labels(self, room: SmtpRoom) -> None:
        """An internationalised domain needs no SMTPUTF8; an IP address gets its brackets."""
        async with room.peer("10 mx1.example.", Behaviour(extensions=WITHOUT_UTF8)) as peer:
            await deliver(room, "b@bücher.example", "c@192.0.2.1", mail_from="a@Bücher.example")
            assert ("a@xn--bcher-kva.example", ("b@xn--bcher-kva.example", "c@[192.0.2.1]")) == (
                peer.received[0].mail_from,
                peer.received[0].rcpt_to,
            )

    async def test_smtputf8_is_used_where_it_is_offered(self, room: SmtpRoom) -> None:
        """For an address that needs it, and for a message whose sender asked for it."""
        async with room.peer("10 mx1.example.") as peer:
            assert [Delivered] == [type(each) for each in await deliver(room, "jürgen@a.example")]
            await deliver(room, smtputf8=True)
            await deliver(room)
            assert [True, True, False] == [
                line.endswith(" SMTPUTF8") for line in peer.commands if line.startswith("MAIL")
            ]
            assert ("jürgen@a.example",) == peer.received[0].rcpt_to

    async def test_only_who_needs_it_is_refused_where_it_is_not(self, room: SmtpRoom) -> None:
        """5.6.7 for the address that cannot be sent; the others get their mail."""
        async with room.peer("10 mx1.example.", Behaviour(extensions=WITHOUT_UTF8)) as peer:
            outcomes = await deliver(room, "jürgen@a.example", "b@a.example")
            assert [Failed, Delivered] == [type(each) for each in outcomes]
            assert "5.6.7" == outcomes[0].reply.enhanced
            assert [("b@a.example",)] == [each.rcpt_to for each in peer.received]
            outcomes = await deliver(room, "b@a.example", mail_from="jürgen@from.example")
            assert ["5.6.7"] == [each.reply.enhanced for each in outcomes]


class TestTls:
    """Opportunistic without a rule; as demanded with one."""

    async def test_an_offer_is_taken_whoever_signed(self, room: SmtpRoom, authority: trustme.CA) -> None:
        """Encrypted by an unknown authority, for another name, is better than clear."""
        async with room.peer("10 mx1.example.", tls=tls_context(authority, ["other.example"])) as peer:
            await deliver(room)
            assert [True] == [each.tls for each in peer.received]

    @pytest.mark.parametrize(
        "behaviour",
        [
            Behaviour(starttls="hidden"),
            Behaviour(starttls="broken"),
            Behaviour(replies={"STARTTLS": "454 4.7.0 not now"}),
            Behaviour(replies={"STARTTLS": "502 5.5.1 what?"}),
        ],
    )
    async def test_a_broken_offer_falls_back_to_clear(
        self, room: SmtpRoom, authority: trustme.CA, behaviour: Behaviour
    ) -> None:
        """A host whose STARTTLS does not work gets its mail all the same (RFC 7435)."""
        async with room.peer("10 mx1.example.", behaviour, tls=tls_context(authority)) as peer:
            assert [Delivered] == [type(each) for each in await deliver(room)]
            assert [False] == [each.tls for each in peer.received]

    @pytest.mark.parametrize(
        ("tls", "names", "signed", "taken"),
        [
            ("verify", ["mx1.example"], True, True),
            ("verify", ["other.example"], True, False),
            ("verify", ["mx1.example"], False, False),
            ("encrypt", ["other.example"], False, True),
            ("none", ["mx1.example"], True, True),
        ],
    )
    async def test_a_rule_demands(  # noqa: PLR0917 - the columns of the table
        self, trusting: SmtpRoom, authority: trustme.CA, tls: Tls, names: list[str], signed: bool, taken: bool
    ) -> None:
        """`verify`: by the next hop's name and a known authority; `encrypt`: by any; `none`: no STARTTLS at all."""
        context = tls_context(authority if signed else trustme.CA(), names)
        async with trusting.peer("10 mx1.example.", tls=context) as peer:
            [outcome] = await deliver(trusting, route=via("mx1.example", tls))
            assert (Delivered if taken else Deferred) is type(outcome)
            assert [tls != "none"] * taken == [each.tls for each in peer.received]
            if not taken:
                assert "4.7.5" == outcome.reply.enhanced

    @pytest.mark.parametrize("tls", ["verify", "encrypt"])
    async def test_a_demand_is_never_given_up(self, trusting: SmtpRoom, tls: Tls) -> None:
        """A host without STARTTLS, or with a broken one, gets nothing in clear; it is temporary."""
        for behaviour in (Behaviour(starttls="hidden"), Behaviour(starttls="broken")):
            async with trusting.peer("10 mx1.example.", behaviour) as peer:
                [outcome] = await deliver(trusting, route=via(peer.host, tls))
                assert (Deferred, "4.7.5", []) == (type(outcome), outcome.reply.enhanced, peer.received)

    async def test_an_expired_certificate_is_none(self, trusting: SmtpRoom, authority: trustme.CA) -> None:
        """`verify` minds the date; an address is verified by the address in the certificate."""
        ended = tls_context(authority, ["mx1.example"], not_after=datetime(2001, 1, 1, tzinfo=UTC))
        async with trusting.peer("10 mx1.example.", tls=ended):
            assert [Deferred] == [type(each) for each in await deliver(trusting, route=via("mx1.example", "verify"))]
        peer = trusting.peer("20 mx2.example.")
        peer.tls = tls_context(authority, [peer.host])
        async with peer:
            assert [Delivered] == [type(each) for each in await deliver(trusting, route=via(peer.host, "verify"))]

    async def test_two_demands_share_no_connection(self, trusting: SmtpRoom, authority: trustme.CA) -> None:
        """A connection kept in clear is not used for a rule that demands TLS."""
        async with trusting.peer("10 mx1.example.", tls=tls_context(authority, ["mx1.example"])) as peer:
            for tls in ("none", "verify", "none"):
                await deliver(trusting, route=via("mx1.example", tls))
            assert [(1, False), (2, True), (1, False)] == [(each.connection, each.tls) for each in peer.received]
