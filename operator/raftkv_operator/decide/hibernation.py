"""Sleep and waking (M17): ``replicas: 0`` stops every member and removes none; waking wakes all first, then scales.

The latch remembers that the members were put to sleep until all of them have been seen awake. Without that mark a
cluster that wakes would look like one that has lost its members, and scaling would begin among those that happened to
come up first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from raftkv_operator.decide import membership, upkeep
from raftkv_operator.decide.actions import Action, UpdateStatefulSet, Wait, WriteLatch
from raftkv_operator.decide.picture import Member, Picture


def mark(picture: Picture) -> Action | None:
    """Writes down that the members are being put to sleep, before the first is."""
    if picture.latch.asleep:
        return None
    return WriteLatch("Hibernate", replace(picture.latch, asleep=True), "hibernating: every member is stopped")


def stop(picture: Picture) -> Action | Wait | None:
    """Stops every member, the leader last while there is one, and removes nothing; each shuts down cleanly, so that its
    disk has all."""
    leader = picture.leader
    for member in sorted(picture.members, key=lambda m: (leader is not None and m.number == leader.number, m.number)):
        workload = member.set
        if workload is not None and workload.replicas and not workload.deleting:
            return UpdateStatefulSet(
                member.number,
                member.name,
                workload.resource_version,
                0,
                workload.host,
                workload.halted,
                "putting to sleep",
            )
    for number in sorted(picture.seen.pods):
        name = picture.names.member(number)
        return Wait("Hibernate", f"waiting for {name} to stop", name)
    return None


def awake(picture: Picture) -> Action | Wait | None:
    """Takes the mark away once every member is awake; until then nothing is added, removed or told to leave."""
    for member in picture.sound:
        if not _is_awake(picture, member):
            return Wait("Wake", f"waking all members, waiting for {member.name}", member.name)
    return WriteLatch("Wake", replace(picture.latch, asleep=False), "all members are awake")


def _is_awake(picture: Picture, member: Member) -> bool:
    """Whether a member runs as itself and its leader hears it. One that never had an identity has nothing to wake."""
    if not member.entry.bound or member.empty or (member.set is not None and member.set.halted):
        return True
    return member.carries_identity and picture.configuration is not None and (member.state is None or member.active)


ASLEEP: Final = (upkeep.shared_objects, mark, stop)
WAKING: Final = (upkeep.shared_objects, upkeep.workloads, membership.condemn, upkeep.failing, awake)
