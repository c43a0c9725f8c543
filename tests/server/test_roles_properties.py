"""What must hold for the leader's decision about roles, whatever it knows of the members (M7 to M9, M12, M14)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from raftkv_node.server.roles import (
    CALM_FACTOR,
    Candidate,
    Cause,
    RoleChange,
    RoleSettings,
    surplus_learners,
    survives_zone_loss,
    wished_number,
    wished_voters,
)

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

LONG_AGO = 1e9
AFTER = 30.0
LEADER = 1


@st.composite
def pictures(draw: st.DrawFn, zones: int = 4, most: int = 15) -> list[Candidate]:
    """A leader (number 1), and others in any state that a leader can see them in."""
    found = [Candidate(LEADER, LEADER, True, True, 0.0, zone=f"z{draw(st.integers(1, zones))}")]
    for number in range(2, draw(st.integers(1, most)) + 1):
        silent = draw(st.sampled_from([0.0, 0.0, 0.0, 5.0, 40.0, 400.0]))
        found.append(
            Candidate(
                member_id=number,
                number=number,
                voter=draw(st.booleans()),
                caught_up=silent == 0.0 and draw(st.booleans()),
                silent_seconds=silent,
                active=silent == 0.0,
                zone=f"z{draw(st.integers(1, zones))}",
                entries_behind=draw(st.integers(0, 100)),
                standby=draw(st.booleans()),
            )
        )
    return [replace(one, standby=one.standby and not one.voter) for one in found]


@st.composite
def wishes(draw: st.DrawFn) -> RoleSettings:
    return RoleSettings(
        replicas=draw(st.integers(0, 15)),
        max_voters=draw(st.sampled_from([1, 3, 5, 7, 9])),
        promote_after_seconds=draw(st.sampled_from([0.0, AFTER])),
        leaving=draw(st.frozensets(st.integers(1, 15), max_size=4)),
    )


def voters(candidates: list[Candidate]) -> frozenset[int]:
    return frozenset(one.member_id for one in candidates if one.voter)


def applied(candidates: list[Candidate], change: RoleChange) -> list[Candidate]:
    """The members after the change."""
    return [
        replace(one, voter=one.member_id in change.voters, standby=one.standby and one.member_id not in change.voters)
        for one in candidates
    ]


@given(wishes(), pictures(), st.sampled_from([0.0, AFTER, LONG_AGO]), st.sampled_from([0.0, LONG_AGO]))
def test_m7_m8_what_is_wished_is_odd_within_the_bounds_and_of_members_that_are_fit(
    wanted: RoleSettings, candidates: list[Candidate], since: float, calm: float
) -> None:
    change = wished_voters(wanted, candidates, LEADER, since, calm)
    if change is None:
        return
    ids = [one.member_id for one in candidates]
    assert len(change.voters) % 2 == 1
    assert len(change.voters) <= max(wished_number(wanted, ids), 1)
    added = [one for one in candidates if one.member_id in change.voters and not one.voter]
    assert all(one.caught_up and one.active and one.member_id not in wanted.leaving for one in added), "M12"
    assert change.voters != voters(candidates)


@given(wishes(), pictures(), st.sampled_from([0.0, LONG_AGO]))
def test_m9_a_dead_quorum_is_never_wished(wanted: RoleSettings, candidates: list[Candidate], calm: float) -> None:
    change = wished_voters(wanted, candidates, LEADER, LONG_AGO, calm)
    if change is not None:
        live = [one for one in candidates if one.member_id in change.voters and one.active]
        assert len(live) > len(change.voters) // 2


@given(wishes(), pictures(), st.sampled_from([0.0, LONG_AGO]))
def test_m14_one_step_is_enough_and_nothing_flaps(
    wanted: RoleSettings, candidates: list[Candidate], calm: float
) -> None:
    change = wished_voters(wanted, candidates, LEADER, LONG_AGO, calm)
    assume(change is not None)
    assert change is not None
    assert wished_voters(wanted, applied(candidates, change), LEADER, 0.0, 0.0) is None


@given(wishes(), pictures())
def test_m14_a_live_voter_keeps_its_vote_while_it_is_needed(wanted: RoleSettings, candidates: list[Candidate]) -> None:
    """Without ten times the calm only silence costs a vote, or a smaller number of voters; the leader's never."""
    change = wished_voters(wanted, candidates, LEADER, LONG_AGO)
    if change is None or change.cause is Cause.SURPLUS:
        return
    lost = [one for one in candidates if one.voter and one.member_id not in change.voters | wanted.leaving]
    assert len(lost) <= 1, "at most one swap"
    assert all(one.silent_seconds >= wanted.promote_after_seconds > 0 and not one.active for one in lost)


@given(wishes(), pictures(), st.floats(0, AFTER - 0.001))
def test_m14_one_swap_per_promote_after(wanted: RoleSettings, candidates: list[Candidate], since: float) -> None:
    change = wished_voters(wanted, candidates, LEADER, since, LONG_AGO)
    if change is None or change.cause is Cause.SURPLUS:
        return
    assert not voters(candidates) - change.voters - wanted.leaving, "filling a vacancy takes nobody's vote"


