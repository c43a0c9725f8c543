"""ReplicaSets: so many pods of one template, without names of their own.

Pods have generated names, so a copy of the API that lags could make the controller create too many. What was created
but not yet seen is therefore counted (``_expected``) until the informer shows it or ``EXPECTATION_SECONDS`` pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from raftkv_playground import client as api
from raftkv_playground.controllers.actions import Action, Create, Delete, Record
from raftkv_playground.controllers.runtime import Controller, Informers
from raftkv_playground.objects import (
    Key,
    Object,
    controlled_by,
    deleting,
    edited,
    key_of,
    labels_of,
    owner_reference,
    pod_available,
    pod_finished,
    pod_ready,
    status_of,
    uid_of,
)

EXPECTATION_SECONDS = 30.0
CREATE_BURST_PODS = 50
"""At most so many pods are created in one pass; the rest follows in the next."""


def build_pod(replicaset: Object) -> Object:
    template = edited(replicaset["spec"]["template"])
    source = template.get("metadata") or {}
    metadata: Object = {
        "generateName": f"{replicaset['metadata']['name']}-",
        "namespace": replicaset["metadata"]["namespace"],
        "labels": source.get("labels") or {},
        "ownerReferences": [owner_reference(replicaset)],
    }
    if source.get("annotations"):
        metadata["annotations"] = source["annotations"]
    return {"metadata": metadata, "spec": template["spec"]}


def removal_rank(pod: Object) -> tuple[Any, ...]:
    """Whom to delete first: not bound, pending, not ready, then the youngest."""
    phase = {"Pending": 0, "Unknown": 1}.get(status_of(pod).get("phase", "Pending"), 2)
    created = pod["metadata"].get("creationTimestamp") or ""
    return (bool(pod["spec"].get("nodeName")), phase, pod_ready(pod), tuple(-ord(c) for c in created))


def plan(replicaset: Object, pods: Sequence[Object], expected: int) -> list[Action]:
    """``pods`` are those it controls, ``expected`` the number that was created but not seen yet. Pure."""
    live = [pod for pod in pods if not deleting(pod) and not pod_finished(pod)]
    missing = int(replicaset["spec"].get("replicas", 1)) - len(live) - expected
    if missing > 0:
        return [Create(api.PODS, build_pod(replicaset)) for _ in range(min(missing, CREATE_BURST_PODS))]
    actions: list[Action] = []
    for pod in sorted(live, key=removal_rank)[: max(0, -missing)]:
        name = pod["metadata"]["name"]
        actions.append(Delete(api.PODS, pod["metadata"]["namespace"], name, uid_of(pod)))
        actions.append(Record(replicaset, "Normal", "SuccessfulDelete", f"Deleted pod: {name}"))
    return actions


def status(replicaset: Object, pods: Sequence[Object]) -> Object:
    live = [pod for pod in pods if not deleting(pod) and not pod_finished(pod)]
    wanted = (replicaset["spec"]["template"].get("metadata") or {}).get("labels") or {}
    result: Object = {
        "replicas": len(live),
        "fullyLabeledReplicas": sum(wanted.items() <= labels_of(pod).items() for pod in live),
        "readyReplicas": sum(map(pod_ready, live)),
        "availableReplicas": sum(pod_available(pod, replicaset["spec"].get("minReadySeconds") or 0) for pod in live),
        "observedGeneration": replicaset["metadata"].get("generation", 1),
    }
    return {name: value for name, value in result.items() if value or name == "replicas"}


class ReplicaSetController(Controller):
    name = "replicaset-controller"
    primary = api.REPLICA_SETS

    def __init__(self, client: api.ApiClient, informers: Informers) -> None:
        super().__init__(client, informers)
        self._expected: dict[Key, dict[Key, float]] = {}
        self.trigger(api.PODS, self.keys_of_owned)

    def _still_expected(self, key: Key) -> int:
        clock, pods = asyncio.get_running_loop().time(), self.store(api.PODS)
        kept = {pod: until for pod, until in self._expected.get(key, {}).items() if pod not in pods and until > clock}
        self._expected[key] = kept
        return len(kept)

    async def sync(self, key: Key) -> float | None:
        replicaset = self.store(api.REPLICA_SETS).get(key)
        if replicaset is None:
            self._expected.pop(key, None)
            return None
        replicaset = {"apiVersion": "apps/v1", "kind": "ReplicaSet", **replicaset}
        pods = [pod for pod in self.store(api.PODS).values() if controlled_by(pod, replicaset)]
        if not deleting(replicaset):
            created = await self.perform(plan(replicaset, pods, self._still_expected(key)))
            until = asyncio.get_running_loop().time() + EXPECTATION_SECONDS
            for pod in created:
                self._expected[key][key_of(pod)] = until
                message = f"Created pod: {pod['metadata']['name']}"
                self.events.record(replicaset, "Normal", "SuccessfulCreate", message)
        wanted = status(replicaset, pods)
        if wanted != {k: v for k, v in status_of(replicaset).items() if k in wanted or v}:
            await self.client.replace(api.REPLICA_SETS, {**replicaset, "status": wanted}, subresource="status")
        minimum = replicaset["spec"].get("minReadySeconds") or 0
        return float(minimum) if minimum and wanted.get("availableReplicas", 0) < wanted["replicas"] else None
