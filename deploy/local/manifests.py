"""What the Kubernetes manifests say of the rooms, as far as processes of one machine can keep to it."""

import base64
import math
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.local.process import ServiceError

Object = Mapping[str, Any]

_GRACE = 30.0  # seconds, where a manifest says nothing; as Kubernetes has it
_SHARE = "25%"  # of a Deployment, for both bounds of a rolling update; as Kubernetes has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One Deployment: what each of its pods is, and how they are replaced.

    Attributes:
        name: of the Deployment, and of its container.
        command: the program and its arguments.
        variables: the container's own `env`, as the manifest has it.
        common: variables of the ConfigMaps that it takes whole, which those of its own outrank.
        files: path in the container -> content, of each file that is mounted.
        replicas: how many pods.
        grace: seconds that a pod may take to end, before it is killed.
        before_end: a command that runs in the pod before it is told to end; empty for none.
        surge: pods that may be started beyond `replicas` while they are replaced.
        unavailable: pods that may be missing meanwhile.
    """

    name: str
    command: tuple[str, ...]
    variables: Sequence[Object]
    common: Mapping[str, str]
    files: Mapping[str, bytes]
    replicas: int
    grace: float
    before_end: tuple[str, ...]
    surge: int
    unavailable: int

    def environment(self, pod: str) -> dict[str, str]:
        """Return the variables of a pod of that name.

        Raises:
            ServiceError: one comes from somewhere that only a cluster has.
        """
        values = dict(self.common)
        for each in self.variables:
            path = each.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            if "valueFrom" in each and path != "metadata.name":
                raise ServiceError(
                    f"{self.name}: {each['name']} comes from {each['valueFrom']}, which is not known here."
                )
            values[each["name"]] = pod if path else str(each.get("value", ""))
        return values


def rendered(folder: Path) -> list[Object]:
    """Return the objects of a kustomization.

    Raises:
        ServiceError: there is no kubectl, or it refuses; its words are in the text.
    """
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    if kubectl is None:
        raise ServiceError("kubectl is missing: it renders the manifests. It comes with the development packages.")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceError(f"{folder} cannot be rendered:\n{done.stderr.strip()}")
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def deployments(
    objects: Iterable[Object], *, secrets: Mapping[str, str], replicas: Mapping[str, int]
) -> dict[str, Deployment]:
    """Return Deployments of these objects, by name.

    Args:
        objects: as `rendered` returns them.
        secrets: key -> value, of every Secret; they outrank those that are rendered.
        replicas: which, and how many pods of each, whatever the manifest says (as `kubectl scale` does).

    Raises:
        ServiceError: one is missing, or needs what only a cluster has.
    """
    known = list(objects)
    return {
        name: _deployment(_find("Deployment", {"name": name}, known), known, secrets, count)
        for name, count in replicas.items()
    }


def _deployment(it: Object, objects: Sequence[Object], secrets: Mapping[str, str], count: int) -> Deployment:
    name, spec = it["metadata"]["name"], it["spec"]
    pod = spec["template"]["spec"]
    container = next((each for each in pod["containers"] if each["name"] == name), None)
    if container is None:
        raise ServiceError(f"Deployment {name} has no container of that name.")
    strategy = spec.get("strategy", {})
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        raise ServiceError(f"Deployment {name} is not replaced by a rolling update.")
    bounds = strategy.get("rollingUpdate", {})
    return Deployment(
        name=name,
        command=(*container.get("command", ()), *container.get("args", ())),
        variables=container.get("env", ()),
        common=_common(container, objects),
        files=_files(pod, container, objects, secrets),
        replicas=count,
        grace=float(pod.get("terminationGracePeriodSeconds", _GRACE)),
        before_end=_before_end(container),
        surge=_pods(bounds.get("maxSurge", _SHARE), count, math.ceil),
        unavailable=_pods(bounds.get("maxUnavailable", _SHARE), count, math.floor),
    )


def _common(container: Object, objects: Sequence[Object]) -> dict[str, str]:
    values: dict[str, str] = {}
    for each in container.get("envFrom", ()):
        if "configMapRef" not in each:
            raise ServiceError(f"{container['name']} takes variables from {each}, which is not known here.")
        found = _find("ConfigMap", each["configMapRef"], objects).get("data", {})
        values |= {each.get("prefix", "") + key: value for key, value in found.items()}
    return values


def _files(pod: Object, container: Object, objects: Sequence[Object], secrets: Mapping[str, str]) -> dict[str, bytes]:
    volumes = {each["name"]: each for each in pod.get("volumes", ())}
    files: dict[str, bytes] = {}
    for mount in container.get("volumeMounts", ()):
        volume = volumes[mount["name"]]
        for source in volume.get("projected", {}).get("sources", [volume]):
            found = _contents(source, objects, secrets)
            files |= {f"{mount['mountPath']}/{path}": content for path, content in found.items()}
    return files


def _contents(source: Object, objects: Sequence[Object], secrets: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files of a volume, or of one source of it; an empty directory has none."""
    if "secret" in source:
        wanted = source["secret"]
        it = _find("Secret", {"name": wanted.get("secretName") or wanted.get("name"), "optional": True}, objects)
        found = {key: base64.b64decode(value) for key, value in it.get("data", {}).items()}
        found |= {key: value.encode() for key, value in {**it.get("stringData", {}), **secrets}.items()}
    elif "configMap" in source:
        wanted = source["configMap"]
        found = {key: value.encode() for key, value in _find("ConfigMap", wanted, objects).get("data", {}).items()}
    else:
        return {}
    items = wanted.get("items")
    return found if items is None else {each["path"]: found[each["key"]] for each in items if each["key"] in found}


def _find(kind: str, reference: Object, objects: Sequence[Object]) -> Object:
    for each in objects:
        if each["kind"] == kind and each["metadata"]["name"] == reference["name"]:
            return each
    if reference.get("optional"):
        return {}
    raise ServiceError(f"{kind} {reference['name']} is not among the objects.")


def _before_end(container: Object) -> tuple[str, ...]:
    hook = container.get("lifecycle", {}).get("preStop", {})
    if "sleep" in hook:
        return ("sleep", str(hook["sleep"]["seconds"]))
    return tuple(hook.get("exec", {}).get("command", ()))


def _pods(bound: int | str, of: int, rounded: Any) -> int:
    return int(rounded(of * int(bound.removesuffix("%")) / 100)) if isinstance(bound, str) else bound
