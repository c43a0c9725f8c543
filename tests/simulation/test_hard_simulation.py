"""Clusters on hardware that fails, from seeds; planted bugs of ring, disk and recovery are found; failures shrink.

`make soak` plays many more seeds and says what happened in them. Here: some fixed ones, fresh ones for as long as the
budget lasts, and the tests of the tests.
"""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soak
import soak_runs
from planted_member_bugs import keep_the_file
from raftkv_node.adr import disklog, opening, ringlog
from raftkv_node.adr.errors import LogFailed
from raftkv_node.adr.log import Log
from raftkv_node.adr.segments import Segments
from raftkv_node.adr.table import Action, Verdict, decide
from simulation_checks import Checks, Violation
from simulation_disk import Place
from simulation_hard import HardWorld, failing_disks, losses
from simulation_setup import Setup
from soak_runs import Run, play, run_of
from soak_shrink import shrink

FRESH_SECONDS = float(os.environ.get("SOAK_FRESH_SECONDS", "30"))
PATIENCE = 30
"""Seeds within which each planted bug must be found."""
FEW_FAULTS = 6
"""A failure that needs one or two faults is shrunk to so many at most."""


def test_hard_seeds_break_no_rule_and_everything_happens_in_them() -> None:
    counts: Counter[str] = Counter()
    for seed in range(100, 120):
        outcome = play(run_of(seed))
        assert not outcome.rule, f"make soak REPLAY='{outcome.run.line()}'\n{outcome.text}"
        counts.update(outcome.counts)
    for event in (*soak_runs.GOALS, *soak_runs.WEATHER):
        assert counts[event], f"{event} never happened: {counts}"


def test_hard_fresh_seeds_break_no_rule() -> None:
    for run in soak.Supply(soak.seeds_of(""), time.monotonic() + FRESH_SECONDS, 1 << 30):
        outcome = play(run)
        assert not outcome.rule, f"make soak REPLAY='{outcome.run.line()}'\n{outcome.text}"


@pytest.mark.parametrize("seed", [82524067481, 82524067490])
def test_an_introduction_ends_with_the_life_that_made_it(seed: int) -> None:
    """A member introduced itself and died; what it had said arrived all the same, and the leader took it for the next
    life's word: it sent to a member that knew of no connection, for ever. On a connection that cannot be."""
    outcome = play(run_of(seed))
    assert not outcome.rule, outcome.text


def test_a_value_before_tells_which_write_of_unknown_outcome_took_effect() -> None:
    """The checker chose another one that fitted all answers, and then called what a watch said of it wrong."""
    outcome = play(run_of(250871188133))
    assert not outcome.rule, outcome.text


def test_a_hard_run_replays_to_the_letter_from_its_line() -> None:
    run = run_of(7)
    again = Run.parse(run.line())
    assert again == run
    first, second = play(run), play(again)
    assert (first.counts, first.trace) == (second.counts, second.trace)


# -- planted -----------------------------------------------------------------------------------------------------------


def starts_without_its_ring(seen: Any) -> Verdict:
    """Row 11 of the decision table is forgotten: a missing ring is taken for one that is not needed."""
    verdict = decide(seen)
    return Verdict(8, Action.SWITCH) if verdict.row == 11 else verdict


def takes_damage_for_the_end(opened: Any, found: Any, ring: Any, generation: Any) -> None:
    """D2 is forgotten: the first record of the ring that is not valid is its end, whatever later ones say."""
    start = found.previous.drained_lsn
    image = ring.load()
    end, found.replayed, _, found.torn_tail_bytes = image.scan(start, generation.number, generation.seed)
    found.tail = image.linear(start, end, generation.number, generation.seed)
    opened.index.absorb(found.tail, start, generation.number, generation.seed)
    found.tail_lsn, found.end_lsn = start, end


def written_is_synced(self: Segments, end_lsn: int) -> None:
    """What was written to a segment counts as drained without a sync."""
    self._unsynced = False
    self._chain[-1].end_lsn = end_lsn


def rotting_rings(rng: random.Random) -> Setup:
    """Drains are rare, so that much of a ring is needed; and bits flip."""
    setup = losses(rng)
    return replace(setup, drain=0.0, faults=replace(setup.faults, rot=0.6, ring_loss=0.0, restore=0.0))


def failing_syncs(rng: random.Random) -> Setup:
    """Disks without a ring fail now and then; the processes end by it, and the power goes later."""
    setup = failing_disks(rng)
    faults = replace(setup.faults, blackout=0.5, disk_error=0.1, full=0.0, broken=0.0, power=0.1)
    return replace(setup, slow_disks=True, faults=faults)


