"""The runner of the bars: verdicts, and that each row's figure is one that its stage measures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import stages
from bar_rows import COLUMNS, ROWS, STAGES, Row, Setup, chosen
from bars import Results, judge, measure, table
from clusters import RaftKVCluster
from slow_disk import NoSlowDisk, SlowDisk
from stages import Wanted

_MORE = Row("a", "t", "writes", "puts-1000", "/s", "adr", "etcd", 2.5, True)
_LESS = Row("b", "t", "writes", "one-client", "ms", "adr", "etcd", 0.4, False)
_ALONE = Row("c", "t", "ring-recovery", "ring-recovery", "s", "", None, 2.0, False)


@pytest.mark.parametrize(
    ("row", "value", "verdict"),
    [
        (_MORE, 2.5, "met"),
        (_MORE, 2.0, "two thirds"),
        (_MORE, 1.99, "missed"),
        (_LESS, 0.4, "met"),
        (_LESS, 0.6, "two thirds"),
        (_LESS, 0.61, "missed"),
        (_ALONE, 1.9, "met"),
        (_ALONE, 2.1, "missed"),
    ],
)
def test_a_verdict_tells_the_bar_from_two_thirds_of_the_way(row: Row, value: float, verdict: str) -> None:
    assert row.verdict(value) == verdict


def test_a_ratio_is_of_medians_and_times_are_in_the_unit_of_the_row() -> None:
    results = Results()
    for etcd, adr in ((10.0, 30.0), (1.0, 1000.0), (20.0, 40.0)):
        results.add("writes", "etcd", {"puts-1000": etcd, "one-client": etcd / 1000})
        results.add("writes", "adr", {"puts-1000": adr, "one-client": adr / 1000})
    judged = judge(_MORE, results)
    assert (judged.value, judged.verdict) == (4.0, "met")
    assert judge(_LESS, results).base == [10.0, 1.0, 20.0]
    assert judge(_ALONE, results).verdict == "not measured"
    beside = replace(_LESS, base=None, bar=35.0, beside="etcd")
    assert (judge(beside, results).value, judge(beside, results).base) == (40.0, [10.0, 1.0, 20.0])
    assert judge(beside, results).verdict == "missed", "an absolute bar, whatever stands beside it"
    lines = table([judged, judge(_ALONE, results)]).splitlines()
    assert "| 10.0 (1.0..20.0) /s | 40.0 (30.0..1,000.0) /s | 4.00x | 2.50x | 2.00x | met |" in lines[2]
    assert "| - | - | - | 2 s | - | not measured |" in lines[3]


def test_a_stage_that_fails_is_told_of_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(setup: Setup) -> dict[str, float]:
        raise RuntimeError("no such luck")

    monkeypatch.setitem(STAGES, "broken", stages_alone(fail))
    monkeypatch.setitem(STAGES, "whole", stages_alone(lambda setup: {"x": 1.0}))
    rows = [Row(name, "t", name, "x", "s", "", None, 2.0, False) for name in ("broken", "whole")]
    results = Results()
    measure(rows, Setup(tmp_path, None), 2, 1.0, results)
    assert [judge(row, results).verdict for row in rows] == ["not measured", "met"]
    assert len(results.failures) == 2
    assert "no such luck" in results.failures[0]


def stages_alone(alone: object) -> object:
    """A stage without a cluster."""
    return type(STAGES["ring-recovery"])(alone=alone, rounds=2)


def test_rows_are_chosen_by_name() -> None:
    assert [row.name for row in chosen("one-client, puts-1000")] == ["one-client", "puts-1000"]
    assert chosen("all") == ROWS
    assert all(row.by_default for row in chosen(""))
    with pytest.raises(ValueError, match="no row is called 'puts-9'"):
        chosen("puts-9")


def test_rows_name_stages_and_columns_that_are_there() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.stage in STAGES
        assert row.base is None or row.base in COLUMNS
        assert row.beside is None or (row.base is None and row.beside in COLUMNS)
        assert (row.subject in COLUMNS) == (STAGES[row.stage].alone is None)


@pytest.fixture(scope="module")
def member() -> Iterator[RaftKVCluster]:
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("no tmpfs at /dev/shm")
    with RaftKVCluster(1, None, memory) as made:
        assert isinstance(made, RaftKVCluster)
        yield made


_MEASURED = {
    "writes": stages.writes,
    "large-range": stages.large_range,
    "range-stream": stages.range_stream,
    "watch-latency": stages.watch_latency,
    "memory-100000": stages.memory(100_000),
    "memory-1000000": stages.memory(1_000_000),
    "restart": stages.restart,
    "cpu-growth": stages.cpu_growth(10_000, 100_000, 1_000_000),
    "cpu-growth-5m": stages.cpu_growth(10_000, 5_000_000),
}


@pytest.mark.parametrize("stage", _MEASURED)
def test_a_stage_measures_the_figures_of_its_rows(stage: str, member: RaftKVCluster) -> None:
    wanted = frozenset(row.figure for row in ROWS if row.stage == stage)
    found = _MEASURED[stage](member, Wanted(wanted, 0.002))
    assert wanted <= set(found)
    # A member may have had the memory for a short stream before.
    grown = found.pop("range-stream-memory", 0.0)
    assert grown >= 0 and all(value > 0 for value in found.values())


def test_stages_on_a_slow_disk_measure_the_figures_of_their_rows(tmp_path: Path) -> None:
    try:
        slow = SlowDisk(tmp_path)
    except NoSlowDisk as error:
        pytest.skip(str(error))
    with slow, RaftKVCluster(1, slow.folder, extra=("--minimum-durability", "process")) as made:
        for stage, measured in (("slow-5ms", stages.slow_flushes(slow, 5)), ("stall", stages.stall(slow))):
            wanted = frozenset(row.figure for row in ROWS if row.stage == stage)
            found = measured(made, Wanted(wanted, 0.02))
            assert wanted <= set(found)
        assert found["stall-slowest"] > 1.0, "in disk mode a put waits for the stalled flush"


def test_a_full_ring_is_recovered_as_a_whole() -> None:
    assert stages.ring_recovery(None, Path("/dev/shm"))["ring-recovery"] > 0
