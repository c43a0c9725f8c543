"""Real threads over tiny rings and segments: an appender, the log's own background thread, readers and releases.

Each round has a seed, which decides the sizes, what is appended, read and released, where the disk fails, and where a
thread gives the interpreter up. The schedule itself is the machine's: a seed makes a failure likely again, not certain.
STRESS_SEED=N runs the rounds from that seed on.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from adr_harness import KIB, Member
from raftkv_node._engine import Ring, RingFull
from raftkv_node.adr import Files, Log, Record, configuration, entry, hard_state
from raftkv_node.adr.files import SyncFailed
from raftkv_node.adr.ringfile import DATA_OFFSET_BYTES
from raftkv_node.adr.ringlog import RingLog

ROUNDS = 6
BATCHES = 400
READERS = 2
PATIENCE_SECONDS = 20.0
SWITCH_SECONDS = 1e-6
#: How often a thread gives the interpreter up behind a call into ring or disk.
YIELD_PART = 0.3
FULL_PART = 0.01
SYNCS_FOR_A_FAILURE = 150


class Pauses:
    """Gives the interpreter up, now and then. Any thread."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def here(self) -> None:
        if self._rng.random() < YIELD_PART:
            time.sleep(self._rng.choice((0.0, 0.0, 1e-5, 2e-4)))


class PausingRing:
    """A ring behind each of whose calls another thread may run."""

    def __init__(self, ring: Ring, pauses: Pauses) -> None:
        self._ring, self._pauses = ring, pauses

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ring, name)
        if not callable(found):
            return found

        def call(*words: Any) -> Any:
            try:
                return found(*words)
            finally:
                self._pauses.here()

        return call


class PausingDisk(Files):
    """A disk that is slow and, while `fails`, now and then full; rarely a sync fails (three in a row end a log)."""

    def __init__(self, pauses: Pauses, seed: int) -> None:
        self._pauses, self._rng, self.fails = pauses, random.Random(seed), False
        self._syncs = 0

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self._pauses.here()
        if self.fails and self._rng.random() < FULL_PART:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self._pauses.here()
        self._syncs += 1
        if self.fails and self._syncs % SYNCS_FOR_A_FAILURE == 0:
            raise SyncFailed(errno.EIO, "Input/output error")
        super().fdatasync(fd)


def payload(term: int, index: int) -> bytes:
    """Its length and bytes follow from where it belongs, so that a wrong one is known."""
    return b"%d-%d." % (term, index) * (1 + (term * 7 + index) % 40)


class Round:
    """One log under all threads. `settled`: nothing up to this index is superseded any more."""

    def __init__(self, member: Member, seed: int) -> None:
        self.member, self.rng, self.seed = member, random.Random(seed), seed
        self.model: dict[int, int] = {}
        self.settled = self.released = self.reads = 0
        self.stop = threading.Event()
        self.errors: list[BaseException] = []
        self.pauses = Pauses(seed + 1)
        self.disk = PausingDisk(self.pauses, seed + 2)

    def open(self) -> Log:
        rng = self.rng
        data_bytes = rng.choice((4 * KIB, 8 * KIB, 16 * KIB))
        log, _ = Log.open(
            self.member.options(
                adr_size_bytes=DATA_OFFSET_BYTES + data_bytes,
                segment_size_bytes=rng.choice((256, 512, KIB, 3 * KIB)),
                drain_size_bytes=rng.choice((64, 512, data_bytes // 2)),
                drain_interval_seconds=0.001,
                files=self.disk,
            )
        )
        if isinstance(log, RingLog):
            log._ring = cast(Ring, PausingRing(log._ring, self.pauses))
            # Disk mode ends when a sync fails, as it must.
            self.disk.fails = True
        return log

    def run(self) -> None:
        log = self.open()
        readers = [threading.Thread(target=self._read, args=(log, self.seed + 10 + n)) for n in range(READERS)]
        for thread in readers:
            thread.start()
        try:
            self._append(log)
        finally:
            self.stop.set()
            for thread in readers:
                thread.join()
        if self.errors:
            raise self.errors[0]
        assert log.failed is None
        self.disk.fails = False
        log.close(clean=self.rng.random() < 0.5)
        self._check_next_opening()

    # --- the threads ---

    def _batch(self) -> list[Record]:
        """Some entries; now and then they replace the last ones in a higher term, as a new leader's do."""
        rng, last = self.rng, max(self.model, default=0)
        term = max(self.model.values(), default=1)
        first, batch = last + 1, []
        if rng.random() < 0.1 and last > self.settled:
            first, term = rng.randint(self.settled + 1, last), term + 1
            batch.append(hard_state(term, 1, self.settled))
        if rng.random() < 0.1:
            batch.append(configuration(term, first, b"c" * rng.randrange(200)))
        indexes = range(first, first + rng.randint(1, 4))
        batch += [entry(term, index, 0, payload(term, index)) for index in indexes]
        self.model = {index: of for index, of in self.model.items() if index < first} | dict.fromkeys(indexes, term)
        return batch

    def _append(self, log: Log) -> None:
        rng = self.rng
        log.append([hard_state(1, 1, 0), configuration(1, 0, b"c")])
        for _ in range(BATCHES):
            batch, end = self._batch(), time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    lsn = log.append(batch)
                    break
                except RingFull:
                    assert time.monotonic() < end, "the drain stands still"
                    time.sleep(1e-4)
            if rng.random() < 0.5 and log.durable_lsn >= lsn:
                self.settled = max(self.settled, max(self.model) - rng.randrange(4))
            if rng.random() < 0.05:
                self.released = max(self.released, rng.randint(0, self.settled))
                log.release(self.released)
            if self.errors:
                return

    def _read(self, log: Log, seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not self.stop.is_set():
                settled = self.settled
                lo = rng.randint(max(1, log.first_index), max(1, log.first_index, log.last_index))
                found = log.read_entries(lo, lo + rng.randint(1, 60), rng.choice((1, 2000, 1 << 20)))
                assert [item.index for item in found] == [*range(lo, lo + len(found))]
                assert all(item.payload == payload(item.term, item.index) for item in found)
                assert found or lo > settled or lo < log.first_index, f"entry {lo} is not to be read"
                self.reads += 1
                self.pauses.here()
        except BaseException as error:
            self.errors.append(error)

    def _check_next_opening(self) -> None:
        log, recovered = self.member.open()
        log.close(clean=False)
        assert recovered.first_index <= self.released + 1
        got = {item.index: (item.term, item.payload) for item in recovered.entries}
        wanted = {index: (term, payload(term, index)) for index, term in self.model.items()}
        # In disk mode what was appended last may not have been durable.
        last = recovered.last_index if not self.member.ring else max(wanted)
        assert last >= self.settled
        assert got == {index: wanted[index] for index in range(recovered.first_index, last + 1)}


@pytest.fixture(autouse=True)
def eager_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    yield
    sys.setswitchinterval(before)


def test_append_drain_reads_and_releases_beside_each_other(either: Member) -> None:
    first = int(os.environ.get("STRESS_SEED") or random.randrange(1 << 31))
    for seed in range(first, first + ROUNDS):
        print("STRESS_SEED", seed)
        member = Member(Path(f"{either.folder}/{seed}"), either.machine, ring=either.ring).make()
        test = Round(member, seed)
        try:
            test.run()
        except BaseException as error:
            raise AssertionError(f"STRESS_SEED={seed}: {error!r}") from error
        assert test.reads > 10
