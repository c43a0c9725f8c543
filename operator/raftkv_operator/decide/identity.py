"""Issuing the cluster's identity, once, and the witnesses that forbid it (M1 to M3)."""

from __future__ import annotations

from raftkv_operator.api.types import Latch, hex_id
from raftkv_operator.decide.actions import Action, Stall, WriteLatch
from raftkv_operator.observe.views import Observed

IDENTITY_CONFLICT = "IdentityConflict"


def conflict(seen: Observed) -> Stall | None:
    """Whether something of this cluster's name carries an identity that is not the latched one (M3).

    Without a latch every witness is in conflict: a custom resource that lost its status, or was created again over kept
    claims, must not start a second cluster under one name.
    """
    if seen.name_conflict:
        return Stall("NameConflict", seen.name_conflict)
    latched = seen.latch.cluster_id if seen.latch is not None else None
    foreign: dict[str, int] = {}
    for claim in seen.claims.values():
        if claim.stamped and claim.cluster_id != latched:
            foreign[f"claim {claim.name}"] = claim.cluster_id
    for workload in seen.sets.values():
        if workload.cluster_id not in (latched, 0):
            foreign[f"StatefulSet {workload.name}"] = workload.cluster_id
    for number, node in seen.nodes.items():
        if node.cluster_id not in (latched, 0):
            foreign[f"the node of number {number}"] = node.cluster_id
    if not foreign:
        return None
    witness, cluster_id = next(iter(foreign.items()))
    others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    ours = "this cluster has none yet" if latched is None else f"this cluster is {hex_id(latched)}"
    return Stall(
        IDENTITY_CONFLICT,
        f"{witness}{others} carries the identity of cluster {hex_id(cluster_id)}, and {ours}: delete what is no longer "
        f"needed, or give this cluster another name",
    )


def issue(seen: Observed) -> Action:
    """Latches a new cluster id; numbers begin above every number seen anywhere (M3)."""
    highest = max([0, *seen.claims, *seen.sets, *seen.pods])
    latch = Latch(cluster_id=seen.fresh_ids[0], phase="Latched", next_number=highest + 1)
    return WriteLatch("IssueIdentity", latch, f"issuing cluster id {hex_id(latch.cluster_id)}")
