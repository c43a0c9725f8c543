"""The scheduler: which node a pod runs on.

``choose`` is a pure function. A node must pass every filter (cordon, taints, node selector and affinity, the volumes'
nodes, required pod anti-affinity and affinity, hard topology spread); among those that pass, the one with the best
score wins: preferred affinities and anti-affinities, soft spread, then the fewest pods. Ties go to the first name, so
a decision can be foretold. Requests for CPU and memory are ignored: the playground's nodes share one machine and
limit nothing.

A pod that fits nowhere stays pending, with the condition ``PodScheduled=False`` and an Event that counts the reasons
in the words of kube-scheduler; it is tried again whenever nodes, pods or volumes change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from raftkv_playground import client as api
from raftkv_playground.controllers.runtime import Controller, Informers
from raftkv_playground.objects import (
    Key,
    Object,
    annotations_of,
    condition_true,
    deleting,
    key_of,
    labels_of,
    now,
    pod_finished,
    requirements_match,
    selector_matches,
    status_of,
    with_condition,
)

SCHEDULER_NAME = "default-scheduler"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
HOSTNAME = "kubernetes.io/hostname"


@dataclass(slots=True)
class World:
    """What the scheduler looks at. ``pods`` are all that are bound and have not ended."""

    nodes: Sequence[Object]
    pods: Sequence[Object]
    claims: Mapping[Key, Object] = field(default_factory=dict)
    volumes: Mapping[str, Object] = field(default_factory=dict)


@dataclass(slots=True)
class Choice:
    """``node`` is None if none fits; ``reasons`` then says why not, per node."""

    node: str | None
    reasons: dict[str, str] = field(default_factory=dict)

    def message(self) -> str:
        """As kube-scheduler says it: ``0/3 nodes are available: 1 node(s) were unschedulable, ...``."""
        counts = Counter(self.reasons.values())
        listed = ", ".join(sorted(f"{count} {reason}" for reason, count in counts.items()))
        return (
            f"0/{len(self.reasons)} nodes are available: {listed}." if counts else "no nodes available to schedule pods"
        )


def choose(pod: Object, world: World) -> Choice:
    """The node for ``pod``. Pure."""
    whole = _whole_pod_reason(pod, world)
    if whole:
        return Choice(None, {node["metadata"]["name"]: whole for node in world.nodes})
    reasons: dict[str, str] = {}
    fitting: list[tuple[float, str]] = []
    for node in world.nodes:
        name = node["metadata"]["name"]
        reason = _filter(pod, node, world)
        if reason:
            reasons[name] = reason
        else:
            fitting.append((-_score(pod, node, world), name))
    if fitting:
        return Choice(min(fitting)[1])
    return Choice(None, reasons)


# -- filters


def _whole_pod_reason(pod: Object, world: World) -> str | None:
    """What keeps the pod from every node: a claim that is missing, lost, going, or taken by another pod."""
    namespace = pod["metadata"]["namespace"]
    for name in claim_names(pod):
        claim = world.claims.get((namespace, name))
        if claim is None:
            return f'persistentvolumeclaim "{name}" not found'
        if deleting(claim):
            return f'persistentvolumeclaim "{name}" is being deleted'
        if status_of(claim).get("phase") == "Lost":
            return f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume'
        if "ReadWriteOncePod" in (claim["spec"].get("accessModes") or []):
            for other in world.pods:
                same = other["metadata"]["uid"] == pod["metadata"]["uid"]
                if not same and other["metadata"]["namespace"] == namespace and name in claim_names(other):
                    return (
                        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
                    )
    return None


def claim_names(pod: Object) -> list[str]:
    """The claims that the pod's volumes name."""
    volumes = pod["spec"].get("volumes") or []
    return [v["persistentVolumeClaim"]["claimName"] for v in volumes if v.get("persistentVolumeClaim")]


