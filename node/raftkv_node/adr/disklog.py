"""Disk mode: the segments are the log, without a ring.

A batch is encoded at once and queued; the flush thread takes all that is queued, writes it and makes it durable by one
fdatasync, one flush in flight, while turns go on. What a batch promises may leave only when `durable_lsn` has reached
it (D4). Same records, same segments, same recovery.

Without room on the disk what is queued waits, and goes on by itself. After a failed write or sync the log ends: there
is no ring from which to make the segment anew (D15).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from raftkv_node._engine import RingFull, log_encode
from raftkv_node.adr.files import may_retry
from raftkv_node.adr.log import Log, now
from raftkv_node.adr.manifest import State
from raftkv_node.adr.records import Record, StoredEntry

if TYPE_CHECKING:
    from raftkv_node.adr.opening import Opened


class _Queued(NamedTuple):
    start_lsn: int
    data: bytes
    #: Whether a new segment begins here.
    boundary: bool
    highest_index: int


class DiskLog(Log):
    """See the module."""

    def __init__(self, opened: Opened, start_lsn: int) -> None:
        super().__init__(opened)
        self._lsn = start_lsn
        self._durable = start_lsn
        self._segments.zero_ahead_bytes = self._options.zero_ahead_bytes
        self._queue: list[_Queued] = []
        self._lock = threading.Lock()

    def begin(self) -> None:
        """The generation's first records, durable before anything else happens."""
        self._segment_start = self._lsn
        self._enqueue(self._preamble(), boundary=True)
        self.flush()

    def run(self) -> None:
        """Starts flushing."""
        self._start_thread("adr-flush", self._flush_loop)

    # --- appending ---

    def append(self, batch: Sequence[Record]) -> int:
        self._check_usable()
        held = self._lsn - self._durable
        if held and held >= self._options.adr_size_bytes:
            self._counts["ring_full"] += 1
            raise RingFull(f"{held} bytes wait for the disk")
        before = self._lsn
        boundary = before - self._segment_start >= self._options.segment_size_bytes
        self._enqueue([*self._preamble(), *batch] if boundary else batch, boundary)
        self._appended(len(batch), self._lsn - before, self._lsn - self._durable, self._options.adr_size_bytes)
        self._wake.set()
        return self._lsn

    def _enqueue(self, batch: Sequence[Record], boundary: bool) -> None:
        start, generation = self._lsn, self._generation
        data = log_encode(batch, start, self._durable, generation.number, generation.seed, self._index)
        if boundary:
            self._segment_start = start
        with self._lock:
            self._queue.append(_Queued(start, data, boundary, self._index.last[0]))
            self._lsn = start + len(data)

    @property
    def durable_lsn(self) -> int:
        return self._durable

    def pressure(self) -> float:
        return min(1.0, (self._lsn - self._durable) / self._options.adr_size_bytes)

    def headroom(self) -> int:
        return max(0, self._options.adr_size_bytes - (self._lsn - self._durable))

    @property
    def _behind(self) -> bool:
        return self._durable != self._lsn

    # --- reading ---

    def _read_undrained(self, run: list[tuple[int, int, int]]) -> list[StoredEntry] | None:
        # `durable_lsn` moves after the segment's end, so that what is below it is in a segment by now.
        return None if self._segments.segment_at(run[0][1]) is not None else []

    # --- flushing ---

    def _flush_loop(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closing:
                return
            error = self.background_pass()
            if self.failed is not None:
                return
            if error is not None:
                # Promised is nothing yet, and the bytes are still queued.
                self._pause()
                self._wake.set()

    def background_pass(self) -> Exception | None:
        """One pass of the flush thread: flush, release; returns what went wrong. What cannot be tried again is latched
        in `failed`."""
        try:
            self.flush()
            self._release_segments()
        except OSError as error:
            self._drain_error(error)
            if not may_retry(error):
                self._fail(error)
            return error
        except Exception as error:
            self._fail(error)
            return error
        return None

    def flush(self) -> None:
        """Writes all that is queued and makes it durable: one fdatasync for each segment that it reaches."""
        while True:
            with self._lock:
                taken, self._queue = self._queue, []
            if not taken:
                return
            began = now()
            try:
                self._flush_taken(taken)
            except OSError:
                with self._lock:
                    self._queue[:0] = [item for item in taken if item.start_lsn >= self._durable]
                raise
            self._lag_since = None if self._durable == self._lsn else began
            self._drained_to_disk()
            self._note_pressure()
            self._durations.append(now() - began)
            self._counts["drains"] += 1

    def _flush_taken(self, taken: list[_Queued]) -> None:
        first = 0
        for position, item in enumerate(taken):
            if item.boundary:
                self._flush_run(taken[first:position])
                first = position
                self._begin_segment(item.start_lsn)
        self._flush_run(taken[first:])

    def _begin_segment(self, lsn: int) -> None:
        if self._segments.newest_lsn != lsn:  # else: begun before an error, and tried again
            self._segments.start(self._generation, lsn)
        if self._manifest.drained_lsn < lsn:
            # Below the newest segment all is durable and must be whole: the next start scans only this one.
            self._write_manifest(self._manifest.replace(drained_lsn=lsn))

    def _flush_run(self, run: list[_Queued]) -> None:
        if not run:
            return
        data = run[0].data if len(run) == 1 else b"".join(item.data for item in run)
        end = run[0].start_lsn + len(data)
        self._segments.write(data, run[0].start_lsn, max(item.highest_index for item in run))
        self._segments.sync(end)
        self._counts["drained_bytes"] += len(data)
        self._durable = end
        if self.on_durable is not None:
            self.on_durable(end)

    # --- ending ---

    def _mark_clean(self) -> None:
        self.flush()
        self._write_manifest(self._manifest.replace(state=State.CLEAN, drained_lsn=self._durable))
