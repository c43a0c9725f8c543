"""Deployments: a ReplicaSet per pod template, scaled against each other.

The ReplicaSet of a template is named ``<deployment>-<pod-template-hash>``. ``RollingUpdate`` grows the new one within
``maxSurge`` and shrinks the old ones as far as ``maxUnavailable`` lets it; ``Recreate`` empties the old ones first.
Failed progress is only reported (``ProgressDeadlineExceeded``), never undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raftkv_playground import client as api
from raftkv_playground.controllers.actions import Action, Create, Delete, Patch, Record
from raftkv_playground.controllers.runtime import Controller, Informers
from raftkv_playground.objects import (
    Key,
    Object,
    age_seconds,
    annotations_of,
    canonical,
    controlled_by,
    controller_of,
    deleting,
    edited,
    name_hash,
    now,
    owner_reference,
    percent_of,
    status_of,
    uid_of,
    with_condition,
)

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
PROGRESS_DEADLINE_SECONDS = 600
"""Kubernetes' default of ``spec.progressDeadlineSeconds``."""
HISTORY_LIMIT = 10


@dataclass(slots=True)
class Plan:
    actions: list[Action] = field(default_factory=list)
    status: Object = field(default_factory=dict)
    again_seconds: float | None = None


def _plain_template(replicaset: Object) -> str:
    """The template of a ReplicaSet without the hash label that was added to it, to compare with."""
    template = edited(replicaset["spec"]["template"])
    labels = (template.get("metadata") or {}).get("labels")
    if labels:
        labels.pop(HASH_LABEL, None)
    return canonical(template)