def _filter(pod: Object, node: Object, world: World) -> str | None:
    checks: tuple[Callable[[], str | None], ...] = (
        lambda: _cordon(pod, node),
        lambda: _taint(pod, node),
        lambda: None if _node_affinity(pod, node) else "node(s) didn't match Pod's node affinity/selector",
        lambda: _volumes(pod, node, world),
        lambda: _pod_affinity(pod, node, world),
        lambda: _spread(pod, node, world),
    )
    for check in checks:
        reason = check()
        if reason:
            return reason
    return None


def _tolerated(pod: Object, taint: Object) -> bool:
    for toleration in pod["spec"].get("tolerations") or []:
        if toleration.get("effect") and toleration["effect"] != taint["effect"]:
            continue
        if toleration.get("operator", "Equal") == "Exists":
            if not toleration.get("key") or toleration["key"] == taint["key"]:
                return True
        elif toleration.get("key") == taint["key"] and (toleration.get("value") or "") == (taint.get("value") or ""):
            return True
    return False


def _cordon(pod: Object, node: Object) -> str | None:
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    if node["spec"].get("unschedulable") and not _tolerated(pod, taint):
        return "node(s) were unschedulable"
    return None


def _taint(pod: Object, node: Object) -> str | None:
    if not condition_true(node, "Ready"):
        return "node(s) were not ready"
    for taint in node["spec"].get("taints") or []:
        if taint["effect"] in ("NoSchedule", "NoExecute") and not _tolerated(pod, taint):
            value = f": {taint['value']}" if taint.get("value") else ": "
            return f"node(s) had untolerated taint {{{taint['key']}{value}}}"
    return None


def node_term_matches(term: Object, node: Object) -> bool:
    """A nodeSelectorTerm: all of its expressions on labels and on ``metadata.name``; an empty one matches nothing."""
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False
    return requirements_match(expressions, labels_of(node)) and requirements_match(
        fields, {"metadata.name": node["metadata"]["name"]}
    )


def _node_affinity(pod: Object, node: Object) -> bool:
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels_of(node).get(key) != value for key, value in wanted.items()):
        return False
    required = _affinity(pod, "nodeAffinity").get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or any(node_term_matches(term, node) for term in required["nodeSelectorTerms"])


def _affinity(pod: Object, kind: str) -> Object:
    return (pod["spec"].get("affinity") or {}).get(kind) or {}


def _volumes(pod: Object, node: Object, world: World) -> str | None:
    """Bound volumes must be reachable from the node; a claim that was promised to another node waits there."""
    namespace = pod["metadata"]["namespace"]
    for name in claim_names(pod):
        claim = world.claims[(namespace, name)]
        volume = world.volumes.get(claim["spec"].get("volumeName") or "")
        required = (((volume or {}).get("spec") or {}).get("nodeAffinity") or {}).get("required")
        if required and not any(node_term_matches(term, node) for term in required["nodeSelectorTerms"]):
            return "node(s) didn't match PersistentVolume's node affinity"
        selected = annotations_of(claim).get(SELECTED_NODE)
        if volume is None and selected and selected != node["metadata"]["name"]:
            return "node(s) had volume node affinity conflict"
    return None


def _term_selects(term: Object, owner: Object, other: Object) -> bool:
    """Whether a pod (anti-)affinity term of ``owner`` means ``other``."""
    namespaces = term.get("namespaces") or [owner["metadata"]["namespace"]]
    everywhere = term.get("namespaceSelector") == {}
    if not everywhere and other["metadata"]["namespace"] not in namespaces:
        return False
    return selector_matches(term.get("labelSelector"), labels_of(other))


def _domain(node: Object | None, key: str) -> str | None:
    return labels_of(node).get(key) if node else None


def _nodes_by_name(world: World) -> dict[str, Object]:
    return {node["metadata"]["name"]: node for node in world.nodes}


def _in_domain(world: World, node: Object, key: str) -> list[Object]:
    """Bound pods whose nodes share ``node``'s value of the topology key."""
    value, nodes = _domain(node, key), _nodes_by_name(world)
    if value is None:
        return []
    return [pod for pod in world.pods if _domain(nodes.get(pod["spec"].get("nodeName") or ""), key) == value]


