"""Large pages for what a node keeps in memory: index and cached values, found by hash, all over hundreds of megabytes.

Each look there misses the processor's caches, and with pages of 4 KiB its page tables as well: with a million keys that
took a quarter of the time of a put (docs/performance.md). The interpreter takes its memory in pieces that the kernel
would not back with large pages by itself. So a thread looks through the anonymous memory of the process now and then,
and has the kernel collapse each aligned 2 MiB that are nearly full already: what it covers grows by a ninth at most.

To collapse takes the kernel up to some milliseconds, in which the process can map no other memory, nor use this; so it
is done one at a time, with rests that leave a twentieth of a processor to it, and a hundredth while the process is
busy: what it costs the turn is seen in the slowest of a hundred puts (docs/performance.md). (The thread is not nicer
than others, since the turn may wait for it.) The call would do it whatever the system's setting, so that is looked at
here: ``never`` in `ENABLED` is obeyed.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time, sleep

from raftkv_node.server.log import Logger
from raftkv_node.server.metrics import Metrics
from raftkv_node.threads import daemon

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_BYTES = 2 << 20
PAGE_BYTES = 4 << 10
PRESENT_PAGES = 460
"""Of the 512: a part of memory that is emptier is left as it is, since collapsed it would be full."""
INTERVAL_SECONDS = 5.0
REST_PER_WORK = 19.0
"""For how long to rest after a collapse, as a multiple of what it took."""
BUSY_REST_PER_WORK = 99.0
"""The same, while the process has work."""
BUSY_PROCESSORS = 0.1
"""A process that uses more is busy; heartbeats of one at rest take a fifth of that."""
MIN_REST_SECONDS = 0.01
MAX_COLLAPSES = 1000
"""In one pass: 2 GiB."""
FORGET_PASSES = 12
"""After so many passes all memory is looked at again: what was collapsed may have been given back and taken anew."""
TRIES = 8
"""So many that the kernel refuses, and none ever that it did not: it does not do it here."""
_MADV_COLLAPSE = 25
_ENTRY_BYTES = 8
_NONE_TO_SPARE = (errno.ENOMEM, errno.EBUSY)


class Refused(Exception):
    """The kernel does not do this here."""


def anonymous_ranges(maps: str) -> Iterator[tuple[int, int]]:
    """The aligned ranges of private writable memory without a file, of the text of ``/proc/self/maps``."""
    for line in maps.splitlines():
        span, mode, _, _, inode, *name = line.split(maxsplit=5)
        if mode[:2] != "rw" or mode[3] != "p" or inode != "0" or (name and name[0] != "[heap]"):
            continue
        start, end = (int(bound, 16) for bound in span.split("-"))
        start, end = -(-start // HUGE_BYTES) * HUGE_BYTES, end // HUGE_BYTES * HUGE_BYTES
        if start < end:
            yield start, end


def present_pages(entries: bytes) -> int:
    """How many pages are in memory, of their entries in ``/proc/self/pagemap``: bit 63 of each says it."""
    flags = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES]
    return sum(flags.count(bytes((flag,))) for flag in set(flags) if flag & 0x80)


def huge_bytes(smaps: str) -> int:
    """How much is in huge pages, of the text of ``/proc/self/smaps_rollup``."""
    line = next((line for line in smaps.splitlines() if line.startswith("AnonHugePages:")), "AnonHugePages: 0")
    return int(line.split()[1]) << 10


def wanted() -> bool:
    """Whether the system's setting leaves it to the process."""
    try:
        return "[never]" not in ENABLED.read_text()
    except OSError:
        return False


class HugePages:
    """The passes. ``start`` begins them on a thread of their own, for as long as the process lives."""

    def __init__(self, logger: Logger, metrics: Metrics) -> None:
        self._logger = logger
        self._metrics = metrics
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._collapsed: set[int] = set()
        self._passes = self._refused = 0
        self._works = False
        """Whether the kernel has ever done it."""

    def start(self) -> None:
        """Begins, if this system has such pages at all."""
        if os.sysconf("SC_PAGE_SIZE") == PAGE_BYTES and ENABLED.exists():
            daemon("huge-pages", self._run).start()

    def _run(self) -> None:
        while True:
            sleep(INTERVAL_SECONDS)
            try:
                if self.run_pass():
                    self._metrics.huge_page_bytes = huge_bytes(Path("/proc/self/smaps_rollup").read_text())
            except (Refused, OSError) as error:
                self._logger.info("memory is not collapsed to huge pages", reason=str(error))
                return

    def run_pass(self) -> int:
        """Collapses what is due; how much that was. Raises `Refused` or `OSError` where that cannot be had at all."""
        self._passes += 1
        if self._passes % FORGET_PASSES == 0:
            self._collapsed.clear()
        if not wanted():
            return 0
        done = 0
        for address in self._nearly_full():
            began = perf_counter()
            failed = self._madvise(ctypes.c_void_p(address), ctypes.c_size_t(HUGE_BYTES), _MADV_COLLAPSE) != 0
            took = perf_counter() - began
            self._metrics.collapse_seconds += took
            if not failed:
                self._collapsed.add(address)
                self._works = True
                done += 1
            elif not self._go_on(ctypes.get_errno()):
                break
            if done >= MAX_COLLAPSES:
                break
            self._rest(took)
        return done

    def _rest(self, took: float) -> None:
        """After a collapse that took so long; longer, if the process was busy meanwhile."""
        rest, used = max(MIN_REST_SECONDS, REST_PER_WORK * took), process_time()
        sleep(rest)
        if process_time() - used > BUSY_PROCESSORS * rest:
            sleep((BUSY_REST_PER_WORK - REST_PER_WORK) * took)

    def _go_on(self, error: int) -> bool:
        """After a failure: whether others may fare better. Memory may have been unmapped meanwhile, be shared, or be in
        use just now, or in a way that forbids it; but the system, or the control group, may have none to spare."""
        if error in _NONE_TO_SPARE:
            return False
        if error != errno.EAGAIN:
            self._refused += 1
        if self._refused >= TRIES and not self._works:
            raise Refused(os.strerror(error))
        return True

    def _nearly_full(self) -> Iterator[int]:
        """Addresses of the memory that may be collapsed and was not yet."""
        maps = Path("/proc/self/maps").read_text()
        size = HUGE_BYTES // PAGE_BYTES * _ENTRY_BYTES
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            for start, end in anonymous_ranges(maps):
                for address in range(start, end, HUGE_BYTES):
                    if address in self._collapsed:
                        continue
                    entries = os.pread(pagemap.fileno(), size, address // PAGE_BYTES * _ENTRY_BYTES)
                    if present_pages(entries) >= PRESENT_PAGES:
                        yield address
