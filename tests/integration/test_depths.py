"""The depths of queues, as operators see them."""

import asyncio

import pytest

from deploy.local.services import RabbitMQ
from shared.broker import topology
from shared.broker.depths import COUNTED, Depths
from shared.broker.link import Link
from shared.runtime.errors import BrokerUnavailable
from tests.integration.conftest import MESSAGE, Queues, Wire, through

pytestmark = [pytest.mark.anyio, pytest.mark.services]


async def test_ready_messages_by_queue(link: Link, queues: Queues) -> None:
    """Every queue of the fleet, those of events too."""
    await queues.put(topology.LIMBO, MESSAGE)
    found = await Depths(link).all()
    assert dict.fromkeys(COUNTED, 0) | {topology.LIMBO: 1} == found


async def test_a_queue_that_is_not_there_hides_no_other(link: Link, queues: Queues) -> None:
    """Whoever deleted one sees which is missing, again and again, and the link stays as it is."""
    publishing, depths = link.publishing, Depths(link)
    await queues.channel.queue_delete(topology.LIMBO)
    for _ in range(3):
        assert set(COUNTED) - {topology.LIMBO} == set(await depths.all())
    assert link.publishing is publishing


async def test_one_channel_however_often_it_is_asked(rabbitmq: RabbitMQ, broker_wire: Wire) -> None:
    """Also of a broker that does not answer for a while: channels are few, and the connection ends without any."""
    async with Link(through(rabbitmq.url, broker_wire), name="test") as link:
        await link.wait_up()
        assert link.publishing is not None
        before = len(link.publishing.connection.channels)
        depths = Depths(link)
        broker_wire.passing.clear()
        asked = await asyncio.gather(*(depths.all() for _ in range(5)), return_exceptions=True)
        assert [BrokerUnavailable] * 5 == [type(each) for each in asked]
        assert before + 1 == len(link.publishing.connection.channels)
        broker_wire.passing.set()
        assert set(COUNTED) == set(await depths.all())
        assert before + 1 == len(link.publishing.connection.channels)


async def test_without_a_broker() -> None:
    """It is said, at once."""
    with pytest.raises(BrokerUnavailable, match="away"):
        await Depths(Link("amqp://unused", name="test")).all()
