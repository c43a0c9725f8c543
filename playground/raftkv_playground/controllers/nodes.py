"""Nodes that fall silent, and pods that no node will ever finish.

A kubelet renews its Lease in ``kube-node-lease``. When that is older than ``GRACE_SECONDS`` the node's Ready
condition becomes Unknown and its pods are marked not ready, so that Services leave them out. Pods are *not* evicted
from a silent node: on a playground the kubelet comes back, and a pod that is bound to its node's ring could go
nowhere else.
"""

from __future__ import annotations

from raftkv_playground import client as api
from raftkv_playground.controllers.runtime import Controller, Informers
from raftkv_playground.objects import (
    Key,
    Object,
    age_seconds,
    condition,
    deleting,
    pod_finished,
    pod_ready,
    status_of,
    with_condition,
)

LEASE_NAMESPACE = "kube-node-lease"
GRACE_SECONDS = 40.0
"""Kubernetes' node-monitor-grace-period."""
LOOK_AGAIN_SECONDS = 5.0


class NodeLifecycle(Controller):
    name = "node-lifecycle-controller"
    primary = api.NODES

    def __init__(self, client: api.ApiClient, informers: Informers) -> None:
        super().__init__(client, informers)
        informers.of(api.LEASES)
        informers.of(api.PODS)

    async def sync(self, key: Key) -> float | None:
        node = self.store(api.NODES).get(key)
        if node is None:
            return None
        lease = self.store(api.LEASES).get((LEASE_NAMESPACE, key[1]))
        renewed = ((lease or {}).get("spec") or {}).get("renewTime") or node["metadata"].get("creationTimestamp")
        if age_seconds(renewed) < GRACE_SECONDS:
            return LOOK_AGAIN_SECONDS
        ready = condition(node, "Ready")
        if ready is None or ready["status"] != "Unknown":
            node = {"apiVersion": "v1", "kind": "Node", **node}
            self.events.record(node, "Normal", "NodeNotReady", f"Node {key[1]} status is now: NodeNotReady")
            unknown = {
                "type": "Ready",
                "status": "Unknown",
                "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.",
            }
            status = {**status_of(node), "conditions": with_condition(status_of(node).get("conditions") or [], unknown)}
            await self.client.replace(api.NODES, {**node, "status": status}, subresource="status")
        await self._mark_pods(key[1])
        return LOOK_AGAIN_SECONDS

    async def _mark_pods(self, node: str) -> None:
        for pod in list(self.store(api.PODS).values()):
            if pod["spec"].get("nodeName") == node and pod_ready(pod):
                not_ready = {"type": "Ready", "status": "False", "reason": "NodeNotReady"}
                conditions = with_condition(status_of(pod).get("conditions") or [], not_ready)
                body = {**pod, "status": {**status_of(pod), "conditions": conditions}}
                await self.client.replace(api.PODS, body, subresource="status")


class PodGarbageCollector(Controller):
    """Pods of nodes that no longer exist, and pods that are to go and never had a node, are removed."""

    name = "pod-garbage-collector"
    primary = api.PODS

    def __init__(self, client: api.ApiClient, informers: Informers) -> None:
        super().__init__(client, informers)
        informers.of(api.NODES).add_handler(self._node_changed)

    def _node_changed(self, type: str, node: Object) -> None:
        if type == "DELETED":
            for key, pod in self.store(api.PODS).items():
                if pod["spec"].get("nodeName") == node["metadata"]["name"]:
                    self.queue.add(key, GRACE_SECONDS)

    async def sync(self, key: Key) -> float | None:
        pod = self.store(api.PODS).get(key)
        if pod is None:
            return None
        node = pod["spec"].get("nodeName")
        lost = node and ("", node) not in self.store(api.NODES) and await self._node_gone(node)
        if lost or (deleting(pod) and not node and not pod_finished(pod)):
            await self.client.delete(api.PODS, key[1], key[0], uid=pod["metadata"]["uid"], grace=0)
        return None

    async def _node_gone(self, name: str) -> bool:
        try:
            await self.client.get(api.NODES, name)
        except api.ApiError as error:
            if error.not_found:
                return True
            raise
        return False