def _required(pod: Object, kind: str) -> list[Object]:
    return _affinity(pod, kind).get("requiredDuringSchedulingIgnoredDuringExecution") or []


def _pod_affinity(pod: Object, node: Object, world: World) -> str | None:
    for term in _required(pod, "podAntiAffinity"):
        if any(_term_selects(term, pod, other) for other in _in_domain(world, node, term["topologyKey"])):
            return "node(s) didn't match pod anti-affinity rules"
    # The rules of those already there hold against a newcomer, too.
    for other in world.pods:
        for term in _required(other, "podAntiAffinity"):
            if _term_selects(term, other, pod) and other in _in_domain(world, node, term["topologyKey"]):
                return "node(s) didn't satisfy existing pods anti-affinity rules"
    for term in _required(pod, "podAffinity"):
        there = any(_term_selects(term, pod, other) for other in _in_domain(world, node, term["topologyKey"]))
        anywhere = any(_term_selects(term, pod, other) for other in world.pods)
        # The first pod of a group that wants to be together may start it.
        if not there and (anywhere or not _term_selects(term, pod, pod)):
            return "node(s) didn't match pod affinity rules"
    return None


def _spread_counts(constraint: Object, pod: Object, world: World) -> dict[str, int]:
    """How many matching pods each topology domain has, over the nodes that the pod may use at all."""
    key = constraint["topologyKey"]
    counts: dict[str, int] = {}
    nodes = _nodes_by_name(world)
    for node in world.nodes:
        value = _domain(node, key)
        if value is not None and _node_affinity(pod, node):
            counts.setdefault(value, 0)
    for other in world.pods:
        value = _domain(nodes.get(other["spec"].get("nodeName") or ""), key)
        same = other["metadata"]["namespace"] == pod["metadata"]["namespace"]
        if value in counts and same and not deleting(other):
            counts[value] += selector_matches(constraint.get("labelSelector"), labels_of(other))
    return counts


def _spread(pod: Object, node: Object, world: World) -> str | None:
    for constraint in pod["spec"].get("topologySpreadConstraints") or []:
        if constraint.get("whenUnsatisfiable", "DoNotSchedule") != "DoNotSchedule":
            continue
        counts = _spread_counts(constraint, pod, world)
        value = _domain(node, constraint["topologyKey"])
        if value is None or value not in counts:
            return "node(s) didn't match pod topology spread constraints (missing required label)"
        if counts[value] + 1 - min(counts.values()) > int(constraint.get("maxSkew", 1)):
            return "node(s) didn't match pod topology spread constraints"
    return None


# -- scores

_PREFERENCE = 1_000.0
"""Preferences weigh more than the number of pods on a node ever does."""


def _score(pod: Object, node: Object, world: World) -> float:
    score = 0.0
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    for entry in _affinity(pod, "nodeAffinity").get(preferred) or []:
        if node_term_matches(entry["preference"], node):
            score += _PREFERENCE * float(entry["weight"])
    for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
        for entry in _affinity(pod, kind).get(preferred) or []:
            term = entry["podAffinityTerm"]
            near = sum(_term_selects(term, pod, other) for other in _in_domain(world, node, term["topologyKey"]))
            score += sign * _PREFERENCE * float(entry["weight"]) * near
    for constraint in pod["spec"].get("topologySpreadConstraints") or []:
        if constraint.get("whenUnsatisfiable", "DoNotSchedule") != "DoNotSchedule":
            value = _domain(node, constraint["topologyKey"])
            score -= _PREFERENCE * _spread_counts(constraint, pod, world).get(value or "", 0)
    for taint in node["spec"].get("taints") or []:
        if taint["effect"] == "PreferNoSchedule" and not _tolerated(pod, taint):
            score -= _PREFERENCE
    name = node["metadata"]["name"]
    return score - len([other for other in world.pods if other["spec"].get("nodeName") == name])


