"""The operator's own Prometheus metrics, on one registry of its own, and the small HTTP server that shows them.

Labels are bounded: names of actions, resources and codes are the program's; series of a cluster go with the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY: Final = CollectorRegistry(auto_describe=True)
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_BUILD_INFO = Gauge("raftkv_operator_build_info", "1, with the version as a label.", ["version"], registry=REGISTRY)
RECONCILES = Counter(
    "raftkv_operator_reconcile_total",
    "Passes over a cluster, by what came of them: action, wait, stall, rest, error.",
    ["result"],
    registry=REGISTRY,
)
RECONCILE_SECONDS = Histogram(
    "raftkv_operator_reconcile_duration_seconds",
    "Duration of one pass over a cluster.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
DIRTY = Gauge(
    "raftkv_operator_reconcile_queue_depth", "Clusters with a change that no pass has seen yet.", registry=REGISTRY
)
ACTIONS = Counter(
    "raftkv_operator_action_total", "Side effects, by kind and result.", ["action", "result"], registry=REGISTRY
)
ACTION_SECONDS = Histogram(
    "raftkv_operator_action_duration_seconds",
    "Duration of a side effect.",
    ["action"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
_KUBE_REQUESTS = Counter(
    "raftkv_operator_k8s_requests_total",
    "Requests to the Kubernetes API; code 0 means no answer.",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
_KUBE_SECONDS = Histogram(
    "raftkv_operator_k8s_request_duration_seconds",
    "Duration of requests to the Kubernetes API.",
    ["verb"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
WATCH_LAST_EVENT = Gauge(
    "raftkv_operator_watch_last_event_timestamp_seconds",
    "When a watch last delivered something.",
    ["resource"],
    registry=REGISTRY,
)
LOOP_LAG = Gauge(
    "raftkv_operator_event_loop_lag_seconds", "How late the event loop ran a timer last time.", registry=REGISTRY
)
_MEMBER_SECONDS = Histogram(
    "raftkv_operator_member_rpc_duration_seconds",
    "Duration of calls to members.",
    ["rpc", "code"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
REPLACEMENTS = Counter(
    "raftkv_operator_member_replacements_total", "Members given up for good.", ["reason"], registry=REGISTRY
)

_CLUSTER: Final = ["namespace", "cluster"]
_SPEC_REPLICAS = Gauge("raftkv_operator_cluster_spec_replicas", "Members wished.", _CLUSTER, registry=REGISTRY)
_READY_REPLICAS = Gauge("raftkv_operator_cluster_ready_replicas", "Members ready.", _CLUSTER, registry=REGISTRY)
_VOTERS = Gauge("raftkv_operator_cluster_voting_members", "Members that vote.", _CLUSTER, registry=REGISTRY)
_CONDITION = Gauge(
    "raftkv_operator_cluster_condition",
    "1 if the condition has this status, else 0.",
    [*_CLUSTER, "type", "status"],
    registry=REGISTRY,
)
_QUORUM_MARGIN = Gauge(
    "raftkv_operator_cluster_quorum_margin",
    "Voters that may still fail; -1 without a quorum or without a leader.",
    _CLUSTER,
    registry=REGISTRY,
)
_GENERATION_LAG = Gauge(
    "raftkv_operator_cluster_observed_generation_lag",
    "Generations of the spec that the status does not speak of yet.",
    _CLUSTER,
    registry=REGISTRY,
)
_PER_CLUSTER: Final = (_SPEC_REPLICAS, _READY_REPLICAS, _VOTERS, _QUORUM_MARGIN, _GENERATION_LAG)

try:
    _BUILD_INFO.labels(version("raftkv")).set(1)
except PackageNotFoundError:  # run from a source tree that was never installed
    _BUILD_INFO.labels("unknown").set(1)


def kube_request(verb: str, resource: str, code: int, seconds: float) -> None:
    """Counts a request to the Kubernetes API."""
    _KUBE_REQUESTS.labels(verb, resource, str(code)).inc()
    _KUBE_SECONDS.labels(verb).observe(seconds)


def member_rpc(rpc: str, code: str, seconds: float) -> None:
    """Counts a call to a member."""
    _MEMBER_SECONDS.labels(rpc, code).observe(seconds)


def cluster_seen(
    namespace: str, name: str, status: Mapping[str, Any], *, spec_replicas: int, generation: int, margin: int
) -> None:
    """Shows a cluster's state; ``margin`` is how many voters may still fail."""
    _SPEC_REPLICAS.labels(namespace, name).set(spec_replicas)
    _READY_REPLICAS.labels(namespace, name).set(status.get("readyReplicas", 0))
    _VOTERS.labels(namespace, name).set(status.get("votingMembers", 0))
    _QUORUM_MARGIN.labels(namespace, name).set(margin)
    _GENERATION_LAG.labels(namespace, name).set(generation - status.get("observedGeneration", 0))
    for condition in status.get("conditions", ()):
        for word in ("True", "False", "Unknown"):
            _CONDITION.labels(namespace, name, condition["type"], word).set(condition["status"] == word)


def cluster_gone(namespace: str, name: str) -> None:
    """Drops a cluster's series."""
    for gauge in _PER_CLUSTER:
        gauge.remove_by_labels({"namespace": namespace, "cluster": name})
    _CONDITION.remove_by_labels({"namespace": namespace, "cluster": name})
