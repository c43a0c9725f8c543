"""A whole world for the operator in memory: an API server, StatefulSets that make pods, nodes with disks, and Raft.

It is as strict as the real things where the operator's safety hangs on them: compare-and-swap on the resourceVersion,
uid preconditions, immutable fields, a node that refuses another's identity, a leader that refuses what M8 to M10
forbid. And it watches: whatever must never happen raises ``ViolationError`` at the very call that makes it happen. A
crash of the operator is planned as "before or after the n-th side effect" and raised as ``OperatorCrash``, which
nothing catches.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from raftkv_operator.api import constants
from raftkv_operator.api.types import ClusterSpec, Object
from raftkv_operator.decide import Rest
from raftkv_operator.loop import ClusterLoop, Pass
from raftkv_operator.observe.seams import (
    CLAIMS,
    CLUSTERS,
    NODES,
    PODS,
    STATEFUL_SETS,
    Resource,
)
from raftkv_operator.observe.views import (
    NodeIdentity,
    Role,
    Settings,
    format_time,
)
from raftkv_operator.observe.zones import LABEL_ZONE

NAMESPACE = "default"
NAME = "demo"
_RUNNER = asyncio.Runner()
HOSTS = ("n1", "n2", "n3", "n4", "n5", "n6", "n7")


class ViolationError(BaseException):
    """Something that must never happen has happened. Not an ``Exception``: the operator must not get over it."""


class OperatorCrash(BaseException):
    """The operator's process is gone at this point."""


@dataclass
class Disk:
    """What lies on a claim."""

    uuid: str
    identity: NodeIdentity | None = None
    wiped: bool = False


@dataclass
class Raft:
    """One Raft cluster, its consensus taken for granted: what a quorum of it holds."""

    cluster_id: int
    index: int
    settings: Settings
    members: dict[int, tuple[NodeIdentity, Role]]
    removed: set[int] = field(default_factory=set)
    leader: int = 0
    term: int = 1
    busy: int = 0
    """Ticks until the latest change is committed."""