class Scheduler(Controller):
    name = SCHEDULER_NAME
    primary = api.PODS

    def __init__(self, client: api.ApiClient, informers: Informers) -> None:
        super().__init__(client, informers)
        self._bound_to: dict[str, str] = {}
        """uid -> node of bindings that the informer may not show yet."""
        for resource in (api.NODES, api.PERSISTENT_VOLUMES, api.PERSISTENT_VOLUME_CLAIMS):
            self.trigger(resource, lambda _item: self._waiting())
        self.trigger(api.PODS, lambda pod: self._waiting() if deleting(pod) or pod_finished(pod) else [])
        informers.of(api.PODS).add_handler(self._forget)

    def _forget(self, type: str, pod: Object) -> None:
        if type == "DELETED":
            self._bound_to.pop(pod["metadata"]["uid"], None)
            for key in self._waiting():
                self.queue.add(key)

    def _waiting(self) -> list[Key]:
        return [key_of(pod) for pod in self.store(api.PODS).values() if self._mine(pod)]

    def _mine(self, pod: Object) -> bool:
        spec = pod["spec"]
        return (
            not spec.get("nodeName")
            and spec.get("schedulerName", SCHEDULER_NAME) == SCHEDULER_NAME
            and not deleting(pod)
            and not pod_finished(pod)
            and not spec.get("schedulingGates")
            and pod["metadata"]["uid"] not in self._bound_to
        )

    def world(self) -> World:
        pods = []
        for pod in self.store(api.PODS).values():
            node = pod["spec"].get("nodeName") or self._bound_to.get(pod["metadata"]["uid"])
            if node and not pod_finished(pod):
                pods.append({**pod, "spec": {**pod["spec"], "nodeName": node}})
        return World(
            nodes=sorted(self.store(api.NODES).values(), key=key_of),
            pods=pods,
            claims=self.store(api.PERSISTENT_VOLUME_CLAIMS),
            volumes={key[1]: item for key, item in self.store(api.PERSISTENT_VOLUMES).items()},
        )

    async def sync(self, key: Key) -> float | None:
        pod = self.store(api.PODS).get(key)
        if pod is None or not self._mine(pod):
            return None
        pod = {"apiVersion": "v1", "kind": "Pod", **pod}
        choice = choose(pod, self.world())
        if choice.node is None:
            await self._report_unschedulable(pod, choice.message())
            return None
        if await self._promise_claims(pod, choice.node):
            return 1.0
        await self._bind(pod, choice.node)
        return None

    async def _promise_claims(self, pod: Object, node: str) -> bool:
        """Claims that wait for their first consumer learn the node. True while one is not bound yet."""
        waiting = False
        namespace = pod["metadata"]["namespace"]
        for name in claim_names(pod):
            claim = self.store(api.PERSISTENT_VOLUME_CLAIMS)[(namespace, name)]
            if status_of(claim).get("phase") == "Bound":
                continue
            waiting = True
            if not claim["spec"].get("volumeName") and SELECTED_NODE not in annotations_of(claim):
                patch = {"metadata": {"annotations": {SELECTED_NODE: node}}}
                await self.client.patch(api.PERSISTENT_VOLUME_CLAIMS, name, namespace, patch)
        return waiting

    async def _bind(self, pod: Object, node: str) -> None:
        metadata = pod["metadata"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await self.client.create(api.PODS, binding, metadata["namespace"], name=metadata["name"], subresource="binding")
        self._bound_to[metadata["uid"]] = node
        message = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node}"
        self.events.record(pod, "Normal", "Scheduled", message)

    async def _report_unschedulable(self, pod: Object, message: str) -> None:
        metadata = pod["metadata"]
        wanted = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        if generation := metadata.get("generation"):
            wanted["observedGeneration"] = generation
        conditions = status_of(pod).get("conditions") or []
        if any(wanted.items() <= entry.items() for entry in conditions):
            return
        self.events.record(pod, "Warning", "FailedScheduling", message)
        status = {**status_of(pod), "conditions": with_condition(conditions, wanted, now())}
        status.setdefault("phase", "Pending")
        await self.client.replace(api.PODS, {**pod, "metadata": metadata, "status": status}, subresource="status")
