"""From an empty namespace to an opened cluster: numbers, bindings, one bootstrap, the opening (M1 to M3)."""

from __future__ import annotations

from dataclasses import replace

from raftkv_operator.api import constants
from raftkv_operator.api.types import LatchedMember, hex_id
from raftkv_operator.decide.actions import Action, Bootstrap, Stall, StampClaim, Wait, WriteLatch
from raftkv_operator.decide.picture import Member, Picture
from raftkv_operator.observe.views import NodePhase, Settings


def numbers(picture: Picture) -> Action | Stall | None:
    """Reserves numbers for the members that are wished and missing; gives back numbers that nobody needs.

    Only a number without a binding can simply be given back: it never had a member id, so nothing is to be burned.
    """
    latch, names = picture.latch, picture.names
    for member in picture.present:
        workload = member.set
        taken = member.number in picture.seen.taken_numbers or (
            workload is not None and workload.owner_uid not in ("", picture.seen.uid)
        )
        if taken and not member.entry.bound:
            return WriteLatch(
                "ReleaseNumber",
                latch.without(member.number),
                f"skipping {member.name}: an object of that name belongs to another owner",
                member.name,
            )
        if taken:
            return Stall("NameConflict", f"an object of the name {member.name} belongs to another owner")
    missing = picture.spec.replicas - len(picture.sound)
    if missing > 0:
        fresh = tuple(LatchedMember(latch.next_number + i) for i in range(missing))
        wider = replace(latch, next_number=latch.next_number + missing, members=(*latch.members, *fresh))
        words = ", ".join(names.member(entry.number) for entry in fresh)
        return WriteLatch("ReserveNumbers", wider, f"reserving {words}")
    unbound = [m for m in picture.sound if not m.entry.bound]
    if missing < 0 and unbound:
        spare = unbound[-1]
        return WriteLatch(
            "ReleaseNumber", latch.without(spare.number), f"giving up {spare.name}, which has no identity", spare.name
        )
    return None


def bind(picture: Picture) -> Action | None:
    """Binds a waiting node's disk to a member id, then writes both on its claim (M1, M3)."""
    for member in picture.sound:
        node, claim = member.node, member.claim
        if node is None or claim is None or claim.deleting or node.phase is not NodePhase.WAITING:
            continue
        if node.number != member.number:
            continue
        if not member.entry.bound:
            return _bind(picture, member, node.disk_uuid)
        if member.empty and not member.stamped:
            entry = member.entry
            return StampClaim(
                member.number, member.name, claim.uid, picture.latch.cluster_id, entry.member_id, entry.disk_uuid
            )
    return None


def _bind(picture: Picture, member: Member, disk_uuid: str) -> Action:
    latch = picture.latch
    used = {entry.member_id for entry in latch.members}
    if picture.configuration is not None:
        used |= picture.configuration.removed | {m.member_id for m in picture.configuration.members}
    member_id = next(i for i in picture.seen.fresh_ids if i not in used)
    bound = latch.with_member(replace(member.entry, member_id=member_id, disk_uuid=disk_uuid))
    if not bound.founder:
        bound = replace(bound, founder=member.number)
    return WriteLatch("BindMember", bound, f"binding {member.name} to member id {hex_id(member_id)}", member.name)


def bootstrap(picture: Picture) -> Action | Wait | Stall | None:
    """Bootstraps the founder: once, in phase Latched, while no node anywhere carries an identity (M1, M2)."""
    latch = picture.latch
    if latch.phase != "Latched" or picture.configuration is not None:
        return None
    founder = next((m for m in picture.present if m.number == latch.founder), None)
    if founder is None or not founder.entry.bound:
        return Wait("Starting", "waiting for the first node to start")
    pod = founder.pod
    lost = founder.other_disk or (
        pod is not None and pod.exit_code in (constants.EXIT_PROVEN_LOST, constants.EXIT_CORRUPT)
    )
    if lost:
        return Stall(
            "BootstrapFailed",
            f"the first member, {founder.name}, was lost before the cluster was opened; no write was ever accepted: "
            f"delete this cluster with its claims and create it again",
        )
    if any(m.carries_identity for m in picture.present):
        return None
    if not founder.empty or not founder.stamped:
        return Wait("Starting", f"waiting for {founder.name} to start", founder.name)
    spec = picture.spec
    settings = Settings(spec.replicas, spec.max_voters, spec.promote_after_milliseconds)
    return Bootstrap(founder.number, founder.name, founder.address, picture.identity(founder), settings)


def open_cluster(picture: Picture) -> Action | None:
    """Opens the cluster to clients, once and for ever, when the wished voters are there (M2)."""
    conf, latch = picture.configuration, picture.latch
    if latch.phase != "Latched" or conf is None or conf.changing:
        return None
    if len(conf.voters) < picture.spec.wished_voters or conf.live_voters < len(conf.voters):
        return None
    words = f"opening the cluster with {len(conf.voters)} voters"
    return WriteLatch("OpenCluster", replace(latch, phase="Opened"), words)
