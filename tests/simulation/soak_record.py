"""What a soak has had: counts, the commit that they are of, and which seeds. A long soak can be made of short ones.

The file of `INTO=` holds one record. Another soak's figures are added only if both are of the same commit and no seed
was played in both: else the sum would be that of no program, or would count the same run twice. `MIX=1` says that this
is wanted; the record then names all commits, and the seeds that were played more than once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from soak_runs import GOALS, WEATHER

Ranges = tuple[tuple[int, int], ...]
"""First seeds and last ones, ascending, all inclusive."""
WATCHED = ("node", "tests/simulation", "tests/adr", "tests/store", "tests/histories")
"""What decides how a seed plays."""


class NotAdded(Exception):
    """Two records are not to be added."""


def ranges_of(seeds: Iterable[int]) -> Ranges:
    """Seeds as ranges."""
    found: list[tuple[int, int]] = []
    for seed in sorted(seeds):
        if found and seed <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(seed, found[-1][1]))
        else:
            found.append((seed, seed))
    return tuple(found)


def both(some: Ranges, others: Ranges) -> Ranges:
    """What is in both."""
    return tuple((max(a, c), min(b, d)) for a, b in some for c, d in others if max(a, c) <= min(b, d))


def joined(some: Ranges, others: Ranges) -> Ranges:
    """What is in either."""
    found: list[tuple[int, int]] = []
    for first, last in sorted((*some, *others)):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Record:
    """What a soak has had."""

    counts: Counter[str]
    commits: tuple[str, ...]
    seeds: Ranges
    failures: tuple[str, ...] = ()
    """Each violation, with the line that replays it."""
    played_again: Ranges = ()

    def check(self, other: Record) -> None:
        """NotAdded: the other one's figures must not be added to these."""
        if set(self.commits) != set(other.commits):
            raise NotAdded(f"it is of {', '.join(self.commits)}, this is {', '.join(other.commits)}")
        again = both(self.seeds, other.seeds)
        if again:
            raise NotAdded(f"it has seeds {text_of(again)} already")

    def plus(self, other: Record) -> Record:
        """The figures of both."""
        return Record(
            self.counts + other.counts,
            tuple(dict.fromkeys((*self.commits, *other.commits))),
            joined(self.seeds, other.seeds),
            (*self.failures, *other.failures),
            joined(joined(self.played_again, other.played_again), both(self.seeds, other.seeds)),
        )

    def write(self, path: Path) -> None:
        raw = {**dataclasses.asdict(self), "counts": dict(sorted(self.counts.items()))}
        path.write_text(json.dumps(raw, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> Record:
        raw = json.loads(path.read_text())
        seeds, again = (tuple((a, b) for a, b in raw[name]) for name in ("seeds", "played_again"))
        return Record(Counter(raw["counts"]), tuple(raw["commits"]), seeds, tuple(raw["failures"]), again)

    def table(self) -> str:
        """What happened, for people: the goals, the weather, the rest; in the end the violations."""
        counts = self.counts
        rest = sorted(counts.keys() - {*GOALS, *WEATHER})
        width = max(map(len, (*GOALS, *WEATHER, *rest)))
        rule = "-" * (width + 14)
        parts = [[f"{name:<{width}}  {counts[name]:>12,}" for name in names] for names in (GOALS, WEATHER, rest)]
        lines = [line for part in parts for line in (*part, rule)]
        lines += [f"{'violations':<{width}}  {len(self.failures):>12,}", rule]
        lines += [f"commit {', '.join(self.commits)}; seeds {text_of(self.seeds)}"]
        if self.played_again:
            lines.append(f"played more than once: seeds {text_of(self.played_again)}")
        return "\n".join(lines)


def text_of(seeds: Ranges) -> str:
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in seeds)


def commit() -> str:
    """The commit that is checked out, and a digest of what has been changed since in what decides how a seed plays."""
    here = Path(__file__).parent.parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("diff", "HEAD", "--", *WATCHED) + git("status", "--porcelain", "--", *WATCHED)
        digest = "+" + hashlib.sha256(changed.encode()).hexdigest()[:8] if changed else ""
        return git("rev-parse", "--short=12", "HEAD") + digest
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
