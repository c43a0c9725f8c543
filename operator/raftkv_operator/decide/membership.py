"""Members come and go (M7 to M10): learners are added and removed here, roles are the leader's."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Final

from raftkv_operator.api import constants
from raftkv_operator.api.types import Condemned, LatchedMember, hex_id
from raftkv_operator.decide.actions import (
    Action,
    AddMember,
    DeleteClaim,
    DeleteStatefulSet,
    Join,
    MoveLeader,
    RemoveMember,
    Retire,
    SetSettings,
    Stall,
    Wait,
    WriteLatch,
)
from raftkv_operator.decide.picture import Member, Picture, may_lead
from raftkv_operator.observe.views import NodePhase, Retirement, Role

RETIRE_PATIENCE: Final = timedelta(seconds=60)
"""So long a removed node is asked to wipe itself; then it goes without, and its ring file stays behind on its host."""


def settings(picture: Picture) -> Action | Wait | None:
    """Keeps the replicated settings as wished; the leader then changes the roles by itself (M7)."""
    conf, wish = picture.configuration, picture.settings
    if conf is None or wish is None or conf.settings == wish:
        return None
    if conf.changing:
        return Wait("Configuration", "waiting for a change of the configuration to be committed")
    return SetSettings(_leader_address(picture), conf.index, wish) if _leader_address(picture) else None


def leader_stays(picture: Picture) -> Action | Wait | None:
    """Moves the leadership off a member that is to go, before it loses its vote."""
    leader = picture.leader
    if leader is None or leader.number not in {m.number for m in picture.leaving}:
        return None
    heirs = [m for m in picture.staying if may_lead(m)]
    if not heirs:
        return Wait("MoveLeader", f"waiting for a voter that can take over from {leader.name}", leader.name)
    heir = max(heirs, key=lambda m: (m.state.match_index if m.state else 0, -m.number))
    return MoveLeader(heir.number, heir.name, leader.address, heir.entry.member_id)


def add(picture: Picture) -> Action | Wait | None:
    """Adds as a learner each bound member whose empty node is up and whose claim is stamped (M1, M3, M7)."""
    conf = picture.configuration
    if conf is None:
        return None
    for member in picture.staying:
        if member.state is not None or not member.empty or not member.stamped:
            continue
        if conf.changing:
            return Wait("Configuration", "waiting for a change of the configuration to be committed")
        address = _leader_address(picture)
        if address:
            return AddMember(member.number, member.name, address, conf.index, picture.identity(member))
    return None


def join(picture: Picture) -> Action | None:
    """Gives an added member's node its identity."""
    if picture.configuration is None:
        return None
    for member in picture.present:
        if member.state is None or not member.empty or not member.stamped or not member.address:
            continue
        peers = tuple(picture.identity(m) for m in picture.present if m.state is not None and m.number != member.number)
        return Join(member.number, member.name, member.address, picture.identity(member), peers)
    return None


def remove(picture: Picture) -> Action | Wait | None:
    """Removes members that are to go and have no vote any more; burns ids that never were added (M10)."""
    conf = picture.configuration
    if conf is None:
        return None
    for member in picture.leaving:
        state = member.state
        if state is not None and (state.role is Role.VOTER or state.member_id not in conf.settings.leaving):
            continue
        if conf.changing:
            return Wait("Configuration", "waiting for a change of the configuration to be committed")
        address = _leader_address(picture)
        if address:
            return RemoveMember(member.number, member.name, address, conf.index, member.entry.member_id)
    return None


def clean_up(picture: Picture) -> Action | Wait | None:
    """Takes away what belonged to a member whose removal is committed, and only that (M10).

    In this order: the node wipes itself (retention policy Delete), the StatefulSet, the claim, the number. What was
    corrupt is kept for inspection, whatever the policy says.
    """
    wait: Wait | None = None
    for member in picture.members:
        if not member.removed:
            continue
        step = _clean_up_one(picture, member)
        if isinstance(step, Action):
            return step
        wait = wait or step
    return wait


def _clean_up_one(picture: Picture, member: Member) -> Action | Wait:
    destroy = picture.spec.when_scaled == "Delete" and member.entry.condemned != "Corrupt"
    if member.set is not None and not member.set.deleting:
        wipe = _wipe(picture, member) if destroy and member.set.replicas else None
        return wipe or DeleteStatefulSet(member.number, member.name, member.set.name, member.set.uid)
    if member.set is not None or member.pod is not None:
        return Wait("Stop", f"waiting for {member.name} to stop", member.name)
    if destroy and member.claim is not None:
        if member.claim.deleting:
            return Wait("DeleteClaim", f"waiting for the disk of {member.name} to be deleted", member.name)
        return DeleteClaim(member.number, member.name, member.claim.name, member.claim.uid)
    return WriteLatch("ForgetMember", picture.latch.without(member.number), f"forgetting {member.name}", member.name)


