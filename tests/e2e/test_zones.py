"""The leader follows ``consensus.leaderPreference`` to another zone: the operator knows the zones of pods."""

from __future__ import annotations

import json

import pytest
from kube import NAME, Kubectl, cluster, settled, wait_until

ZONE = "topology.kubernetes.io/zone"
_MOVE_SECONDS = 180.0
"""A leader leads ten election timeouts before it moves."""

pytestmark = pytest.mark.slow


def _zones(kubectl: Kubectl) -> dict[str, str]:
    """Member to the zone of its pod's node, where it has one."""
    nodes = {node["metadata"]["name"]: node["metadata"]["labels"].get(ZONE) for node in kubectl.get("nodes")["items"]}
    pods = kubectl.pods(f"raftkv.dev/cluster={NAME}")
    found = {pod["metadata"]["name"].removesuffix("-0"): nodes.get(pod["spec"].get("nodeName")) for pod in pods}
    return {member: zone for member, zone in found.items() if zone}


def _leader(kubectl: Kubectl) -> str:
    return str(cluster(kubectl)["status"].get("leader", ""))


def test_the_leader_moves_to_the_zone_that_is_preferred_and_on_to_the_next(live_cluster: Kubectl) -> None:
    kubectl = live_cluster
    wait_until("leader", lambda: bool(_leader(kubectl)), _MOVE_SECONDS)
    zones = _zones(kubectl)
    if len(set(zones.values())) < 2:
        pytest.skip("the nodes that carry the members are in one zone, or have no zone labels")
    pods = {pod["metadata"]["uid"] for pod in kubectl.pods(f"raftkv.dev/cluster={NAME}")}
    for _ in range(2):
        wished = min(zone for zone in zones.values() if zone != zones[_leader(kubectl)])
        patch = {"spec": {"consensus": {"leaderPreference": [wished, "Writers"]}}}
        kubectl.run("patch", "rkv", NAME, "--type=merge", "-p", json.dumps(patch))
        wait_until(f"leader in {wished}", lambda wished=wished: zones[_leader(kubectl)] == wished, _MOVE_SECONDS)  # type: ignore[misc]
    kubectl.run("patch", "rkv", NAME, "--type=merge", "-p", '{"spec": {"consensus": {"leaderPreference": []}}}')
    wait_until("rest", lambda: settled(kubectl, 3), _MOVE_SECONDS)
    assert {pod["metadata"]["uid"] for pod in kubectl.pods(f"raftkv.dev/cluster={NAME}")} == pods, "nobody restarts"
