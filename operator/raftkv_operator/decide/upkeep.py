"""Keeping the Kubernetes objects as they should be: shared objects, claims, StatefulSets, pins, halts, restarts."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from raftkv_operator.api import constants
from raftkv_operator.decide.actions import (
    Action,
    ApplyShared,
    CreateClaim,
    CreateStatefulSet,
    DeleteClaim,
    DeleteStatefulSet,
    MoveLeader,
    NoteConfiguration,
    RestartMember,
    Stall,
    TicketWish,
    UpdateStatefulSet,
    Wait,
)
from raftkv_operator.decide.picture import Member, Picture, may_lead
from raftkv_operator.observe.views import NotedConfiguration, Role, StatefulSetView

HALTING: Final[dict[int, str]] = {
    constants.EXIT_USAGE: "InvalidConfiguration",
    constants.EXIT_MISMATCH: "LogBufferMismatch",
    constants.EXIT_DURABILITY: "DurabilityTooWeak",
}
"""Exit codes that starting again cannot cure, and the reason that the condition gives for them."""


def shared_objects(picture: Picture) -> Action | None:
    """Puts Secret, Services and disruption budget in place."""
    return ApplyShared(picture.seen.drift[0]) if picture.seen.drift else None


def orphans(picture: Picture) -> Action | None:
    """Takes away what belongs to numbers that were given back before they had an identity.

    A claim that carries an identity is never an orphan: it is data that a retention policy kept. A StatefulSet beside
    such a claim is one only if the identity's removal is committed (M10).
    """
    latch, seen, names = picture.latch, picture.seen, picture.names
    removed = picture.configuration.removed if picture.configuration is not None else frozenset()
    for number, workload in sorted(seen.sets.items()):
        ours, beside = workload.owner_uid == seen.uid, seen.claims.get(number)
        harmless = beside is None or not beside.stamped or beside.member_id in removed
        if latch.member(number) is None and ours and harmless and not workload.deleting:
            return DeleteStatefulSet(number, names.member(number), workload.name, workload.uid)
    for number, claim in sorted(seen.claims.items()):
        unused = number not in seen.sets and number not in seen.pods and number < latch.next_number
        if latch.member(number) is None and unused and not claim.stamped and not claim.deleting:
            return DeleteClaim(number, names.member(number), claim.name, claim.uid)
    return None


def workloads(picture: Picture) -> Action | Stall | None:
    """Gives each present member its claim and its StatefulSet, pinned to the host of its ring once there is one."""
    stall: Stall | None = None
    for member in picture.present:
        workload = member.set
        if workload is None:
            if member.entry.condemned:
                continue
            if member.claim is None:
                return CreateClaim(member.number, member.name)
            if not member.claim.deleting:
                return CreateStatefulSet(member.number, member.name)
            continue
        if member.claim is None and not member.entry.condemned:
            return CreateClaim(member.number, member.name)
        if not workload.deleting:
            change = _workload_change(picture, member, workload)
            if change is not None:
                return change
        if workload.halted and stall is None:
            reason, _, text = workload.halted.partition(": ")
            stall = Stall(reason, f"member {member.name} is stopped: {text}")
    return stall


def _workload_change(picture: Picture, member: Member, workload: StatefulSetView) -> Action | None:
    """The update that a StatefulSet needs, if any.

    A member whose node says that starting again is of no use is halted: scaled to 0, with the reason on the
    StatefulSet, until the spec changes what the node is started with.
    """
    current = workload.template == picture.seen.template
    halted = workload.halted if current else ""
    why = "updating"
    if current and not halted:
        halted = _halt(member, picture.seen.template)
        why = "halting" if halted else why
    host = workload.host
    if picture.spec.ring_host_path and not host and member.pod is not None and member.pod.host:
        host, why = member.pod.host, f"pinning to host {member.pod.host} the member"
    replicas = 0 if member.entry.condemned or halted else 1
    if member.entry.condemned and workload.replicas:
        why = "stopping"
    if current and (workload.replicas, workload.host, workload.halted) == (replicas, host, halted):
        return None
    return UpdateStatefulSet(member.number, member.name, workload.resource_version, replicas, host, halted, why)


def _halt(member: Member, template: str) -> str:
    pod = member.pod
    if pod is None or pod.exit_code not in HALTING or pod.template != template or not pod.restarts:
        return ""
    return f"{HALTING[pod.exit_code]}: {pod.exit_message or f'its node exited with code {pod.exit_code}'}"


def witnesses(picture: Picture) -> Action | None:
    """Writes on each member's claim what must be known when nothing but the claims is left: the next number, before
    anything of the numbers below it exists, and who votes (M3). A change of settings alone is not worth it."""
    conf, latch = picture.configuration, picture.latch
    for member in picture.present:
        claim = member.claim
        if claim is None or claim.deleting or not member.stamped:
            continue
        noted = claim.configuration
        wished = noted
        if conf is not None and not conf.changing:
            voters, members = (frozenset(m.member_id for m in some) for some in (conf.voters, conf.members))
            if noted is None or (noted.voters, noted.members) != (voters, members):
                wished = NotedConfiguration(latch.next_number, conf.index, voters, members)
        if wished is not None and wished.next_number != latch.next_number:
            wished = replace(wished, next_number=latch.next_number)
        if wished is not None and wished != noted:
            return NoteConfiguration(member.number, member.name, claim.uid, wished)
    return None


def restart(picture: Picture) -> Action | Wait | None:
    """Brings pods of an older template to the current one: dead first, then standbys, followers, the leader last.

    A live member restarts only when all others are ready and caught up and a quorum of live voters stays without it;
    whether that is so the leader says once more, at the last moment (M11). The only voter of a cluster restarts too:
    the pause is then part of the wish.
    """
    old = [
        m
        for m in picture.sound
        if m.pod is not None and m.set is not None and m.set.template == picture.seen.template != m.pod.template
    ]
    if not old:
        return None
    conf, leader = picture.configuration, picture.leader
    for member in old:
        if member.pod is not None and not member.pod.deleting and _dead(member, conf is not None):
            return _restart(member, "it does not run", None)
    names = ", ".join(m.name for m in old)
    waiting = Wait(
        "Restart", f"waiting until all other members are well to restart with the new configuration: {names}"
    )
    if conf is None or conf.changing or leader is None or any(m.removed for m in picture.members):
        return waiting
    order = sorted(old, key=lambda m: (m.number == leader.number, _votes(m), -m.number))
    member = order[0]
    others = [m for m in picture.sound if m.number != member.number]
    if not all(_well(m) for m in others) or (member.pod is not None and member.pod.deleting):
        return waiting
    if len(conf.voters) > 1:
        if _votes(member) and conf.live_voters - 1 < conf.quorum:
            return waiting
        if member.number == leader.number:
            heirs = [m for m in others if may_lead(m)]
            return (
                MoveLeader(heirs[0].number, heirs[0].name, leader.address, heirs[0].entry.member_id)
                if heirs
                else waiting
            )
    why = "its configuration changed"
    if len(conf.voters) == 1 and _votes(member):
        why += "; it is the only voter, so the cluster pauses"
    return _restart(member, why, TicketWish(leader.address, conf.index, member.entry.member_id))


def _restart(member: Member, why: str, wish: TicketWish | None) -> Action:
    assert member.pod is not None
    return RestartMember(member.number, member.name, member.pod.uid, why, wish)


def _dead(member: Member, leader_known: bool) -> bool:
    """Whether restarting a member takes nothing away: it does not run as a member, or its leader does not hear it.

    Without a leader every pod is unready, so that readiness alone says nothing: then only the node's own state counts.
    """
    pod = member.pod
    if pod is None or member.carries_identity:
        return leader_known and not member.active and pod is not None and not pod.ready
    return member.node is not None or not pod.running or pod.exit_code is not None


def _votes(member: Member) -> bool:
    return member.state is not None and member.state.role is Role.VOTER


def _well(member: Member) -> bool:
    return (
        member.pod is not None
        and member.pod.ready
        and not member.pod.deleting
        and member.state is not None
        and member.state.recent_active
        and member.state.caught_up
    )


def failing(picture: Picture) -> Wait | None:
    """Says which node does not come up, and its last words, before anything that only follows from it."""
    for member in picture.sound:
        pod = member.pod
        if pod is not None and pod.exit_code and not member.carries_identity:
            said = f": {pod.exit_message}" if pod.exit_message else ""
            text = f"waiting for {member.name}, whose node last exited with code {pod.exit_code}{said}"
            return Wait("Recovery", text, member.name)
    return None


def all_ready(picture: Picture) -> Wait | None:
    """Waits until every member's pod is ready."""
    for member in picture.sound:
        pod = member.pod
        if pod is None or not pod.ready:
            return Wait("Starting", f"waiting for {member.name} to be ready", member.name)
    return None
