"""The runner of the bars: verdicts, and that each row's figure is one that its stage measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import bars
import stages
from bar_rows import COLUMNS, ROWS, STAGES, Row, Setup, Stage, chosen
from bars import Results, judge, legend, measure, table
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
    assert "| 10.0 (1.0..20.0) /s | 40.0 (30.0..1,000.0) /s | 4.00x | 2.50x | 2.00x | met | - | - |" in lines[2]
    assert "| - | - | - | 2 s | - | not measured | - | - |" in lines[3]


_RINGS = {
    "puts-1000 puts-100 one-client cpu reads-l reads-s mixed range-10000 range-stream": "etcd-nofsync",
    "watch-p50 watch-p99 watch-events memory-100000 memory-1000000 check-perf-xl": "etcd-nofsync",
    "paced-rate paced-slowest paced-stddev check-perf-l range-stream-memory memory-100000-ring": "etcd-nofsync",
    "stall-p99 stall-slowest stall-elections": "etcd-nofsync",
    "slow-100 slow-one": "etcd-nofsync",
    "tls-1000 tls-100": "etcd-tls-nofsync",
    "one-member restart": "etcd-1-nofsync",
}
"""Rows of a ring on tmpfs over etcd with fsync or beside it, and the column of etcd without that each has beside it."""


def test_a_ring_on_tmpfs_has_etcd_without_fsync_beside_it() -> None:
    wanted = {name: column for names, column in _RINGS.items() for name in names.split()}
    assert {row.name: row.unsynced for row in ROWS if row.unsynced} == wanted
    for row in ROWS:
        on_tmpfs = row.subject.startswith("adr") and (row.base or row.beside) not in (None, row.unsynced)
        compared = row.base not in ("disk-slow", "etcd-nofsync")  # with itself, or with etcd without fsync already
        assert (row.unsynced is not None) == (on_tmpfs and compared), row.name
        if row.unsynced:
            assert row.unsynced in row.columns
            assert COLUMNS[row.unsynced].durability == "nothing"


@dataclass(frozen=True)
class _Stood:
    """In place of a cluster: its members found these levels."""

    column: str
    levels: set[str]

    def __enter__(self) -> _Stood:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def durability_levels(self) -> set[str]:
        return self.levels


def _stand_in(monkeypatch: pytest.MonkeyPatch, levels: dict[str, set[str]], measured: list[str]) -> None:
    """Each column gets a cluster that is none, and every figure of the first is 1, of the second 2, ..."""

    def makes(stood: Any) -> Callable[[Setup], Any]:
        return lambda setup: stood

    for name, found in levels.items():
        monkeypatch.setitem(COLUMNS, name, replace(COLUMNS[name], make=makes(_Stood(name, found))))

    def figures(cluster: Any, wanted: Wanted) -> dict[str, float]:
        measured.append(cluster.column)
        return {figure: 1.0 + list(levels).index(cluster.column) for figure in wanted.figures}

    monkeypatch.setitem(STAGES, "writes", Stage(lambda setup: figures))


def test_etcd_without_fsync_is_measured_and_shown_but_not_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[str] = []
    _stand_in(monkeypatch, {"etcd": set(), "etcd-nofsync": set(), "adr": {"process"}}, measured)
    (row,) = chosen("puts-1000")
    results = Results()
    measure([row], Setup(tmp_path, None), 2, 1.0, results)
    assert sorted(measured) == sorted(["etcd", "etcd-nofsync", "adr"] * 2)
    judged = judge(row, results)
    assert (judged.value, judged.verdict) == (3.0, "met"), "over etcd with fsync"
    assert (judged.unsynced, judged.unsynced_ratio) == ([2.0, 2.0], 1.5)
    assert table([judged]).splitlines()[2].endswith("| met | 2.00 (2.00..2.00) /s | 1.50x |")
    assert "adr over etcd-nofsync, not judged: puts-1000" in legend([row], results)
    saved = json.loads(bars._save(tmp_path, {}, [judged], results, 1.0, 1.0).read_text())
    assert saved["rows"][0]["unsynced_samples"] == [2.0, 2.0]
    assert saved["samples"]["writes"]["etcd-nofsync"] == {"puts-1000": [2.0, 2.0]}


def test_a_row_is_judged_without_etcd_without_fsync() -> None:
    (row,) = chosen("puts-1000")
    results = Results()
    results.add("writes", "etcd", {"puts-1000": 1.0})
    results.add("writes", "adr", {"puts-1000": 3.0})
    judged = judge(row, results)
    assert (judged.verdict, judged.unsynced_ratio) == ("met", None)
    assert table([judged]).splitlines()[2].endswith("| met | - | - |")


def test_levels_are_those_that_members_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _stand_in(monkeypatch, {"etcd": set(), "disk": {"kernel"}, "etcd-nofsync": set(), "adr": {"process"}}, [])
    rows = chosen("disk-1000,puts-1000")
    results = Results()
    measure(rows, Setup(tmp_path, None), 2, 1.0, results)
    assert results.failures == ["writes, disk: members found level kernel, the column says power"]
    assert [judge(row, results).verdict for row in rows] == ["met", "met"], "measured all the same"
    text = legend(rows, results)
    assert "RaftKV, disk mode; an acknowledged write survives: kernel, as its members found (not power)\n" in text
    assert "RaftKV, ring on tmpfs; an acknowledged write survives: process, as its members found\n" in text
    assert "- etcd: etcd; an acknowledged write survives: power\n" in text


def test_the_level_of_members_is_read_from_them(member: RaftKVCluster) -> None:
    assert member.durability_levels() == {COLUMNS["adr"].durability}


class _Time:
    """In place of the module: time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Busy:
    """In place of a cluster: what its members use of processors, now."""

    kind = "busy"
    fresh_processors: float | None = None

    def __init__(self, clock: _Time, idle: float, loads: float, until: float) -> None:
        self._clock, self._idle, self._load, self._until = clock, idle, loads, until

    def target(self, *, leader_only: bool) -> None:
        pass

    def cpu_seconds(self) -> float:
        given = self._clock.now - stages._FRESH_LOOKS  # it is given its load when it has been looked at
        return self._idle * self._clock.now + self._load * max(0.0, min(given, self._until))


