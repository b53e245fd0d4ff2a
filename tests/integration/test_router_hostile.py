"""What a producer, a loop or a person with psql can do to a router, and what becomes of the mail."""

import asyncio

import aiormq
import msgspec
import pytest
from pamqp.commands import Basic

from shared.broker import topology
from shared.broker.tolerant import UNREADABLE
from shared.mail.route import Route
from shared.mail.rule import make_rule
from shared.runtime.settings import Settings
from shared.store.deferred import Deferred
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.selection import Selection
from tests.integration.conftest import MESSAGE, Queues, until
from tests.integration.rooms import running

pytestmark = [pytest.mark.anyio, pytest.mark.services]


class NotUtf8(str):
    """A text that goes over the wire as bytes that are none."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Return bytes that no text has."""
        del encoding, errors
        return b"\xff\xfe"


async def test_unreadable_properties_do_not_take_good_mail_with_them(settings: Settings, queues: Queues) -> None:
    """A message_id that is not UTF-8 ends in mail.undecodable, whole; the connection and all other mail go on."""
    connection = await aiormq.connect(settings.amqp_url)
    channel = await connection.channel()
    poison = Basic.Properties(message_id=NotUtf8("x"), headers={"mail_from": "", "rcpt_to": ["b@a.example"]})
    await channel.basic_publish(MESSAGE, routing_key=topology.OUTBOUND, properties=poison)
    await queues.send("b@a.example")
    async with running(settings):
        kept = await queues.take(topology.UNDECODABLE)
        assert (MESSAGE, True) == (kept.body, b"a.example" in bytes(kept.headers[UNREADABLE]))  # type: ignore[arg-type]
        assert "mail_from is missing, not a string" == kept.headers["reason"]
        assert ("b@a.example",) == (await queues.delivery(topology.SMTP))[0].envelope.rcpt_to
    await connection.close()


async def test_header_values_that_are_not_text_are_kept(settings: Settings, queues: Queues) -> None:
    """What is set aside keeps every header, also bytes that no text has, and its content type."""
    await queues.put(topology.OUTBOUND, MESSAGE, headers={"mail_from": NotUtf8("x"), "rcpt_to": [NotUtf8("y")]})
    async with running(settings):
        kept = await queues.take(topology.UNDECODABLE)
    assert (MESSAGE, b"\xff\xfe") == (kept.body, bytes(kept.headers["mail_from"]))  # type: ignore[arg-type]


async def test_mail_under_a_malformed_rule_waits_until_it_is_mended(
    settings: Settings, queues: Queues, pool: Pool
) -> None:
    """A rule written with psql may name no host at all: its mail neither goes elsewhere nor is set aside."""
    async with pool.transaction() as connection:
        await connection.execute("INSERT INTO dns_overrides (lookup_key, target_host) VALUES ('a.example', 'b.com/x')")
    await Overrides(pool).release()
    await queues.send("b@a.example")
    async with running(settings):
        await until(lambda: _waits(pool), wanted="the delivery in the store")
        waiting = (await Deferred(pool).matching(Selection(domain="a.example")))[0]
        assert waiting.reply.startswith("451 4.3.5 the rule for a.example is malformed")
        stored = await Deferred(pool).message(waiting.id)
        assert stored is not None
        assert (Route(version=1), MESSAGE) == (stored[0].route, stored[1])


async def _waits(pool: Pool) -> bool:
    return bool(await Deferred(pool).matching(Selection(domain="a.example")))


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"Received: from x\r\n" * 50 + MESSAGE, "5.4.6"), (MESSAGE + b"x" * 20_000, "5.3.4")],
    ids=["goes round", "too large"],
)
async def test_what_is_not_delivered_at_all_is_reported(
    settings: Settings, queues: Queues, body: bytes, status: str
) -> None:
    """A loop ends after 50 hops, and size has a limit; the sender is told, the mail does not just vanish."""
    limited = settings.model_copy(update={"max_message_size": 20_000})
    await queues.send("b@a.example", body=body)
    async with running(limited):
        report, message = await queues.delivery(topology.SMTP)
    assert ("", ("a@from.example",)) == (report.envelope.mail_from, report.envelope.rcpt_to)
    assert f"Status: {status}".encode() in message


async def test_a_report_that_goes_round_ends_silently(settings: Settings, queues: Queues) -> None:
    """A report is never reported on (RFC 3461 6.1), or two fleets could send reports for ever."""
    await queues.send("b@a.example", body=b"Received: from x\r\n" * 50 + MESSAGE, mail_from="")
    await queues.send("last@a.example")
    async with running(settings):
        assert ("last@a.example",) == (await queues.delivery(topology.SMTP))[0].envelope.rcpt_to
        await asyncio.sleep(0.2)
        assert [0, 0] == [await queues.depth(name) for name in (topology.SMTP, topology.OUTBOUND)]


async def test_a_queue_that_refuses_does_not_double_what_another_took(
    settings: Settings, queues: Queues, pool: Pool
) -> None:
    """One message, two destinations, and one queue is not there: the other gets its delivery once, not at each try."""
    await Overrides(pool).set(make_rule("h.example", "relay.example"), actor="test", release=True)
    async with running(settings):
        await queues.channel.queue_delete(topology.HTTPS)
        await queues.send("one@h.example", "two@s.example")
        await until(lambda: _depth_is(queues, topology.SMTP, 1))
        await asyncio.sleep(2.5)
        assert 1 == await queues.depth(topology.SMTP)
        await topology.declare(queues.channel)
        assert ("one@h.example",) == (await queues.delivery(topology.HTTPS))[0].envelope.rcpt_to
        assert 1 == await queues.depth(topology.SMTP)


async def _depth_is(queues: Queues, name: str, depth: int) -> bool:
    return depth == await queues.depth(name)


async def test_headers_that_leave_no_room_for_the_reason_are_kept_apart(settings: Settings, queues: Queues) -> None:
    """With the reason they would exceed a frame, and the broker would end the connection, for good mail too."""
    long = {"mail_from": "a@from.example", **{f"x{number}": "y" * 1_000 for number in range(120)}}
    await queues.put(topology.OUTBOUND, MESSAGE, headers=long)
    await queues.send("b@a.example")
    async with running(settings):
        apart, kept = await queues.take(topology.UNDECODABLE), await queues.take(topology.UNDECODABLE)
        assert ("b@a.example",) == (await queues.delivery(topology.SMTP))[0].envelope.rcpt_to
    assert long == msgspec.json.decode(apart.body)
    assert (MESSAGE, "rcpt_to is missing, not a list of strings") == (kept.body, kept.headers["reason"])
