"""Ring mode: a batch is durable in the log buffer at once; a thread drains it to segments beside the turn.

The drain's order is D6: segment synced, manifest's `drained_lsn` durable, ring header's `reclaimed_lsn` persisted, and
only then may the bytes be overwritten. A stalled disk, or one with no room, stops no append until the ring is full, and
the drain goes on by itself. After a failed write or sync the file is not used again (D15): the ring still has all that
is not drained, and the segment is made anew from both. That is tried a few times; then the log ends, and its next start
has everything from the ring. A ring that cannot be read, or a folder whose sync failed, ends it at once.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raftkv_node._engine import LogCorrupt, LogIndex, Ring, RingFull, log_extract
from raftkv_node.adr.errors import LogFailed, Unusable
from raftkv_node.adr.files import FolderSyncFailed, may_retry
from raftkv_node.adr.log import Log, now, preamble
from raftkv_node.adr.manifest import State
from raftkv_node.adr.records import RECORD_ALIGN_BYTES, Record, StoredEntry, record_bytes
from raftkv_node.adr.ringfile import DATA_OFFSET_BYTES, HEADER_COPIES, RingHeader
from raftkv_node.threads import be_nice

if TYPE_CHECKING:
    from raftkv_node.adr.opening import Opened

#: Small, since a chunk is copied while the turn's thread waits for the interpreter.
DRAIN_CHUNK_BYTES = 256 << 10
#: So many drains may fail with nothing brought to disk between them (no room is not counted); then the log ends.
DRAIN_TRIES = 3


def check_room(index: LogIndex, size_bytes: int) -> None:
    """Unusable: a log buffer of `size_bytes` cannot hold even what a generation begins with."""
    sizes = [record_bytes(len(payload)) for *_, payload in preamble(index)]
    data_bytes = size_bytes // RECORD_ALIGN_BYTES * RECORD_ALIGN_BYTES - DATA_OFFSET_BYTES
    # No record is larger than half of the data, nor wraps: the largest may leave a hole of its size.
    needed = max(2 * max(sizes), sum(sizes) + max(sizes))
    if needed > data_bytes:
        raise Unusable(
            f"a log buffer of {size_bytes} bytes is too small: this log's membership and marks need "
            f"{needed + DATA_OFFSET_BYTES}; make it larger (nothing was changed)"
        )


class RingLog(Log):
    """See the module."""

    def __init__(self, opened: Opened, ring: Ring, header: RingHeader, path: Path) -> None:
        super().__init__(opened)
        self._ring = ring
        self._header = header
        self._path = path
        self._drained = ring.durable_lsn
        self._data_bytes = ring.data_bytes
        #: A small ring is drained when half of it is used, however large the drain size.
        self._drain_at_bytes = min(opened.options.drain_size_bytes, self._data_bytes // 2)
        #: Start LSNs of segments to come: the appender decides, the drain follows.
        self._boundaries: deque[int] = deque()
        self._new_segment = True
        self._draining = threading.Lock()
        self._failures = 0

    def begin(self) -> None:
        """The generation's first records; from now on it is in use."""
        self._segment_start = self._ring.durable_lsn
        self._ring.append(self._preamble(), self._index)

    def run(self) -> None:
        """Starts draining."""
        self._start_thread("adr-drain", self._drain_loop)

    # --- appending ---

    def append(self, batch: Sequence[Record]) -> int:
        self._check_usable()
        ring = self._ring
        before = ring.durable_lsn
        boundary = before - self._segment_start >= self._options.segment_size_bytes
        if boundary:
            # The drain may see the batch before its appender goes on, and must not pass where the next segment begins.
            self._boundaries.append(before)
        try:
            start, end = ring.append([*self._preamble(), *batch] if boundary else batch, self._index)
        except BaseException as error:
            if boundary:
                self._boundaries.pop()  # nothing is behind it yet, so that it still is the last one
            if isinstance(error, RingFull):
                self._counts["ring_full"] += 1
                self._wake.set()
            raise
        if boundary:
            self._segment_start = start
        held = end - ring.reclaimed_lsn
        self._appended(len(batch), end - start, held, self._data_bytes)
        if end - self._drained >= self._drain_at_bytes:
            self._wake.set()
        return end

    @property
    def durable_lsn(self) -> int:
        return self._ring.durable_lsn

    def pressure(self) -> float:
        return (self._ring.durable_lsn - self._ring.reclaimed_lsn) / self._data_bytes

    def headroom(self) -> int:
        return self._data_bytes - (self._ring.durable_lsn - self._ring.reclaimed_lsn)

    # --- reading ---

    def _read_undrained(self, run: list[tuple[int, int, int]]) -> list[StoredEntry] | None:
        # Drain may give these bytes up, and an append overwrite them, at any time: LSN and checksum tell.
        lo, hi = run[0][1], run[-1][1] + run[-1][2]
        generation = self._generation
        try:
            if hi - lo > self._ring.data_bytes:
                # Never all undrained at once: the first of it has left the ring, and perhaps its segment, too.
                raise LogCorrupt(f"LSN {lo} to {hi} is more than the ring holds")
            data = self._ring.read_raw(lo, hi)
            found = log_extract(data, lo, generation.number, generation.seed, [place[1] for place in run])
        except LogCorrupt as error:
            if self._segments.segment_at(lo) is not None:
                return None
            if run[0][0] < self.first_index:
                return []
            raise LogFailed(f"the log buffer is damaged: {error}") from error
        return [StoredEntry(*item) for item in found]

    # --- draining ---

    def _drain_loop(self) -> None:
        be_nice()
        while not self._closing:
            self._wake.wait(self._options.drain_interval_seconds)
            self._wake.clear()
            if self._closing:
                return
            error = self.background_pass()
            if self.failed is not None:
                return
            if error is not None:
                self._pause()

    def background_pass(self) -> Exception | None:
        """One pass of the drain thread: drain, release; returns what went wrong. What cannot be tried again is latched
        in `failed`."""
        try:
            self.drain()
            self._release_segments()
        except OSError as error:
            self._drain_error(error)
            self._failures += not may_retry(error)
            if self._failures >= DRAIN_TRIES or isinstance(error, FolderSyncFailed):
                self._fail(error)
            return error
        except Exception as error:
            self._fail(error)
            return error
        self._failures = 0
        return None

    def drain(self) -> None:
        """Copies what is durable to segments and gives its space up, in the order of D6."""
        with self._draining:
            self._note_pressure()
            began = now()
            start, end = self._drained, self._ring.durable_lsn
            if start == end:
                return
            waiting_since = self._lag_since
            while self._drained < end:
                self._drain_segment(end)
            if self._lag_since == waiting_since:
                self._lag_since = None if self._ring.durable_lsn == end else began
            self._drained_to_disk()
            self._durations.append(now() - began)
            self._counts["drains"] += 1
            self._counts["drained_bytes"] += end - start

    def _drain_segment(self, end: int) -> None:
        """Drains up to `end` or to where the next segment begins."""
        start = self._drained
        if self._boundaries and self._boundaries[0] == start:
            self._new_segment = True
        if self._new_segment:
            self._segments.start(self._generation, start)
            self._new_segment = False
            if self._boundaries and self._boundaries[0] == start:
                self._boundaries.popleft()
        if self._boundaries:
            end = min(end, self._boundaries[0])
        assert end <= self._ring.durable_lsn, "only fenced records are drained (D6)"
        lsn = start
        while lsn < end:
            data = self._copy_out(lsn, end)
            self._segments.write(data, lsn, self._index.last[0])
            lsn += len(data)
        self._segments.sync(end)
        self._write_manifest(self._manifest.replace(drained_lsn=end))
        self._flip_header(reclaimed_lsn=end)
        self._ring.set_reclaimed(end)
        self._drained = end
        self._failures = 0  # this segment was synced: what fails from here on is not in a row with what was before
        self._note_pressure()

    def _copy_out(self, lsn: int, end: int) -> bytes:
        try:
            return self._ring.copy_out(lsn, end, DRAIN_CHUNK_BYTES)
        except OSError as error:
            # It is not the disk's: no other file helps.
            raise LogFailed(f"the log buffer {self._path} cannot be read at LSN {lsn}: {error.strerror}") from error

    def _flip_header(self, *, reclaimed_lsn: int, clean: bool = False) -> None:
        """Writes the other header copy with the next sequence number (D7)."""
        assert reclaimed_lsn <= self._manifest.drained_lsn, "the manifest comes before the ring's header (D6)"
        header = dataclasses.replace(
            self._header, sequence=self._header.sequence + 1, reclaimed_lsn=reclaimed_lsn, clean=clean
        )
        self._ring.store_header(header.sequence % HEADER_COPIES, header.encode())
        self._header = header

    # --- ending ---

    def _mark_clean(self) -> None:
        self.drain()
        self._flip_header(reclaimed_lsn=self._drained, clean=True)
        self._write_manifest(self._manifest.replace(state=State.CLEAN, drained_lsn=self._drained))

    def _close_files(self) -> None:
        super()._close_files()
        self._ring.close()

    # --- figures ---

    def stats(self) -> dict[str, int]:
        ring = self._ring
        return {
            **super().stats(),
            "fences": ring.fences,
            "ring_size_bytes": ring.data_bytes,
            "ring_used_bytes": ring.durable_lsn - ring.reclaimed_lsn,
            "ring_wraps": ring.durable_lsn // ring.data_bytes - self._header.start_lsn // ring.data_bytes,
        }

    @property
    def _behind(self) -> bool:
        return self._drained != self._ring.durable_lsn
