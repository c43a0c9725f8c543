"""Whole clusters from seeds: nothing goes wrong with the real core, and every planted bug is found.

`RAFT_SIMULATION_SEEDS=FROM:TO pytest tests/simulation` runs other seeds; a failure names its seed, which replays it.
"""

from __future__ import annotations

import os

import pytest
from planted_bugs import BUGS, Planted
from simulation_checks import Violation
from simulation_setup import PROFILES
from simulation_world import World

FIRST, LAST = (int(part) for part in os.environ.get("RAFT_SIMULATION_SEEDS", "0:18").split(":"))
PATIENCE = 40
"""Seeds within which each planted bug must be found; most are found within five."""


def run(seed: int) -> World:
    world = World(seed)
    try:
        return world.run()
    except Violation as violation:
        story = "\n".join(world.trace[-40:])
        raise AssertionError(
            f"seed {seed}, {PROFILES[seed % len(PROFILES)].__name__}: {violation}\n{story}"
        ) from violation


@pytest.mark.parametrize("seed", range(FIRST, LAST))
def test_seed(seed: int) -> None:
    world = run(seed)
    assert world.checks.committed, "nothing was ever committed"


def test_a_seed_replays_to_the_letter() -> None:
    first, second = run(2), run(2)
    assert first.trace == second.trace
    assert first.points == second.points
    assert first.checks.committed == second.checks.committed


def test_the_world_is_bad_enough() -> None:
    """Over a few seeds everything must have happened: crashes at each point of a turn, changes, reads, refusals."""
    points: dict[str, int] = {}
    crashed_at: set[str] = set()
    totals = {"crashes": 0, "changes_made": 0, "reads_served": 0, "reads_failed": 0, "acknowledged": 0}
    for seed in range(60, 68):
        world = run(seed)
        for point, count in world.points.items():
            points[point] = points.get(point, 0) + count
        crashed_at |= {line.split(" dies ")[1] for line in world.trace if " dies " in line}
        for name in totals:
            totals[name] += getattr(world, name)
    assert min(totals.values()) > 20, totals
    for point in ("before write", "after write", "after fence", "after flush", "after apply", "before messages"):
        assert point in crashed_at, crashed_at
    for point in ("after VOTE", "after VOTE_RESPONSE", "after APPEND", "after APPEND_RESPONSE", "after backend commit"):
        assert points[point] > 10, points


@pytest.mark.interpreted("plants a bug")
@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_planted_bug_is_found(bug: Planted) -> None:
    for seed in range(PATIENCE):
        try:
            bug.world(seed).run()
        except Violation as violation:
            assert violation.rule in bug.found_by, f"seed {seed}: {violation}"
            return
    pytest.fail(f"not found in {PATIENCE} seeds")
