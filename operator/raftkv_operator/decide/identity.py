"""Whose cluster stands under this name: issuing an identity once, or adopting one that is there (M1 to M3).

The status is not the only witness. Claims, StatefulSets and nodes carry a cluster id, and while any of them does, no
new one is issued: a custom resource that lost its status, or was created again over kept claims, must not start a
second cluster under one name. What stands on the claims is enough to go on where the last operator stopped, *if* all
agree on one cluster id and the disks of a quorum are among them; how many make one was written on each claim while the
cluster lived. In any other case a person says whose data it is, in ``spec.bootstrap.identity``:

``Adopt CLUSTER-ID``
    that cluster goes on, with the claims that carry its id, be they a quorum or not;
``New``
    a new cluster begins beside the claims that are there, which nobody touches. It is obeyed once for a custom
    resource: a claim that was issued for this very object says that the word has been taken.

Other cluster ids that stood there at that moment are written into the latch as superseded, and no longer contradict it.
"""

from __future__ import annotations

from collections.abc import Iterable

from raftkv_operator.api.types import ClusterSpec, Latch, LatchedMember, hex_id
from raftkv_operator.decide.actions import Action, Stall, WriteLatch
from raftkv_operator.observe.views import ClaimView, Observed

IDENTITY_CONFLICT = "IdentityConflict"
_WAY_OUT = (
    "set spec.bootstrap.identity to 'Adopt CLUSTER-ID' to go on with that data, or to 'New' to begin anew beside it"
)


def conflict(seen: Observed) -> Stall | None:
    """Whether something of this cluster's name carries an identity that contradicts the latched one."""
    if seen.name_conflict:
        return Stall("NameConflict", seen.name_conflict)
    latch = seen.latch
    if latch is None:
        return None
    foreign = {what: one for what, one in _witnesses(seen) if one not in (latch.cluster_id, *latch.superseded)}
    if not foreign:
        return None
    return Stall(
        IDENTITY_CONFLICT,
        f"{_first(foreign)}, and this cluster is {hex_id(latch.cluster_id)}: delete what is no longer needed, or give "
        f"this cluster another name",
    )


def establish(spec: ClusterSpec, seen: Observed) -> Action | Stall:
    """Issues an identity where nothing carries one, else adopts what is there, or says why a person must decide."""
    witnesses = dict(_witnesses(seen))
    if not witnesses:
        return _issue(seen, ())
    ids = sorted(set(witnesses.values()))
    own = sorted({claim.cluster_id for claim in _stamped(seen) if claim.issued_for == seen.uid})
    if spec.adopt is not None:
        if spec.adopt in {claim.cluster_id for claim in _stamped(seen)}:
            return _adopt(seen, spec.adopt)
        return Stall(
            IDENTITY_CONFLICT,
            f"spec.bootstrap.identity wants cluster {hex_id(spec.adopt)} adopted, but no claim carries it; "
            f"{_first(witnesses)}",
        )
    if spec.bootstrap_identity == "New" and not own and not _runs(seen):
        return _issue(seen, tuple(ids))
    chosen = ids if len(ids) == 1 else own
    if len(chosen) != 1:
        return Stall(IDENTITY_CONFLICT, f"{_first(witnesses)}, and they do not agree on one cluster: {_WAY_OUT}")
    why = _no_quorum(seen, chosen[0])
    if why:
        return Stall(IDENTITY_CONFLICT, f"{_first(witnesses)}, and {why}: {_WAY_OUT}")
    return _adopt(seen, chosen[0])


def _witnesses(seen: Observed) -> Iterable[tuple[str, int]]:
    """What carries a cluster id, and which."""
    for claim in _stamped(seen):
        yield f"claim {claim.name}", claim.cluster_id
    for workload in seen.sets.values():
        if workload.cluster_id:
            yield f"StatefulSet {workload.name}", workload.cluster_id
    for number, node in seen.nodes.items():
        if node.cluster_id:
            yield f"the node of number {number}", node.cluster_id


def _stamped(seen: Observed) -> list[ClaimView]:
    return [claim for claim in seen.claims.values() if claim.stamped]


def _runs(seen: Observed) -> bool:
    """Whether anything beside claims is left: what still runs, or may be made to run, cannot be begun anew beside."""
    return any(workload.cluster_id for workload in seen.sets.values()) or any(
        node.cluster_id for node in seen.nodes.values()
    )


def _first(witnesses: dict[str, int]) -> str:
    witness, cluster_id = next(iter(witnesses.items()))
    others = f" and {len(witnesses) - 1} more" if len(witnesses) > 1 else ""
    return f"{witness}{others} carries the identity of cluster {hex_id(cluster_id)}"


def _no_quorum(seen: Observed, cluster_id: int) -> str:
    """Why the claims of a cluster do not prove that a quorum of its disks is here; empty when they do."""
    claims = [claim for claim in _stamped(seen) if claim.cluster_id == cluster_id and not claim.deleting]
    noted = [claim.configuration for claim in claims if claim.configuration is not None]
    if not noted:
        return "no claim says how many members make a quorum"
    voters = max(noted, key=lambda one: one.index).voters
    here = len(voters & {claim.member_id for claim in claims})
    needed = len(voters) // 2 + 1
    return "" if here >= needed else f"only {here} of its {len(voters)} voters' disks are here, {needed} are needed"


def _issue(seen: Observed, superseded: tuple[int, ...]) -> Action:
    """Latches a new cluster id; numbers begin above every number seen anywhere (M3)."""
    cluster_id = next(one for one in seen.fresh_ids if one not in superseded)
    latch = Latch(cluster_id=cluster_id, phase="Latched", next_number=_highest(seen) + 1, superseded=superseded)
    return WriteLatch("IssueIdentity", latch, f"issuing cluster id {hex_id(cluster_id)}")


def _adopt(seen: Observed, cluster_id: int) -> Action:
    """Latches what the claims of this cluster say, as opened: clients may have been served.

    A claim of a member that a later configuration does not know is what a retention policy kept of a removed one.
    """
    claims = [claim for claim in _stamped(seen) if claim.cluster_id == cluster_id]
    noted = [claim.configuration for claim in claims if claim.configuration is not None]
    newest = max(noted, key=lambda one: one.index, default=None)
    members = tuple(
        LatchedMember(claim.number, claim.member_id, claim.disk_uuid)
        for claim in sorted(claims, key=lambda one: one.number)
        if claim.configuration is None or newest is None or claim.member_id in newest.members
    )
    latch = Latch(
        cluster_id=cluster_id,
        phase="Opened",
        next_number=_highest(seen) + 1,
        members=members,
        superseded=tuple(sorted({claim.cluster_id for claim in _stamped(seen)} - {cluster_id})),
    )
    return WriteLatch("AdoptIdentity", latch, f"adopting cluster {hex_id(cluster_id)} with {len(members)} members")


def _highest(seen: Observed) -> int:
    noted = [claim.configuration.next_number - 1 for claim in _stamped(seen) if claim.configuration is not None]
    return max([0, *seen.claims, *seen.sets, *seen.pods, *noted])
