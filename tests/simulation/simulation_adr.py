"""The production log as a simulated node's log: real ring and segment files, real recovery.

A crash here is the death of the process: what was handed to the log stays, what was not is gone, nothing is marked
clean, and the next start goes through the whole opening (decision table, scan, drain, next generation). What a power
cut leaves of single words and sectors is explored under the log itself (`tests/adr`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

from raftkv_node import adr
from raftkv_node._engine import RingFull
from raftkv_node.adr import records
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.raft import Configuration, Entry, HardState, InitialState
from simulation_checks import Violation

RING_BYTES = 64 << 10
PATIENCE_SECONDS = 30.0


class AdrLog:
    """One member's log on files below `folder`; with a ring, or in disk mode."""

    def __init__(self, folder: Path, number: int, configuration: Configuration, ring: bool) -> None:
        self.configuration = configuration
        self.options = adr.LogOptions(
            data_dir=folder / "data",
            identity=adr.Identity(7, number, number, number.to_bytes(16, "little")),
            adr_path=folder / "ring" if ring else None,
            adr_size_bytes=RING_BYTES if ring else 4 << 20,
            adr_size_limits_bytes=(RING_BYTES, 100 << 20),
            # drained when the simulation says so
            drain_interval_seconds=3600.0,
            minimum_durability=adr.Level.PROCESS,
        )
        (folder / "data").mkdir(parents=True)
        (folder / "ring").mkdir()
        self.log: adr.Log | None = None
        self.pending: list[adr.Record] = []
        self.terms: list[int] = []
        self.hard_state = HardState()
        self.rng = random.Random(number)

    def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        if hard_state is not None:
            self.pending.append(records.hard_state(*hard_state))
        self.pending.extend(records.entry(entry.term, entry.index, entry.type, entry.data) for entry in entries)

    def fence(self) -> None:
        if not self.pending:
            return
        assert self.log is not None
        try:
            lsn = self.log.append(self.pending)
        except RingFull:
            self.drain()
            lsn = self.log.append(self.pending)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.log.durable_lsn < lsn:
            assert time.monotonic() < deadline and self.log.failed is None, self.log.failed
            time.sleep(0.0002)
        self.remember(self.pending)
        self.pending = []
        if self.rng.random() < 0.03:
            self.drain()

    def drain(self) -> None:
        if isinstance(self.log, RingLog):
            self.log.drain()

    def remember(self, batch: Sequence[adr.Record]) -> None:
        """Keep what must be found again."""
        for kind, _, term, index, payload in batch:
            if kind == adr.ENTRY:
                del self.terms[index - 1 :]
                self.terms.append(term)
            else:
                self.hard_state = HardState(term, int.from_bytes(payload, "little"), index)

    def crash(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            self.fence()
        self.pending = []
        self.close(clean=False)

    def close(self, clean: bool) -> None:
        if self.log is not None:
            self.log.close(clean)
            self.log = None

    def recover(self, applied: int, rng: random.Random) -> InitialState:
        self.log, recovered = adr.Log.open(self.options)
        entries = [Entry(one.term, one.index, one.kind, one.payload) for one in recovered.entries]
        found = HardState(*recovered.hard_state)
        if [entry.term for entry in entries] != self.terms or found != self.hard_state:
            detail = f"{found} and {len(entries)} entries, durable were {self.hard_state} and {len(self.terms)}"
            raise Violation("D3_DURABLE_IS_FOUND", detail)
        base = rng.choice((0, applied))
        index, configuration = 0, self.configuration
        for entry in entries[:base]:
            if entry.type:
                index, configuration = entry.index, Configuration.decode(entry.data)
        base_term = entries[base - 1].term if base else 0
        return InitialState(found, base, base_term, configuration, index, tuple(entries[base:]), applied)

    def read(self, first: int, max_bytes: int) -> tuple[int, list[Entry]]:
        """As the server does it; nothing if the log does not have it (yet)."""
        assert self.log is not None
        stored = self.log.read_entries(max(1, first - 1), self.log.last_index + 1, max_bytes + 1000)
        entries = [Entry(one.term, one.index, one.kind, one.payload) for one in stored]
        if first == 1:
            return 0, entries
        if not entries or entries[0].index != first - 1:
            return 0, []
        return entries[0].term, entries[1:]

    def durable_term(self, index: int) -> int | None:
        overwritten = any(kind == adr.ENTRY and at <= index for kind, _, _, at, _ in self.pending)
        return None if overwritten or index > len(self.terms) else self.terms[index - 1]


class AdrLogs:
    """Makes logs below a folder, and closes them all at the end."""

    def __init__(self, folder: Path, ring: bool) -> None:
        self.folder, self.ring = folder, ring
        self.made: list[AdrLog] = []

    def __call__(self, configuration: Configuration) -> AdrLog:
        number = len(self.made) + 1
        log = AdrLog(self.folder / str(number), number, configuration, self.ring)
        self.made.append(log)
        return log

    def close(self) -> None:
        for log in self.made:
            log.close(clean=True)
