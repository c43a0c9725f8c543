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
from dataclasses import dataclass, field, replace
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
    EVENTS,
    PODS,
    STATEFUL_SETS,
    KubeError,
    MemberError,
    Resource,
)
from raftkv_operator.observe.views import (
    Configuration,
    MemberState,
    NodeIdentity,
    NodePhase,
    NodeView,
    Retirement,
    Role,
    Settings,
    format_time,
)

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
        self.kube = FakeKube(self)
        if spec is not None:
            self.apply(spec)

    def fork(self) -> World:
        """A copy of this world as it is now."""
        return _copy(self)

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
        current["spec"] = _copy(spec)
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
        body = _copy(body)
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
        body = _copy(workload["spec"]["template"])
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


def _copy(value: Any) -> Any:
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


class FakeKube:
    """``observe.seams.Kube`` on the world."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        self.world.requests += 1
        return _copy(self.world.get(resource, name))

    async def select(self, resource: Resource, namespace: str, selector: str) -> list[Object]:
        self.world.requests += 1
        wished = dict(part.split("=") for part in selector.split(","))
        return [
            _copy(o) for o in self.world.of(resource) if wished.items() <= (o["metadata"].get("labels") or {}).items()
        ]

    async def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        world = self.world

        def run() -> Object:
            if resource is EVENTS:
                world.events.append(body)
                return body
            if world.get(resource, body["metadata"]["name"]) is not None:
                raise KubeError(409, "AlreadyExists", body["metadata"]["name"])
            return _copy(world.store(resource, body))

        return world.side_effect(f"create {resource.kind} {body['metadata']['name']}", run)

    async def replace(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        def run() -> Object:
            current = self._current(resource, name)
            if current["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
                raise KubeError(409, "Conflict", name)
            if resource is STATEFUL_SETS:
                for fixed in ("selector", "serviceName", "podManagementPolicy"):
                    if current["spec"][fixed] != body["spec"][fixed]:
                        raise KubeError(422, "Invalid", f"{fixed} is immutable")
            current.update(_copy(body))
            self.world.touch(current)
            return _copy(current)

        return self.world.side_effect(f"replace {resource.kind} {name}", run)

    async def merge(
        self, resource: Resource, namespace: str, name: str, patch: Object, subresource: str = ""
    ) -> Object:
        def run() -> Object:
            if "identity" in patch.get("status", {}):
                raise ViolationError("the latch was written by a merge patch")
            current = self._current(resource, name)
            uid = patch.get("metadata", {}).get("uid")
            if uid is not None and uid != current["metadata"]["uid"]:
                raise KubeError(409, "Conflict", "uid")
            _merge(current, patch)
            self.world.touch(current)
            return _copy(current)

        return self.world.side_effect(f"merge {resource.kind} {name} {subresource}", run)

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, patch: list[Any], subresource: str = ""
    ) -> Object:
        def run() -> Object:
            current = self._current(resource, name)
            if not any(op["op"] == "test" and op["path"] == "/metadata/resourceVersion" for op in patch):
                raise ViolationError("the latch was written without a test of the resourceVersion")
            for op in patch:
                keys = op["path"].strip("/").split("/")
                holder = current
                for key in keys[:-1]:
                    holder = holder[key]
                if op["op"] == "test" and holder.get(keys[-1]) != op["value"]:
                    raise KubeError(422, "Invalid", f"test of {op['path']} failed")
                if op["op"] == "add":
                    if op["path"] == "/status/identity":
                        self._check_latch(holder.get("identity"), op["value"])
                    holder[keys[-1]] = _copy(op["value"])
            self.world.touch(current)
            return _copy(current)

        return self.world.side_effect(f"latch {name}", run)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        def run() -> None:
            current = self.world.get(resource, name)
            if current is None or current["metadata"]["uid"] != uid:
                return
            if resource in (STATEFUL_SETS, CLAIMS, PODS):
                self.world.check_deletion(resource, current)
            self.world.objects.pop((resource.plural, name))

        self.world.side_effect(f"delete {resource.kind} {name}", run)

    def _current(self, resource: Resource, name: str) -> Object:
        current = self.world.get(resource, name)
        if current is None:
            raise KubeError(404, "NotFound", name)
        return current

    def _check_latch(self, old: Object | None, new: Object) -> None:
        """M1, M2: what was issued stays, numbers only grow."""
        if old is None:
            return
        if old["clusterID"] != new["clusterID"] or new["nextNumber"] < old["nextNumber"]:
            raise ViolationError("the latch was replaced")
        if old["phase"] == "Opened" and new["phase"] != "Opened":
            raise ViolationError("an opened cluster was closed")
        if old.get("founder") and new.get("founder") != old["founder"]:
            raise ViolationError("a second founder was chosen")
        before = {m["number"]: m for m in old.get("members", ())}
        for member in new["members"]:
            was = before.get(member["number"])
            if was is None and member["number"] < old["nextNumber"]:
                raise ViolationError("a number was issued twice")
            if was and "memberID" in was and was["memberID"] != member.get("memberID"):
                raise ViolationError("a member id was bound anew")
            if was and "diskUUID" in was and was["diskUUID"] != member.get("diskUUID"):
                raise ViolationError("a disk was bound anew")


def _merge(target: Object, patch: Object) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = _copy(value)


class FakeMembers:
    """``observe.seams.Members`` on the world: the rules of the nodes and of the leader."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _disk(self, address: str) -> tuple[Object, Disk]:
        ip = address.removesuffix(f":{constants.CLIENT_PORT}")
        for pod in self.world.of(PODS):
            if pod["status"].get("podIP") == ip:
                disk = self.world.disk_of(pod)
                if disk is not None:
                    return pod, disk
        raise MemberError("UNAVAILABLE", f"{address} does not answer")

    def _leader(self, address: str) -> Raft:
        _, disk = self._disk(address)
        raft = self.world.clusters.get(disk.identity.cluster_id) if disk.identity else None
        if raft is None or disk.identity is None or raft.leader != disk.identity.member_id:
            raise MemberError("FAILED_PRECONDITION", "etcdserver: not leader")
        if len(self.world.live_voters(raft)) < quorum(raft):
            raise MemberError("UNAVAILABLE", "no quorum")
        return raft

    def _change(self, address: str, decided_at: int) -> Raft:
        raft = self._leader(address)
        if decided_at != raft.index or raft.busy:
            raise MemberError("ABORTED", "the configuration has changed")
        return raft

    async def describe(self, address: str) -> NodeView:
        pod, disk = self._disk(address)
        number = int(pod["metadata"]["labels"][constants.LABEL_NUMBER])
        if disk.identity is None:
            return NodeView(NodePhase.WAITING, number, disk.uuid)
        raft = self.world.clusters[disk.identity.cluster_id]
        phase = NodePhase.OPENED if raft.settings.opened else NodePhase.LATCHED
        return NodeView(
            phase=phase,
            number=number,
            disk_uuid=disk.uuid,
            cluster_id=raft.cluster_id,
            member_id=disk.identity.member_id,
            leader_id=raft.leader,
            term=raft.term,
            version="0.1.0",
            durability="process",
            medium="file",
        )

    async def configuration(self, address: str) -> Configuration:
        raft = self._leader(address)
        live = self.world.live_ids(raft)
        return Configuration(
            cluster_id=raft.cluster_id,
            index=raft.index,
            changing=bool(raft.busy),
            leader_id=raft.leader,
            term=raft.term,
            members=tuple(
                MemberState(m, i.number, role, i.disk_uuid, 1, m in live, m in live)
                for m, (i, role) in raft.members.items()
            ),
            removed=frozenset(raft.removed),
            settings=raft.settings,
        )

    async def bootstrap(self, address: str, identity: NodeIdentity, settings: Settings) -> None:
        def run() -> None:
            world = self.world
            _, disk = self._disk(address)
            self._check_identity(disk, identity)
            if disk.identity is None:
                if world.clusters:
                    raise ViolationError("a second cluster was bootstrapped")
                disk.identity = identity
                world.clusters[identity.cluster_id] = Raft(
                    identity.cluster_id, 1, settings, {identity.member_id: (identity, Role.VOTER)}
                )

        self.world.side_effect("bootstrap", run)

    async def join(self, address: str, identity: NodeIdentity, peers: tuple[NodeIdentity, ...]) -> None:
        def run() -> None:
            _, disk = self._disk(address)
            self._check_identity(disk, identity)
            disk.identity = identity

        self.world.side_effect(f"join {identity.name}", run)

    def _check_identity(self, disk: Disk, identity: NodeIdentity) -> None:
        if disk.uuid != identity.disk_uuid:
            raise MemberError("FAILED_PRECONDITION", "another disk")
        if disk.identity not in (None, identity):
            raise MemberError("FAILED_PRECONDITION", "another identity")
        claim = self.world.get(CLAIMS, f"data-{NAME}-{identity.number}")
        notes = (claim or {"metadata": {}})["metadata"].get("annotations") or {}
        if notes.get(constants.ANNOTATION_MEMBER_ID) != f"{identity.member_id:016x}":
            raise ViolationError("an identity was given before it stood on the claim")
        for other in self.world.disks.values():
            if other is not disk and other.identity and other.identity.member_id == identity.member_id:
                raise ViolationError("one member id on two disks")

    async def add_member(self, address: str, decided_at: int, identity: NodeIdentity) -> None:
        def run() -> None:
            raft = self._change(address, decided_at)
            if identity.member_id in raft.removed:
                raise MemberError("FAILED_PRECONDITION", "removed for ever")
            raft.members[identity.member_id] = (identity, Role.LEARNER)
            raft.index, raft.busy = raft.index + 1, 1

        self.world.side_effect(f"add {identity.name}", run)

    async def remove_member(self, address: str, decided_at: int, member_id: int) -> None:
        def run() -> None:
            raft = self._change(address, decided_at)
            if member_id in raft_voters(raft):
                raise ViolationError("a voter was removed by the operator")
            raft.members.pop(member_id, None)
            raft.removed.add(member_id)
            raft.index, raft.busy = raft.index + 1, 1

        self.world.side_effect(f"remove {member_id:x}", run)

    async def set_settings(self, address: str, decided_at: int, settings: Settings) -> None:
        def run() -> None:
            raft = self._change(address, decided_at)
            if raft.settings.opened and not settings.opened:
                raise ViolationError("an opened cluster was closed")
            raft.settings = replace(settings, leaving=tuple(sorted(settings.leaving)))
            raft.index, raft.busy = raft.index + 1, 1

        self.world.side_effect(f"settings {settings}", run)

    async def move_leader(self, address: str, target: int) -> None:
        def run() -> None:
            raft = self._leader(address)
            if target not in self.world.live_voters(raft):
                raise MemberError("FAILED_PRECONDITION", "etcdserver: bad leader transferee")
            raft.leader, raft.term = target, raft.term + 1

        self.world.side_effect(f"move leader to {target:x}", run)

    async def retire(self, address: str, retirement: Retirement) -> None:
        def run() -> None:
            _, disk = self._disk(address)
            identity = disk.identity
            if identity is None or (identity.cluster_id, identity.member_id, disk.uuid) != (
                retirement.cluster_id,
                retirement.member_id,
                retirement.disk_uuid,
            ):
                raise MemberError("FAILED_PRECONDITION", "not me")
            if retirement.cluster_deleted:
                if "deletionTimestamp" not in self.world.cluster["metadata"]:
                    raise ViolationError("a living cluster was wiped")
            elif identity.member_id not in self.world.clusters[identity.cluster_id].removed:
                raise ViolationError("a member was wiped before it was removed")
            disk.uuid, disk.identity, disk.wiped = f"{self.world.next():032x}", None, True

        self.world.side_effect("retire", run)
