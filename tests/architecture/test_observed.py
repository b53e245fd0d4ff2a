"""What alerts and the dashboard look at exists in the code, what the code exports is documented, and alerts come."""

import importlib
import json
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from shared.broker.depths import COUNTED
from shared.delivery.actor import Transport
from shared.mail.dsn import Action
from shared.mail.mta_sts import Mode
from shared.mail.outcome import Outcome
from workers.scheduler.figures import AGES

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/k8s/components/monitoring"
ALERTS = ROOT / "docs/operating/alerts.md"
METRICS = ROOT / "docs/operating/metrics.md"
SCRAPED = {"room", "pod", "instance", "job", "namespace"}  # labels that Prometheus adds
VALUES = {
    "transport": set(get_args(Transport)),
    "outcome": {kind.__name__.lower() for kind in get_args(Outcome)},
    "queue": set(COUNTED),
    "age": set(AGES),
    "action": set(get_args(Action)),
    "result": {*get_args(Mode), "failed"},
    "need": {"broker", "store", "queue", "rules", "web", "recording"},
    "state": {"applied", "behind", "silent"},
    "why": {"busy", "suspended"},
    "of": {"queues", "waiting", "routers"},
}
_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool"}
_NAME = re.compile(r"(?<![\w$:])[a-zA-Z_:][\w:]*")
_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MATCHERS = re.compile(r"\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


@cache
def ours() -> dict[str, MetricWrapperBase]:
    """Return every metric that the rooms export, by name."""
    for root in ("shared", "workers"):
        for found in pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}."):
            if found.name != "workers.cli.__main__":  # it runs when it is imported
                importlib.import_module(found.name)
    collectors = [each for each in REGISTRY._collector_to_names if isinstance(each, MetricWrapperBase)]
    return {f"{each._name}{'_total' * (each._type == 'counter')}": each for each in collectors}


def series() -> set[str]:
    """Return the names of all series: ours, and those that every Python process exports."""
    standard = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    histograms = {name for name, each in ours().items() if each._type == "histogram"}
    parts = {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}
    plain = ours().keys() - histograms
    return plain | parts | {each for each in standard if not each.startswith("pushpush_")}


def names_in(expression: str) -> set[str]:
    """Return the names of series that a PromQL expression looks at."""
    bare = _LISTS.sub(" ", _MATCHERS.sub(" ", expression))
    bare = re.sub(r"\[[^]]*\]|\boffset\s+\w+", " ", re.sub(r'"[^"]*"', " ", bare))
    found = ((each[0], bare[each.end() :].lstrip()[:1]) for each in _NAME.finditer(bare))
    return {name for name, after in found if after != "(" and name not in _WORDS}


def labels_in(expression: str) -> set[str]:
    """Return the labels that an expression matches or puts together by."""
    listed = {label.strip() for each in _LISTS.findall(expression) for label in each.split(",")}
    return {name for name, _, _ in matchers_in(expression)} | listed - {""}


def matchers_in(expression: str) -> list[tuple[str, str, str]]:
    """Return label, operator and value of each matcher."""
    return [found for each in _MATCHERS.findall(expression) for found in _MATCHER.findall(each)]


