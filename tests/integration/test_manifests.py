"""The Kubernetes manifests: every kustomization renders, and Kubernetes takes every object."""

import itertools
import json
from functools import cache
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from kubernetes_validate.utils import all_versions, major_minor  # type: ignore[import-untyped]

from tests.integration.manifests import (
    RENDERED,
    ROOMS,
    ROOT,
    Object,
    containers,
    of_kind,
    overlay,
    pods,
    rendered,
    settings,
)

NEWEST = list(dict.fromkeys(major_minor(each) for each in all_versions()))[-3:]
COMPONENTS = ("production", "keda", "hpa", "monitoring")
# Kinds of operators, which the schemas of Kubernetes do not have: not checked against one.
UNCHECKED = {
    "keda.sh": {"ScaledObject", "TriggerAuthentication"},
    "monitoring.coreos.com": {"PodMonitor", "PrometheusRule"},
    "rabbitmq.com": {"RabbitmqCluster"},
    "postgresql.cnpg.io": {"Cluster"},
}


def refused(objects: list[Object], version: str) -> list[str]:
    """Return what a version of Kubernetes would not take, in words."""
    return [fault for each in objects if (fault := _fault(json.dumps(each), version))]


@cache
def _fault(text: str, version: str) -> str:
    """Return what is wrong with an object; most are in several kustomizations, and looked at once."""
    it = json.loads(text)
    name = f"{it['kind']} {it['metadata']['name']}"
    try:
        kubernetes_validate.validate(it, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{name}: {'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        known = UNCHECKED.get(it["apiVersion"].partition("/")[0], ())
        return "" if it["kind"] in known else f"{name}: there is no {it['apiVersion']}"
    return ""


class TestKubernetes:
    """Rendered, and taken."""

    @pytest.mark.parametrize("version", NEWEST)
    @pytest.mark.parametrize("name", RENDERED)
    def test_takes_every_object(self, name: str, version: str) -> None:
        """Of the base and each overlay, for the three newest versions of which there are schemas."""
        objects = rendered(name)
        assert objects
        assert [] == refused(objects, version)

    @pytest.mark.parametrize(
        "chosen",
        [
            each
            for count in range(len(COMPONENTS) + 1)
            for each in itertools.combinations(COMPONENTS, count)
            if not {"keda", "hpa"} <= set(each)
        ],
        ids="+".join,
    )
    def test_components_fit_together(self, chosen: tuple[str, ...], tmp_path: Path) -> None:
        """On the base, whichever are chosen; only not both autoscalers."""
        text = yaml.safe_dump(
            {"resources": ["{k8s}/base"], "components": [f"{{k8s}}/components/{each}" for each in chosen]}
        )
        objects = overlay(tmp_path, text)
        assert [] == refused(objects, NEWEST[-1])
        assert ROOMS == set(of_kind(objects, "Deployment"))

    def test_a_mistake_is_found(self) -> None:
        """A field that does not exist, and a kind that nobody has."""
        deployment = of_kind(rendered("base"), "Deployment")["router"]
        deployment["spec"]["template"]["spec"]["containers"][0]["liveness"] = {}
        unknown = {"apiVersion": "keda.sh/v1", "kind": "Scaled", "metadata": {"name": "x"}}
        assert 2 == len(refused([deployment, unknown], NEWEST[-1]))

    def test_an_overlay_of_somebody(self, tmp_path: Path) -> None:
        """The one of the README: image and settings are theirs, in every pod."""
        readme = (ROOT / "deploy/k8s/README.md").read_text()
        text = readme.partition("```yaml\n")[2].partition("```")[0].replace("../deploy/k8s", "{k8s}")
        objects = overlay(tmp_path, text)
        used = [each for pod in pods(objects).values() for each in containers(pod)]
        assert {"images.example.org/pushpush:0.1.0"} == {each["image"] for each in used}
        read = [settings(each, objects, tmp_path / "secret") for each in used]
        assert {"mail.example.org"} == {each.hostname for each in read}
        assert {("10.0.0.0/8",)} == {each.panel_proxies for each in read}

    def test_rules_every_five_minutes(self, tmp_path: Path) -> None:
        """The patch of the README."""
        readme = (ROOT / "deploy/k8s/README.md").read_text()
        patches = "patches:" + readme.rpartition("```yaml\npatches:")[2].partition("```")[0]
        jobs = of_kind(overlay(tmp_path, "resources:\n  - {k8s}/overlays/prod\n" + patches), "CronJob")
        assert {"edit-rule": True, "reload": True, "sync-rules": False} == {
            name: each["spec"]["suspend"] for name, each in jobs.items()
        }


def test_every_kind_that_is_not_checked_is_used() -> None:
    """None stays on the list that is no longer there."""
    kinds = {(each["apiVersion"].partition("/")[0], each["kind"]) for name in RENDERED for each in rendered(name)}
    assert {(group, kind) for group, those in UNCHECKED.items() for kind in those} <= kinds