class World:
    """Everything outside the operator."""

    def __init__(self, spec: Object | None = None) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.objects: dict[tuple[str, str], Object] = {}
        self.disks: dict[str, Disk] = {}
        self.clusters: dict[int, Raft] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        """Claim uid to the exit code and message with which its node refuses."""
        self.dead_hosts: set[str] = set()
        self.events: list[Object] = []
        self.writes: list[str] = []
        self.requests = 0
        self.side_effects = 0
        self.crash_at: tuple[int, str] | None = None
        self.fail_next: list[Exception] = []
        self._count = 0
        from operator_fakes import FakeKube

        self.kube = FakeKube(self)
        for number, host in enumerate(HOSTS):
            labels = {LABEL_ZONE: f"zone-{'abc'[number % 3]}"}
            self.store(NODES, {"metadata": {"name": host, "labels": labels}})
        if spec is not None:
            self.apply(spec)

    def fork(self) -> World:
        """A copy of this world as it is now."""
        return copy_of(self)

    def next(self) -> int:
        """A number never given before."""
        self._count += 1
        return self._count

    # --- what a person does ---

    def apply(self, spec: Object) -> None:
        """Creates the custom resource or replaces its spec."""
        current = self.objects.get(("raftkvclusters", NAME))
        if current is None:
            body = {
                "metadata": {"name": NAME, "namespace": NAMESPACE, "finalizers": [constants.FINALIZER]},
                "spec": spec,
            }
            self.store(CLUSTERS, body)
            return
        current["spec"] = copy_of(spec)
        current["metadata"]["generation"] += 1
        self.touch(current)

    def scale(self, replicas: int) -> None:
        """``kubectl scale``."""
        self.apply({**self.cluster["spec"], "replicas": replicas})

    def delete_cluster(self) -> None:
        """``kubectl delete``: the finalizer holds the object."""
        self.cluster["metadata"].setdefault("deletionTimestamp", format_time(self.now))
        self.touch(self.cluster)

    @property
    def cluster(self) -> Object:
        """The custom resource."""
        return self.objects["raftkvclusters", NAME]

    @property
    def spec(self) -> ClusterSpec:
        """Its spec."""
        return ClusterSpec.parse(self.cluster["spec"])

    @property
    def status(self) -> Object:
        """Its status."""
        found: Object = self.cluster.get("status") or {}
        return found

    def condition(self, kind: str) -> Object:
        """One condition of the status."""
        found: Object = next(c for c in self.status["conditions"] if c["type"] == kind)
        return found

    # --- the store ---

    def store(self, resource: Resource, body: Object) -> Object:
        """Creates an object with the metadata that a server gives."""
        body = copy_of(body)
        meta = body["metadata"]
        number = self.next()
        meta.update(uid=f"uid-{number}", resourceVersion=str(number), generation=1)
        meta.setdefault("namespace", NAMESPACE)
        meta["creationTimestamp"] = format_time(self.now)
        self.objects[resource.plural, meta["name"]] = body
        return body

    def touch(self, body: Object) -> None:
        """A write happened."""
        body["metadata"]["resourceVersion"] = str(self.next())

    def of(self, resource: Resource) -> list[Object]:
        """All objects of a kind."""
        return [o for (plural, _), o in sorted(self.objects.items()) if plural == resource.plural]

    def get(self, resource: Resource, name: str) -> Object | None:
        """One object."""
        return self.objects.get((resource.plural, name))

    # --- side effects, counted, crashed at and watched ---

    def side_effect(self, words: str, run: Callable[[], Any]) -> Any:
        """Runs one side effect of the operator; a planned crash or failure strikes here."""
        self.side_effects += 1
        self.writes.append(words)
        planned = self.crash_at
        if planned == (self.side_effects, "before"):
            raise OperatorCrash(words)
        if self.fail_next:
            raise self.fail_next.pop(0)
        result = run()
        if planned == (self.side_effects, "after"):
            raise OperatorCrash(words)
        return result

    def check_deletion(self, resource: Resource, body: Object) -> None:
        """M10, and never below a quorum: what the operator may take away."""
        if "deletionTimestamp" in self.cluster["metadata"]:
            return
        number = int(body["metadata"]["labels"][constants.LABEL_NUMBER])
        claim = self.get(CLAIMS, f"data-{NAME}-{number}")
        disk = self.disks.get(claim["metadata"]["uid"]) if claim else None
        identity = disk.identity if disk else None
        if identity is None or disk is None or disk.wiped:
            return
        raft = self.clusters[identity.cluster_id]
        if resource is PODS:
            live = self.live_voters(raft)
            if identity.member_id in live and len(raft_voters(raft)) > 1 and len(live) - 1 < quorum(raft):
                raise ViolationError(f"restarting {identity.name} would cost the quorum")
        elif identity.member_id not in raft.removed:
            raise ViolationError(f"{resource.kind} of {identity.name} deleted before its id was removed")

    # --- nodes and raft ---

    def disk_of(self, pod: Object) -> Disk | None:
        """The disk on which a pod's node runs; None if it does not run."""
        host = pod["spec"].get("nodeName")
        if "deletionTimestamp" in pod["metadata"] or not host or host in self.dead_hosts:
            return None
        number = pod["metadata"]["labels"][constants.LABEL_NUMBER]
        claim = self.get(CLAIMS, f"data-{NAME}-{number}")
        if claim is None or claim["metadata"]["uid"] in self.refusals:
            return None
        return self.disks.setdefault(claim["metadata"]["uid"], Disk(f"{self.next():032x}"))

    def running(self) -> dict[int, Disk]:
        """Disks of all running nodes by number."""
        found = {}
        for pod in self.of(PODS):
            disk = self.disk_of(pod)
            if disk is not None:
                found[int(pod["metadata"]["labels"][constants.LABEL_NUMBER])] = disk
        return found

    def live_ids(self, raft: Raft) -> set[int]:
        """Members of a cluster whose nodes run."""
        return {
            disk.identity.member_id
            for disk in self.running().values()
            if disk.identity is not None and disk.identity.cluster_id == raft.cluster_id
        }

    def live_voters(self, raft: Raft) -> set[int]:
        """Voters whose nodes run."""
        return self.live_ids(raft) & raft_voters(raft)

    def tick(self, seconds: float = 1.0) -> None:
        """Time passes: controllers make and remove pods, nodes start, leaders are elected, roles are adjusted."""
        self.now += timedelta(seconds=seconds)
        for workload in self.of(STATEFUL_SETS):
            self._run_stateful_set(workload)
        for pod in self.of(PODS):
            owner = self.get(STATEFUL_SETS, pod["metadata"]["name"].removesuffix("-0"))
            if owner is None or owner["metadata"]["uid"] != pod["metadata"]["ownerReferences"][0]["uid"]:
                self.objects.pop(("pods", pod["metadata"]["name"]))
        for raft in self.clusters.values():
            self._run_raft(raft)
        for pod in self.of(PODS):
            self._run_pod(pod)

    def _run_stateful_set(self, workload: Object) -> None:
        name = workload["metadata"]["name"]
        pod = self.get(PODS, f"{name}-0")
        if workload["spec"]["replicas"] == 0:
            self.objects.pop(("pods", f"{name}-0"), None)
            return
        claim = workload["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        if pod is not None or self.get(CLAIMS, claim) is None:
            return
        host = workload["metadata"]["annotations"].get(constants.ANNOTATION_HOST)
        body = copy_of(workload["spec"]["template"])
        body["metadata"]["name"] = f"{name}-0"
        body["metadata"]["ownerReferences"] = [{"uid": workload["metadata"]["uid"], "controller": True}]
        free = [h for h in HOSTS if h not in self.dead_hosts]
        if host in self.dead_hosts:
            host = None
        elif not host:
            taken = [p["spec"].get("nodeName") for p in self.of(PODS)]
            host = min(free, key=taken.count)
        if host:
            body["spec"]["nodeName"] = host
        body["status"] = {"podIP": f"10.0.0.{self.next()}"} if host else {"phase": "Pending"}
        self.store(PODS, body)

    def _run_pod(self, pod: Object) -> None:
        number = pod["metadata"]["labels"][constants.LABEL_NUMBER]
        claim = self.get(CLAIMS, f"data-{NAME}-{number}")
        refusal = self.refusals.get(claim["metadata"]["uid"]) if claim else None
        status = pod["status"]
        if refusal is not None:
            ended = {"exitCode": refusal[0], "message": refusal[1]}
            status["containerStatuses"] = [{"state": {"terminated": ended}, "lastState": {}, "restartCount": 1}]
            status["conditions"] = [{"type": "Ready", "status": "False"}]
            return
        disk = self.disk_of(pod)
        if disk is None:
            status["conditions"] = [{"type": "Ready", "status": "False"}]
            return
        status["containerStatuses"] = [{"state": {"running": {}}, "lastState": {}, "restartCount": 0}]
        status["conditions"] = [{"type": "Ready", "status": "True" if self._ready(disk) else "False"}]

    def _ready(self, disk: Disk) -> bool:
        raft = self.clusters.get(disk.identity.cluster_id) if disk.identity else None
        return raft is not None and disk.identity is not None and bool(raft.leader) and raft.settings.opened

    def _run_raft(self, raft: Raft) -> None:
        live = self.live_voters(raft)
        if len(live) < quorum(raft):
            raft.leader = 0
            return
        if raft.leader not in live:
            raft.leader, raft.term = min(live), raft.term + 1
            return
        if raft.busy:
            raft.busy -= 1
            return
        self._adjust_roles(raft)

    def _adjust_roles(self, raft: Raft) -> None:
        """The leader's part of M7 to M9: one joint step to the wished voters, if a quorum of the new ones lives."""
        live = self.live_ids(raft)
        settings = raft.settings
        staying = [m for m in raft.members if m not in settings.leaving]
        number = odd(min(settings.replicas, settings.max_voters, len(staying)))
        fit = [
            m
            for m, (_, role) in raft.members.items()
            if role is Role.VOTER or (m in live and m not in settings.leaving)
        ]
        fit.sort(
            key=lambda m: (
                m in settings.leaving,
                m not in live,
                raft.members[m][1] is not Role.VOTER,
                m != raft.leader,
                m,
            )
        )
        wished = set(fit[: odd(min(number, len(fit)))])
        if not wished or wished == raft_voters(raft) or len(wished & live) < len(wished) // 2 + 1:
            return
        for m, (identity, _) in raft.members.items():
            raft.members[m] = (identity, Role.VOTER if m in wished else Role.STANDBY)
        raft.index += 1
        raft.busy = 1
        if raft.leader not in wished:
            raft.leader = 0

    # --- the operator ---

    def operator(self, **options: Any) -> ClusterLoop:
        """A freshly started operator's loop for the cluster."""
        from operator_fakes import FakeMembers

        return ClusterLoop(
            (NAMESPACE, NAME), self.kube, lambda _token: FakeMembers(self), clock=lambda: self.now, **options
        )

    def step(self, loop: ClusterLoop) -> Pass:
        """One pass, then one second."""
        result = _RUNNER.run(loop.step())
        self.tick()
        return result

    def settle(self, loop: ClusterLoop | None = None, passes: int = 400) -> ClusterLoop:
        """Passes until the operator rests; fails if it never does. A crash starts a new operator."""
        loop = loop or self.operator()
        last: Pass | None = None
        for _ in range(passes):
            try:
                last = self.step(loop)
            except OperatorCrash:
                self.crash_at = None
                loop = self.operator()
                continue
            if isinstance(last.decision, Rest) or last.gone:
                return loop
        raise AssertionError(f"not at rest after {passes} passes: {last}; last writes: {self.writes[-12:]}")

    def check_settled(self) -> None:
        """The wish is fulfilled and nothing is left over."""
        spec = self.spec
        (raft,) = [r for r in self.clusters.values() if r.settings.opened]
        assert len(raft.members) == spec.replicas
        assert len(raft_voters(raft)) == spec.wished_voters
        assert len(self.of(STATEFUL_SETS)) == len(self.of(PODS)) == spec.replicas
        assert {i.number for i, _ in raft.members.values()} == {m["number"] for m in self.status["identity"]["members"]}
        assert self.condition("Ready")["status"] == "True"
        assert self.status["readyReplicas"] == spec.replicas


@cache
def _settled(replicas: int) -> World:
    world = World(sample(replicas))
    world.settle()
    return world


def settled(replicas: int) -> World:
    """A cluster of so many members, created and at rest."""
    return _settled(replicas).fork()


def sample(replicas: int = 3, **storage: str) -> Object:
    """A spec as the API server would default it."""
    return {
        "replicas": replicas,
        "logBuffer": {
            "medium": "PersistentMemory",
            "minimumDurability": "process",
            "source": {"hostPath": {"path": "/mnt/pmem0/raftkv"}},
        },
        "storage": {"retentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete", **storage}},
    }


def copy_of(value: Any) -> Any:
    """A deep copy of plain data; several times faster than ``copy.deepcopy``."""
    return pickle.loads(pickle.dumps(value))


def raft_voters(raft: Raft) -> set[int]:
    """The voters' ids."""
    return {m for m, (_, role) in raft.members.items() if role is Role.VOTER}


def quorum(raft: Raft) -> int:
    """How many voters make a quorum."""
    return len(raft_voters(raft)) // 2 + 1


def odd(number: int) -> int:
    """The largest odd number not above it."""
    return number if number % 2 else number - 1
