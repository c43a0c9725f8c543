"""From an action to its one call. Each call is idempotent or conditional on what the decision saw."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from raftkv_operator.api import constants
from raftkv_operator.api.types import ClusterSpec, Latch, Names, Object, hex_id
from raftkv_operator.decide import actions as do
from raftkv_operator.observe.seams import CLAIMS, CLUSTERS, PODS, STATEFUL_SETS, Kube, KubeError, Members
from raftkv_operator.observe.views import Observed
from raftkv_operator.resources import member as member_objects
from raftkv_operator.resources.common import Owner
from raftkv_operator.resources.shared import Shared, in_place, shared_objects


class NameTakenError(Exception):
    """An object of a member's name belongs to someone else; ``number`` must be skipped."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"{what} belongs to another owner")
        self.number = number


class NotNowError(Exception):
    """An action was refused for now, by someone whose leave it needs; the text says why."""


@dataclass(frozen=True, slots=True)
class Executor:
    """Carries out actions for one cluster as it was observed."""

    kube: Kube
    members: Members
    spec: ClusterSpec
    seen: Observed

    async def run(self, action: do.Action) -> None:
        """Carries out one action. ``KubeError``, ``MemberError`` or ``NameTakenError`` if it did not happen."""
        if isinstance(action, do.WriteLatch):
            await self._write_latch(action.latch)
        elif isinstance(action, (do.ApplyShared, do.DeleteShared)):
            await self._shared(action)
        elif isinstance(action, do.MemberAction) and await self._on_kubernetes(action):
            return
        else:
            await self._on_members(action)

    async def _write_latch(self, latch: Latch) -> None:
        """Compare-and-swap on the resourceVersion of the fresh read that the decision was made on (M2)."""
        seen = self.seen
        await self.kube.json_patch(
            CLUSTERS,
            seen.namespace,
            seen.name,
            [
                {"op": "test", "path": "/metadata/resourceVersion", "value": seen.resource_version},
                {"op": "test", "path": "/metadata/uid", "value": seen.uid},
                *([] if seen.has_status else [{"op": "add", "path": "/status", "value": {}}]),
                {"op": "add", "path": "/status/identity", "value": latch.to_status()},
            ],
            "status",
        )

    async def _shared(self, action: do.ApplyShared | do.DeleteShared) -> None:
        wished = next(s for s in shared_objects(self._owner(), secrets.token_urlsafe(32)) if s.key == action.key)
        namespace = self.seen.namespace
        actual = await self.kube.get(wished.resource, namespace, wished.name)
        if isinstance(action, do.DeleteShared):
            if actual is not None:
                await self.kube.delete(wished.resource, namespace, wished.name, actual["metadata"]["uid"])
        elif actual is None:
            await self.kube.create(wished.resource, namespace, wished.body)
        elif not in_place(actual, wished):
            await self.kube.merge(wished.resource, namespace, wished.name, _correction(wished))

    async def _on_kubernetes(self, action: do.MemberAction) -> bool:
        """Whether it was one of the actions on Kubernetes objects, which is then done."""
        namespace = self.seen.namespace
        match action:
            case do.CreateClaim(number=number):
                body = member_objects.claim(self.spec, self._owner(), number)
                await self._create_claim(number, body)
            case do.CreateStatefulSet(number=number):
                body = member_objects.stateful_set(self.spec, self._owner(), number)
                await self._create_set(number, body)
            case do.UpdateStatefulSet():
                await self._update_set(action)
            case do.StampClaim():
                name = Names(namespace, self.seen.name).claim(action.number)
                notes = {
                    constants.ANNOTATION_CLUSTER_ID: hex_id(action.cluster_id),
                    constants.ANNOTATION_MEMBER_ID: hex_id(action.member_id),
                    constants.ANNOTATION_DISK_UUID: action.disk_uuid,
                    constants.ANNOTATION_ISSUED_FOR: self.seen.uid,
                }
                patch = {"metadata": {"uid": action.claim_uid, "annotations": notes}}
                await self.kube.merge(CLAIMS, namespace, name, patch)
            case do.NoteConfiguration(claim_uid=uid, configuration=configuration):
                name = Names(namespace, self.seen.name).claim(action.number)
                notes = {constants.ANNOTATION_CONFIGURATION: configuration.encode()}
                await self.kube.merge(CLAIMS, namespace, name, {"metadata": {"uid": uid, "annotations": notes}})
            case do.RestartMember():
                await self._restart(action)
            case do.DeleteStatefulSet(name=name, uid=uid):
                await self.kube.delete(STATEFUL_SETS, namespace, name, uid)
            case do.DeleteClaim(name=name, uid=uid):
                await self.kube.delete(CLAIMS, namespace, name, uid)
            case _:
                return False
        return True

    async def _restart(self, action: do.RestartMember) -> None:
        """M11: the decision may have grown old, so the leader has the last word, and a budget may object."""
        namespace = self.seen.namespace
        name = Names(namespace, self.seen.name).pod(action.number)
        if action.wish is None:
            await self.kube.delete(PODS, namespace, name, action.pod_uid)
            return
        wish, asked = action.wish, time.monotonic()
        ticket = await self.members.restart_ticket(wish.address, wish.decided_at, wish.member_id)
        if not ticket.granted:
            raise NotNowError(ticket.reason)
        if time.monotonic() - asked >= ticket.valid_seconds:
            raise NotNowError("the leader's leave came too late")
        try:
            await self.kube.evict(namespace, name, action.pod_uid)
        except KubeError as error:
            if error.code != 429:
                raise
            raise NotNowError(f"a disruption budget forbids it: {error.message}") from error

    async def _create_claim(self, number: int, body: Object) -> None:
        try:
            await self.kube.create(CLAIMS, self.seen.namespace, body)
        except KubeError as error:
            if error.code != 409:
                raise
            name = body["metadata"]["name"]
            actual = await self.kube.get(CLAIMS, self.seen.namespace, name)
            labels = (actual or {"metadata": {}})["metadata"].get("labels") or {}
            if actual is not None and labels.get(constants.LABEL_CLUSTER) != self.seen.name:
                raise NameTakenError(number, f"claim {name}") from error

    async def _create_set(self, number: int, body: Object) -> None:
        try:
            await self.kube.create(STATEFUL_SETS, self.seen.namespace, body)
        except KubeError as error:
            if error.code != 409:
                raise
            name = body["metadata"]["name"]
            actual = await self.kube.get(STATEFUL_SETS, self.seen.namespace, name)
            owners = (actual or {"metadata": {}})["metadata"].get("ownerReferences") or ()
            if actual is not None and not any(o.get("uid") == self.seen.uid for o in owners):
                raise NameTakenError(number, f"StatefulSet {name}") from error

    async def _update_set(self, action: do.UpdateStatefulSet) -> None:
        name = Names(self.seen.namespace, self.seen.name).member(action.number)
        actual = await self.kube.get(STATEFUL_SETS, self.seen.namespace, name)
        if actual is None or actual["metadata"]["resourceVersion"] != action.resource_version:
            raise KubeError(409, "Conflict", f"StatefulSet {name} has changed")
        wished = member_objects.stateful_set(
            self.spec,
            self._owner(),
            action.number,
            replicas=action.replicas,
            host=action.host,
            halted=action.halted,
        )
        notes = {k: v for k, v in (actual["metadata"].get("annotations") or {}).items() if k not in _OUR_NOTES}
        actual["metadata"]["annotations"] = {**notes, **wished["metadata"]["annotations"]}
        actual["spec"]["replicas"] = action.replicas
        actual["spec"]["template"] = wished["spec"]["template"]
        actual["spec"]["updateStrategy"] = wished["spec"]["updateStrategy"]
        await self.kube.replace(STATEFUL_SETS, self.seen.namespace, name, actual)

    async def _on_members(self, action: do.Action) -> None:
        match action:
            case do.Bootstrap(address=address, identity=identity, settings=settings):
                await self.members.bootstrap(address, identity, settings)
            case do.Join(address=address, identity=identity, peers=peers):
                await self.members.join(address, identity, peers)
            case do.AddMember(address=address, decided_at=index, identity=identity):
                await self.members.add_member(address, index, identity)
            case do.RemoveMember(address=address, decided_at=index, member_id=member_id):
                await self.members.remove_member(address, index, member_id)
            case do.SetSettings(address=address, decided_at=index, settings=settings):
                await self.members.set_settings(address, index, settings)
            case do.MoveLeader(address=address, target_id=target):
                await self.members.move_leader(address, target)
            case do.Retire(address=address, retirement=retirement):
                await self.members.retire(address, retirement)
            case _:
                raise AssertionError(f"no executor for {action!r}")

    def _owner(self) -> Owner:
        latch = self.seen.latch
        if latch is None:
            raise AssertionError("objects are made only for a cluster with an identity")
        return Owner(Names(self.seen.namespace, self.seen.name), self.seen.uid, latch.cluster_id)


_OUR_NOTES = (constants.ANNOTATION_TEMPLATE, constants.ANNOTATION_HOST, constants.ANNOTATION_HALTED)


def _correction(wished: Shared) -> Object:
    body: Object = {key: wished.body[key] for key in ("spec", "data") if key in wished.body}
    return {**body, "metadata": {"labels": wished.body["metadata"]["labels"]}}
