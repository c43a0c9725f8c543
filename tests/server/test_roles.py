"""The leader's decision about roles (M7, M8, M12, M14)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from raftkv_node.server.roles import (
    Candidate,
    Cause,
    RoleSettings,
    largest_odd,
    surplus_learners,
    wished_number,
    wished_voters,
)

LONG_AGO = 1e9


def settings(replicas: int, *, max_voters: int = 5, leaving: Iterable[int] = (), after: float = 0.0) -> RoleSettings:
    return RoleSettings(replicas, max_voters, after, frozenset(leaving))


def members(
    voters: Iterable[int], ready: Iterable[int] = (), late: Iterable[int] = (), silent: Iterable[int] = ()
) -> list[Candidate]:
    silent = set(silent)

    def one(member: int, voter: bool, caught_up: bool) -> Candidate:
        quiet = member in silent
        return Candidate(member, member, voter, caught_up, 60.0 if quiet else 0.0, active=not quiet)

    return (
        [one(member, True, True) for member in voters]
        + [one(member, False, True) for member in ready]
        + [one(member, False, False) for member in late]
    )


def wish(one: RoleSettings, candidates: list[Candidate], leader: int = 1) -> set[int] | None:
    change = wished_voters(one, candidates, leader, LONG_AGO)
    return None if change is None else set(change.voters)


def test_m7_from_one_to_three_is_one_step_once_both_have_caught_up() -> None:
    assert wish(settings(3), members([1], ready=[2], late=[3])) is None
    assert wish(settings(3), members([1], ready=[2, 3])) == {1, 2, 3}


def test_m7_from_three_to_five_is_one_step() -> None:
    assert wish(settings(5), members([1, 2, 3], ready=[4], late=[5])) is None
    assert wish(settings(5), members([1, 2, 3], ready=[4, 5])) == {1, 2, 3, 4, 5}


def test_m7_from_five_to_three_the_leaving_lose_their_vote_together() -> None:
    assert wish(settings(3, leaving=[2, 5]), members([1, 2, 3, 4, 5])) == {1, 3, 4}


def test_m7_from_three_to_one() -> None:
    assert wish(settings(1, leaving=[2, 3]), members([1, 2, 3])) == {1}
    assert wish(settings(1, leaving=[1, 2]), members([1, 2, 3])) == {3}


def test_m7_a_fourth_member_waits_as_a_standby() -> None:
    assert wish(settings(4), members([1, 2, 3], ready=[4])) is None


def test_m7_max_voters_bounds_the_voters() -> None:
    assert wish(settings(7, max_voters=3), members([1, 2, 3], ready=[4, 5, 6, 7])) is None
    assert wish(settings(7, max_voters=3), members([1, 2, 3, 4, 5], ready=[6, 7])) == {1, 2, 3}


def test_m7_a_leaving_voter_keeps_its_vote_until_somebody_can_take_it() -> None:
    assert wish(settings(3, leaving=[3]), members([1, 2, 3], late=[4])) is None
    assert wish(settings(3, leaving=[3]), members([1, 2, 3], ready=[4])) == {1, 2, 4}


def test_the_leader_and_those_heard_of_stay_when_places_get_fewer() -> None:
    assert wish(settings(3), members([1, 2, 3, 4, 5], silent=[2]), leader=5) == {5, 1, 3}


def test_m7_roles_by_hand_are_left_alone() -> None:
    assert wish(settings(0), members([1], ready=[2, 3])) is None


def test_m14_a_live_voter_is_never_swapped() -> None:
    assert wish(settings(3, after=30), members([1, 2, 3], ready=[4])) is None


def test_m14_a_silent_voter_is_swapped_for_a_standby_one_at_a_time() -> None:
    candidates = members([1, 2, 3], ready=[4, 5], silent=[2, 3])
    assert wish(settings(3, after=30), candidates) == {1, 2, 4}
    assert wished_voters(settings(3, after=30), candidates, 1, 29.0) is None
    assert wish(settings(3, after=90), candidates) is None
    assert wish(settings(3, after=30), members([1, 2, 3], late=[4], silent=[2])) is None


def test_m7_who_is_leaving_does_not_count_for_the_number_of_voters() -> None:
    assert wished_number(settings(5), range(1, 6)) == 5
    assert wished_number(settings(5, leaving=[4, 5]), range(1, 6)) == 3


def test_m14_the_leader_is_never_swapped_for_silence() -> None:
    candidates = members([1, 2, 3], ready=[4])
    candidates[0] = replace(candidates[0], silent_seconds=60.0)
    assert wish(settings(3, after=30), candidates) is None


def test_m14_a_silent_voter_that_leaves_is_not_the_one_that_may_be_swapped() -> None:
    """Its place is free anyway: the swap is for the other one."""
    candidates = members([1, 2, 3], ready=[4, 5], silent=[2, 3])
    candidates[1] = replace(candidates[1], silent_seconds=100.0)
    assert wish(settings(3, after=30, leaving=[2]), candidates) == {1, 4, 5}


@pytest.mark.parametrize("longest", [2, 3])
def test_m14_of_silent_voters_the_one_that_was_silent_for_longest_is_swapped(longest: int) -> None:
    candidates = [
        replace(one, silent_seconds=90.0) if one.member_id == longest else one
        for one in members([1, 2, 3], ready=[4], silent=[2, 3])
    ]
    assert wish(settings(3, after=30), candidates) == {1, 2, 3, 4} - {longest}


def test_a_vacancy_goes_to_the_most_caught_up() -> None:
    candidates = members([1, 2], ready=[3, 4, 5])
    behind = {3: 10, 4: 0, 5: 7}
    candidates = [replace(one, entries_behind=behind.get(one.member_id, 0)) for one in candidates]
    assert wish(settings(3), candidates) == {1, 2, 4}


def test_the_cause_of_a_change_is_named() -> None:
    def cause(one: RoleSettings, candidates: list[Candidate]) -> Cause | None:
        change = wished_voters(one, candidates, 1, LONG_AGO)
        return None if change is None else change.cause

    assert cause(settings(3, leaving=[3]), members([1, 2, 3], ready=[4])) == Cause.VACANCY
    assert cause(settings(3), members([1], ready=[2, 3])) == Cause.VACANCY
    assert cause(settings(3, after=30), members([1, 2, 3], ready=[4], silent=[3])) == Cause.SILENCE
    assert cause(settings(1), members([1, 2, 3])) == Cause.SURPLUS


def test_m13_a_learner_that_leaves_or_lags_does_not_become_a_standby() -> None:
    candidates = members([1, 2, 3], ready=[4, 5], late=[6])
    assert surplus_learners(settings(3), candidates) == {4, 5}
    assert surplus_learners(settings(3, leaving=[5]), candidates) == {4}
    assert surplus_learners(settings(0), candidates) == frozenset(), "roles are changed by hand"
    standing = [replace(one, standby=one.member_id == 4) for one in candidates]
    assert surplus_learners(settings(3), standing) == {5}


def placed(voters: dict[int, str], ready: dict[int, str]) -> list[Candidate]:
    return [replace(one, zone=(voters | ready)[one.member_id]) for one in members(voters, ready)]


def spread(candidates: list[Candidate], leader: int = 1, since: float = 300.0, calm: float = 300.0) -> set[int] | None:
    change = wished_voters(
        settings(15, max_voters=sum(one.voter for one in candidates), after=30.0), candidates, leader, since, calm
    )
    assert change is None or change.cause == Cause.SPREAD
    return None if change is None else set(change.voters)


def test_m14_a_vote_moves_for_the_spread_after_the_calm_and_after_the_last_swap() -> None:
    candidates = placed({1: "a", 2: "a", 3: "b"}, {4: "c"})
    assert spread(candidates) == {1, 3, 4}
    assert spread(candidates, since=299.0) is None
    assert spread(candidates, calm=299.0) is None


def test_the_leaders_own_vote_is_not_moved_for_the_spread() -> None:
    candidates = placed({1: "a", 2: "a", 3: "b"}, {4: "c"})
    assert spread(candidates, leader=2) == {2, 3, 4}


def test_no_vote_moves_where_any_zone_may_be_lost() -> None:
    five = {1: "a", 2: "a", 3: "b", 4: "b", 5: "c"}
    assert spread(placed(five, {6: "d"})) is None
    assert spread(placed(five | {4: "a"}, {6: "d"})) == {1, 2, 3, 5, 6}


def test_a_vote_moves_to_the_emptiest_zone_and_there_to_the_most_caught_up() -> None:
    candidates = placed({1: "a", 2: "a", 3: "a", 4: "b", 5: "a"}, {6: "b", 7: "c", 8: "c"})
    candidates = [replace(one, entries_behind=9 if one.member_id == 7 else 1) for one in candidates]
    assert spread(candidates) == {1, 2, 3, 4, 8}


def test_largest_odd() -> None:
    assert [largest_odd(number) for number in range(7)] == [0, 1, 1, 3, 3, 5, 5]
