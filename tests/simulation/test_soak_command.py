"""What `make soak` adds up, and what it refuses to: a table is of one program, and no run counts twice."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import soak
from soak_record import NotAdded, Record, both, joined, ranges_of
from soak_runs import Outcome, Run


def record(commit: str, seeds: range, **counts: int) -> Record:
    return Record(Counter(counts), (commit,), ranges_of(seeds))


def test_a_record_adds_up_and_keeps_commit_and_seeds(tmp_path: Path) -> None:
    first, second = record("abc", range(10, 20), elections=3), record("abc", range(20, 25), elections=4, deaths=1)
    first.check(second)
    first.plus(second).write(tmp_path / "soak.json")
    found = Record.read(tmp_path / "soak.json")
    assert found == first.plus(second)
    assert found.counts == {"elections": 7, "deaths": 1}
    assert (found.commits, found.seeds, found.played_again) == (("abc",), ((10, 24),), ())
    assert "commit abc; seeds 10 to 24" in found.table()


@pytest.mark.parametrize(
    ("other", "why"), [(record("def", range(20, 25)), "it is of abc"), (record("abc", range(15, 25)), "15 to 19")]
)
def test_a_record_refuses_another_commit_and_seeds_that_it_has(other: Record, why: str) -> None:
    with pytest.raises(NotAdded, match=why):
        record("abc", range(10, 20)).check(other)


def test_a_record_that_was_mixed_says_so() -> None:
    mixed = record("abc", range(10, 20)).plus(record("def", range(15, 25)))
    assert "commit abc, def; seeds 10 to 24\nplayed more than once: seeds 15 to 19" in mixed.table()


def test_a_table_counts_the_violations_of_all_its_parts() -> None:
    one = Record(Counter(), ("abc",), ((1, 1),), ("LOST: a line",))
    assert "violations                                " in one.table()
    assert [line.split() for line in one.plus(one).table().splitlines() if "violations" in line] == [
        ["violations", "2"]
    ]


def test_ranges() -> None:
    assert ranges_of([5, 1, 2, 3, 9, 8]) == ((1, 3), (5, 5), (8, 9))
    assert both(((1, 5), (9, 12)), ((4, 10),)) == ((4, 5), (9, 10))
    assert joined(((1, 5), (9, 12)), ((6, 6), (11, 20))) == ((1, 6), (9, 20))


def ends_its_process(run: Run) -> Outcome:
    if run.seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(run, Counter(events=1), 0.0)


def test_a_run_that_ends_its_process_is_a_failure_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "play_in_time", ends_its_process)
    counts, played, failures = soak.soak(range(5), 3600.0, 1, patience_seconds=5.0)
    assert counts["events"] == 4
    assert [(one.rule, one.run.seed) for one in failures] == [("LOST", 3)]
    assert sorted(played) == [0, 1, 2, 3, 4]


def test_no_more_runs_wait_than_processes_and_one() -> None:
    supply = soak.Supply(range(100), time.monotonic() + 3600, 2)
    runs = iter(supply)
    assert [next(runs).seed for _ in range(3)] == [0, 1, 2]
    supply.over = True
    assert next(runs, None) is None
    supply.over = False
    supply.done(1)
    assert next(iter(soak.Supply(range(100), time.monotonic() - 1, 2)), None) is None
