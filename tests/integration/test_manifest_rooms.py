"""What the Kubernetes manifests say of the rooms: settings, grace, probes, rollouts, resources, rights, scaling."""

import re
import tomllib
from pathlib import Path

import pytest

from shared.broker import consumer, topology
from shared.delivery import actor, large
from tests.integration.manifests import (
    FLEETS,
    IMAGE,
    MOUNT,
    ROOMS,
    ROOT,
    SECRET,
    Object,
    containers,
    of_kind,
    pods,
    rendered,
    selects,
    settings,
)
from workers.panel import server
from workers.scheduler.__main__ import DRAIN as SCHEDULER


@pytest.mark.parametrize("name", FLEETS)
class TestRooms:
    """What the Deployments say of the rooms."""

    def test_every_room_has_one(self, name: str) -> None:
        """And it runs that room."""
        found = of_kind(rendered(name), "Deployment")
        assert ROOMS == set(found)
        for room, each in found.items():
            [container] = each["spec"]["template"]["spec"]["containers"]
            assert (room, ["python", "-m", f"workers.{room}"]) == (container["name"], container["command"])

    def test_settings_are_settings(self, name: str, tmp_path: Path) -> None:
        """Every container can read its own, with the secret in files; nothing of it stands in the manifests."""
        objects = rendered(name)
        for pod in pods(objects).values():
            for each in containers(pod):
                read = settings(each, objects, tmp_path / "secret")
                assert SECRET["amqp_url"] == read.amqp_url
                assert SECRET["database_url"] == read.database_url
                mounts = {mount["name"]: mount["mountPath"] for mount in each["volumeMounts"]}
                assert MOUNT == mounts["secrets"]
                assert [] == [source for source in each["envFrom"] if "secretRef" in source]
                assert [] == [
                    variable
                    for variable in each.get("env", ())
                    if "secretKeyRef" in variable.get("valueFrom", {})
                    or re.search(r"://|TOKEN$|KEY$|PASSWORD", variable["name"] + variable.get("value", ""))
                ]
        panel = of_kind(objects, "Deployment")["panel"]["spec"]["template"]["spec"]["containers"][0]
        assert SECRET["admin_token"] == settings(panel, objects, tmp_path / "secret").admin_token

    def test_secrets_are_not_in_production(self, name: str) -> None:
        """Only the overlay for one's own machine has one, with all keys."""
        found = of_kind(rendered(name), "Secret")
        assert ({"pushpush": set(SECRET)} if name == "overlays/dev" else {}) == {
            name: set(each["data"]) for name, each in found.items()
        }

    def test_the_grace_is_longer_than_what_is_in_hand(self, name: str, tmp_path: Path) -> None:
        """The longest attempt, then the drain, then the grace; half a minute more to settle and sign out."""
        objects = rendered(name)
        specs = {room: each["spec"]["template"]["spec"] for room, each in of_kind(objects, "Deployment").items()}
        grace = {room: each["terminationGracePeriodSeconds"] for room, each in specs.items()}
        for room in ("https", "smtp"):
            drain = settings(specs[room]["containers"][0], objects, tmp_path / "secret").drain.total_seconds()
            assert actor.ATTEMPT < drain < grace[room] - 30
        for room, seconds in {"router": consumer.DRAIN, "journal": consumer.DRAIN, "scheduler": SCHEDULER}.items():
            assert seconds + 30 < grace[room]
        hook = specs["panel"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert hook + server.DRAIN < grace["panel"]
        assert {"panel"} == {room for room, each in specs.items() if "lifecycle" in each["containers"][0]}

    def test_probes(self, name: str, tmp_path: Path) -> None:
        """Alive is /healthz, ready is /readyz, on the port where the room serves them."""
        objects = rendered(name)
        for room, each in of_kind(objects, "Deployment").items():
            container = each["spec"]["template"]["spec"]["containers"][0]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
            assert {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"} == {
                kind: probe["path"] for kind, probe in probes.items()
            }
            assert {"metrics"} == {probe["port"] for probe in probes.values()}
            read = settings(container, objects, tmp_path / "secret")
            assert ("0.0.0.0", ports["metrics"]) == (read.metrics_host, read.metrics_port)
            if room == "panel":
                assert ("0.0.0.0", ports["http"]) == (read.panel_host, read.panel_port)

    def test_rollouts_and_disruptions(self, name: str) -> None:
        """A new pod works before an old one ends; machines can be emptied; pods are spread, and wait for the tables."""
        objects = rendered(name)
        budgets = of_kind(objects, "PodDisruptionBudget")
        for room, each in of_kind(objects, "Deployment").items():
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert {"maxSurge": "25%", "maxUnavailable": 0} == each["spec"]["strategy"]["rollingUpdate"]
            assert [room] == [one for one, it in budgets.items() if selects(it["spec"]["selector"], labels)]
            assert 1 == budgets[room]["spec"]["maxUnavailable"]
            assert "AlwaysAllow" == budgets[room]["spec"]["unhealthyPodEvictionPolicy"]
            spec = each["spec"]["template"]["spec"]
            spread = {it["topologyKey"]: it for it in spec["topologySpreadConstraints"]}
            assert {"topology.kubernetes.io/zone", "kubernetes.io/hostname"} == set(spread)
            assert all(selects(it["labelSelector"], labels) for it in spread.values())
            assert [["pushpush", "migrate", "--check", "--wait", "10m"]] == [
                it["command"] for it in spec["initContainers"]
            ]

    def test_selectors(self, name: str) -> None:
        """A Deployment has its own pods and no other's; the Service leads to the panel."""
        objects = rendered(name)
        labels = {each: pod["metadata"]["labels"] for each, pod in pods(objects).items()}
        for room, each in of_kind(objects, "Deployment").items():
            assert [f"Deployment {room}"] == [
                pod for pod, its in labels.items() if selects(each["spec"]["selector"], its)
            ]
        [service] = of_kind(objects, "Service").values()
        assert ["Deployment panel"] == [
            pod for pod, its in labels.items() if selects({"matchLabels": service["spec"]["selector"]}, its)
        ]
        panel = pods(objects)["Deployment panel"]["spec"]["containers"][0]
        ports = {each["name"] for each in panel["ports"]}
        assert {"http"} == {each["targetPort"] for each in service["spec"]["ports"]} & ports

    def test_resources(self, name: str, tmp_path: Path) -> None:
        """Asked for; memory is bounded, CPU is not. A delivery worker has room for the large bodies that it takes."""
        objects = rendered(name)
        for pod in pods(objects).values():
            for each in containers(pod):
                assert {"cpu", "memory"} == set(each["resources"]["requests"])
                assert {"memory"} == set(each["resources"]["limits"])
        for room in ("https", "smtp"):
            container = pods(objects)[f"Deployment {room}"]["spec"]["containers"][0]
            read = settings(container, objects, tmp_path / "secret")
            inline = (large.COPIES + 1) * read.concurrency * read.inline_body_limit
            mebibytes = (large.ROOM + inline) / 2**20 + 80
            assert mebibytes < int(container["resources"]["limits"]["memory"].removesuffix("Mi"))

    def test_images_are_of_this_release(self, name: str) -> None:
        """Never `latest`."""
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        everyone = [each["image"] for pod in pods(rendered(name), everywhere=True).values() for each in containers(pod)]
        assert all(re.fullmatch(r"[a-z/]+:[0-9][0-9.]*", each) for each in everyone)
        assert {f"{IMAGE}:{version}"} == {each for each in everyone if each.startswith(IMAGE)}

    def test_pods_are_restricted(self, name: str) -> None:
        """As the namespace demands; beyond that nothing is written but /tmp, and nobody has a token."""
        objects = rendered(name)
        [namespace] = [
            each for each in objects if each["kind"] == "Namespace" and each["metadata"]["name"] == "pushpush"
        ]
        assert "restricted" == namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        for where, pod in pods(objects, everywhere=True).items():
            assert [] == faults_of(pod), where
        accounts = of_kind(objects, "ServiceAccount")
        assert {False} == {each["automountServiceAccountToken"] for each in accounts.values()}
        for pod in pods(objects).values():
            spec = pod["spec"]
            assert spec["serviceAccountName"] in accounts
            assert 10001 == spec["securityContext"]["runAsUser"]
            assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in containers(pod))
            # PUSHPUSH_... variables of a Service would be read as settings.
            assert (False, True) == (spec["enableServiceLinks"], spec["shareProcessNamespace"])
            assert spec["automountServiceAccountToken"] is False  # it outranks the account's
            # Why a pod does not start stands where people look first.
            assert {"FallbackToLogsOnError"} == {each["terminationMessagePolicy"] for each in containers(pod)}

    def test_autoscalers(self, name: str) -> None:
        """They scale what there is, by queues that there are; manifests and autoscaler do not both say how many."""
        objects = rendered(name)
        deployments = of_kind(objects, "Deployment")
        scaled = of_kind(objects, "ScaledObject") | of_kind(objects, "HorizontalPodAutoscaler")
        assert (set() if name in ("base", "overlays/dev") else {"router", "https", "smtp"}) == set(scaled)
        assert set(scaled) == {each for each, it in deployments.items() if "replicas" not in it["spec"]}
        for each, it in scaled.items():
            assert each == it["spec"]["scaleTargetRef"]["name"]
            least, most = (
                it["spec"].get(f"{end}ReplicaCount") or it["spec"][f"{end}Replicas"] for end in ("min", "max")
            )
            assert 2 <= least < most <= 100
        queues = {
            each: {trigger["metadata"]["queueName"] for trigger in it["spec"]["triggers"]}
            for each, it in of_kind(objects, "ScaledObject").items()
        }
        consumed = {
            "router": {topology.OUTBOUND, topology.REROUTE},
            "https": {topology.HTTPS},
            "smtp": {topology.SMTP},
        }
        assert (consumed if name == "overlays/prod" else {}) == queues
        for it in of_kind(objects, "ScaledObject").values():
            [access] = {trigger["authenticationRef"]["name"] for trigger in it["spec"]["triggers"]}
            [secret] = of_kind(objects, "TriggerAuthentication")[access]["spec"]["secretTargetRef"]
            assert ("host", "pushpush", True) == (secret["parameter"], secret["name"], secret["key"] in SECRET)


