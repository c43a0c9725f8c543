"""M5: when a member takes part, and whether that finds out every older disk: explored over small clusters.

The exploration below is the argument of `docs/decisions/0005-openings.md` done by exhaustion, with the production gate
in it: one member opens its disk again and again, each time while some of the others cannot be reached; then an older
copy of its disk turns up, in any surroundings.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations

import pytest
from raftkv_node.raft.quorum import majority
from raftkv_node.server.gate import Electorate, Gate, Reason, others_borne, others_needed

PATIENCE_SECONDS = 10.0
OWN = 1


def gate(patience: float = PATIENCE_SECONDS, *, ring_proof: bool = False) -> Gate:
    return Gate(OWN, ring_proof, patience)


def voters(number: int) -> frozenset[int]:
    return frozenset(range(1, number + 1))


def subsets(of: frozenset[int]) -> Iterator[frozenset[int]]:
    ids = sorted(of)
    return (frozenset(one) for one in chain.from_iterable(combinations(ids, n) for n in range(len(ids) + 1)))


def opens(number: int, stored_by: frozenset[int], after: float = 0.0, *, patience: float = PATIENCE_SECONDS) -> bool:
    """Whether the gate of a restarted member is open so long after the others have answered."""
    one = gate(patience)
    one.look(Electorate(voters(number)), 0.0)
    one.stored_by |= stored_by
    one.look(Electorate(voters(number)), after)
    return one.is_open


# -- the rules, one by one ---------------------------------------------------------------------------------------------


def test_m5_the_only_voter_waits_for_nobody() -> None:
    one = gate()
    assert one.look(Electorate(voters(1)), 0.0)
    assert one.reason == Reason.ALONE


def test_m5_a_ring_in_use_is_proof_enough() -> None:
    assert gate(ring_proof=True).reason == Reason.RING


@pytest.mark.parametrize(
    ("number", "needed", "borne"), [(2, 1, 1), (3, 2, 1), (4, 3, 2), (5, 3, 2), (7, 4, 3), (9, 5, 4)]
)
def test_m5_a_quorum_of_the_others_has_stored_the_opening(number: int, needed: int, borne: int) -> None:
    assert (others_needed(OWN, voters(number)), others_borne(OWN, voters(number))) == (needed, borne)
    for stored in subsets(voters(number) - {OWN}):
        assert opens(number, stored) == (len(stored) >= needed)
        assert opens(number, stored, PATIENCE_SECONDS) == (len(stored) >= borne)
        assert opens(number, stored, 1e9, patience=0) == (len(stored) >= needed), "patience 0 waits for ever"


def test_m5_the_members_own_word_counts_for_nothing() -> None:
    assert not opens(3, frozenset({OWN, 2}))


def test_m5_a_learner_needs_a_quorum_of_the_voters_and_is_never_impatient() -> None:
    """It may have voted before: its log may not yet say that it was made a voter, or that it is none any more."""
    learner = Gate(9, False, PATIENCE_SECONDS)
    learner.look(Electorate(voters(3)), 0.0)
    learner.stored_by |= {1}
    assert not learner.look(Electorate(voters(3)), 1e9)
    learner.stored_by |= {2}
    assert learner.look(Electorate(voters(3)), 1e9)


def test_m5_both_halves_of_a_joint_configuration_count() -> None:
    one = gate()
    joint = Electorate(frozenset({1, 2, 3}), frozenset({1, 4, 5}))
    one.stored_by |= {2, 3, 4}
    assert not one.look(joint, 0.0)
    one.stored_by |= {5}
    assert one.look(joint, 0.0)


def test_m5_who_votes_in_one_half_of_a_joint_configuration_may_run_out_of_patience() -> None:
    """A member that comes to vote was never let in, as it was not among the outgoing voters: with two of five lost, the
    change could not end."""
    both = Electorate(frozenset({1, 5, 8, 9, 10}), frozenset({5, 8, 11}))
    new = gate()
    new.stored_by |= {5, 9}  # of 8 and 11 one more is needed: the outgoing half wants a quorum of its own
    assert not new.look(both, 0) and not new.look(both, PATIENCE_SECONDS)
    new.stored_by |= {11}
    assert new.look(both, PATIENCE_SECONDS)
    assert new.reason == Reason.PATIENCE
    stranger = gate()
    stranger.stored_by |= {5, 9}
    assert not stranger.look(Electorate(frozenset({5, 8, 9, 10, 12}), frozenset({5, 8, 9})), 0)
    assert not stranger.look(Electorate(frozenset({5, 8, 9, 10, 12}), frozenset({5, 8, 9})), 2 * PATIENCE_SECONDS)


def test_m5_a_node_that_knows_no_voters_waits() -> None:
    one = gate()
    assert not one.look(Electorate(), 0.0)
    assert not one.look(Electorate(), 1e9)


def test_m5_a_gate_once_open_stays_open() -> None:
    one = gate()
    one.stored_by |= {2, 3}
    assert one.look(Electorate(voters(3)), 0.0)
    assert not one.look(Electorate(voters(9)), 1.0), "it is only said once"
    assert one.is_open


# -- the exploration ---------------------------------------------------------------------------------------------------


OPENINGS = {2: 3, 3: 3, 4: 2, 5: 2}
"""Openings of the real disk that are explored, by the number of voters."""


class Cluster:
    """What the other voters know of one member's openings. A copy of the disk is just the number of its opening."""

    def __init__(self, number: int, strict: bool) -> None:
        self.voters = voters(number)
        self.others = self.voters - {OWN}
        self.strict = strict

    def live(
        self, known: tuple[int, ...], generation: int, reached: frozenset[int]
    ) -> tuple[tuple[int, ...], bool, bool]:
        """An opening with this generation among those who can be reached: what is known then, whether the member takes
        part, and whether it was refused. Whoever has heard of a later or the same one refuses (nonces differ)."""
        places = dict(zip(sorted(self.others), known, strict=True))
        refused = any(places[one] >= generation for one in reached)
        stored = frozenset(one for one in reached if places[one] < generation)
        after = tuple(generation if one in stored else places[one] for one in sorted(self.others))
        missing = len(self.others - reached)
        # Who is not reached for as long as the patience is long counts as failed for good; more failed than a cluster
        # can bear are outside of the assumption, and the rule says so (see the second test).
        waited = 0.0 if self.strict or missing == 0 else PATIENCE_SECONDS
        taking_part = not refused and opens(len(self.voters), stored, waited)
        return after, taking_part, refused


