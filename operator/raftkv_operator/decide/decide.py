"""``decide``: the rules in their order.

Theory of operation
-------------------
Every rule looks at the whole picture and answers with an action, with something to wait for, with a stall, or with
nothing. The first action in the order of the rules is taken and everything is observed anew, so that no rule ever acts
on what an earlier one has just changed. Only if no rule has an action, the first stall counts, then the first wait; and
if there is none of them either, all is as wished. A member that cannot start therefore never keeps the others from
being cared for.

Safety rests on the conditions of the single rules, not on their order: each states what must be *seen* before its side
effect, and each side effect is idempotent or bound to what was seen (a resourceVersion, a uid, a configuration index).
The rules M1 to M17 they keep are those of docs/membership.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from raftkv_operator.api.types import ClusterSpec
from raftkv_operator.decide import deletion, formation, hibernation, identity, membership, upkeep
from raftkv_operator.decide.actions import Action, Decision, Rest, Stall, Wait
from raftkv_operator.decide.picture import Picture
from raftkv_operator.observe.views import Observed

Rule = Callable[[Picture], Action | Wait | Stall | None]

RULES: Final[tuple[Rule, ...]] = (
    upkeep.shared_objects,
    formation.numbers,
    upkeep.witnesses,
    upkeep.orphans,
    upkeep.workloads,
    membership.clean_up,
    membership.condemn,
    membership.recall,
    formation.bind,
    formation.bootstrap,
    membership.leader_stays,
    membership.remove,
    membership.join,
    membership.add,
    membership.settings,
    formation.open_cluster,
    upkeep.restart,
    upkeep.failing,
    membership.roles_reached,
    upkeep.all_ready,
)


def decide(spec: ClusterSpec, seen: Observed) -> Decision:
    """The one next thing to do for a cluster; pure."""
    if seen.deleting_since is not None:
        return deletion.decide_deletion(spec, seen)
    if spec.paused:
        return Wait("Paused", "paused by spec.paused")
    stalled = identity.conflict(seen)
    if stalled is not None:
        return stalled
    if seen.latch is None:
        return Rest() if spec.hibernates else identity.establish(spec, seen)
    picture = Picture(spec, seen, seen.latch)
    if spec.hibernates:
        return first(picture, hibernation.ASLEEP)
    return first(picture, hibernation.WAKING if seen.latch.asleep else RULES)


def first(picture: Picture, rules: Sequence[Rule]) -> Decision:
    """The first action of the rules, else the first stall, else the first wait, else rest."""
    stall: Stall | None = None
    wait: Wait | None = None
    for rule in rules:
        answer = rule(picture)
        if isinstance(answer, Action):
            return answer
        if isinstance(answer, Stall):
            stall = stall or answer
        elif isinstance(answer, Wait):
            wait = wait or answer
    return stall or wait or Rest()
