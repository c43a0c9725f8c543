"""The pace of commits: they keep up with what comes, and a backlog is worked off over seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftkv_node.store.pace import CATCH_UP_SECONDS, LEAST_BYTES, USUAL_SECONDS, Pace

RATE = 8 << 20
"""Bytes that come in a second."""
INTERVAL_SECONDS = 0.1


@dataclass
class Run:
    """A thread that works at its pace, with time and what comes."""

    now: float = 100.0
    added: int = 0
    done: int = 0
    taken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pace = Pace(self.now)

    @property
    def waits(self) -> int:
        return self.added - self.done

    def pass_after(self, seconds: float, rate: float = RATE) -> int:
        """One pass that begins so long after the last; how much it was to take at most."""
        self.now += seconds
        self.added += int(rate * seconds)
        take = self.pace.take_bytes(self.added, self.done, self.now)
        self.taken.append(min(take, self.waits))
        self.done += self.taken[-1]
        return take


@pytest.fixture
def run() -> Run:
    run = Run()
    for _ in range(10):
        run.pass_after(INTERVAL_SECONDS)
    return run


@pytest.mark.parametrize("seconds", [0.02, INTERVAL_SECONDS, USUAL_SECONDS])
def test_what_comes_is_taken(seconds: float) -> None:
    run = Run()
    for _ in range(20):
        run.pass_after(seconds)
        assert run.waits <= 1


def test_a_backlog_is_worked_off_over_seconds(run: Run) -> None:
    """All members of a cluster committed two seconds of changes at the moment their disks came back, and the 99th
    percentile of put latency doubled."""
    run.pass_after(2.0)
    backlog = run.waits
    assert backlog > 1.5 * RATE, "the pass at the end of the stall takes no more than a usual one"
    usual = RATE * INTERVAL_SECONDS
    waits = [backlog]
    while run.waits > LEAST_BYTES:
        run.pass_after(INTERVAL_SECONDS)
        assert run.taken[-1] <= usual + max(LEAST_BYTES, waits[-1] * INTERVAL_SECONDS / CATCH_UP_SECONDS) + 1
        waits.append(run.waits)
        assert waits[-1] < waits[-2]
    in_time = round(CATCH_UP_SECONDS / INTERVAL_SECONDS)
    assert 0.3 * backlog < waits[in_time] < 0.4 * backlog
    assert len(waits) < 4 * in_time


def test_passes_that_always_take_long_take_all_that_comes(run: Run) -> None:
    """A slow disk is no stall: what waits is then no more than comes in a few of its passes."""
    waits = []
    for _ in range(60):
        run.pass_after(1.5)
        waits.append(run.waits)
    assert run.taken[-1] == pytest.approx(1.5 * RATE, rel=0.1)
    assert max(waits) == max(waits[:4]) < 2 * 1.5 * RATE
    assert waits[4:] == sorted(waits[4:], reverse=True) and waits[-1] < 0.1 * RATE


@pytest.mark.parametrize("short_passes", [1, 4, 10])
def test_long_passes_among_short_ones_leave_no_backlog_that_grows(run: Run, short_passes: int) -> None:
    """A disk with uneven flushes: short passes made it forget that long ones are usual; each was held for a stall."""
    waits = []
    for _ in range(100):
        run.pass_after(1.5)
        waits.append(run.waits)
        for _ in range(short_passes):
            run.pass_after(0.15)
    assert max(waits[10:]) < 0.5 * RATE


def test_what_could_not_be_done_for_long_is_a_backlog(run: Run) -> None:
    """In disk mode nothing may be committed that is not durable in the log."""
    for _ in range(20):
        run.now += INTERVAL_SECONDS
        run.added += int(RATE * INTERVAL_SECONDS)
        run.pace.take_bytes(run.added, run.done, run.now)
    backlog = run.waits
    assert run.pass_after(INTERVAL_SECONDS) < 0.2 * backlog
    while run.waits > LEAST_BYTES:
        run.pass_after(INTERVAL_SECONDS)
    assert len(run.taken) > 30


def test_a_little_after_a_long_rest_is_taken_at_once(run: Run) -> None:
    run.now += 3600.0
    run.added += LEAST_BYTES
    assert run.pass_after(0.0) >= LEAST_BYTES
    assert run.waits == 0


@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(0, 100 << 20)), max_size=30))
def test_it_always_goes_on_and_comes_to_an_end(steps: list[tuple[float, int]]) -> None:
    run = Run()
    for seconds, came in steps:
        run.added += came
        assert run.pass_after(seconds, 0.0) >= LEAST_BYTES
    passes = -(-run.waits // LEAST_BYTES)
    for _ in range(passes):
        run.pass_after(0.0, 0.0)
    assert run.waits == 0


def test_what_is_done_may_be_ahead_of_what_the_last_pass_saw() -> None:
    """A commit takes whole chunks, and those that came after the pass had begun."""
    run = Run()
    run.pass_after(INTERVAL_SECONDS)
    run.added += 10 << 20
    run.done = run.added - 5
    assert run.pass_after(INTERVAL_SECONDS) >= LEAST_BYTES
    assert run.waits == 0