def two_lives(number: int, strict: bool, dead_at_most: int) -> list[str]:
    """All traces in which an older copy of the disk takes part although a newer one has: NO_TWO_LIVES broken.

    Some openings of the real disk, each among any others that the cluster can live with, some of them in vain; then a
    copy of any opening, among any others, while at most ``dead_at_most`` are missing.
    """
    cluster = Cluster(number, strict)
    broken = []
    surroundings = [one for one in subsets(cluster.others) if len(cluster.others - one) <= number - majority(number)]
    states = {((0,) * len(cluster.others), 0): "born"}
    for generation in range(1, OPENINGS[number] + 1):
        following = dict(states)
        for (known, newest), story in states.items():
            for reached in surroundings:
                after, takes_part, refused = cluster.live(known, generation, reached)
                assert not refused, "the newest disk is never refused"
                following.setdefault((after, newest), f"{story}; attempt {generation} with {sorted(reached)}")
                if takes_part:
                    following[after, generation] = f"{story}; opening {generation} with {sorted(reached)}"
        states = following
    for (known, newest), story in states.items():
        for copy in range(newest):
            for reached in subsets(cluster.others):
                if len(cluster.others - reached) > dead_at_most:
                    continue
                _, takes_part, _ = cluster.live(known, copy + 1, reached)
                if takes_part:
                    broken.append(f"{story}; copy of {copy} with {sorted(reached)}")
    return broken


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_m5_no_two_lives_whoever_is_away_where_patience_is_off(number: int) -> None:
    """Strictly: whatever the network does, and however many members are away."""
    assert two_lives(number, strict=True, dead_at_most=number) == []


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_m5_no_two_lives_while_no_more_disks_fail_than_the_cluster_bears(number: int) -> None:
    """With patience: the older copy is itself a failed disk, so one member less may be missing beside it."""
    borne = number - majority(number)
    assert two_lives(number, strict=False, dead_at_most=max(0, borne - 1)) == []


def test_m5_the_trace_that_patience_cannot_find() -> None:
    """The decision's trace: three members, one dead for good, one away during the whole newest opening, and the third's
    disk restored. No rule can tell this from an honest restart; it is one failed disk more than three members bear."""
    found = two_lives(3, strict=False, dead_at_most=1)
    assert "born; opening 1 with [2]; copy of 0 with [3]" in found
    assert all("copy of" in trace for trace in found)


@pytest.mark.parametrize("number", [3, 5])
def test_m5_a_cluster_lives_on_with_as_many_dead_as_it_can_bear(number: int) -> None:
    """Liveness: with patience, any member restarts while a quorum with it is there; strictly, it must wait."""
    borne = number - majority(number)
    for dead in combinations(sorted(voters(number) - {OWN}), borne):
        alive = voters(number) - {OWN} - set(dead)
        assert opens(number, alive, PATIENCE_SECONDS)
        assert not opens(number, alive, 1e9, patience=0)


def planted_itself_counted(own: int, ids: frozenset[int]) -> int:
    """The bug: a quorum with itself is enough at once."""
    return majority(len(ids)) - (own in ids)


@pytest.mark.interpreted("plants a bug")
def test_m5_planted_the_own_word_counted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the member itself in the quorum that has stored it, an old copy finds a quorum that knows nothing."""
    monkeypatch.setattr("raftkv_node.server.gate.others_needed", planted_itself_counted)
    for number in (3, 5):
        assert two_lives(number, strict=True, dead_at_most=number - majority(number))


@pytest.mark.interpreted("plants a bug")
def test_m5_planted_no_gate_at_all_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean old disk votes again."""
    monkeypatch.setattr("raftkv_node.server.gate.others_needed", lambda own, ids: 0)
    assert two_lives(3, strict=True, dead_at_most=2)
