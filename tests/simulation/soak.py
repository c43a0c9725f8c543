"""`make soak`: many seeds of every world on all cores, what happened in them, and how to see a failure again.

    make soak SEEDS=200              seeds 0 to 199
    make soak SEEDS=5000:6000        these seeds
    make soak SOAK_SECONDS=600       fresh seeds, until the time is up
    make soak REPLAY='...'           one run, as a failure has printed it

What counts is not the number of steps but what happened in them: the table says how often each event occurred.
`GOAL=1000` fails unless each of the main ones happened so often, and all others at all. `INTO=FILE` adds the figures to
those of the file, so that a long soak can be made of short ones (`soak_record`).

A failure is printed as one line that replays it; then it is shrunk (`soak_shrink`), and the smallest run that breaks
the same rule is printed with the end of its trace.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from soak_record import NotAdded, Record, commit, ranges_of
from soak_runs import GOALS, RUN_SECONDS, WEATHER, Outcome, Run, play, play_in_time, run_of
from soak_shrink import shrink

MAX_FAILURES = 5
UNSHRUNK = ("LOST", "HANGS")
"""Failures that would take this process along, or for ever."""
TELL_SECONDS = 30
SEEDS_PER_PROCESS = 200
"""Then a new process takes its place: what leaks is bounded."""


def seeds_of(text: str) -> Iterable[int]:
    """ "N", "A:B", or "" for fresh seeds without end."""
    if text:
        first, _, last = text.rpartition(":")
        return range(int(first or 0), int(last))
    start = random.SystemRandom().randrange(1 << 20, 1 << 40)
    return iter(range(start, 1 << 62))


class Supply:
    """Runs for the processes: only one more waits than there are, so that the runs end when the time does."""

    def __init__(self, seeds: Iterable[int], deadline: float, processes: int) -> None:
        self._seeds, self._deadline = seeds, deadline
        self._room = threading.Semaphore(processes + 1)
        self.over = False
        self.under_way: dict[int, Run] = {}

    def done(self, seed: int) -> None:
        """A run has ended."""
        del self.under_way[seed]
        self._room.release()

    def __iter__(self) -> Iterator[Run]:
        for seed in self._seeds:
            while not self._room.acquire(timeout=0.1):
                if self.over:
                    return
            if self.over or time.monotonic() >= self._deadline:
                return
            self.under_way[seed] = run_of(seed)
            yield self.under_way[seed]


def outcomes(results: Any, supply: Supply, patience_seconds: float) -> Iterator[Outcome]:
    """What comes of the runs. A process that ends within a run (a signal, no memory) takes it along: that is told."""
    while True:
        try:
            outcome: Outcome = results.next(patience_seconds)
        except StopIteration:
            return
        except multiprocessing.TimeoutError:
            text = f"LOST: its process ended, or nothing came of this or another one for {patience_seconds:.0f} s"
            yield from [Outcome(run, Counter(), 0.0, "LOST", text) for run in supply.under_way.values()]
            return
        supply.done(outcome.run.seed)
        yield outcome


def soak(
    seeds: Iterable[int], seconds: float, processes: int, patience_seconds: float = RUN_SECONDS + 60
) -> tuple[Counter[str], list[int], list[Outcome]]:
    """Plays the seeds: the counts of all of them, which they were, and the failures."""
    began = told = time.monotonic()
    counts: Counter[str] = Counter()
    played: list[int] = []
    failures: list[Outcome] = []
    supply = Supply(seeds, began + seconds, processes)
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=SEEDS_PER_PROCESS) as pool:
        for outcome in outcomes(pool.imap_unordered(play_in_time, supply), supply, patience_seconds):
            counts.update(outcome.counts)
            counts["seeds"] += 1
            counts["CPU milliseconds"] += round(1000 * outcome.seconds)
            played.append(outcome.run.seed)
            if outcome.rule:
                failures.append(outcome)
                print(f"VIOLATION {outcome.text}\n  make soak REPLAY='{outcome.run.line()}'", flush=True)
                if len(failures) >= MAX_FAILURES:
                    break
            if time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                print(pace(counts, told - began), flush=True)
        supply.over = True
    print(pace(counts, time.monotonic() - began))
    return counts, played, failures


def pace(counts: Counter[str], seconds: float) -> str:
    seeds, steps, events = counts["seeds"], counts["steps of members checked"], counts["events"]
    rates = f"{seeds / seconds:.1f} seeds/s, {steps / seconds:,.0f} steps/s, {events / seconds:,.0f} events/s"
    return f"{seeds} seeds in {seconds:.0f} s: {rates}"


def replay(line: str) -> int:
    """One run, with the end of its trace."""
    outcome = play(Run.parse(line))
    print("\n".join(outcome.trace))
    print(outcome.text or "no violation")
    return 1 if outcome.rule else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--into", type=Path)
    parser.add_argument("--mix", action="store_true", help="add to the file whatever commit and seeds it has")
    parser.add_argument(
        "--goal",
        type=int,
        default=0,
        help="fail unless each of the main events happened so often, and all others at all",
    )
    parser.add_argument("--replay", default="")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    if chosen.replay:
        return replay(chosen.replay)
    version, seeds = commit(), seeds_of(chosen.seeds)
    before = Record.read(chosen.into) if chosen.into and chosen.into.exists() else None
    planned = ranges_of(seeds) if isinstance(seeds, range) else ()
    try:
        if before is not None and not chosen.mix:
            before.check(Record(Counter(), (version,), planned))
    except NotAdded as reason:
        print(f"nothing is added to {chosen.into}: {reason} (MIX=1 adds it all the same)")
        return 2
    seconds = chosen.seconds or (float("inf") if chosen.seeds else 60.0)
    counts, played, failures = soak(seeds, seconds, chosen.processes)
    lines = tuple(f"{one.text}: {one.run.line()}" for one in failures)
    record = Record(counts, (version,), ranges_of(played), lines)
    if before is not None:
        record = before.plus(record)
    if chosen.into:
        record.write(chosen.into)
    print(record.table())
    for failure in [one for one in failures if one.rule not in UNSHRUNK][:1]:
        small = shrink(failure)
        print("\n".join(["", "the smallest run that breaks the same rule:", *small.trace, small.text]))
        print(f"  make soak REPLAY='{small.run.line()}'")
    missed = [name for name in GOALS if record.counts[name] < chosen.goal]
    never = [name for name in WEATHER if chosen.goal and not record.counts[name]]
    if missed:
        print(f"fewer than {chosen.goal} of: {', '.join(missed)}")
    if never:
        print(f"none of: {', '.join(never)}")
    return 1 if record.failures or missed or never else 0


if __name__ == "__main__":
    sys.exit(main())