def build_replicaset(deployment: Object, revision: int, replicas: int, taken: set[str]) -> Object:
    template = edited(deployment["spec"]["template"])
    attempt = 0
    while True:
        digest = name_hash([template, attempt] if attempt else template)
        name = f"{deployment['metadata']['name']}-{digest}"
        if name not in taken:
            break
        attempt += 1
    metadata = template.setdefault("metadata", {})
    metadata["labels"] = {**(metadata.get("labels") or {}), HASH_LABEL: digest}
    selector = edited(deployment["spec"]["selector"])
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), HASH_LABEL: digest}
    spec: Object = {"replicas": replicas, "selector": selector, "template": template}
    if minimum := deployment["spec"].get("minReadySeconds"):
        spec["minReadySeconds"] = minimum
    return {
        "metadata": {
            "name": name,
            "namespace": deployment["metadata"]["namespace"],
            "labels": dict(metadata["labels"]),
            "annotations": {REVISION: str(revision)},
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": spec,
    }


def _size(replicaset: Object) -> int:
    return int(replicaset["spec"].get("replicas", 1))


def _available(replicaset: Object) -> int:
    return int(status_of(replicaset).get("availableReplicas") or 0)


def _revision(replicaset: Object) -> int:
    try:
        return int(annotations_of(replicaset).get(REVISION, "0"))
    except ValueError:
        return 0


def plan(deployment: Object, replicasets: Sequence[Object]) -> Plan:
    """What to do next for one Deployment, given the ReplicaSets that it controls. Pure."""
    result = Plan()
    wanted = int(deployment["spec"].get("replicas", 1))
    template = canonical(deployment["spec"]["template"])
    by_age = sorted(replicasets, key=lambda item: (item["metadata"].get("creationTimestamp") or "", _revision(item)))
    new = next((item for item in by_age if _plain_template(item) == template), None)
    old = [item for item in by_age if item is not new]
    last = max(map(_revision, replicasets), default=0)
    if not deleting(deployment) and not deployment["spec"].get("paused"):
        if new is None:
            _create_new(result, deployment, old, wanted, last + 1)
        else:
            if _revision(new) < last:
                _patch(result, new, {"metadata": {"annotations": {REVISION: str(last + 1)}}})
            _roll(result, deployment, new, old, wanted)
        _forget_old(result, deployment, old)
    _report(result, deployment, new, replicasets, wanted)
    return result


def _limits(deployment: Object, wanted: int) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods; never both 0."""
    rolling = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    surge = percent_of(rolling.get("maxSurge", "25%"), wanted, round_up=True, default=1)
    unavailable = percent_of(rolling.get("maxUnavailable", "25%"), wanted, round_up=False, default=0)
    return surge, (unavailable if surge or unavailable else 1)


def _recreate(deployment: Object) -> bool:
    return bool((deployment["spec"].get("strategy") or {}).get("type") == "Recreate")


def _new_size(deployment: Object, current: int, old: Sequence[Object], wanted: int) -> int:
    """How many pods the new ReplicaSet may have now."""
    if _recreate(deployment):
        gone = all(int(status_of(item).get("replicas") or 0) == 0 and _size(item) == 0 for item in old)
        return wanted if gone else current
    surge, _ = _limits(deployment, wanted)
    room = wanted + surge - sum(map(_size, old)) - current
    return min(wanted, current + max(0, room))


def _create_new(result: Plan, deployment: Object, old: Sequence[Object], wanted: int, revision: int) -> None:
    size = _new_size(deployment, 0, old, wanted)
    body = build_replicaset(deployment, revision, size, {item["metadata"]["name"] for item in old})
    result.actions.append(Create(api.REPLICA_SETS, body))
    message = f"Scaled up replica set {body['metadata']['name']} from 0 to {size}"
    result.actions.append(Record(deployment, "Normal", "ScalingReplicaSet", message))
    if _recreate(deployment):
        for item in old:
            _scale(result, deployment, item, 0)


def _scale(result: Plan, deployment: Object, replicaset: Object, size: int) -> None:
    before = _size(replicaset)
    if before == size:
        return
    _patch(result, replicaset, {"spec": {"replicas": size}})
    name, word = replicaset["metadata"]["name"], "up" if size > before else "down"
    message = f"Scaled {word} replica set {name} from {before} to {size}"
    result.actions.append(Record(deployment, "Normal", "ScalingReplicaSet", message))


def _patch(result: Plan, replicaset: Object, patch: Object) -> None:
    metadata = replicaset["metadata"]
    result.actions.append(Patch(api.REPLICA_SETS, metadata["namespace"], metadata["name"], patch))


def _roll(result: Plan, deployment: Object, new: Object, old: Sequence[Object], wanted: int) -> None:
    size = wanted if _size(new) > wanted else _new_size(deployment, _size(new), old, wanted)
    _scale(result, deployment, new, size)
    if _recreate(deployment):
        spare = sum(map(_size, old))
    else:
        _, unavailable = _limits(deployment, wanted)
        available = _available(new) + sum(map(_available, old))
        spare = max(0, available - (wanted - unavailable))
        # Pods of an old template that do not work help nobody: they go without counting.
        for item in old:
            broken = _size(item) - _available(item)
            if broken > 0 and _available(new) >= wanted:
                spare += broken
    for item in old:
        less = min(_size(item), spare)
        if less:
            _scale(result, deployment, item, _size(item) - less)
            spare -= less


def _forget_old(result: Plan, deployment: Object, old: Sequence[Object]) -> None:
    limit = deployment["spec"].get("revisionHistoryLimit")
    empty = [item for item in old if _size(item) == 0 and not status_of(item).get("replicas") and not deleting(item)]
    empty.sort(key=_revision)
    for item in empty[: max(0, len(empty) - (HISTORY_LIMIT if limit is None else limit))]:
        metadata = item["metadata"]
        result.actions.append(Delete(api.REPLICA_SETS, metadata["namespace"], metadata["name"], uid_of(item)))


def _report(result: Plan, deployment: Object, new: Object | None, replicasets: Sequence[Object], wanted: int) -> None:
    before = status_of(deployment)

    def total(name: str) -> int:
        return sum(int(status_of(item).get(name) or 0) for item in replicasets)

    replicas, available = total("replicas"), total("availableReplicas")
    updated = int(status_of(new).get("replicas") or 0) if new else 0
    counts = {
        "observedGeneration": deployment["metadata"].get("generation", 1),
        "replicas": replicas,
        "updatedReplicas": updated,
        "readyReplicas": total("readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(0, wanted - available),
    }
    status: Object = {name: value for name, value in counts.items() if value}
    unavailable = wanted if _recreate(deployment) else _limits(deployment, wanted)[1]
    conditions = with_condition(before.get("conditions") or [], _availability(available >= wanted - unavailable))
    complete = new is not None and updated == replicas == available == wanted
    changed = any(before.get(name, 0) != value for name, value in counts.items() if name != "observedGeneration")
    conditions = with_condition(conditions, _progress(result, deployment, new, complete=complete, changed=changed))
    for entry in conditions:
        entry.setdefault("lastUpdateTime", entry["lastTransitionTime"])
    status["conditions"] = conditions
    result.status = status


def _availability(enough: bool) -> Object:
    if enough:
        return {
            "type": "Available",
            "status": "True",
            "reason": "MinimumReplicasAvailable",
            "message": "Deployment has minimum availability.",
        }
    return {
        "type": "Available",
        "status": "False",
        "reason": "MinimumReplicasUnavailable",
        "message": "Deployment does not have minimum availability.",
    }


def _progress(result: Plan, deployment: Object, new: Object | None, *, complete: bool, changed: bool) -> Object:
    """The ``Progressing`` condition; ``lastUpdateTime`` is when progress was last seen."""
    before: Object = next((c for c in status_of(deployment).get("conditions") or [] if c["type"] == "Progressing"), {})
    name = f'ReplicaSet "{new["metadata"]["name"]}"' if new else "The new ReplicaSet"
    base = {"type": "Progressing", "status": "True"}
    last = before.get("lastUpdateTime")
    if complete:
        done = before.get("reason") == "NewReplicaSetAvailable" and last
        message = f"{name} has successfully progressed."
        return {
            **base, "reason": "NewReplicaSetAvailable", "message": message, "lastUpdateTime": last if done else now()
        }  # fmt: skip
    deadline = deployment["spec"].get("progressDeadlineSeconds") or PROGRESS_DEADLINE_SECONDS
    if changed or not last or before.get("reason") == "NewReplicaSetAvailable":
        last = now()
    if age_seconds(last) > deadline:
        message = f"{name} has timed out progressing."
        return {**base, "status": "False", "reason": "ProgressDeadlineExceeded", "message": message,
                "lastUpdateTime": last}  # fmt: skip
    result.again_seconds = deadline - age_seconds(last) + 1
    return {**base, "reason": "ReplicaSetUpdated", "message": f"{name} is progressing.", "lastUpdateTime": last}


class DeploymentController(Controller):
    name = "deployment-controller"
    primary = api.DEPLOYMENTS

    def __init__(self, client: api.ApiClient, informers: Informers) -> None:
        super().__init__(client, informers)
        self.trigger(api.REPLICA_SETS, self._deployment_of)

    def _deployment_of(self, replicaset: Object) -> list[Key]:
        owner = controller_of(replicaset)
        if owner is None or owner["kind"] != "Deployment":
            return []
        return [(replicaset["metadata"]["namespace"], owner["name"])]

    async def sync(self, key: Key) -> float | None:
        deployment = self.store(api.DEPLOYMENTS).get(key)
        if deployment is None:
            return None
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", **deployment}
        mine = [item for item in self.store(api.REPLICA_SETS).values() if controlled_by(item, deployment)]
        result = plan(deployment, mine)
        await self.perform(result.actions)
        revision = str(max(map(_revision, mine), default=0))
        if mine and annotations_of(deployment).get(REVISION) != revision:
            patch = {"metadata": {"annotations": {REVISION: revision}}}
            deployment = await self.client.patch(api.DEPLOYMENTS, key[1], key[0], patch)
        if result.status != status_of(deployment):
            await self.client.replace(api.DEPLOYMENTS, {**deployment, "status": result.status}, subresource="status")
        return result.again_seconds