def faults_of(pod: Object) -> list[str]:
    """Return what the pod security standard `restricted` does not allow."""
    spec = pod["spec"]
    faults = [each for each in ("hostNetwork", "hostPID", "hostIPC") if spec.get(each)]
    faults += [each["name"] for each in spec["volumes"] if not {"secret", "configMap", "emptyDir"} & set(each)]
    for each in containers(pod):
        ours = spec["securityContext"] | each["securityContext"]
        faults += [f"{each['name']}: host port" for port in each.get("ports", ()) if "hostPort" in port]
        faults += [f"{each['name']}: privileged"] * bool(ours.get("privileged"))
        faults += [f"{each['name']}: escalation"] * (ours.get("allowPrivilegeEscalation") is not False)
        faults += [f"{each['name']}: capabilities"] * (ours.get("capabilities") != {"drop": ["ALL"]})
        faults += [f"{each['name']}: root"] * (ours.get("runAsNonRoot") is not True or ours.get("runAsUser") == 0)
        faults += [f"{each['name']}: seccomp"] * (ours.get("seccompProfile") != {"type": "RuntimeDefault"})
    return faults


def test_what_is_not_restricted_is_found() -> None:
    """A check that takes everything would check nothing."""
    pod = pods(rendered("base"))["Deployment smtp"]
    pod["spec"]["hostNetwork"] = True
    pod["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    pod["spec"]["containers"][0]["securityContext"] = {"runAsUser": 0, "capabilities": {"add": ["NET_RAW"]}}
    assert ["hostNetwork", "host", "smtp: escalation", "smtp: capabilities", "smtp: root"] == faults_of(pod)