@pytest.mark.parametrize("idle", [0.01, 0.2], ids=["fast host", "slow host"])
@pytest.mark.parametrize("loads", [1.0, 0.05], ids=["busy", "one member collapses memory"])
@pytest.mark.parametrize(
    ("until", "scale", "rested_after"),
    [
        (0.0, 1.0, stages._IDLE_LOOKS),
        (20.0, 1.0, 20 + stages._IDLE_LOOKS),
        (1e9, 1.0, stages.REST_DEADLINE_SECONDS),
        (1e9, 0.1, stages.REST_DEADLINE_SECONDS / 10),
    ],
)
def test_members_are_waited_for_until_they_rest(
    idle: float,
    loads: float,
    until: float,
    scale: float,
    rested_after: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = _Time()
    monkeypatch.setattr(stages, "time", clock)
    cluster: Any = _Busy(clock, idle, loads, until)
    stages.look_at_fresh(cluster)
    wanted = Wanted(frozenset(), scale)
    session = stages.Session(cluster, wanted)
    assert clock.now == stages._FRESH_LOOKS * stages._LOOK_SECONDS
    session.settle()
    assert clock.now == (stages._FRESH_LOOKS + rested_after) * stages._LOOK_SECONDS
    said = "not at rest when it was to be measured"
    assert capsys.readouterr().err == (f"busy was {said}\n" if until == 1e9 else "")
    assert wanted.notes == ([said] if until == 1e9 else [])


def test_rest_is_not_guessed_for_members_that_were_not_looked_at_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster: Any = _Busy(_Time(), 0.0, 0.0, 0.0)
    with pytest.raises(RuntimeError, match="look_at_fresh comes first"):
        stages.wait_for_rest(cluster)


class _Noted:
    """In place of a slow disk, and of what a session does: what happens, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        monkeypatch.setattr(stages.Session, "__post_init__", lambda session: None)
        monkeypatch.setattr(stages, "look_at_fresh", lambda cluster: None)
        for name in ("fill", "settle", "puts"):
            monkeypatch.setattr(stages.Session, name, self._note(name))

    def _note(self, name: str) -> Callable[..., SimpleNamespace]:
        def note(session: object, *values: int, **_: int) -> SimpleNamespace:
            self.events.append(" ".join([name, *map(str, values)]))
            return SimpleNamespace(per_second=1.0, mean_us=1.0)

        return note

    @contextmanager
    def flushes_take(self, milliseconds: int) -> Iterator[None]:
        self.events.append("slow")
        yield
        self.events.append("fast")


def test_one_client_alone_and_memory_are_measured_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = _Noted(monkeypatch)
    stages.slow_flushes(noted, 5)(None, Wanted(frozenset()))  # type: ignore[arg-type]
    assert noted.events == ["fill 20000", "slow", "puts 100 20000", "fast", "settle", "slow", "puts 1 400", "fast"]
    noted.events.clear()

    def look(*, shared: bool = True) -> int:
        noted.events.append(f"look {shared}")
        return 1

    for has_ring in (False, True):
        held: Any = SimpleNamespace(has_ring=has_ring, resident_bytes=look)
        stages.memory(1_000)(held, Wanted(frozenset()))
    assert noted.events == [
        *("fill 1000", "settle", "look True", "look True"),
        *("fill 1000", "settle", "look False", "look True"),
    ]


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
        assert row.unsynced is None or row.unsynced in COLUMNS
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
    "watch-events": stages.watch_events,
    "paced": stages.paced,
    "memory-100000": stages.memory(100_000),
    "memory-1000000": stages.memory(1_000_000),
    "restart": stages.restart,
    "cpu-growth": stages.cpu_growth(10_000, 100_000, 1_000_000),
    "cpu-growth-5m": stages.cpu_growth(10_000, 5_000_000),
}


_MEASURED_ELSEWHERE = {"slow-5ms", "stall", "ring-recovery", "check-perf-l", "check-perf-xl"}


def test_every_stage_is_measured_by_a_test() -> None:
    assert set(_MEASURED) | _MEASURED_ELSEWHERE == set(STAGES)


@pytest.mark.parametrize("stage", _MEASURED)
def test_a_stage_measures_the_figures_of_its_rows(
    stage: str, member: RaftKVCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_LOOK_SECONDS", 0.02)  # whether members rest is of no account here
    wanted = frozenset(row.figure for row in ROWS if row.stage == stage)
    found = _MEASURED[stage](member, Wanted(wanted, 0.002))
    assert wanted <= set(found)
    # A member may have had the memory for a short stream before.
    grown = found.pop("range-stream-memory", 0.0)
    assert grown >= 0 and all(value > 0 for value in found.values())


def test_stages_on_a_slow_disk_measure_the_figures_of_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_LOOK_SECONDS", 0.02)
    try:
        slow = SlowDisk(tmp_path)
    except NoSlowDisk as error:
        pytest.skip(str(error))
    with slow, RaftKVCluster(1, slow.folder, extra=("--minimum-durability", "process")) as made:
        assert made.durability_levels() == {COLUMNS["disk-slow"].durability}
        for stage, measured in (("slow-5ms", stages.slow_flushes(slow, 5)), ("stall", stages.stall(slow))):
            wanted = frozenset(row.figure for row in ROWS if row.stage == stage)
            found = measured(made, Wanted(wanted, 0.02))
            assert wanted <= set(found)
        assert found["stall-slowest"] > 1.0, "in disk mode a put waits for the stalled flush"


@pytest.mark.parametrize(
    ("said", "figures"),
    [
        (
            "PASS: Throughput is 7999 writes/s\nPASS: Slowest request took 0.081096s\n"
            "PASS: Stddev is 0.003223s\nPASS\n",
            (1.0, 7999.0, 0.081096, 0.003223),
        ),
        (
            "FAIL: Throughput too low: 4230 writes/s\nSlowest request took too long: 0.600000s\n"
            "Stddev too high: 0.110000s\nFAIL\n",
            (0.0, 4230.0, 0.6, 0.11),
        ),
    ],
)
def test_what_check_perf_says_is_read(said: str, figures: tuple[float, ...], tmp_path: Path) -> None:
    etcdctl = tmp_path / "etcdctl"
    etcdctl.write_text(f"#!/bin/sh\ncat <<'END'\n{said}END\n")
    etcdctl.chmod(0o755)
    cluster: Any = SimpleNamespace(endpoints=lambda: "", cpu_seconds=lambda: 0.0)
    found = stages.check_perf(etcdctl, "l")(cluster, Wanted(frozenset()))
    assert tuple(found[f"check-perf-l{one}"] for one in ("", "-rate", "-slowest", "-stddev")) == figures


_INTERRUPTED = """
import sys, time
sys.path[:0] = sys.argv[1:3]
from clusters import RaftKVCluster, end_as_interrupted
end_as_interrupted()
with RaftKVCluster(1) as cluster:
    print(cluster.members[0].process.pid, flush=True)
    time.sleep(60)
"""


def test_a_bench_that_is_told_to_end_stops_its_members() -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", _INTERRUPTED, str(here), str(here.parent / "tools")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as bench:
        assert bench.stdout is not None
        member = int(bench.stdout.readline())
        os.kill(member, 0)  # it is there
        bench.terminate()
        assert bench.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(member, 0)


def test_a_full_ring_is_recovered_as_a_whole() -> None:
    assert stages.ring_recovery(None, Path("/dev/shm"))["ring-recovery"] > 0