def sync_again(self: Any, end_lsn: int) -> None:
    """fsyncgate: a sync that failed is tried once more, on the same file."""
    try:
        _sync(self, end_lsn)
    except OSError:
        _sync(self, end_lsn)


_sync = Segments.sync


def end_when_in_trouble(self: Log) -> None:
    """Whatever the disk complained of, the next append ends the member: by no error of the disk's."""
    if self._trouble is not None:
        raise LogFailed("planted")


def found(world: HardWorld) -> str:
    try:
        world.run()
    except Violation as violation:
        return violation.rule
    return ""


@pytest.mark.interpreted("plants a bug")
@pytest.mark.parametrize(
    ("shape", "planted", "rules"),
    [
        pytest.param(
            losses,
            {opening: {"decide": starts_without_its_ring}},
            {"NO_VOTE_TWICE_AFTER_RING_LOSS", "NO_VOTE_TWICE", "ACKNOWLEDGED_IMPLIES_DURABLE", "FAILED"},
            id="a lost ring is not missed",
        ),
        pytest.param(
            rotting_rings,
            {opening: {"_read_ring": takes_damage_for_the_end}},
            {"NO_VOTE_TWICE", "ACKNOWLEDGED_IMPLIES_DURABLE", "RECOVERED_IS_PREFIX"},
            id="damage in a ring taken for its end",
        ),
        pytest.param(
            failing_disks, {Segments: {"sync": sync_again}}, {"D15_SYNC_NOT_RETRIED", "FAILED"}, id="a sync tried again"
        ),
        pytest.param(
            losses,
            {Segments: {"sync": written_is_synced}},
            {"DRAIN_NEVER_PASSES_DURABLE"},
            id="a manifest ahead of its segments",
        ),
        pytest.param(
            failing_syncs, {Segments: {"_replace": keep_the_file}}, {"FAILED"}, id="a sync tried again in the next life"
        ),
        pytest.param(
            failing_disks,
            {module: {"may_retry": lambda error: False} for module in (ringlog, disklog)},
            {"DISK_ERROR_SURVIVED"},
            id="no room ends a member",
        ),
        pytest.param(
            failing_disks, {ringlog: {"DRAIN_TRIES": 1}}, {"DISK_ERROR_SURVIVED"}, id="one failed drain ends a member"
        ),
        pytest.param(
            failing_disks, {Log: {"_check_usable": end_when_in_trouble}}, {"FAILED"}, id="an end that no error explains"
        ),
    ],
)
def test_planted_bugs_of_the_hardware_are_found(shape: Any, planted: Any, rules: set[str]) -> None:
    for seed in range(PATIENCE):
        rule = found(HardWorld(seed, shape(random.Random(seed)), planted=planted))
        if rule:
            assert rule in rules
            return
    raise AssertionError(f"not found within {PATIENCE} seeds")


def test_a_drain_that_passes_what_is_fenced_is_a_violation(tmp_path: Path) -> None:
    place = Place(tmp_path / "member", lambda _: None, random.Random(1))
    place.mapped("ring", (), 1000)
    place.copied(1000)
    with pytest.raises(Violation, match=r"DRAIN_NEVER_PASSES_DURABLE: .* up to LSN 1001, durable is 1000"):
        place.copied(1001)


def test_a_vote_that_is_given_again_after_a_ring_was_lost_has_a_name_of_its_own() -> None:
    checks = Checks()
    checks.ringless.add(1)
    checks.vote(1, 7, 2)
    with pytest.raises(Violation, match="NO_VOTE_TWICE_AFTER_RING_LOSS"):
        checks.vote(1, 7, 3)


@pytest.mark.interpreted("plants a bug")
def test_a_failure_is_shrunk_to_less_that_breaks_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    class Planted(HardWorld):
        def __init__(self, seed: int, setup: Any) -> None:
            super().__init__(seed, setup, planted={opening: {"decide": starts_without_its_ring}})

    monkeypatch.setitem(soak_runs.WORLDS, "hard", Planted)
    for seed in range(PATIENCE):
        failed = play(Run("hard", seed, losses(random.Random(seed))))
        if failed.rule:
            break
    small = shrink(failed, seconds=20.0)
    assert small.rule == failed.rule

    def weight(run: Run) -> int:
        faults = sum(bool(value) for value in dataclasses.astuple(run.setup.faults))
        return faults + run.setup.duration + run.setup.clients + run.setup.members

    assert weight(small.run) < weight(failed.run)
    again = play(Run.parse(small.run.line()))
    assert (again.text, again.struck) == (small.text, small.struck)
    assert len(small.struck) <= FEW_FAULTS < len(failed.struck)
