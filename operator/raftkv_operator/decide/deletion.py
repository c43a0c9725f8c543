"""A cluster goes: the same loop, driven by the finalizer, one side effect at a time.

Retention policy Retain keeps claims and rings as they are: each node shuts down cleanly, so that its ring is drained.
Delete lets every node that can be reached wipe its ring and disk first (``Retire`` with ``cluster_deleted``: a deletion
timestamp cannot be taken back, so no removal needs to be committed, and a cluster without a quorum can be deleted too),
then deletes the claims. What was corrupt is kept whatever the policy says.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from raftkv_operator.api import constants
from raftkv_operator.api.types import ClusterSpec, Names
from raftkv_operator.decide.actions import (
    Decision,
    DeleteClaim,
    DeleteShared,
    DeleteStatefulSet,
    Rest,
    Retire,
    Wait,
)
from raftkv_operator.observe.views import NodePhase, Observed, Retirement

WIPE_PATIENCE: Final = timedelta(seconds=30)
"""So long after the deletion a node that does not answer is waited for; then it goes without wiping its ring."""


def decide_deletion(spec: ClusterSpec, seen: Observed) -> Decision:
    """The next step of taking a cluster away; ``Rest`` when nothing is left but what the retention policy keeps."""
    names = Names(seen.namespace, seen.name)
    destroy = spec.when_deleted == "Delete"
    ours = {n: s for n, s in sorted(seen.sets.items()) if s.owner_uid == seen.uid}
    if destroy:
        wipe = _wipe(names, seen, set(ours))
        if wipe is not None:
            return wipe
    for number, workload in ours.items():
        if not workload.deleting:
            return DeleteStatefulSet(number, names.member(number), workload.name, workload.uid)
    remaining = sorted({*ours, *seen.pods})
    if remaining:
        name = names.member(remaining[0])
        return Wait("Stop", f"waiting for {name} to stop", name)
    for number, claim in sorted(seen.claims.items()):
        entry = seen.latch.member(number) if seen.latch is not None else None
        unstamped = not claim.stamped and seen.latch is not None and number < seen.latch.next_number
        of_this = unstamped or (seen.latch is not None and claim.cluster_id == seen.latch.cluster_id)
        kept = entry is not None and entry.condemned == "Corrupt"
        if of_this and not kept and (destroy or unstamped):
            if claim.deleting:
                return Wait("DeleteClaim", f"waiting for the disk of {names.member(number)} to be deleted")
            return DeleteClaim(number, names.member(number), claim.name, claim.uid)
    if seen.shared:
        return DeleteShared(seen.shared[0])
    return Rest()


def _wipe(names: Names, seen: Observed, numbers: set[int]) -> Decision | None:
    """Asks all nodes that answer, one after the other, then waits for those that are at it; None when all are done."""
    latch, since = seen.latch, seen.deleting_since
    if latch is None or since is None:
        return None
    wait: Wait | None = None
    for entry in sorted(latch.members, key=lambda e: e.number):
        number, name = entry.number, names.member(entry.number)
        workload, pod, node = seen.sets.get(number), seen.pods.get(number), seen.nodes.get(number)
        if not entry.bound or entry.condemned or number not in numbers or workload is None or workload.deleting:
            continue
        if node is not None and node.phase in (NodePhase.WAITING, NodePhase.RETIRED):
            continue
        if workload.replicas == 0 or seen.now - since > WIPE_PATIENCE:
            continue
        same = node is not None and (node.member_id, node.disk_uuid) == (entry.member_id, entry.disk_uuid)
        if same and pod is not None and pod.ip:
            ground = Retirement(latch.cluster_id, entry.member_id, entry.disk_uuid, cluster_deleted=True)
            return Retire(number, name, f"{pod.ip}:{constants.CLIENT_PORT}", ground)
        wait = wait or Wait("Retire", f"waiting for {name} to wipe its disk and log buffer", name)
    return wait
