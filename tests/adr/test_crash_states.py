"""The short form of `make crash-states`: each scenario once, and each planted bug.

Every test here runs the log's own code on a disk and a memory that lose what was not made durable; what is new in each
run is the seed, which a failure prints."""

from __future__ import annotations

import random

import pytest
from adr_crash import Disk, Inode
from crash_generations import explore as explore_generations
from crash_plants import PLANTS, Plant, explore
from crash_scenarios import SCENARIOS, Scenario, run
from crash_states import EMPTY, Allowed, Bounds, State, Tree, Violation
from raftkv_node.adr import entry, hard_state, snapshot

QUICK = Bounds(exhaustive=16, samples=2, second_every=40, second_moments=4)


def named(item: Scenario | Plant) -> str:
    return item.name.replace(" ", "-")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
def test_every_crash_state_recovers_what_was_acknowledged(scenario: Scenario) -> None:
    """D2 to D9: in each of them all that was acknowledged is there, nothing else is, and nobody is refused."""
    seed = random.randrange(1 << 31)
    tally = run(scenario, seed, QUICK, worlds=1)
    assert not tally.violations, tally.violations
    assert tally.states > 30 and tally.recoveries > 10, tally
    # What a kill has left uncertain in the old ring stays so: there is no moment with few states.
    assert tally.exhausted > 10 or scenario.cut == "kill", tally


def test_d1_an_old_record_beneath_a_torn_new_one_is_none() -> None:
    tally = explore_generations()
    assert not tally.violations
    assert tally.exhausted == tally.moments == 10 and tally.exhaustive > 40


@pytest.mark.parametrize("plant", PLANTS, ids=named)
def test_a_planted_bug_is_found(plant: Plant) -> None:
    assert explore(plant, 1, QUICK).violations, "nothing was found: the crash states are blind"


# --- the tools themselves ---


def test_a_tree_of_choices_is_walked_whole() -> None:
    tree, paths, more = Tree(), [], True
    while more:
        first = tree.choose(2)
        paths.append((first, tree.choose(1)) if first else (first,))
        more = tree.advance()
    assert paths == [(0,), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_disk_keeps_what_was_synced_and_any_part_of_the_rest() -> None:
    disk = Disk({1: Inode(b"a" * 600, b"a" * 512 + b"b" * 588)}, {"f": 1}, {"f": 1, "g": None})
    tree, seen, more = Tree(), set(), True
    while more:
        state = disk.after_power_cut(tree.choose)
        seen.add((state["f"], "g" in state))
        more = tree.advance()
    old, new = b"a" * 600, b"a" * 512 + b"b" * 588
    contents = {old, old[:512] + new[512:600], new, old[:600].ljust(1024, b"\0") + new[1024:]}
    assert {data for data, _ in seen if len(data or b"") == 600} == {old, old[:512] + new[512:600]}
    assert contents <= {data for data, _ in seen} and len(seen) == 2 * len({data for data, _ in seen})


@pytest.mark.parametrize(
    "shown, invariant",
    [
        (EMPTY, "NO_VOTE_TWICE"),
        (State((2, 0xB, 0), 0, ((1, 1, b"one"),)), "NO_VOTE_TWICE"),
        (State((2, 0xA, 0)), "ACKNOWLEDGED_IMPLIES_DURABLE"),
        (State((2, 0xA, 0), 0, ((1, 1, b"one"), (1, 2, b"x"))), "RECOVERED_IS_PREFIX"),
        ("refused", "A_CRASH_IS_NO_CORRUPTION"),
    ],
)
def test_what_is_broken_is_called_by_its_name(shown: State | str, invariant: str) -> None:
    past = EMPTY.after(hard_state(2, 0xA, 0))
    known = past.after(entry(1, 1, 0, b"one"))
    with pytest.raises(Violation) as found:
        Allowed([known, known.after(entry(1, 2, 0, b"two"))], [EMPTY, past]).judge(shown)
    assert found.value.invariant == invariant


def test_a_snapshot_replaces_the_log_and_a_release_may_cut_it() -> None:
    state = EMPTY.after(entry(1, 1, 0, b"a")).after(entry(1, 2, 0, b"b")).after(entry(1, 3, 0, b"c"))
    cut = State(base=2, log=((1, 3, b"c"),))
    assert cut.shows(state, 3) and not cut.shows(state, 2)
    assert state.after(snapshot(4, 9)) == State(base=9)
