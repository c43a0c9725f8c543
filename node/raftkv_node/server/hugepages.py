"""Large pages for what a node keeps in memory: index and cached values, found by hash, all over hundreds of megabytes.

Each look there misses the processor's caches, and with pages of 4 KiB its page tables as well: with a million keys that
took a quarter of the time of a put (docs/performance.md). The interpreter takes its memory in pieces that the kernel
would not back with large pages by itself. So a thread looks through the anonymous memory of the process now and then,
and has the kernel collapse each aligned 2 MiB that are nearly full already: memory grows by a few percent at most.

To collapse takes the kernel up to some milliseconds, in which the process can map no other memory; so it is done one at
a time, with long rests. What the system does not want is not done: ``never`` in
``/sys/kernel/mm/transparent_hugepage/enabled``, a kernel before 6.1, a sandbox without ``madvise``.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

HUGE_BYTES = 2 << 20
PAGE_BYTES = 4 << 10
PRESENT_PAGES = 460
"""Of the 512: a part of memory that is emptier is left as it is, since collapsed it would be full."""
INTERVAL_SECONDS = 5.0
REST_PER_WORK = 4.0
"""For how long to rest after a collapse, as a multiple of what it took."""
MIN_REST_SECONDS = 0.01
SHORT_SECONDS = 100e-6
"""What took less was collapsed before."""
MAX_COLLAPSES = 1000
"""In one pass: 2 GiB."""
TRIES = 8
"""So many of one pass that fail, and none that does not: the kernel does not do it here."""
_MADV_COLLAPSE = 25
_ENTRY_BYTES = 8


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


class HugePages:
    """The passes. ``start`` begins them on a thread of their own, for as long as the process lives."""

    def __init__(self) -> None:
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins."""
        self._thread = threading.Thread(target=self._run, name="huge-pages", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the collapse in progress."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            try:
                self.run_pass()
            except (Refused, OSError):
                return  # no /proc, say

    def run_pass(self) -> int:
        """Collapses what is due; how much that was. Raises `Refused` or `OSError` where that cannot be had at all."""
        good = collapsed = 0
        for tried, address in enumerate(self._nearly_full(), 1):
            if self._ended.is_set() or collapsed >= MAX_COLLAPSES:
                break
            began = perf_counter()
            failed = self._madvise(ctypes.c_void_p(address), ctypes.c_size_t(HUGE_BYTES), _MADV_COLLAPSE)
            took = perf_counter() - began
            good += not failed
            if tried >= TRIES and not good:
                raise Refused
            # One that fails was unmapped meanwhile, or is in use in a way that forbids it: perhaps the next time.
            if took >= SHORT_SECONDS:
                collapsed += not failed
                self._ended.wait(max(MIN_REST_SECONDS, REST_PER_WORK * took))
        return collapsed

    def _nearly_full(self) -> Iterator[int]:
        """Addresses of the memory that may be collapsed, or was."""
        maps = Path("/proc/self/maps").read_text()
        size = HUGE_BYTES // PAGE_BYTES * _ENTRY_BYTES
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            for start, end in anonymous_ranges(maps):
                for address in range(start, end, HUGE_BYTES):
                    entries = os.pread(pagemap.fileno(), size, address // PAGE_BYTES * _ENTRY_BYTES)
                    if present_pages(entries) >= PRESENT_PAGES:
                        yield address
