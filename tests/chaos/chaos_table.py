"""What a run has tried, found and lost, added up and written as a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from chaos_faults import Injector, Struck
from chaos_load import Record
from chaos_plan import Kind
from history_checker import Checked

STALE = frozenset({"NO_STALE_READ"})
MANY = 3
"""So many at once count as overlapping."""


@dataclass
class Totals:
    """The sums of a run."""

    seed: int
    seconds: float = 0.0
    rounds: int = 0
    injected: Counter[Kind] = field(default_factory=Counter)
    survived: Counter[Kind] = field(default_factory=Counter)
    skipped: int = 0
    overlapping: int = 0
    """Faults that struck while at least two others stood."""
    most_at_once: int = 0
    longest_gap: float = 0.0
    gap_by_kind: dict[Kind, float] = field(default_factory=dict)
    longest_recovery: float = 0.0
    writes: int = 0
    linearizable_reads: int = 0
    serializable_reads: int = 0
    unknown: int = 0
    watch_events: int = 0
    bookmarks: int = 0
    ended: int = 0
    """Members that ended by themselves while their disk failed, and were started again."""
    findings: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)

    def add_round(self, injector: Injector, record: Record, began: float, healed: float) -> None:
        """The faults of a round; they count as survived unless it had a finding."""
        struck = injector.struck
        self.rounds += 1
        self.skipped += injector.skipped
        self.ended += injector.ended
        kinds = Counter(one.kind for one in struck)
        self.injected += kinds
        if not self.findings:
            self.survived += kinds
        for one in struck:
            others = sum(other is not one and other.began <= one.began < other.ended for other in struck)
            self.overlapping += others + 1 >= MANY
            self.most_at_once = max(self.most_at_once, others + 1)
        for start, end in record.gaps(began, healed):
            self.longest_gap = max(self.longest_gap, end - start)
            for one in struck:
                if one.began < end and start < one.ended:
                    self.gap_by_kind[one.kind] = max(self.gap_by_kind.get(one.kind, 0.0), end - start)

    def recovered(self, seconds: float) -> None:
        """How long after the last fault was healed the first write was acknowledged."""
        self.longest_recovery = max(self.longest_recovery, seconds)

    def add_checked(self, checked: Checked) -> None:
        """What an epoch's history held."""
        self.writes += checked.acknowledged_writes
        self.linearizable_reads += checked.linearizable_reads
        self.serializable_reads += checked.serializable_reads
        self.unknown += checked.unknown
        self.watch_events += checked.watch_events
        self.bookmarks += checked.bookmarks

    def add_finding(self, rule: str, text: str, struck: list[Struck]) -> None:
        """Something that must not be; the run ends with it."""
        faults = "\n".join(f"  {one.began:.2f}-{one.ended:.2f} {one.kind}: {one.detail}" for one in struck)
        self.rules.append(rule)
        self.findings.append(f"{rule}: {text}\nfaults of the round:\n{faults}")

    def count(self, which: str) -> int:
        """Findings by what they say: about watches, stale reads, lost writes or anything else."""
        return sum(_class(one) == which for one in self.rules)


def _class(rule: str) -> str:
    if rule.startswith("WATCH_"):
        return "watch"
    if rule in STALE:
        return "stale"
    return "other" if rule in ("NotHealed", "AssertionError", "Undecided") else "lost"


def _row(name: str, injected: int, survived: int, gap_seconds: float) -> str:
    return f"| {name} | {injected} | {survived} | {gap_seconds:.1f} s |"


def table(totals: Totals) -> str:
    """For people and for docs/chaos.md."""
    lines = [
        "| fault | injected | survived | longest pause of writes while it stood |",
        "| --- | ---: | ---: | ---: |",
        *(_row(str(one), totals.injected[one], totals.survived[one], totals.gap_by_kind.get(one, 0.0)) for one in Kind),
        _row("all", totals.injected.total(), totals.survived.total(), totals.longest_gap),
        "",
        f"seed {totals.seed}, {totals.seconds:.0f} s, {totals.rounds} rounds; {totals.skipped} faults skipped, whose "
        "targets others had taken",
        f"overlapping: {totals.overlapping} faults struck while two or more others stood, at most "
        f"{totals.most_at_once} at once",
        f"members that ended by themselves for their disk, and were started again: {totals.ended}",
        f"after the last fault of a round was healed, a write was acknowledged within {totals.longest_recovery:.1f} s",
        f"checked: {totals.writes} acknowledged writes, {totals.linearizable_reads} linearizable and "
        f"{totals.serializable_reads} serializable reads, {totals.unknown} of unknown outcome, "
        f"{totals.watch_events} watch events, {totals.bookmarks} notifications of progress",
        f"acknowledged writes lost or answers untrue: {totals.count('lost')}",
        f"stale linearizable reads: {totals.count('stale')}",
        f"watch violations: {totals.count('watch')}",
        f"not healed or otherwise wrong: {totals.count('other')}",
    ]
    return "\n".join(lines)