@given(wishes(), pictures(), st.randoms(use_true_random=False))
def test_the_order_of_what_is_known_does_not_matter(
    wanted: RoleSettings, candidates: list[Candidate], order: random.Random
) -> None:
    shuffled = list(candidates)
    order.shuffle(shuffled)
    for calm in (0.0, LONG_AGO):
        first = wished_voters(wanted, candidates, LEADER, LONG_AGO, calm)
        assert wished_voters(wanted, shuffled, LEADER, LONG_AGO, calm) == first


@given(st.integers(3, 15), st.sampled_from([3, 5, 7, 9]), st.integers(1, 5), st.data())
def test_votes_are_spread_over_the_zones_as_evenly_as_the_members_allow(
    members: int, most: int, zones: int, data: st.DataObject
) -> None:
    """One voter, all others ready: the first step gives the most even spread that there is."""
    where = {one: f"z{data.draw(st.integers(1, zones))}" for one in range(1, members + 1)}
    candidates = [Candidate(one, one, one == LEADER, True, 0.0, zone=where[one]) for one in where]
    change = wished_voters(RoleSettings(members, most, AFTER, frozenset()), candidates, LEADER, LONG_AGO)
    if change is None:
        assert members < 3
        return
    there = Counter(where.values())
    got = Counter(where[one] for one in change.voters)
    fullest = max(got.values())
    for zone, number in there.items():
        assert got[zone] >= min(number, fullest - 1), f"{zone} could have taken a vote of the fullest zone: {got}"


@given(pictures(zones=3), st.sampled_from([3, 5, 7, 9]))
def test_m14_votes_move_for_the_spread_only_in_calm_and_only_to_an_end(candidates: list[Candidate], most: int) -> None:
    """However often: each move leaves a less full zone, and they end where the loss of a zone is survived, or where no
    move would help."""
    wanted = RoleSettings(len(candidates), most, AFTER, frozenset())
    candidates = [replace(one, caught_up=True, active=True, silent_seconds=0.0) for one in candidates]
    calm = CALM_FACTOR * AFTER
    change = wished_voters(wanted, candidates, LEADER, LONG_AGO, 0.0)
    if change is not None:
        candidates = applied(candidates, change)
    assert wished_voters(wanted, candidates, LEADER, LONG_AGO, calm - 1) is None
    zone = {one.member_id: one.zone for one in candidates}
    weight = LONG_AGO
    for _ in range(20):
        change = wished_voters(wanted, candidates, LEADER, calm, calm)
        if change is None:
            break
        assert change.cause is Cause.SPREAD
        assert LEADER in change.voters
        assert len(change.voters - voters(candidates)) == 1
        candidates = applied(candidates, change)
        now = sum(number**2 for number in Counter(zone[one] for one in change.voters).values())
        assert now < weight
        weight = now
    else:
        raise AssertionError("no end")
    got = Counter(zone[one] for one in voters(candidates))
    if not survives_zone_loss([zone[one] for one in voters(candidates)]):
        fullest = max(got.values())
        movable = any(got[one.zone] == fullest and one.member_id != LEADER for one in candidates if one.voter)
        takers = [one for one in candidates if not one.voter and got[one.zone] <= fullest - 2]
        assert not (movable and takers)


@given(wishes(), pictures())
def test_m7_m13_learners_become_standbys_only_where_there_is_no_vacancy(
    wanted: RoleSettings, candidates: list[Candidate]
) -> None:
    surplus = surplus_learners(wanted, candidates)
    for one in candidates:
        if one.member_id in surplus:
            assert not one.voter
            assert one.caught_up
            assert not one.standby
    if surplus:
        assert len(voters(candidates)) >= wished_number(wanted, [one.member_id for one in candidates])
        after = [replace(one, standby=one.standby or one.member_id in surplus) for one in candidates]
        assert not surplus_learners(wanted, after)


def test_the_example_of_the_documentation() -> None:
    """15 members in 3 zones, five votes: 2/2/1; a lost zone's two votes move one by one, and one comes back in calm."""
    zone = {one: "abc"[(one - 1) % 3] for one in range(1, 16)}
    wanted = RoleSettings(15, 5, AFTER, frozenset())
    now = [Candidate(one, one, one == 1, True, 0.0, zone=zone[one]) for one in zone]

    def step(since: float = LONG_AGO, calm: float = 0.0) -> list[int] | None:
        nonlocal now
        change = wished_voters(wanted, now, 1, since, calm)
        if change is None:
            return None
        now = applied(now, change)
        return sorted(Counter(zone[one] for one in change.voters).values())

    assert step() == [1, 2, 2]
    lost = {one for one in zone if zone[one] == "b"}
    now = [
        replace(one, silent_seconds=AFTER, active=False, caught_up=False) if one.member_id in lost else one
        for one in now
    ]
    assert step(since=AFTER - 1) is None
    assert step() == [1, 2, 2]
    assert step() == [2, 3]
    assert step() is None
    now = [replace(one, silent_seconds=0.0, active=True, caught_up=True) for one in now]
    assert step() is None
    assert step(calm=CALM_FACTOR * AFTER) == [1, 2, 2]
    assert step(calm=LONG_AGO) is None
