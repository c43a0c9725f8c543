"""Ring mode: a batch is durable in the log buffer at once; a thread drains it to segments beside the turn.

The drain's order is D6: segment synced, manifest's `drained_lsn` durable, ring header's `reclaimed_lsn` persisted, and
only then may the bytes be overwritten. A stalled disk, or one with no room, stops no append until the ring is full; a
failed sync ends the log, since what the kernel did with the pages is unknown (D15): at the next start the ring has all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raftkv_node._engine import LogCorrupt, Ring, RingFull, log_extract
from raftkv_node.adr.errors import LogFailed
from raftkv_node.adr.files import may_retry
from raftkv_node.adr.log import Log, now
from raftkv_node.adr.manifest import State
from raftkv_node.adr.records import Record, StoredEntry
from raftkv_node.adr.ringfile import HEADER_COPIES, RingHeader, ring_files

if TYPE_CHECKING:
    from raftkv_node.adr.opening import Opened

#: Small, since a chunk is copied while the turn's thread waits for the interpreter.
DRAIN_CHUNK_BYTES = 256 << 10


class RingLog(Log):
    """See the module."""

    def __init__(self, opened: Opened, ring: Ring, header: RingHeader, path: Path) -> None:
        super().__init__(opened)
        self._ring = ring
        self._header = header
        self._path = path
        self._drained = ring.durable_lsn
        #: A small ring is drained when half of it is used, however large the drain size.
        self._drain_at_bytes = min(opened.options.drain_size_bytes, ring.data_bytes // 2)
        #: Start LSNs of segments to come: the appender decides, the drain follows.
        self._boundaries: deque[int] = deque()
        self._new_segment = True
        self._draining = threading.Lock()
        self._lag_since: float | None = None

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
        try:
            start, end = ring.append([*self._preamble(), *batch] if boundary else batch, self._index)
        except RingFull:
            self._counts["ring_full"] += 1
            self._wake.set()
            raise
        if boundary:
            self._segment_start = start
            self._boundaries.append(start)
        held = end - self._drained
        self._appended(len(batch), end - start, end - ring.reclaimed_lsn)
        if self._lag_since is None:
            self._lag_since = now()
        if held >= self._drain_at_bytes:
            self._wake.set()
        return end

    @property
    def durable_lsn(self) -> int:
        return self._ring.durable_lsn

    def pressure(self) -> float:
        return (self._ring.durable_lsn - self._ring.reclaimed_lsn) / self._ring.data_bytes

    def headroom(self) -> int:
        return self._ring.data_bytes - (self._ring.durable_lsn - self._ring.reclaimed_lsn)

    # --- reading ---

    def _read_undrained(self, run: list[tuple[int, int, int]]) -> list[StoredEntry] | None:
        # Drain may give these bytes up, and an append overwrite them, at any time: LSN and checksum tell.
        lo, hi = run[0][1], run[-1][1] + run[-1][2]
        generation = self._generation
        try:
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
        while not self._closing:
            self._wake.wait(self._options.drain_interval_seconds)
            self._wake.clear()
            if self._closing:
                return
            try:
                self.drain()
                self._release_segments()
            except OSError as error:
                self._counts["drain_errors"] += 1
                if not may_retry(error):
                    self._fail(error)
                    return
            except Exception as error:
                self._fail(error)
                return

    def drain(self) -> None:
        """Copies what is durable to segments and gives its space up, in the order of D6."""
        with self._draining:
            began = now()
            start, end = self._drained, self._ring.durable_lsn
            if start == end:
                return
            waiting_since = self._lag_since
            while self._drained < end:
                self._drain_segment(end)
            if self._lag_since == waiting_since:
                self._lag_since = None if self._ring.durable_lsn == end else began
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
            data = self._ring.copy_out(lsn, end, DRAIN_CHUNK_BYTES)
            self._segments.write(data, lsn, self._index.last[0])
            lsn += len(data)
        self._segments.sync(end)
        self._write_manifest(self._manifest.replace(drained_lsn=end))
        self._flip_header(reclaimed_lsn=end)
        self._ring.set_reclaimed(end)
        self._drained = end

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

    def retire(self) -> None:
        self._stop_thread()
        self._ring.close()
        folder = self._path.parent
        for path in ring_files(folder):
            self._files.unlink(path)
        self._files.sync_folder(folder)
        self._wipe_disk()
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()
        self._unlock()

    # --- figures ---

    def stats(self) -> dict[str, int]:
        ring = self._ring
        return {
            **super().stats(),
            "fences": ring.fences,
            "ring_size_bytes": ring.data_bytes,
            "ring_used_bytes": ring.durable_lsn - ring.reclaimed_lsn,
            "ring_wraps": ring.durable_lsn // ring.data_bytes - self._header.start_lsn // ring.data_bytes,
            "drain_lag_milliseconds": round(self.drain_lag_seconds() * 1000),
        }

    def drain_lag_seconds(self) -> float:
        """Age of the oldest record that is not on disk yet, 0 if all is."""
        since = self._lag_since
        return 0.0 if since is None or self._drained == self._ring.durable_lsn else now() - since
