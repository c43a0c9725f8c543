"""Who shall vote: the leader's decision about roles, as pure functions (M7, M8, M9, M12, M14).

Membership is the operator's to change, roles are the leader's. From the replicated settings and from what the leader
knows of each member, :func:`wished_voters` yields the voters that it wants now. When they differ from the present ones
it proposes the difference as **one** joint change: 1 to 3, 3 to 5, 5 to 3 and 3 to 1 never pass through an even number
of voters. :func:`surplus_learners` names those that nobody waits for any more.

The number of voters is the largest odd one within ``replicas``, ``max_voters`` and the members that are not leaving.
The places are filled in this order:

1. voters that stay (the leader first, then those heard of),
2. learners and standbys that have caught up, counted in entries and in time,
3. a voter that has been silent for ``promote_after``: at most one at a time loses its place so, and only to a member
   that takes it (a live voter never does, whatever its lag),
4. voters that are leaving: they keep their vote only while nobody can take it.

Within each of these the next place goes to the zone with the fewest voters so far, so that the loss of one zone costs
as few votes as can be; then to the most caught up, then to the lowest number. Whoever is left over is a standby.

**Zones after a loss.** When a zone is lost its votes move to those that are left, 2/2/1 becomes 3/2/0, and stays so
when the zone is back: nothing is vacant. The next loss of a zone could then take the quorum. So votes are also moved
for the sake of the spread, but only from zones whose loss takes the quorum, only in moves that make the fullest zone
emptier (no sequence of such moves can go round in a circle, so they cannot flap), one vote at a time, and only after a
calm of ten ``promote_after`` in which this leader led, nobody's vote changed and no voter was silent. The leader's own
vote is never moved. Ten, because what has just come back may well go again, and because nothing is wrong meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

CALM_FACTOR = 10
"""A vote is moved for the spread over zones after a calm of this many times ``promote_after``."""


class Cause(StrEnum):
    """Why voters change."""

    VACANCY = "vacancy"
    """A place was free, or a leaving voter's was taken."""
    SILENCE = "silence"
    """A voter was silent for ``promote_after`` (M14)."""
    SPREAD = "spread"
    """The loss of one zone would have taken the quorum."""
    SURPLUS = "surplus"
    """Fewer are to vote."""


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """The part of the replicated settings that roles depend on."""

    replicas: int
    """Members wished; 0: roles are changed by hand only."""
    max_voters: int
    promote_after_seconds: float
    """0: a silent voter keeps its vote."""
    leaving: frozenset[int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the leader knows of a member."""

    member_id: int
    number: int
    voter: bool
    caught_up: bool
    silent_seconds: float
    """Time since the member last answered the leader; 0 for the leader itself."""
    active: bool = True
    """Whether it has answered within the last election timeout."""
    zone: str = ""
    entries_behind: int = 0
    standby: bool = False


class RoleChange(NamedTuple):
    """Voters that are wished, and why."""

    voters: frozenset[int]
    cause: Cause


def largest_odd(number: int) -> int:
    """The largest odd number that is not above ``number``; 0 where there is none."""
    return number if number % 2 else max(0, number - 1)


def wished_number(settings: RoleSettings, members: Collection[int]) -> int:
    """How many shall vote, as if every member were fit to."""
    staying = sum(1 for member in members if member not in settings.leaving)
    return largest_odd(min(settings.replicas, settings.max_voters, staying))


def wished_voters(
    settings: RoleSettings,
    candidates: Sequence[Candidate],
    leader_id: int,
    seconds_since_swap: float,
    seconds_of_calm: float = 0.0,
) -> RoleChange | None:
    """The voters that the leader wants now, or None where no change is due.

    ``seconds_since_swap`` is the time since a voter was last replaced (M14), ``seconds_of_calm`` the time since this
    leader was elected, the voters changed, or a voter was silent. Voters of which no quorum answers are never wished
    (M9): then nothing changes until it does.
    """
    if settings.replicas <= 0:
        return None
    voters = [one for one in candidates if one.voter]
    fit = [one for one in candidates if one.voter or (one.caught_up and one.member_id not in settings.leaving)]
    number = min(wished_number(settings, [one.member_id for one in candidates]), largest_odd(len(fit)))
    if number < 1:
        return None
    present = frozenset(one.member_id for one in voters)
    swappable = _swappable(settings, voters, leader_id, seconds_since_swap)
    chosen = _choose(settings, fit, number, leader_id, swappable)
    change = RoleChange(chosen, _cause(settings, present, chosen))
    if chosen == present:
        moved = _spread(settings, fit, leader_id, seconds_since_swap, seconds_of_calm)
        if moved is None:
            return None
        change = RoleChange(moved, Cause.SPREAD)
    return change if _has_live_quorum(candidates, change.voters) else None


def surplus_learners(settings: RoleSettings, candidates: Sequence[Candidate]) -> frozenset[int]:
    """Learners that have caught up and for which there is no vacancy: they become standbys (M7, M13)."""
    if settings.replicas <= 0:
        return frozenset()
    voters = sum(1 for one in candidates if one.voter)
    if voters < wished_number(settings, [one.member_id for one in candidates]):
        return frozenset()
    return frozenset(
        one.member_id
        for one in candidates
        if not one.voter and not one.standby and one.caught_up and one.member_id not in settings.leaving
    )


def survives_zone_loss(zones: Sequence[str]) -> bool:
    """Whether voters in these zones keep a majority when any one of the zones is lost."""
    return not zones or max(Counter(zones).values()) <= (len(zones) - 1) // 2


def _choose(
    settings: RoleSettings, fit: Sequence[Candidate], number: int, leader_id: int, swappable: int | None
) -> frozenset[int]:
    """Fill the places, one after the other."""

    def rank(one: Candidate) -> int:
        if one.member_id in settings.leaving:
            return 3
        if not one.voter:
            return 1
        return 2 if one.member_id == swappable else 0

    left = list(fit)
    zones: Counter[str] = Counter()
    chosen: set[int] = set()
    while len(chosen) < number:
        best = min(left, key=_place(rank, zones, leader_id))
        left.remove(best)
        chosen.add(best.member_id)
        zones[best.zone] += 1
    return frozenset(chosen)


def _place(
    rank: Callable[[Candidate], int], zones: Counter[str], leader_id: int
) -> Callable[[Candidate], tuple[int, bool, bool, int, int, int, int]]:
    """The order in which places are given, with so many voters in each zone already."""

    def key(one: Candidate) -> tuple[int, bool, bool, int, int, int, int]:
        behind = 0 if one.voter else one.entries_behind
        return (
            rank(one),
            one.member_id != leader_id,
            not one.active,
            zones[one.zone],
            behind,
            one.number,
            one.member_id,
        )

    return key


def _cause(settings: RoleSettings, present: frozenset[int], chosen: frozenset[int]) -> Cause:
    if len(chosen) < len(present):
        return Cause.SURPLUS
    return Cause.SILENCE if present - chosen - settings.leaving else Cause.VACANCY


def _swappable(
    settings: RoleSettings, voters: Sequence[Candidate], leader_id: int, seconds_since_swap: float
) -> int | None:
    """The one voter that another member may replace for its silence, if any."""
    after = settings.promote_after_seconds
    if after <= 0 or seconds_since_swap < after:
        return None
    silent = [
        one
        for one in voters
        if one.silent_seconds >= after and one.member_id != leader_id and one.member_id not in settings.leaving
    ]
    return max(silent, key=lambda one: (one.silent_seconds, one.member_id)).member_id if silent else None


def _spread(
    settings: RoleSettings,
    fit: Sequence[Candidate],
    leader_id: int,
    seconds_since_swap: float,
    seconds_of_calm: float,
) -> frozenset[int] | None:
    """The voters after one vote has moved to an emptier zone, where the module's text allows it."""
    after = settings.promote_after_seconds
    voters = [one for one in fit if one.voter]
    if after <= 0 or min(seconds_since_swap, seconds_of_calm) < CALM_FACTOR * after:
        return None
    if survives_zone_loss([one.zone for one in voters]) or any(one.member_id in settings.leaving for one in voters):
        return None
    zones = Counter(one.zone for one in voters)
    fullest = max(zones.values())
    givers = [one for one in voters if zones[one.zone] == fullest and one.member_id != leader_id]
    takers = [one for one in fit if not one.voter and zones[one.zone] <= fullest - 2]
    if not givers or not takers:
        return None
    giver = max(givers, key=lambda one: (one.number, one.member_id))
    taker = min(takers, key=lambda one: (zones[one.zone], one.entries_behind, one.number, one.member_id))
    return frozenset(one.member_id for one in voters if one is not giver) | {taker.member_id}


def _has_live_quorum(candidates: Sequence[Candidate], voters: frozenset[int]) -> bool:
    """M9, as the core will judge it: whether a majority of these voters answers."""
    live = sum(1 for one in candidates if one.active and one.member_id in voters)
    return live > len(voters) // 2
