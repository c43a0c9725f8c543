"""Large pages: which memory is taken, and that a real kernel does it without a byte changed."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import pytest
from raftkv_node.server import hugepages
from raftkv_node.server.hugepages import HUGE_BYTES, HugePages, Refused, anonymous_ranges, present_pages

_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_which_memory_is_taken() -> None:
    maps = """\
00400000-0041f000 r--p 00000000 fe:00 1 /usr/bin/python3.11
01000000-01900000 rw-p 00000000 00:00 0 [heap]
7f0000100000-7f0000700000 rw-p 00000000 00:00 0
7f0001000000-7f0001200000 rw-s 00000000 00:05 7 /dev/shm/ring with a space
7f0002000000-7f0002400000 rw-p 00000000 fe:00 9 /data/data.mdb
7f0003000000-7f0003100000 rw-p 00000000 00:00 0
7f0004000000-7f0004800000 r--p 00000000 00:00 0
7f0005000000-7f0005800000 rw-p 00000000 00:00 0 [anon:stack]
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0 [stack]
"""
    assert list(anonymous_ranges(maps)) == [(0x1000000, 0x1800000), (0x7F0000200000, 0x7F0000600000)]


def test_present_pages_are_counted() -> None:
    present, shared, swapped = (bytes(7) + bytes((flags,)) for flags in (0x81, 0xA0, 0x40))
    assert present_pages(present * 3 + swapped * 2 + shared + bytes(8) * 4) == 4


@pytest.fixture
def memory() -> memoryview:
    """Anonymous memory of the process, full of something; its aligned part."""
    room = mmap.mmap(-1, 12 * HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = memoryview(room)
    for at in range(0, len(room), 64):
        view[at : at + 8] = at.to_bytes(8, "little")
    return view


def collapses() -> bool:
    return _SYSTEM.exists() and "[never]" not in _SYSTEM.read_text()


def huge_bytes() -> int:
    """Of this process, as the kernel counts them."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return 0


@pytest.fixture(autouse=True)
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests has much memory that may be collapsed, too."""
    monkeypatch.setattr(hugepages, "MIN_REST_SECONDS", 0.0)
    monkeypatch.setattr(hugepages, "REST_PER_WORK", 0.0)


@pytest.mark.skipif(not collapses(), reason="this system has no transparent huge pages")
def test_full_memory_is_collapsed_once_and_keeps_its_bytes(memory: memoryview) -> None:
    before = huge_bytes()
    pages = HugePages()
    try:
        first = pages.run_pass()
    except Refused:
        pytest.skip("this kernel collapses nothing")
    assert first >= 10, "eleven aligned parts at least are full"
    assert huge_bytes() - before >= 10 * HUGE_BYTES
    assert all(memory[at : at + 8] == at.to_bytes(8, "little") for at in range(0, len(memory), 64))
    assert pages.run_pass() < first / 2, "what is collapsed is passed over"


@pytest.mark.skipif(not collapses(), reason="this system has no transparent huge pages")
def test_memory_that_is_mostly_empty_stays_so() -> None:
    room = mmap.mmap(-1, 12 * HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(room), 16 << 10):  # a quarter of the pages
        room[at] = 1

    def resident() -> int:
        return next(
            int(line.split()[1]) << 10
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("RssAnon:")
        )

    before = resident()
    try:
        HugePages().run_pass()
    except Refused:
        pytest.skip("this kernel collapses nothing")
    assert resident() - before < 6 * HUGE_BYTES


def test_where_the_kernel_refuses_it_is_given_up(memory: memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepages, "INTERVAL_SECONDS", 0.001)
    asked = threading.Event()

    def madvise(*_: object) -> int:
        asked.set()
        return -1

    pages = HugePages()
    pages._madvise = madvise  # type: ignore[assignment]
    pages.start()
    assert asked.wait(30)
    assert pages._thread is not None
    pages._thread.join(30)
    assert not pages._thread.is_alive(), "it ends by itself"
