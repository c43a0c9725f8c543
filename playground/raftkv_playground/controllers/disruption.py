"""PodDisruptionBudgets: how many pods may be evicted now (the API server's eviction honours the status)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftkv_playground import client as api
from raftkv_playground.controllers.runtime import Controller, Informers
from raftkv_playground.objects import (
    Key,
    Object,
    controller_of,
    deleting,
    labels_of,
    percent_of,
    pod_finished,
    pod_ready,
    selector_matches,
    status_of,
    with_condition,
)


def budget_status(budget: Object, pods: Sequence[Object], expected: int) -> Object:
    """The status of a budget over the pods it selects; ``expected`` is the number their owners want. Pure."""
    spec = budget["spec"]
    healthy = sum(pod_ready(pod) and not deleting(pod) for pod in pods)
    minimum: Any = spec.get("minAvailable")
    if minimum is not None:
        expected = len(pods) if isinstance(minimum, int) else expected
        wanted = percent_of(minimum, expected, round_up=True, default=0)
    else:
        wanted = max(0, expected - percent_of(spec.get("maxUnavailable"), expected, round_up=True, default=0))
    allowed = max(0, healthy - wanted) if expected > 0 else 0
    observed = status_of(budget)
    names = {pod["metadata"]["name"] for pod in pods if not deleting(pod)}
    disrupted = {name: at for name, at in (observed.get("disruptedPods") or {}).items() if name in names}
    condition = {
        "type": "DisruptionAllowed",
        "status": "True" if allowed else "False",
        "reason": "SufficientPods" if allowed else "InsufficientPods",
        "message": "",
        "observedGeneration": budget["metadata"].get("generation", 1),
    }
    status: Object = {
        "currentHealthy": healthy,
        "desiredHealthy": wanted,
        "expectedPods": expected,
        "disruptionsAllowed": allowed,
        "observedGeneration": budget["metadata"].get("generation", 1),
        "conditions": with_condition(observed.get("conditions") or [], condition),
    }
    if disrupted:
        status["disruptedPods"] = disrupted
    return status


class DisruptionController(Controller):
    name = "disruption-controller"
    primary = api.POD_DISRUPTION_BUDGETS

    def __init__(self, client: api.ApiClient, informers: Informers) -> None:
        super().__init__(client, informers)
        self.trigger(api.PODS, self._budgets_of_pod)
        self.trigger(api.STATEFUL_SETS, self._budgets_of_namespace)
        self.trigger(api.REPLICA_SETS, self._budgets_of_namespace)

    def _budgets_of_pod(self, pod: Object) -> list[Key]:
        return [
            key
            for key, budget in self.store(api.POD_DISRUPTION_BUDGETS).items()
            if key[0] == pod["metadata"]["namespace"]
            and selector_matches(budget["spec"].get("selector"), labels_of(pod))
        ]

    def _budgets_of_namespace(self, item: Object) -> list[Key]:
        return [key for key in self.store(api.POD_DISRUPTION_BUDGETS) if key[0] == item["metadata"]["namespace"]]

    def _expected(self, namespace: str, pods: Sequence[Object]) -> int:
        """The sum of what the pods' owners want; a pod without a scalable owner counts for itself."""
        owners: dict[str, int] = {}
        for pod in pods:
            owner = controller_of(pod)
            resource = {"StatefulSet": api.STATEFUL_SETS, "ReplicaSet": api.REPLICA_SETS}.get(
                owner["kind"] if owner else ""
            )
            found = self.store(resource).get((namespace, owner["name"])) if resource and owner else None
            if found is not None and owner is not None and found["metadata"]["uid"] == owner["uid"]:
                owners[owner["uid"]] = int(found["spec"].get("replicas", 1))
            else:
                owners[pod["metadata"]["uid"]] = 1
        return sum(owners.values())

    async def sync(self, key: Key) -> float | None:
        budget = self.store(api.POD_DISRUPTION_BUDGETS).get(key)
        if budget is None:
            return None
        pods = [
            pod
            for pod_key, pod in self.store(api.PODS).items()
            if pod_key[0] == key[0]
            and not pod_finished(pod)
            and selector_matches(budget["spec"].get("selector"), labels_of(pod))
        ]
        status = budget_status(budget, pods, self._expected(key[0], pods))
        if status != status_of(budget):
            await self.client.replace(api.POD_DISRUPTION_BUDGETS, {**budget, "status": status}, subresource="status")
        return None
