"""What the Deployments describe, on one machine: the load is shared, and a rolling restart loses and doubles none."""

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psycopg
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.fleet import ROOT
from deploy.local.manifests import rendered
from deploy.local.pods import Pod, Pods
from deploy.local.services import PostgreSQL, RabbitMQ
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from tests.e2e.conftest import World, empty
from tests.e2e.load import BY_HTTPS, BY_SMTP, FALLS_BACK, REPORTS, HttpsAnswers, Load, smtp_behaviour
from tests.peers.mxdeliv import MxdelivPeer, free_port
from tests.peers.smtp import ScriptedSmtpPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

OVERLAY = ROOT / "deploy" / "k8s" / "overlays" / "dev"
REPLICAS = {"router": 10, "https": 3, "smtp": 3, "scheduler": 2, "journal": 1}
COUNT = 3_000
SHARE = 0.20


class Fleet:
    """Pods of the manifests, and mail that flows through them."""

    def __init__(self, world: World, pods: Pods, load: Load) -> None:
        self.world = world
        self.pods = pods
        self.load = load

    async def counted(self, deployment: str, metric: str, **labels: str) -> list[float]:
        """Return what each pod of a Deployment has counted, over all samples that have these labels."""
        return await asyncio.gather(*(_counted(pod, metric, labels) for pod in self.pods.of(deployment)))


async def _counted(pod: Pod, metric: str, labels: dict[str, str]) -> float:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        answer = await client.get(f"http://127.0.0.1:{pod.port}/metrics")
    samples = [each for family in text_string_to_metric_families(answer.text) for each in family.samples]
    return sum(each.value for each in samples if each.name == metric and labels.items() <= each.labels.items())


@pytest.fixture(scope="module")
async def fleet(
    rabbitmq: RabbitMQ, postgres: PostgreSQL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    """Ten routers, three of each delivery worker, two schedulers and a journal, as the Deployments have them."""
    folder = tmp_path_factory.mktemp("pods")
    await empty(rabbitmq, postgres)
    world = World(rabbitmq, postgres, folder)
    authority = trustme.CA()
    async with (
        MxdelivPeer(authority=authority, answer=HttpsAnswers()) as https,
        ScriptedSmtpPeer(smtp_behaviour()) as smtp,
        Link(rabbitmq.url, name="test") as link,
    ):
        await world.rule(BY_HTTPS, https.url)
        await world.rule(BY_SMTP, f"127.0.0.1:{smtp.port}", transport="smtp")
        await world.rule(FALLS_BACK, f"127.0.0.1:{smtp.port}")
        await world.rule(REPORTS, f"127.0.0.1:{smtp.port}", transport="smtp")
        await link.wait_up()
        pods = _pods(world, folder, ca_file=https.ca_file(folder / "ca.pem"))
        async with pods:
            await pods.wait_ready()
            yield Fleet(world, pods, Load(Publisher(link), (https, smtp)))
        if any(each.code for each in pods.ended) or pods.said:
            _show(folder)


def _pods(world: World, folder: Path, *, ca_file: Path) -> Pods:
    secrets = {"amqp_url": world.rabbitmq.url, "database_url": world.postgres.url}
    # Where the peers are, and less patience than the world needs.
    env = {"HTTPS_PORT": str(free_port()), "CA_FILE": str(ca_file), "RETRY_SCHEDULE": "1s"}
    given = {f"PUSHPUSH_{name}": value for name, value in env.items()}
    return Pods(folder, rendered(OVERLAY), secrets=secrets, replicas=REPLICAS, env=given)


def _show(folder: Path) -> None:
    for log in sorted((folder / "log").glob("*.log")):
        sys.stdout.write(f"--- {log.name}\n{log.read_text()[-1500:]}\n")


def _even(counts: list[float]) -> None:
    mean = sum(counts) / len(counts)
    sys.stdout.write(f"{counts}: {min(counts) / mean:.3f} to {max(counts) / mean:.3f} of the mean\n")
    assert mean > 0
    assert [] == [each for each in counts if abs(each - mean) > SHARE * mean]


async def test_every_pod_has_its_share_of_the_load(fleet: Fleet) -> None:
    """No pod of a Deployment does more than a fifth more, or less, than the mean: more pods are more work done."""
    await fleet.load.some(COUNT)
    _even(await fleet.counted("router", "pushpush_routed_total"))
    for transport in ("https", "smtp"):
        _even(await fleet.counted(transport, "pushpush_outcomes_total", transport=transport))


async def test_a_rolling_restart_of_everything_loses_and_doubles_nothing(fleet: Fleet) -> None:
    """All Deployments at once, as `kubectl rollout restart` does, while mail flows: each message arrives once."""
    stop, load, pods = asyncio.Event(), fleet.load, fleet.pods
    old = {pod.name for pod in pods.all()}
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(stop))
        await pods.roll()
        stop.set()
    await load.all_arrived(within=120)
    assert ({}, []) == (load.doubled(), load.unwanted())
    sys.stdout.write(f"{len(load.sent)} messages, pods ended within {max(each.seconds for each in pods.ended):.1f} s\n")
    ended = {each.pod: each.code for each in pods.ended}
    assert dict.fromkeys(old, 0) == ended, "an old pod failed, or took longer than its grace period"
    assert [] == pods.said, "a pod died by itself"
    await _nothing_left(fleet.world)
    await _told_once(fleet)


async def _nothing_left(world: World) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while any((await world.depths()).values()) or world.waiting():
                await asyncio.sleep(0.2)
    depths = await world.depths()
    assert (dict.fromkeys(depths, 0), 0) == (depths, world.waiting())


async def _told_once(fleet: Fleet) -> None:
    """The journal has every delivery once, those of reports too, though all who tell of them were replaced."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while _told(fleet.world).total() < fleet.load.arrived.total():
                await asyncio.sleep(0.2)
    assert fleet.load.arrived == _told(fleet.world)


def _told(world: World) -> Counter[str]:
    with psycopg.connect(world.postgres.url) as connection:
        rows = connection.execute("SELECT recipient, count(*) FROM events WHERE kind = 'delivered' GROUP BY recipient")
        return Counter(dict(rows.fetchall()))
