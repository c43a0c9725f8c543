"""The operator's two seams on the world in memory: a Kubernetes API, and nodes with a leader that keep the rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from operator_world import NAME, Disk, Raft, ViolationError, World, copy_of, quorum, raft_voters
from raftkv_operator.api import constants
from raftkv_operator.api.types import Object
from raftkv_operator.observe.seams import (
    CLAIMS,
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
    RestartTicket,
    Retirement,
    Role,
    Settings,
)


class FakeKube:
    """``observe.seams.Kube`` on the world."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        self.world.requests += 1
        return copy_of(self.world.get(resource, name))

    async def select(self, resource: Resource, namespace: str, selector: str) -> list[Object]:
        self.world.requests += 1
        wished = dict(part.split("=") for part in selector.split(","))
        return [
            copy_of(o) for o in self.world.of(resource) if wished.items() <= (o["metadata"].get("labels") or {}).items()
        ]

    async def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        world = self.world

        def run() -> Object:
            if resource is EVENTS:
                world.events.append(body)
                return body
            if world.get(resource, body["metadata"]["name"]) is not None:
                raise KubeError(409, "AlreadyExists", body["metadata"]["name"])
            return copy_of(world.store(resource, body))

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
            current.update(copy_of(body))
            self.world.touch(current)
            return copy_of(current)

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
            return copy_of(current)

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
                    holder[keys[-1]] = copy_of(op["value"])
            self.world.touch(current)
            return copy_of(current)

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

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        def run() -> None:
            current = self.world.get(PODS, name)
            if current is not None and current["metadata"]["uid"] == uid:
                self.world.check_deletion(PODS, current)
                self.world.objects.pop((PODS.plural, name))

        self.world.side_effect(f"evict {name}", run)

    def _current(self, resource: Resource, name: str) -> Object:
        current = self.world.get(resource, name)
        if current is None:
            raise KubeError(404, "NotFound", name)
        return current

    def _is_member(self, entry: Object) -> bool:
        """Whether the configuration has this very member: a lost status may have forgotten it."""
        member_id = int(entry.get("memberID", "0"), 16)
        found = [raft.members[member_id][0] for raft in self.world.clusters.values() if member_id in raft.members]
        return any((one.number, one.disk_uuid) == (entry["number"], entry["diskUUID"]) for one in found)

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
            if was is None and member["number"] < old["nextNumber"] and not self._is_member(member):
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
            target[key] = copy_of(value)


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
                if world.clusters and not self._begins_anew(identity):
                    raise ViolationError("a second cluster was bootstrapped")
                disk.identity = identity
                world.clusters[identity.cluster_id] = Raft(
                    identity.cluster_id, 1, settings, {identity.member_id: (identity, Role.VOTER)}
                )

        self.world.side_effect("bootstrap", run)

    def _begins_anew(self, identity: NodeIdentity) -> bool:
        """Whether a person has said so, and it was not obeyed before (M3)."""
        world = self.world
        word = world.cluster["spec"].get("bootstrap", {}).get("identity")
        uid = world.cluster["metadata"]["uid"]
        mine = f"{identity.cluster_id:016x}"
        notes = [claim["metadata"].get("annotations") or {} for claim in world.of(CLAIMS)]
        before = [
            one
            for one in notes
            if one.get(constants.ANNOTATION_ISSUED_FOR) == uid and one[constants.ANNOTATION_CLUSTER_ID] != mine
        ]
        return word == "New" and not before

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

    async def restart_ticket(self, address: str, decided_at: int, member_id: int) -> RestartTicket:
        def run() -> RestartTicket:
            raft = self._change(address, decided_at)
            voters, live = raft_voters(raft), self.world.live_voters(raft)
            if member_id == raft.leader and len(voters) > 1:
                return RestartTicket(False, "the leader hands over first")
            if member_id in voters and len(voters) > 1 and voters - live:
                return RestartTicket(False, "another voter is missing")
            raft.index += 1
            return RestartTicket(True, valid_seconds=30.0, sole_voter=voters == {member_id})

        return self.world.side_effect(f"ticket for {member_id:x}", run)

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
