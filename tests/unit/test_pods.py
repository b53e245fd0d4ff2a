"""What the one-machine pods take from manifests, and how they end: the tests of scale lean on it."""

import asyncio
import base64
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.local.manifests import Object, deployments
from deploy.local.pods import Pods
from deploy.local.process import ServiceError

HEEDLESS = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def manifest(spec: Mapping[str, Any], **container: object) -> list[Object]:
    """Return a Deployment `room` with a pod of that specification, and what it refers to."""
    pod = {"containers": [{"name": "room", **container}], **spec}
    strategy = {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
    secret = {"data": {"key": base64.b64encode(b"rendered").decode(), "other": base64.b64encode(b"kept").decode()}}
    return [
        {"kind": "Deployment", "metadata": {"name": "room"}, "spec": {"strategy": strategy, "template": {"spec": pod}}},
        {"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"A": "common", "B": "common"}},
        {"kind": "Secret", "metadata": {"name": "secrets"}, **secret},
    ]


def test_a_pod_has_the_variables_of_its_container() -> None:
    """Its own outrank those of the ConfigMap; its name comes from the pod."""
    name = {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    objects = manifest(
        {}, env=[{"name": "B", "value": "own"}, name], envFrom=[{"configMapRef": {"name": "settings"}}], command=["x"]
    )
    [room] = deployments(objects, secrets={}, replicas={"room": 1}).values()
    assert {"A": "common", "B": "own", "NAME": "room-1"} == room.environment("room-1")


def test_a_variable_from_elsewhere_is_refused() -> None:
    """A test that ran without it would show nothing of the cluster."""
    secret = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "secrets", "key": "key"}}}
    [room] = deployments(manifest({}, env=[secret]), secrets={}, replicas={"room": 1}).values()
    with pytest.raises(ServiceError, match="KEY"):
        room.environment("room-1")


def test_secrets_are_files_and_given_ones_outrank_rendered_ones() -> None:
    """The addresses of services are those of this machine."""
    volumes = [{"name": "secrets", "secret": {"secretName": "secrets"}}, {"name": "tmp", "emptyDir": {}}]
    mounts = [{"name": "secrets", "mountPath": "/run/secrets"}, {"name": "tmp", "mountPath": "/tmp"}]
    objects = manifest({"volumes": volumes}, volumeMounts=mounts)
    [room] = deployments(objects, secrets={"key": "given"}, replicas={"room": 1}).values()
    assert {"/run/secrets/key": b"given", "/run/secrets/other": b"kept"} == room.files


@pytest.mark.parametrize(("replicas", "surge", "unavailable"), [(1, 1, 0), (3, 1, 0), (4, 1, 1), (10, 3, 2)])
def test_shares_of_a_deployment_are_rounded_as_kubernetes_rounds(replicas: int, surge: int, unavailable: int) -> None:
    """Pods beyond the number up, missing ones down: of one, none may be missing."""
    [room] = deployments(manifest({}), secrets={}, replicas={"room": replicas}).values()
    assert (surge, unavailable) == (room.surge, room.unavailable)


def test_a_deployment_that_is_not_there_is_named() -> None:
    """Otherwise a misspelt room would be a fleet without it."""
    with pytest.raises(ServiceError, match="rooter"):
        deployments(manifest({}), secrets={}, replicas={"rooter": 1})


async def test_a_pod_that_does_not_end_in_its_grace_period_is_killed(tmp_path: Path) -> None:
    """And it is told apart from one that ended well."""
    objects = manifest({"terminationGracePeriodSeconds": 0.2}, command=[sys.executable], args=["-c", HEEDLESS])
    async with Pods(tmp_path, objects, secrets={}, replicas={"room": 1}) as pods:
        [pod] = pods.of("room")
        while not pods.log(pod).stat().st_size:
            await asyncio.sleep(0.01)
        assert -9 == (await pods.end(pod)).code
