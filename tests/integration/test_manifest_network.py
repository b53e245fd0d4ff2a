"""Who may speak to whom, by the network policies of the Kubernetes manifests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

import pytest

from shared.delivery import resolver
from tests.integration.manifests import FLEETS, NAMESPACE, Object, of_kind, pods, rendered, selects

Labels = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod somewhere in the cluster; its ports by name, where a policy of ours names them."""

    namespace: str
    labels: Labels = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)


Place = Pod | IPv4Address | IPv6Address


class Door(NamedTuple):
    """Where a connection goes to."""

    place: Place
    port: int
    protocol: str


WORLD = tuple(map(ip_address, ("1.1.1.1", "93.184.215.14", "2606:4700:4700::1111")))
PRIVATE = tuple(
    map(
        ip_address,
        (
            *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "127.0.0.1", "169.254.169.254"),
            *("0.0.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"),
            *("::1", "::ffff:10.0.0.1", "fd00::1", "fe80::1", "ff02::1"),
        ),
    )
)
DNS = Pod(namespace="kube-system", labels={"k8s-app": "kube-dns"})
BROKER = Pod(namespace="pushpush-services", labels={"app.kubernetes.io/name": "rabbitmq"})
PROMETHEUS = Pod(namespace="monitoring")
INGRESS = Pod(namespace="ingress-nginx")
ROOMS = {"router", "https", "smtp", "scheduler", "journal", "panel"}
OUTWARDS = {"https", "smtp", "panel", "edit-rule"}  # who delivers, and who tries targets


def ours(objects: list[Object]) -> dict[str, Pod]:
    """Return the pods of the fleet, by component."""
    return {
        it["metadata"]["labels"]["app.kubernetes.io/component"]: Pod(
            namespace=NAMESPACE,
            labels=it["metadata"]["labels"],
            ports={port["name"]: port["containerPort"] for port in it["spec"]["containers"][0].get("ports", ())},
        )
        for it in pods(objects).values()
    }


