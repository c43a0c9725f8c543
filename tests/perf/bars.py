"""The bars that RaftKV is measured by, side by side with etcd: one machine, one run, one load generator, in turn.

Every kind of cluster is started afresh for each stage of each round, in turn (A B A B), so that what else the machine
does hits all alike. A figure is the median over rounds, with its spread; a verdict is on the ratio of medians. What an
acknowledged write survives is named for each column, since only equals may be compared.

    make bench                            all rows that take half an hour together on a quiet machine of two cores
    make bench ROWS=puts-1000,one-client  some of them; ROWS=all for all; ROUNDS=5 for more rounds
    python tests/perf/bars.py --list      their names

The results go to build/bench/, with every sample, the machine and the commit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from bar_rows import COLUMNS, ROWS, STAGES, Row, Setup, chosen
from clusters import end_as_interrupted
from debian import PackageUnavailable, unpacked
from slow_disk import NoSlowDisk, SlowDisk
from stages import Wanted

_ROOT = Path(__file__).parents[2]
_ROUNDS = 2
_FACTORS = {"ms": 1e3, "MiB": 1 / (1 << 20)}
"""From a stage's figure to the unit of a row."""


@dataclass
class Results:
    """Samples by stage, column and figure, one for each round; the levels of durability that the members of each column
    found; and what failed."""

    samples: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    levels: dict[str, set[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, stage: str, column: str, figures: dict[str, float]) -> None:
        """Takes the figures of one round."""
        of = self.samples.setdefault(stage, {}).setdefault(column, {})
        for name, value in figures.items():
            of.setdefault(name, []).append(value)

    def take_levels(self, stage: str, column: str, found: set[str]) -> None:
        """Takes what the members of a column found, and holds it against what the column says."""
        if not found:
            return  # etcd looks for none
        self.levels.setdefault(column, set()).update(found)
        said = COLUMNS[column].durability
        failure = f"{stage}, {column}: members found level {_and(found)}, the column says {said}"
        if found != {said} and failure not in self.failures:  # once, not in each round
            self.failures.append(failure)

    def of(self, row: Row, column: str) -> list[float]:
        """A row's samples of a column, in the row's unit."""
        factor = _FACTORS.get(row.unit, 1.0)
        found = self.samples.get(row.stage, {}).get(column, {}).get(row.figure, [])
        return [value * factor for value in found]


def _and(levels: set[str]) -> str:
    return " and ".join(sorted(levels))


@dataclass(frozen=True)
class Judged:
    """A row with its results."""

    row: Row
    subject: list[float]
    base: list[float]
    value: float | None
    """The ratio, or the absolute figure where there is no base; None: not measured."""
    verdict: str
    unsynced: list[float] = field(default_factory=list)
    """Of etcd without fsync, where the row shows it."""

    @property
    def unsynced_ratio(self) -> float | None:
        """RaftKV over etcd without fsync; None: not both were measured, or the bar is no ratio."""
        if not self.unsynced or not self.subject or self.row.base is None:
            return None
        return statistics.median(self.subject) / statistics.median(self.unsynced)


def judge(row: Row, results: Results) -> Judged:
    """The verdict on a row."""
    subject = results.of(row, row.subject)
    base = results.of(row, row.base or row.beside) if row.base or row.beside else []
    unsynced = results.of(row, row.unsynced) if row.unsynced else []
    if not subject or (row.base is not None and not base):
        return Judged(row, subject, base, None, "not measured", unsynced)
    value = statistics.median(subject) / (statistics.median(base) if row.base else 1.0)
    return Judged(row, subject, base, value, row.verdict(value), unsynced)


def measure(rows: list[Row], setup: Setup, rounds: int, scale: float, results: Results) -> None:
    """Runs the stages that the rows need. A stage that fails is told of, and the others go on."""
    for stage_name in dict.fromkeys(row.stage for row in rows):
        stage = STAGES[stage_name]
        of_stage = [row for row in rows if row.stage == stage_name]
        columns = list(dict.fromkeys(column for row in of_stage for column in row.columns))
        for number in range(min(rounds, stage.rounds or rounds)):
            for column in columns:
                figures = frozenset(row.figure for row in of_stage if column in row.columns)
                print(f"{stage_name}, round {number + 1}: {column or 'alone'}", file=sys.stderr, flush=True)
                wanted = Wanted(figures, scale)
                try:
                    results.add(stage_name, column, _one(stage_name, column, setup, wanted, results))
                except Exception as error:  # whatever it is: the other stages are worth having
                    results.failures.append(f"{stage_name}, {column}: {error!r}")
                    print(f"  failed: {error!r}", file=sys.stderr, flush=True)
                results.failures += [f"{stage_name}, {column}: {note}" for note in wanted.notes]


def _one(stage_name: str, column: str, setup: Setup, wanted: Wanted, results: Results) -> dict[str, float]:
    stage = STAGES[stage_name]
    if stage.alone is not None:
        return stage.alone(setup)
    assert stage.measure is not None
    with COLUMNS[column].make(setup) as cluster:
        results.take_levels(stage_name, column, cluster.durability_levels())
        return stage.measure(setup)(cluster, wanted)


def _form(values: list[float], unit: str) -> str:
    if not values:
        return "-"
    median = statistics.median(values)
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    text = f"{median:,.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):,.{digits}f}..{max(values):,.{digits}f})"
    return f"{text} {unit}".strip()


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def table(judged: list[Judged]) -> str:
    """The rows for people, in Markdown. Etcd without fsync, and RaftKV over it, are at the end: they are not judged."""
    lines = [
        "| row | figure | etcd | RaftKV | ratio | bar | two thirds | verdict | etcd, no fsync | ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for one in judged:
        row = one.row
        if row.base is None:
            bars = [f"{row.bar:g} {row.unit}".strip(), "-"]
            ratio = "-"
        else:
            bars = [f"{row.bar:.2f}x", "-" if row.floor == row.bar else f"{row.floor:.2f}x"]
            ratio = _times(one.value)
        cells = [_form(one.base, row.unit), _form(one.subject, row.unit), ratio, *bars, one.verdict]
        cells += [_form(one.unsynced, row.unit), _times(one.unsynced_ratio)]
        lines.append(f"| {row.name} | {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _survives(column: str, results: Results) -> str:
    """What a write survives that a column acknowledged: the level that its members found, where they look for one."""
    found, said = results.levels.get(column), COLUMNS[column].durability
    if not found:
        return said
    return f"{_and(found)}, as its members found" + ("" if found == {said} else f" (not {said})")


def legend(rows: list[Row], results: Results) -> str:
    """What the columns of the rows are, and what a write that they acknowledged survives."""
    used = dict.fromkeys(column for row in rows for column in row.columns if column)
    lines = [
        f"- {name}: {COLUMNS[name].title}; an acknowledged write survives: {_survives(name, results)}" for name in used
    ]
    pairs: dict[str, list[str]] = {}
    for row in rows:
        if row.base and row.subject:
            pairs.setdefault(f"{row.subject} over {row.base}", []).append(row.name)
        if row.beside:
            pairs.setdefault(f"{row.subject} beside {row.beside}, not judged", []).append(row.name)
        if row.unsynced:
            pairs.setdefault(f"{row.subject} over {row.unsynced}, not judged", []).append(row.name)
    lines += [f"- {pair}: {', '.join(names)}" for pair, names in pairs.items()]
    lines += [f"- {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join(lines)


def this_machine() -> dict[str, Any]:
    """What was measured, when, and on what."""

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, check=False)
        return done.stdout.strip()

    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "commit": run("git", "rev-parse", "HEAD"),
        "changed_files": len(run("git", "status", "--porcelain").splitlines()),
        "processors": os.cpu_count(),
        "processor": cpu[0] if cpu else "",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _save(
    folder: Path, machine: dict[str, Any], judged: list[Judged], results: Results, seconds: float, scale: float
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine,
        "scale": scale,
        "seconds": seconds,
        "rows": [
            {
                "name": one.row.name,
                "title": one.row.title,
                "unit": one.row.unit,
                "base": one.row.base,
                "beside": one.row.beside,
                "subject": one.row.subject,
                "base_samples": one.base,
                "subject_samples": one.subject,
                "ratio": one.value if one.row.base else None,
                "value": one.value,
                "bar": one.row.bar,
                "two_thirds": one.row.floor,
                "verdict": one.verdict,
                "unsynced": one.row.unsynced,
                "unsynced_samples": one.unsynced,
                "unsynced_ratio": one.unsynced_ratio,
            }
            for one in judged
        ],
        "samples": results.samples,
        "levels": {column: sorted(found) for column, found in results.levels.items()},
        "failures": results.failures,
    }
    path = folder / f"bars-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(document, indent=1))
    return path


def main() -> int:
    """Prints the table. Exit code 0: all bars met; 1: some are not; 2: some could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="comma-separated names; all")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"at most so many (default {_ROUNDS})")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of calls and keys; below 1: a trial")
    parser.add_argument("--disk", type=Path, help="a folder on the plain disk (default: the temporary one)")
    parser.add_argument("--into", type=Path, default=_ROOT / "build" / "bench", help="where the results go")
    parser.add_argument("--list", action="store_true", help="the rows there are")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{row.name:20} {row.title}{'' if row.by_default else ' (by name only)'}" for row in ROWS))
        return 0
    try:
        rows = chosen(options.rows)
        setup = Setup(unpacked(("etcd-server", "etcd-client")), options.disk)
    except (ValueError, PackageUnavailable) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    end_as_interrupted()
    machine, results, began = this_machine(), Results(), time.monotonic()
    with contextlib.ExitStack() as stack:
        if any(STAGES[row.stage].slow for row in rows):
            try:
                slow = stack.enter_context(SlowDisk(options.disk))
                setup = replace(setup, slow=slow)
            except (NoSlowDisk, AssertionError, subprocess.SubprocessError) as error:
                results.failures.append(f"no slow disk: {error}")
                rows = [row for row in rows if options.rows or not STAGES[row.stage].slow]
        try:
            measure(rows, setup, options.rounds, options.scale, results)
        except KeyboardInterrupt:
            results.failures.append("interrupted")
    judged = [judge(row, results) for row in rows]
    seconds = time.monotonic() - began
    print(f"{table(judged)}\n\n{legend(rows, results)}\n")
    for failure in results.failures:
        print(f"failed: {failure}")
    if options.scale < 1:
        print("A trial, too short for verdicts: --scale is below 1.")
    print(f"{seconds:.0f} s; samples in {_save(options.into, machine, judged, results, seconds, options.scale)}")
    verdicts = {one.verdict for one in judged}
    return 2 if "not measured" in verdicts else 0 if verdicts == {"met"} else 1


if __name__ == "__main__":
    sys.exit(main())
