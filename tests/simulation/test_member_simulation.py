"""Clusters of production members (raft, recovery, log, store, driver) from seeds: nothing goes wrong, bugs are found.

Each run of the tests takes some fixed seeds and a few fresh ones. A failure names its seed;
`RAFT_SIMULATION_SEEDS=SEED:SEED+1 pytest tests/simulation -k member` replays it to the letter.
"""

from __future__ import annotations

import os
import random

import pytest
from planted_bugs import ReusedReadContext
from planted_member_bugs import BUGS, Planted
from simulation_checks import Violation
from simulation_cluster import INSTALLING, SHAPES, MemberWorld, absences, run_of
from simulation_setup import freezes

SEEDS = os.environ.get("RAFT_SIMULATION_SEEDS")
FIRST, LAST = (int(part) for part in (SEEDS or "0:12").split(":"))
FRESH = 0 if SEEDS else 6
PATIENCE = 40
"""Seeds within which each planted bug must be found; most are found within three."""


def run(seed: int) -> MemberWorld:
    world = run_of(seed)
    try:
        return world.run()
    except Violation as violation:
        story = "\n".join(world.trace[-40:])
        raise AssertionError(
            f"RAFT_SIMULATION_SEEDS={seed}:{seed + 1} ({SHAPES[seed % len(SHAPES)].__name__}): {violation}\n{story}"
        ) from violation


@pytest.mark.parametrize("seed", range(FIRST, LAST))
def test_member_seed(seed: int) -> None:
    assert run(seed).acknowledged, "nothing was ever acknowledged"


@pytest.mark.skipif(not FRESH, reason="seeds are given")
def test_member_fresh_seeds() -> None:
    for _ in range(FRESH):
        run(random.SystemRandom().randrange(1000, 1 << 32))


def test_a_member_seed_replays_to_the_letter() -> None:
    first, second = run(3), run(3)
    assert first.trace == second.trace
    assert first.points == second.points
    assert first.checks.data == second.checks.data
    assert first.checks.counts == second.checks.counts


def test_the_members_world_is_bad_enough() -> None:
    """Over a few seeds all must have happened: deaths at each point of persistence, power cuts, torn tails, full rings,
    recoveries in every form, old reads and refusals."""
    died_at: set[str] = set()
    counts: dict[str, int] = {}
    totals = dict.fromkeys(("blackouts", "acknowledged", "reads_served", "serializable", "compactions"), 0)
    for seed in range(40, 84):
        world = run(seed)
        died_at |= {line.split(" dies ")[1] for line in world.trace if " dies " in line}
        for name, count in world.checks.counts.items():
            counts[name] = counts.get(name, 0) + count
        for name in totals:
            totals[name] += getattr(world, name)
    assert min(totals.values()) > 10, totals
    expected = {
        *(
            "before append",
            "after append",
            "after write",
            "in ring append",
            "in ring header",
            "after fsync",
            "after rename",
        ),
        *("after create", "after sync", "after apply", "before backend commit", "after backend commit"),
        *("before messages", "after APPEND", "after APPEND_RESPONSE", "after replies", "after flush"),
    }
    assert expected <= died_at, expected - died_at
    for name in (
        "states compared",
        "recovered by row 4",
        "recovered by row 8",
        "recovered by row 13",
        "torn tails",
        "recovered without released segments",
        "ring full",
    ):
        assert counts.get(name), counts


def test_members_die_at_every_step_of_a_snapshot() -> None:
    """Sooner or later all of it has happened: snapshots sent, given up and installed, and a death at each point."""
    died_at: set[str] = set()
    counts = dict.fromkeys(("snapshots sent", "snapshots given up", "snapshots installed"), 0)
    for seed in range(PATIENCE):
        world = MemberWorld(seed, absences(random.Random(seed)))
        try:
            world.run()
        except Violation as violation:
            raise AssertionError(
                f"seed {seed} of absences: {violation}\n" + "\n".join(world.trace[-40:])
            ) from violation
        died_at |= {line.split(" dies ")[1] for line in world.trace if " dies " in line}
        for name in counts:
            counts[name] += world.checks.counts.get(name, 0)
        if died_at >= INSTALLING and min(counts.values()):
            return
    pytest.fail(f"not seen: {INSTALLING - died_at}, {counts}")


class ClientsOnly(MemberWorld):
    """No answer is judged by what no client knows: only the clients' own history is left to tell."""

    def demand_floor(self, *_: object) -> None: ...


@pytest.mark.interpreted("plants a bug")
def test_a_stale_read_is_found_by_the_history_of_the_clients_alone() -> None:
    for seed in range(PATIENCE):
        try:
            ClientsOnly(seed, freezes(random.Random(seed)), raft_class=ReusedReadContext).run()
        except Violation as violation:
            assert violation.rule == "LINEARIZABLE_HISTORY"
            assert "NO_STALE_READ" in str(violation)
            return
    pytest.fail(f"not found in {PATIENCE} seeds")


def test_the_history_of_the_clients_holds_all_kinds_of_calls_and_what_watches_were_told() -> None:
    worlds = [run(seed) for seed in range(1, 6)]
    world = worlds[0]
    kinds = {type(one.request).__name__ for one in world.history.operations if one.response is not None}
    assert {"PutRequest", "TxnRequest", "DeleteRangeRequest", "RangeRequest"} <= kinds
    assert world.checks.counts["histories checked"] == 1
    assert world.checks.counts["watch events in checked histories"] > 50
    watches = [watch for one in worlds for watch in one.history.watches]
    assert any(watch.complete_to for watch in watches), "no watch was told how far it is"
    assert len(watches) > 2 * len(worlds), "no watch was ever resumed"


@pytest.mark.interpreted("plants a bug")
@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_planted_member_bug_is_found(bug: Planted) -> None:
    for seed in range(PATIENCE):
        try:
            bug.world(seed).run()
        except Violation as violation:
            assert violation.rule in bug.found_by, f"seed {seed}: {violation}"
            return
    pytest.fail(f"not found in {PATIENCE} seeds")
