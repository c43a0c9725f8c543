"""Whole clusters on the production log: its files, its recovery, its generations, under the simulation's crashes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from planted_bugs import AcknowledgeBeforeFence
from simulation_adr import AdrLogs
from simulation_checks import Violation
from simulation_world import World, crashes


@pytest.mark.parametrize("ring", [True, False], ids=["ring", "disk"])
@pytest.mark.parametrize("seed", [1, 2])
def test_clusters_survive_on_the_production_log(tmp_path: Path, seed: int, ring: bool) -> None:
    logs = AdrLogs(tmp_path, ring)
    try:
        world = World(seed, crashes(random.Random(seed)), log_class=logs).run()
    finally:
        logs.close()
    assert world.crashes > 5
    assert world.acknowledged


def test_an_acknowledgement_before_the_fence_is_found(tmp_path: Path) -> None:
    for seed in range(10):
        logs = AdrLogs(tmp_path / str(seed), ring=True)
        try:
            World(seed, crashes(random.Random(seed)), node_class=AcknowledgeBeforeFence, log_class=logs).run()
        except Violation as violation:
            assert violation.rule in ("COMMITTED_ON_QUORUM", "M15_LOST_LOG", "ELECTION_SAFETY"), violation
            return
        finally:
            logs.close()
    pytest.fail("not found in 10 seeds")