def _wipe(picture: Picture, member: Member) -> Action | Wait | None:
    """Asks a removed node to wipe itself; None once it has, or when it has had its time."""
    node, conf = member.node, picture.configuration
    if conf is None or (node is not None and node.phase in (NodePhase.WAITING, NodePhase.RETIRED)):
        return None
    if picture.seen.operating_for("Retire", member.name) > RETIRE_PATIENCE:
        return None
    if member.carries_identity and member.address:
        entry = member.entry
        ground = Retirement(picture.latch.cluster_id, entry.member_id, entry.disk_uuid, conf.index)
        return Retire(member.number, member.name, member.address, ground)
    return Wait("Retire", f"waiting for {member.name} to wipe its disk and log buffer", member.name)


def condemn(picture: Picture) -> Action | Stall | None:
    """Gives up a member that cannot come back, one voter at a time, while the quorum bears it (M9).

    At once when its node has proven that acknowledged entries are lost or that its files are corrupt; after
    ``nodeLossPolicy.replaceAfter`` when its ring, disk or host is missing. Never for a process that merely fails: a
    crash loop or too little memory is not cured by another member.
    """
    conf = picture.configuration
    if conf is None:
        return None
    under_way = any(m.entry.condemned and _votes(m) for m in picture.present)
    for member in picture.sound:
        reason = _hopeless(picture, member)
        if not reason or member.active or member.number == getattr(picture.leader, "number", 0):
            continue
        if _votes(member) and (under_way or conf.live_voters < conf.quorum):
            continue
        entry = member.entry
        condemned = type(entry)(entry.number, entry.member_id, entry.disk_uuid, reason)
        words = f"replacing {member.name}: {_CONDEMNED[reason]}"
        return WriteLatch("CondemnMember", picture.latch.with_member(condemned), words, member.name)
    return None


_CONDEMNED: Final[dict[Condemned, str]] = {
    "Absent": "its disk or log buffer has been missing for longer than nodeLossPolicy.replaceAfter",
    "ProvenLost": "acknowledged entries of its log buffer are lost",
    "Corrupt": "its files are corrupt; they are kept",
    "Gone": "its pod has not run for longer than nodeLossPolicy.replaceAfter",
}


def _hopeless(picture: Picture, member: Member) -> Condemned:
    pod = member.pod
    if not member.entry.bound or (member.set is not None and member.set.halted):
        return ""
    code = pod.exit_code if pod is not None and not member.carries_identity else None
    if code == constants.EXIT_PROVEN_LOST:
        return "ProvenLost"
    if code == constants.EXIT_CORRUPT:
        return "Corrupt"
    patience = timedelta(milliseconds=picture.spec.replace_after_milliseconds)
    if picture.seen.unready_for(member.number) <= patience:
        return ""
    if code == constants.EXIT_ABSENT or member.other_disk:
        return "Absent"
    if pod is None or pod.deleting or (not pod.running and pod.exit_code is None):
        return "Gone"
    return ""


def recall(picture: Picture) -> Action | None:
    """Enters a member again that the configuration has and the latch has forgotten with a lost status (M3).

    It carries a number that was issued here, so it is one of ours. Without its claim its disk is gone: it is to be
    replaced, as any member of a lost disk.
    """
    conf, latch = picture.configuration, picture.latch
    if conf is None or conf.changing:
        return None
    for state in conf.members:
        known = latch.member(state.number)
        if not 0 < state.number < latch.next_number or known is not None or not state.disk_uuid:
            continue
        claim = picture.seen.claims.get(state.number)
        kept = claim is not None and claim.member_id == state.member_id and not claim.deleting
        entry = LatchedMember(state.number, state.member_id, state.disk_uuid, "" if kept else "Gone")
        name = picture.names.member(state.number)
        wider = replace(latch, members=(*latch.members, entry))
        return WriteLatch("RecallMember", wider, f"recalling {name}, which the configuration knows", name)
    return None


def roles_reached(picture: Picture) -> Wait | None:
    """Waits for what only the leader and the members can do: catching up, promotion, giving up votes."""
    conf = picture.configuration
    if conf is None:
        if picture.latch.phase == "Opened" or any(m.carries_identity for m in picture.present):
            return Wait("NoLeader", "waiting for a leader to answer")
        return None
    for member in picture.leaving:
        if member.state is not None:
            return Wait("RemoveMember", f"waiting for {member.name} to give up its vote", member.name)
    for member in picture.staying:
        if member.state is not None and not member.state.caught_up:
            return Wait("CatchUp", f"waiting for {member.name} to catch up", member.name)
    if len(conf.voters) != picture.spec.wished_voters:
        text = f"waiting for the leader to reach {picture.spec.wished_voters} voters, now {len(conf.voters)}"
        return Wait("Roles", text)
    if conf.changing:
        return Wait("Configuration", "waiting for a change of the configuration to be committed")
    strangers = [m for m in conf.members if not any(e.member_id == m.member_id for e in picture.latch.members)]
    if strangers:
        ids = ", ".join(hex_id(m.member_id) for m in strangers)
        return Wait("Strangers", f"members that the operator did not add are in the cluster: {ids}")
    return None


def _votes(member: Member) -> bool:
    return member.state is not None and member.state.role is Role.VOTER


def _leader_address(picture: Picture) -> str:
    return picture.leader.address if picture.leader is not None else ""