def reaches(objects: list[Object], source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
    """Say whether a connection is let out where it comes from, and in where it goes to."""
    door = Door(target, port, protocol)
    return _lets(objects, "egress", source, target, door) and _lets(objects, "ingress", target, source, door)


def _lets(objects: list[Object], way: str, subject: Place, other: Place, door: Door) -> bool:
    """Say whether the policies of one end let it through; without any that selects it, everything passes."""
    if not isinstance(subject, Pod) or subject.namespace != NAMESPACE:
        return True
    policies = [
        each["spec"]
        for each in of_kind(objects, "NetworkPolicy").values()
        if way.capitalize() in each["spec"]["policyTypes"] and selects(each["spec"]["podSelector"], subject.labels)
    ]
    peers = "to" if way == "egress" else "from"
    return not policies or any(
        _is_one(rule.get(peers), other) and _is_door(rule.get("ports"), door)
        for each in policies
        for rule in each.get(way, ())
    )


def _is_one(peers: list[Object] | None, place: Place) -> bool:
    if not peers:
        return True
    return any(_is_peer(each, place) for each in peers)


def _is_peer(peer: Object, place: Place) -> bool:
    if not isinstance(place, Pod):
        block = peer.get("ipBlock")
        return block is not None and (
            place in ip_network(block["cidr"])
            and all(place not in ip_network(each) for each in block.get("except", ()))
        )
    if "ipBlock" in peer or ("namespaceSelector" not in peer and place.namespace != NAMESPACE):
        return False
    name = {"kubernetes.io/metadata.name": place.namespace}
    return selects(peer.get("namespaceSelector", {}), name) and selects(peer.get("podSelector", {}), place.labels)


def _is_door(ports: list[Object] | None, door: Door) -> bool:
    if not ports:
        return True
    named = door.place.ports if isinstance(door.place, Pod) else {}
    return any(
        each["protocol"] == door.protocol and ("port" not in each or door.port == named.get(each["port"], each["port"]))
        for each in ports
    )


@pytest.fixture(params=FLEETS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """Each fleet in turn."""
    return rendered(request.param)


@pytest.fixture
def production() -> list[Object]:
    """The fleet of prod."""
    return rendered("overlays/prod")


def everyone(objects: list[Object]) -> Iterator[tuple[str, Pod]]:
    """Yield every pod of the fleet, and see that none is missing."""
    found = ours(objects)
    assert {*ROOMS, "migrate", "edit-rule", "reload", "sync-rules"} == set(found)
    yield from found.items()


def test_only_the_panel_is_let_in(objects: list[Object]) -> None:
    """From pods of the cluster, as an ingress controller is; from no address, and from no other room to a room."""
    rooms = ours(objects)
    for name, each in everyone(objects):
        assert (name == "panel") is reaches(objects, INGRESS, each, 8080)
        for port in (22, 80, 5432, 9100):
            assert not reaches(objects, INGRESS, each, port)
        for address in (*WORLD, *PRIVATE):
            assert not [port for port in (80, 8080, 9100) if reaches(objects, address, each, port)]
        assert not reaches(objects, rooms["smtp"], each, 9100)


def test_metrics_are_for_the_monitoring_alone(objects: list[Object]) -> None:
    """Of every room; Jobs have none."""
    assert ROOMS == {name for name, each in everyone(objects) if reaches(objects, PROMETHEUS, each, 9100)}


def test_deliveries_go_out_by_any_port(objects: list[Object]) -> None:
    """A rule may name any. The others have nothing to seek there."""
    for address in WORLD:
        for port in (25, 443, 2525, 8443):
            assert OUTWARDS == {name for name, each in everyone(objects) if reaches(objects, each, address, port)}
        assert [] == [name for name, each in everyone(objects) if reaches(objects, each, address, 443, "UDP")]


def test_no_private_address_is_delivered_to(production: list[Object]) -> None:
    """Also not where a stranger's MX leads there; what the rooms take for private is it here, too."""
    for name, each in everyone(production):
        for address in PRIVATE:
            assert not resolver._is_public(str(address))
            assert not reaches(production, each, address, 25), name
            assert not reaches(production, each, address, 443), name
        assert not reaches(production, each, Pod(namespace="default"), 25)
        assert not reaches(production, each, Pod(namespace="kube-system"), 6443)
    assert not [each for each in WORLD if not resolver._is_public(str(each))]


def test_on_a_machine_of_ones_own_deliveries_go_to_pods() -> None:
    """To try things, a pod may stand for a host."""
    dev = rendered("overlays/dev")
    target = Pod(namespace="default")
    assert OUTWARDS == {name for name, each in everyone(dev) if reaches(dev, each, target, 2525)}


def test_everybody_reaches_names_broker_and_store(objects: list[Object]) -> None:
    """In the cluster, or in the network around it."""
    for name, each in everyone(objects):
        assert reaches(objects, each, DNS, 53, "UDP"), name
        assert reaches(objects, each, DNS, 53), name
        # A cache on each machine is no pod to a policy: it answers at its own address, or at the one of the Service.
        for address in ("169.254.20.10", "10.96.0.10", "172.20.0.10", "fd00::a"):
            assert reaches(objects, each, ip_address(address), 53, "UDP"), (name, address)
        assert not reaches(objects, each, ip_address("169.254.169.254"), 53, "UDP"), name
        for port in (5671, 5672, 5432):
            assert reaches(objects, each, BROKER, port), name
            assert reaches(objects, each, ip_address("10.20.30.40"), port), name
        assert not reaches(objects, each, ip_address("10.20.30.40"), 6379), name


def test_traces_go_to_the_monitoring(production: list[Object]) -> None:
    """Where there is a collector."""
    assert all(reaches(production, each, PROMETHEUS, 4318) for _, each in everyone(production))
    assert not any(reaches(production, each, PROMETHEUS, 4317) for _, each in everyone(production))
