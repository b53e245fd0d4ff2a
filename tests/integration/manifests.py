"""The Kubernetes manifests, rendered, and what can be asked of them without a cluster."""

import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.local import manifests
from shared.runtime.settings import Settings

ROOT = Path(__file__).parent.parent.parent
K8S = ROOT / "deploy" / "k8s"
IMAGE = "pushpush"
NAMESPACE = "pushpush"
ROOMS = {each.parent.name for each in (ROOT / "workers").glob("*/__main__.py")} - {"cli"}
MOUNT = "/run/secrets/pushpush"
# As whoever installs it makes the Secret.
SECRET = {
    "amqp_url": "amqp://pushpush:word@rabbit.example:5672/",
    "database_url": "postgresql://pushpush:word@db.example/pushpush",
    "admin_token": "a long random one",
    "journal_key": "another long random one",
}
RENDERED = ("base", "overlays/dev", "overlays/prod", "overlays/prod-hpa", "overlays/example-operators")
FLEETS = ("base", "overlays/dev", "overlays/prod", "overlays/prod-hpa")  # those that have the rooms

Object = dict[str, Any]


@cache
def _rendered(name: str) -> str:
    return yaml.safe_dump_all(manifests.rendered(K8S / name))


def rendered(name: str) -> list[Object]:
    """Return the objects of a kustomization of ours, by its path."""
    return list(yaml.safe_load_all(_rendered(name)))


def overlay(folder: Path, text: str) -> list[Object]:
    """Return the objects of a kustomization of somebody else, in a folder; `{k8s}` in it leads to ours."""
    (folder / "kustomization.yaml").write_text(text.replace("{k8s}", os.path.relpath(K8S, folder.resolve())))
    return [dict(each) for each in manifests.rendered(folder)]


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    """Return the fleet's objects of a kind, by name."""
    return {
        each["metadata"]["name"]: each
        for each in objects
        if each["kind"] == kind and each["metadata"].get("namespace") == NAMESPACE
    }


def template(it: Object) -> Object | None:
    """Return the pod template of an object, if it makes pods."""
    spec = it.get("spec", {})
    found: Object | None = spec.get("jobTemplate", {}).get("spec", spec).get("template")
    return found


def pods(objects: list[Object], *, everywhere: bool = False) -> dict[str, Object]:
    """Return the pod templates by kind and name: those of the fleet, or of whoever is in the manifests."""
    return {
        f"{each['kind']} {each['metadata']['name']}": found
        for each in objects
        if each["kind"] in ("Deployment", "StatefulSet", "Job", "CronJob") and (found := template(each)) is not None
        if everywhere or each["metadata"]["namespace"] == NAMESPACE
    }


def containers(pod: Object) -> Iterator[Object]:
    """Yield every container of a pod template."""
    yield from pod["spec"].get("initContainers", ())
    yield from pod["spec"]["containers"]


def environment(container: Object, objects: list[Object], folder: Path) -> dict[str, str]:
    """Return the variables of a container, and write the Secret into a folder in place of the mounted one."""
    folder.mkdir(exist_ok=True)
    for key, value in SECRET.items():
        (folder / key).write_text(value)
    values: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        values |= of_kind(objects, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    for each in container.get("env", ()):
        values[each["name"]] = each.get("value", "a-pod")
    return {name: value.replace(MOUNT, str(folder)) for name, value in values.items()}


def settings(container: Object, objects: list[Object], folder: Path) -> Settings:
    """Return the settings that a container reads."""
    return Settings.read(environment(container, objects, folder))


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Say whether a label selector selects."""
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    for each in selector.get("matchExpressions", ()):
        assert each["operator"] == "In", each
        if labels.get(each["key"]) not in each["values"]:
            return False
    return all(labels.get(key) == value for key, value in wanted.items())
