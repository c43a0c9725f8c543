"""A failed run made small: what is left of it breaks the same rule.

First the run as a whole: kinds of faults are switched off one after the other, it is made shorter, clients and members
fewer; each such run is another one, so that some seeds are tried for it. Then its single faults (`World.struck`: a
split, a ring loss, the death of a process at a point) are left out, half of them at once, then quarters, and so on to
single ones, by the same seed: everything else stays what it was, but for what follows.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from simulation_setup import Faults, Setup
from soak_runs import Outcome, play

SEEDS = 12
"""So many seeds are tried for each smaller run."""
SECONDS = 240.0


def shrink(failed: Outcome, seconds: float = SECONDS) -> Outcome:
    """The smallest run that was found to break the same rule."""
    now = time.monotonic()
    smaller_run = _as_a_whole(failed, now + seconds / 2)
    return _by_single_faults(smaller_run, now + seconds)


def smaller(setup: Setup) -> Iterator[Setup]:
    """Runs that are a little less than this one."""
    faults = setup.faults
    for field in dataclasses.fields(Faults):
        if isinstance(getattr(faults, field.name), float) and getattr(faults, field.name) and field.name != "fragile":
            yield dataclasses.replace(setup, faults=dataclasses.replace(faults, **{field.name: 0.0}))
    if setup.duration > 200:
        yield dataclasses.replace(setup, duration=setup.duration // 2)
    if setup.clients > 1:
        yield dataclasses.replace(setup, clients=setup.clients // 2)
    if setup.members > 3:
        yield dataclasses.replace(setup, members=setup.members - 2)


def _as_a_whole(failed: Outcome, deadline: float) -> Outcome:
    best, progress = failed, True
    while progress and time.monotonic() < deadline:
        progress = False
        for setup in smaller(best.run.setup):
            found = _breaks(best, setup, deadline)
            if found is not None:
                best, progress = found, True
                break
    return best


def _breaks(best: Outcome, setup: Setup, deadline: float) -> Outcome | None:
    for number in range(SEEDS):
        if time.monotonic() >= deadline:
            return None
        outcome = play(dataclasses.replace(best.run, seed=best.run.seed + number, setup=setup))
        if outcome.rule == best.rule:
            return outcome
    return None


def _by_single_faults(failed: Outcome, deadline: float) -> Outcome:
    best, size = failed, max(1, len(failed.struck) // 2)
    while best.struck and time.monotonic() < deadline:
        best, progress = _without_some(best, size, deadline)
        if not progress:
            if size == 1:
                break
            size //= 2
    return best


def _without_some(best: Outcome, size: int, deadline: float) -> tuple[Outcome, bool]:
    """Leaves out so many faults at a time, from the last on (what came after the failure's cause is idle)."""
    progress, end = False, len(best.struck)
    while end > 0 and time.monotonic() < deadline:
        chosen = best.struck[max(0, end - size) : end]
        setup = dataclasses.replace(best.run.setup, skip=(*best.run.setup.skip, *chosen))
        outcome = play(dataclasses.replace(best.run, setup=setup))
        if outcome.rule == best.rule and len(outcome.struck) < len(best.struck):
            best, progress = outcome, True
        end = min(end - size, len(best.struck))
    return best, progress
