"""Each release runs on the tables of the next, beside it: what a rolling update does for some minutes.

The release before a migration is the commit before the one that added it, as the history of this checkout has it.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import psycopg
import pytest
from alembic import command

from deploy.local.fleet import ROOT
from deploy.local.process import free_port
from shared.broker import topology
from shared.broker.link import Link
from shared.broker.publisher import Publisher
from shared.store import migrate
from tests.databases import new_database
from tests.e2e.conftest import World
from tests.e2e.load import Load, smtp_behaviour
from tests.e2e.releases import REVISIONS, Release, before, tree, until
from tests.peers.smtp import ScriptedSmtpPeer

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

ROOMS = ("router", "https", "smtp", "scheduler")
COUNT = 60  # with some of each kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files of older releases are."""
    return tmp_path_factory.mktemp("releases")


@pytest.fixture
def database(world: World) -> Callable[[str], str]:
    """A function that makes a database with the tables of a revision, and returns its URL."""

    def make(revision: str) -> str:
        url = new_database(world.postgres.url, f"upgrade_{revision}")
        command.upgrade(migrate._config(url), revision)
        return url

    return make


class Scene:
    """An old and a new release on one database, and mail that flows through them."""

    def __init__(self, world: World, files: Path, url: str, folder: Path, port: int) -> None:
        self.world = world
        self.url = url
        self._port = port
        # Settings that every release has known.
        env = {
            "PUSHPUSH_AMQP_URL": world.rabbitmq.url,
            "PUSHPUSH_DATABASE_URL": url,
            "PUSHPUSH_HOSTNAME": "mail.pushpush.example",
            "PUSHPUSH_HTTPS_PORT": str(free_port()),
            "PUSHPUSH_RETRY_SCHEDULE": "1s",
        }
        self.old, self.new = (self._release(each, folder / name, env) for each, name in ((files, "old"), (ROOT, "new")))

    @staticmethod
    def _release(files: Path, logs: Path, env: Mapping[str, str]) -> Release:
        logs.mkdir()
        return Release(files, logs, env)

    async def prepare(self) -> None:
        """Make sure that the old modules are the old ones, and set a rule with the old command line."""
        await self.old.check()
        await self.old.run(
            "-m", "workers.cli", "endpoint-cache", "set", "*.example", f"127.0.0.1:{self._port}", "--no-wait"
        )

    def waiting(self) -> int:
        """Return how many deliveries wait in the store."""
        with psycopg.connect(self.url) as connection:
            [(count,)] = connection.execute("SELECT count(*) FROM deferred").fetchall()
        return int(count)

    async def left(self) -> dict[str, int]:
        """Return the queues that are not empty, and how many messages each has."""
        return {name: depth for name, depth in (await self.world.depths()).items() if depth}


@pytest.fixture
async def peer() -> AsyncIterator[ScriptedSmtpPeer]:
    """Whoever all mail goes to; some is refused once."""
    async with ScriptedSmtpPeer(smtp_behaviour()) as peer:
        yield peer


@pytest.fixture
async def load(world: World, peer: ScriptedSmtpPeer) -> AsyncIterator[Load]:
    """Mail of every kind."""
    async with Link(world.rabbitmq.url, name="test") as link:
        await link.wait_up()
        yield Load(Publisher(link), [peer])


@pytest.fixture
def scenes(
    world: World, folder: Path, database: Callable[[str], str], peer: ScriptedSmtpPeer, tmp_path: Path
) -> Callable[[str, str], Scene]:
    """A function that returns the scene of the release before a migration, on the tables of a revision."""
    return lambda revision, schema: Scene(world, tree(before(revision), folder), database(schema), tmp_path, peer.port)


async def _all_once(scene: Scene, load: Load) -> None:
    await load.all_arrived(within=60)
    assert ({}, []) == (load.doubled(), load.unwanted())
    assert ({}, 0) == (await scene.left(), scene.waiting())


@pytest.mark.parametrize("revision", REVISIONS[1:])
async def test_a_release_runs_on_the_next_schema(
    revision: str, scenes: Callable[[str, str], Scene], load: Load
) -> None:
    """Migrations run before the rooms are replaced: the old ones route, deliver, defer, wake and report as before."""
    scene = scenes(revision, revision)
    async with scene.old.rooms(*ROOMS):
        await scene.prepare()
        await load.some(COUNT)
        await load.all_arrived(within=60)
    await _all_once(scene, load)


@pytest.mark.parametrize("revision", REVISIONS[1:])
async def test_each_generation_reads_what_the_other_writes(
    revision: str, scenes: Callable[[str, str], Scene], load: Load
) -> None:
    """On the newest schema: deliveries in queues, bodies and waiting mail of one release are finished by the other."""
    scene = scenes(revision, "head")
    await scene.prepare()
    for one, other in ((scene.old, scene.new), (scene.new, scene.old)):
        await _by_turns(scene, load, one, other)
        await _all_once(scene, load)


async def _by_turns(scene: Scene, load: Load, one: Release, other: Release) -> None:
    """Let one release route, the other deliver and defer, and the first one do the rest."""
    before = len(load.sent)
    async with one.rooms("router"):
        await load.hand_in(COUNT)
        await until(lambda: _left_are(scene, {topology.HTTPS: COUNT}), scene.left)
    kinds = Counter(each.kind for each in load.sent[before:])
    async with other.rooms("https", "smtp"):
        await until(lambda: load.missing_plain() == [] and scene.waiting() == kinds["later"], scene.left)
        await until(lambda: _left_are(scene, {topology.OUTBOUND: kinds["never"]}), scene.left)
    async with one.rooms(*ROOMS):
        await load.all_arrived(within=60)


async def _left_are(scene: Scene, wanted: Mapping[str, int]) -> bool:
    return wanted == await scene.left()
