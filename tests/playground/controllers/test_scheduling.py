"""The scheduler's choice of a node."""

from __future__ import annotations

from typing import Any

from raftkv_playground.controllers.scheduling import SELECTED_NODE, World, choose
from raftkv_playground.objects import Object

HOST = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"


def a_node(name: str, zone: str = "a", ready: bool = True, **spec: Any) -> Object:
    return {
        "metadata": {"name": name, "labels": {HOST: name, ZONE: zone}},
        "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def a_pod(name: str = "p", node: str | None = None, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": f"uid-{name}", "labels": labels or {}},
        "spec": {"containers": [], **({"nodeName": node} if node else {}), **spec},
    }


def three() -> list[Object]:
    return [a_node("n1", "a"), a_node("n2", "b"), a_node("n3", "c")]


def required(kind: str, terms: Any) -> Object:
    return {kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def test_the_emptiest_node_wins_and_ties_go_by_name() -> None:
    assert choose(a_pod(), World(three(), [])).node == "n1"
    assert choose(a_pod(), World(three(), [a_pod("x", "n1"), a_pod("y", "n2")])).node == "n3"


def test_node_selector_and_affinity() -> None:
    world = World(three(), [])
    assert choose(a_pod(nodeSelector={HOST: "n2"}), world).node == "n2"
    for expression, node in (
        ({"key": HOST, "operator": "In", "values": ["n3"]}, "n3"),
        ({"key": HOST, "operator": "NotIn", "values": ["n1", "n2"]}, "n3"),
        ({"key": ZONE, "operator": "Exists"}, "n1"),
    ):
        terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
        assert choose(a_pod(affinity=required("nodeAffinity", terms)), world).node == node
    by_name = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}
    affinity = required("nodeAffinity", {"nodeSelectorTerms": [by_name]})
    assert choose(a_pod(affinity=affinity), world).node == "n2"
    nothing = required("nodeAffinity", {"nodeSelectorTerms": [{}]})
    assert choose(a_pod(affinity=nothing), world).node is None, "an empty term matches no node"


def test_cordon_taints_and_silent_nodes_are_counted_in_the_message() -> None:
    taint = {"key": "k", "value": "v", "effect": "NoSchedule"}
    nodes = [a_node("n1", unschedulable=True), a_node("n2", taints=[taint]), a_node("n3", ready=False)]
    choice = choose(a_pod(), World(nodes, []))
    assert choice.node is None
    assert choice.message() == (
        "0/3 nodes are available: 1 node(s) had untolerated taint {k: v}, 1 node(s) were not ready, "
        "1 node(s) were unschedulable."
    )
    tolerating = a_pod(tolerations=[{"key": "k", "operator": "Exists"}])
    assert choose(tolerating, World(nodes, [])).node == "n2"
    prefer = [a_node("n1", taints=[{**taint, "effect": "PreferNoSchedule"}]), a_node("n2")]
    assert choose(a_pod(), World(prefer, [])).node == "n2"


def anti(kind: str) -> Object:
    term = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": HOST}
    if kind == "required":
        return required("podAntiAffinity", [term])
    return {
        "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}
    }


def test_pod_anti_affinity_required_and_preferred() -> None:
    there = [a_pod("a", "n1", {"app": "x"}), a_pod("b", "n2", {"app": "x"})]
    assert choose(a_pod(labels={"app": "x"}, affinity=anti("required")), World(three(), there)).node == "n3"
    full = [*there, a_pod("c", "n3", {"app": "x"})]
    assert choose(a_pod(labels={"app": "x"}, affinity=anti("required")), World(three(), full)).node is None
    crowded = [*there, *(a_pod(f"z{i}", "n3") for i in range(5))]
    assert choose(a_pod(affinity=anti("preferred")), World(three(), crowded)).node == "n3"
    assert choose(a_pod(affinity=anti("preferred")), World(three(), full)).node == "n1"


def test_those_already_there_keep_newcomers_away() -> None:
    there = [a_pod("a", "n1", {"app": "x"}, affinity=anti("required"))]
    assert choose(a_pod(labels={"app": "x"}), World(three(), there)).node == "n2"
    assert choose(a_pod(labels={"app": "y"}), World(three()[:1], there)).node == "n1"
    other_namespace = {**there[0], "metadata": {**there[0]["metadata"], "namespace": "other"}}
    assert choose(a_pod(labels={"app": "x"}), World(three()[:1], [other_namespace])).node == "n1"


def test_topology_spread() -> None:
    constraint = {
        "maxSkew": 1,
        "topologyKey": ZONE,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "x"}},
    }
    nodes = [a_node("n1", "a"), a_node("n2", "b")]
    there = [a_pod("a", "n1", {"app": "x"}), *(a_pod(f"z{i}", "n2") for i in range(9))]
    pod = a_pod(labels={"app": "x"}, topologySpreadConstraints=[constraint])
    assert choose(pod, World(nodes, there)).node == "n2", "the skew counts, not the crowd"
    nodes[1]["spec"]["unschedulable"] = True
    assert choose(pod, World(nodes, there)).node is None
    soft = a_pod(labels={"app": "x"}, topologySpreadConstraints=[{**constraint, "whenUnsatisfiable": "ScheduleAnyway"}])
    assert choose(soft, World(nodes, there)).node == "n1"


def with_claim(name: str = "p", **more: Any) -> Object:
    return a_pod(name, volumes=[{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}], **more)


def test_claims_and_their_volumes() -> None:
    assert "not found" in choose(with_claim(), World(three(), [])).message()
    claim = {"metadata": {"name": "c", "namespace": "ns"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}
    terms = [{"matchExpressions": [{"key": HOST, "operator": "In", "values": ["n2"]}]}]
    volume = {"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}}
    assert choose(with_claim(), World(three(), [], {("ns", "c"): claim}, {"v": volume})).node == "n2"
    promised = {"metadata": {"name": "c", "namespace": "ns", "annotations": {SELECTED_NODE: "n3"}}, "spec": {}}
    assert choose(with_claim(), World(three(), [], {("ns", "c"): promised})).node == "n3"


def test_read_write_once_pod_admits_one_pod() -> None:
    claim = {"metadata": {"name": "c", "namespace": "ns"}, "spec": {"accessModes": ["ReadWriteOncePod"]}}
    claims = {("ns", "c"): claim}
    assert choose(with_claim(), World(three(), [], claims)).node == "n1"
    other = with_claim("q")
    other["spec"]["nodeName"] = "n1"
    choice = choose(with_claim(), World(three(), [other], claims))
    assert choice.node is None and "ReadWriteOncePod" in choice.message()