@cache
def rules() -> list[dict[str, Any]]:
    """Return recording rules and alerts."""
    read = [yaml.safe_load((MONITORING / f"{name}.yaml").read_text()) for name in ("recordings", "alerts")]
    return [rule for each in read for group in each["spec"]["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Return the alerts."""
    return [each for each in rules() if "alert" in each]


def panels() -> Iterator[tuple[str, str]]:
    """Return title and expression of all that the dashboard shows."""
    board = json.loads((MONITORING / "dashboards/pushpush.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


EXPRESSIONS = [
    *(pytest.param(each["expr"], id=each.get("alert") or each["record"]) for each in rules()),
    *(pytest.param(expression, id=f"{title}: {expression[:60]}") for title, expression in panels()),
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_looked_at_exists(expression: str) -> None:
    """Every series is exported by a room, or recorded; every label is one of theirs, and every value can occur."""
    recorded = {each["record"] for each in rules() if "record" in each}
    names = names_in(expression)
    assert names
    assert set() == names - series() - recorded
    assert set() == labels_in(expression) - SCRAPED - set(VALUES) - {"le", "version"}
    for label, operator, value in matchers_in(expression):
        known = VALUES.get(label, {path.parent.name for path in ROOT.glob("workers/*/__main__.py")})
        wanted = [value] if operator in {"=", "!="} else value.split("|")
        # A regular expression has its + in brackets.
        assert set() == {each.replace("[+]", "+") for each in wanted} - known, label


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (a, b) (rate(x_total{c="d", e=~"f|g"}[5m])) / on (a) group_left (h) y > 2', {"x_total", "y"}),
        ("histogram_quantile(0.5, sum by (le) (rate(z_bucket[$__rate_interval])))", {"z_bucket"}),
        ('absent(x{a="b{c}"}) or time() - max(y offset 1h) > 1e3 unless z:q:r', {"x", "y", "z:q:r"}),
    ],
)
def test_names_are_read_as_prometheus_reads_them(expression: str, names: set[str]) -> None:
    """A check that finds no names would find no fault."""
    assert names == names_in(expression)


@pytest.mark.parametrize("alert", alerts(), ids=lambda each: each["alert"])
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    """Summary, description, severity, and a section of the handbook, which says the five things that are asked then."""
    assert {"summary", "description", "runbook_url"} == set(alert["annotations"])
    assert alert["labels"]["severity"] in {"critical", "warning"}
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert str(ALERTS.relative_to(ROOT)) == path
    asked = re.findall(r"^\*\*(.+?)\*\*", sections()[anchor], re.MULTILINE)
    expected = ["What it means.", "What users notice.", "Is mail at risk?", "What to look at.", "What to do."]
    assert expected == asked


def sections() -> dict[str, str]:
    """Return the sections of the page of alerts by their anchors."""
    parts = re.split(r"^## (.+)$", ALERTS.read_text(), flags=re.MULTILINE)[1:]
    return {title.lower().replace(" ", "-"): text for title, text in zip(parts[::2], parts[1::2], strict=True)}


def test_no_section_is_left_over() -> None:
    """Each is of an alert."""
    assert set(sections()) == {each["annotations"]["runbook_url"].partition("#")[2] for each in alerts()}


def test_every_metric_is_documented_as_it_is() -> None:
    """Name, type and labels."""
    row = re.compile(r"^\| `(pushpush_\w+)` \| (\w+) \| (.+?) \| .+ \|$", re.MULTILINE)
    documented = {name: (kind, labels) for name, kind, labels in row.findall(METRICS.read_text())}
    exported = {
        name: (each._type, ", ".join(f"`{label}`" for label in each._labelnames) or "-")
        for name, each in ours().items()
    }
    assert exported == documented


def test_labels_are_of_closed_sets() -> None:
    """No label but these, and the page names every value."""
    assert set(VALUES) | {"version"} == {label for each in ours().values() for label in each._labelnames}
    row = re.compile(r"^\| `(\w+)` \| (`.+) \|$", re.MULTILINE)
    documented = {label: set(re.findall(r"`([^`]+)`", values)) for label, values in row.findall(METRICS.read_text())}
    assert VALUES == documented


def test_runbooks_become_addresses(tmp_path: Path) -> None:
    """By the lines that the component's file shows."""
    lines = (MONITORING / "kustomization.yaml").read_text().splitlines()
    shown = "\n".join(each.removeprefix("#   ") for each in lines if each.startswith("#   "))
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    (overlay / "kustomization.yaml").write_text(f"components: [../monitoring]\n{shown}\n")
    [found] = [each for each in rendered(overlay) if name_of(each) == ("PrometheusRule", "pushpush")]
    urls = [rule["annotations"]["runbook_url"] for group in found["spec"]["groups"] for rule in group["rules"]]
    expected = [each["annotations"]["runbook_url"].partition("#")[2] for each in alerts()]
    assert [f"https://YOUR-HOST/pushpush/docs/operating/alerts.md#{each}" for each in expected] == urls


def test_every_room_is_scraped() -> None:
    """The selector takes the pods of each Deployment, by a port that they have; all is in the fleet's namespace."""
    objects = rendered(ROOT / "deploy/k8s/overlays/prod")
    ours = {("PodMonitor", "pushpush"), ("ConfigMap", "pushpush-dashboard")}
    ours |= {("PrometheusRule", name) for name in ("pushpush", "pushpush-recordings")}
    assert dict.fromkeys(ours, "pushpush") == {
        name_of(each): each["metadata"]["namespace"] for each in objects if name_of(each) in ours
    }
    [monitor] = [each["spec"] for each in objects if each["kind"] == "PodMonitor"]
    pods = [each["spec"]["template"] for each in objects if each["kind"] == "Deployment"]
    rooms = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods}
    assert {path.parent.name for path in ROOT.glob("workers/*/__main__.py")} - {"cli"} == rooms
    [endpoint] = monitor["podMetricsEndpoints"]
    assert ["__meta_kubernetes_pod_label_app_kubernetes_io_component"] == endpoint["relabelings"][0]["sourceLabels"]
    for pod in pods:
        assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        ports = [port["name"] for each in pod["spec"]["containers"] for port in each["ports"]]
        assert 1 == ports.count(endpoint["port"])


def rendered(folder: Path) -> list[dict[str, Any]]:
    """Return the objects that kustomize makes of a folder."""
    command = [shutil.which("kubectl") or str(ROOT / ".venv/bin/kubectl"), "kustomize", str(folder)]
    made = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    return list(yaml.safe_load_all(made))


def name_of(made: dict[str, Any]) -> tuple[str, str]:
    """Return kind and name of an object."""
    return made["kind"], made["metadata"]["name"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("command", ["check", "test"])
def test_prometheus_takes_the_rules_and_alerts_come(command: str, tmp_path: Path) -> None:
    """`promtool check rules`, and `promtool test rules` with the cases beside the alerts."""
    for name in ("recordings.yaml", "alerts.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(yaml.safe_load((MONITORING / name).read_text())["spec"]))
    shutil.copy(MONITORING / "alerts.test.yaml", tmp_path)
    files = ["recordings.yaml", "alerts.yaml"] if command == "check" else ["alerts.test.yaml"]
    ran = subprocess.run(
        ["promtool", command, "rules", *files], cwd=tmp_path, capture_output=True, check=False, timeout=60
    )
    assert 0 == ran.returncode, (ran.stdout + ran.stderr).decode()
