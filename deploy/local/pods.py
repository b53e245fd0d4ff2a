"""The pods of the Kubernetes manifests as processes of this machine: started, replaced and ended as a cluster does it.

A pod gets what its Deployment says: command, variables, mounted files, the command before its end, its grace period.
Only this is changed: it listens on 127.0.0.1 and on ports of its own, mounted files lie in a folder, and the caller may
set variables, such as the ports of peers. Probes, resources, network policies and autoscaling are not kept.
"""

import asyncio
import os
import sys
import time
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from deploy.local.fleet import ROOT, is_ready
from deploy.local.manifests import Deployment, Object, deployments
from deploy.local.process import ServiceError, free_port, last_lines
from deploy.local.supervisor import Room, Sink

_LOOK = 0.1  # seconds between two looks whether pods are ready
_IMAGE = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}  # what the image sets (deploy/image)
_LOOPBACK = {"PUSHPUSH_METRICS_HOST": "127.0.0.1", "PUSHPUSH_PANEL_HOST": "127.0.0.1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a pod ended: its exit code, -9 when it was killed, and the seconds since it was told to."""

    pod: str
    code: int
    seconds: float


class Pod:
    """One pod."""

    def __init__(self, name: str, deployment: Deployment, room: Room) -> None:
        self.name = name
        self._deployment = deployment
        self._room = room

    @property
    def pid(self) -> int:
        """The process id. Raises ServiceError when it does not run."""
        return self._room.pid

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 for /metrics, /healthz and /readyz."""
        return int(self._room.env["PUSHPUSH_METRICS_PORT"])

    async def start(self) -> None:
        """Start it; from now on it is started again when it dies."""
        await self._room.start()

    async def ready(self) -> bool:
        """Tell whether it says that it is ready."""
        return await is_ready(self.port)

    async def end(self) -> Ended:
        """Run the command before its end, tell it to end, and kill it when its grace period is over."""
        began, grace = time.monotonic(), self._deployment.grace
        if self._deployment.before_end:
            hook = await asyncio.create_subprocess_exec(*self._deployment.before_end, env=dict(self._room.env))
            try:
                await asyncio.wait_for(hook.wait(), grace)
            except TimeoutError:
                hook.kill()
                await hook.wait()
        await self._room.stop(seconds=max(0.0, grace - (time.monotonic() - began)), hurry=asyncio.Event())
        return Ended(pod=self.name, code=self._room.code, seconds=time.monotonic() - began)


class Pods:
    """All pods of some manifests. Use it as an async context manager: it starts them, and ends them at the end.

    Attributes:
        ended: how each pod that is gone ended, in that order.
        said: what happened to pods that died by themselves; they are started again.

    Args:
        folder: mounted files go to `mounts/` below it, output to `log/NAME.log`; made when missing.
        objects: of the manifests, as `manifests.rendered` returns them.
        secrets: key -> value of the Secrets.
        replicas: how many pods of each Deployment; those that are not named are left out.
        env: variables that outrank those of the manifests.
    """

    def __init__(
        self,
        folder: Path,
        objects: Iterable[Object],
        *,
        secrets: Mapping[str, str],
        replicas: Mapping[str, int],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self._deployments = deployments(objects, secrets=secrets, replicas=replicas)
        self._env = dict(env or {})
        self._pods: dict[str, list[Pod]] = {}
        self._made = 0
        self._files = ExitStack()
        self.ended: list[Ended] = []
        self.said: list[str] = []

    async def __aenter__(self) -> Self:
        self.folder.joinpath("log").mkdir(parents=True, exist_ok=True)
        try:
            for name, each in self._deployments.items():
                pods = self._pods[name] = []
                for _ in range(each.replicas):
                    pods.append(await self._start(each))  # noqa: PERF401 - each is known as soon as it runs
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(self._end(pod) for pod in self.all()))
        self._pods.clear()
        self._files.close()

    def of(self, deployment: str) -> list[Pod]:
        """Return the pods of a Deployment; those that are being replaced are no longer among them."""
        return list(self._pods[deployment])

    def all(self) -> list[Pod]:
        """Return all pods."""
        return [pod for pods in self._pods.values() for pod in pods]

    def log(self, pod: Pod) -> Path:
        """Return the file with the output of a pod."""
        return self.folder / "log" / f"{pod.name}.log"

    async def wait_ready(self, *, seconds: float = 120.0) -> None:
        """Return when every pod is ready.

        Raises:
            ServiceError: some were not in time; they are named, with the last lines of their logs.
        """
        await self._within(seconds, self._ready())

    async def roll(self, *names: str, seconds: float = 300.0) -> None:
        """Replace all pods of these Deployments at the same time, as `kubectl rollout restart` does; of all by default.

        Raises:
            ServiceError: that took longer; pods that are not ready are named, with the last lines of their logs.
        """
        chosen = [self._deployments[name] for name in names or self._deployments]
        await self._within(seconds, _all(self._replace(each) for each in chosen))

    async def end(self, pod: Pod) -> Ended:
        """End one pod, and do not replace it."""
        for pods in self._pods.values():
            if pod in pods:
                pods.remove(pod)
        return await self._end(pod)

    async def _replace(self, each: Deployment) -> None:
        """Start new pods and end old ones, in the bounds that the Deployment sets."""
        old, new = self._pods[each.name], list[Pod]()
        self._pods[each.name] = new
        ending: list[asyncio.Task[Ended]] = []
        try:
            while True:
                while len(new) < each.replicas and len(old) + len(new) < each.replicas + each.surge:
                    new.append(await self._start(each))
                ready = sum(await asyncio.gather(*(pod.ready() for pod in new)))
                spare = max(0, len(old) + ready - (each.replicas - each.unavailable))
                ending += [asyncio.create_task(self._end(pod)) for pod in old[:spare]]
                del old[:spare]
                if not old and ready == each.replicas:
                    break
                await asyncio.sleep(_LOOK)
        finally:
            new += old  # of a replacement that was broken off; whoever ends all ends these too
            await asyncio.gather(*ending)

    async def _start(self, each: Deployment) -> Pod:
        self._made += 1
        name = f"{each.name}-{self._made}"
        pod = Pod(name, each, self._room(name, each))
        await pod.start()
        return pod

    def _room(self, name: str, each: Deployment) -> Room:
        mounts = self.folder / "mounts" / each.name
        given = {key: self._here(value, each, mounts) for key, value in each.environment(name).items()}
        ports = {"PUSHPUSH_METRICS_PORT": str(free_port()), "PUSHPUSH_PANEL_PORT": str(free_port())}
        path = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}"}
        env = {**_IMAGE, **path, **given, **_LOOPBACK, **ports, **self._env}
        return Room(name, list(each.command), env=env, folder=ROOT, sink=self._log(name), say=self.said.append)

    def _here(self, value: str, each: Deployment, mounts: Path) -> str:
        """Return the value of a variable; a mounted file is written, and its path is the one here."""
        content = each.files.get(value)
        if content is None:
            return value
        path = mounts / value.lstrip("/")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return str(path)

    def _log(self, name: str) -> Sink:
        file = self._files.enter_context((self.folder / "log" / f"{name}.log").open("ab", buffering=0))
        return file.write  # type: ignore[return-value] # the number of bytes is of no use here

    async def _end(self, pod: Pod) -> Ended:
        ended = await pod.end()
        self.ended.append(ended)
        return ended

    async def _ready(self) -> None:
        while not all(await asyncio.gather(*(pod.ready() for pod in self.all()))):
            await asyncio.sleep(_LOOK)

    async def _within(self, seconds: float, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(seconds):
                await work
        except TimeoutError:
            late = [pod.name for pod in self.all() if not await pod.ready()]
            logs = last_lines(*(self.folder / "log" / f"{name}.log" for name in late))
            told = "".join(f"{each}\n" for each in self.said)
            raise ServiceError(f"Not within {seconds:.0f} s; not ready: {', '.join(late)}.\n{told}{logs}") from None


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)
