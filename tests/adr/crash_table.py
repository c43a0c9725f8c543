"""`make crash-states`: explores all scenarios and all planted bugs, and ends in two tables.

Exit code 1: a violation, or a planted bug that was not found.

    CRASH_SECONDS=240   how long sampling goes on, all scenarios together, after each crash point had its share
    CRASH_STATES=512    a crash point with at most so many states has every one of them tried
    CRASH_SEED=N        the seed; a new one each time, printed, unless it is given
    CRASH_ONLY=TEXT     only the scenarios whose name has TEXT in it, no planted bugs
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import sys
import time

from crash_generations import explore as explore_generations
from crash_plants import PLANTS, explore
from crash_scenarios import SCENARIOS, run
from crash_states import INVARIANTS, Bounds, Tally

PROCESSES = 2
SAMPLES = 8
PLANT_BOUNDS = Bounds(exhaustive=32, samples=3)
WORLDS = 4


def main() -> int:
    seconds = float(os.environ.get("CRASH_SECONDS", "240"))
    seed = int(os.environ.get("CRASH_SEED", "0")) or secrets.randbelow(1 << 31)
    limit = int(os.environ.get("CRASH_STATES", "512"))
    only = os.environ.get("CRASH_ONLY", "")
    chosen = [number for number, scenario in enumerate(SCENARIOS) if only in scenario.name]
    if not chosen:
        print(f"no scenario has {only!r} in its name", file=sys.stderr)
        return 2
    print(f"seed {seed}; exhaustive up to {limit} states a crash point", flush=True)
    began = time.monotonic()
    share = seconds * PROCESSES / len(chosen)
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        work = [(number, seed, share, limit) for number in chosen]
        tallies = []
        for done in pool.imap(_scenario, work):
            tallies.append(done)
            print(f"  {done.name}: {done.states} states, {len(done.violations)} violations", flush=True)
        plants = pool.map(_plant, [(n, seed) for n in range(len(PLANTS))], chunksize=1) if not only else []
    if not only:
        tallies.append(explore_generations())
    _print_states(tallies)
    missed = _print_plants(plants)
    broken = [found for tally in tallies for found in tally.violations]
    for tally in tallies:
        for found in tally.violations:
            print(f"\nVIOLATION in {tally.name}: {found}")
            print(f"  again: make crash-states CRASH_SEED={seed} CRASH_ONLY='{tally.name}'")
    print(f"\n{sum(tally.states for tally in tallies)} states in {time.monotonic() - began:.0f} s; ", end="")
    print(f"{len(broken)} violations; {len(plants) - missed} of {len(plants)} planted bugs found")
    return 1 if broken or missed else 0


def _scenario(work: tuple[int, int, float, int]) -> Tally:
    number, seed, seconds, limit = work
    bounds = Bounds(limit, SAMPLES, second_every=25, second_moments=12, second_samples=4, seconds=seconds)
    return run(SCENARIOS[number], seed, bounds, WORLDS)


def _plant(work: tuple[int, int]) -> Tally:
    number, seed = work
    return explore(PLANTS[number], seed, PLANT_BOUNDS)


def _print_states(tallies: list[Tally]) -> None:
    head = (
        "crash points",
        "all tried",
        "exhaustive",
        "sampled",
        "2nd crashes",
        "2nd states",
        "recoveries",
        "violations",
    )
    print(f"\n{'scenario':<36}" + "".join(f"{name:>13}" for name in head))
    total = Tally("total")
    for tally in tallies:
        _print_row(tally)
        for name in ("moments", "exhausted", "exhaustive", "sampled", "second_crashes", "second_states", "recoveries"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.violations += tally.violations
    _print_row(total)
    print(
        "\ncrash points: moments at which the power is cut; all tried: those whose every state was tried; recoveries:"
    )
    print("openings of states that differ in bytes (equal ones are opened once, and judged each time)")
    print("invariants: " + ", ".join(INVARIANTS))


def _print_row(tally: Tally) -> None:
    figures = (
        tally.moments,
        tally.exhausted,
        tally.exhaustive,
        tally.sampled,
        tally.second_crashes,
        tally.second_states,
        tally.recoveries,
        len(tally.violations),
    )
    print(f"{tally.name:<36}" + "".join(f"{figure:>13}" for figure in figures))


def _print_plants(tallies: list[Tally]) -> int:
    """Returns how many planted bugs were not found."""
    if tallies:
        print(f"\n{'planted bug':<42}{'states':>8}  found by")
    for plant, tally in zip(PLANTS, tallies, strict=False):
        found = sorted({_invariant(violation) for violation in tally.violations})
        print(f"{plant.name:<42}{tally.states:>8}  {', '.join(found) or 'NOT FOUND'}")
    return sum(1 for tally in tallies if not tally.violations)


def _invariant(violation: str) -> str:
    return next(name for name in INVARIANTS if name in violation)


if __name__ == "__main__":
    sys.exit(main())
