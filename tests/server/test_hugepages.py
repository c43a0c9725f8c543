"""Large pages: which memory is taken, and that a real kernel does it without a byte changed."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
from raftkv_node.server import hugepages
from raftkv_node.server.hugepages import HUGE_BYTES, HugePages, Refused, anonymous_ranges, huge_bytes, present_pages
from raftkv_node.server.log import Logger
from raftkv_node.server.metrics import Metrics

PARTS = 12
_REST_PER_WORK, _BUSY_REST_PER_WORK = hugepages.REST_PER_WORK, hugepages.BUSY_REST_PER_WORK


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


class Memory:
    """Anonymous memory of this process; the passes see its aligned parts only."""

    def __init__(self, each_bytes: int) -> None:
        self.room = mmap.mmap(-1, PARTS * HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self.room.madvise(mmap.MADV_NOHUGEPAGE)  # where the system gives large ones at once
        self.each_bytes = each_bytes
        for at in range(0, len(self.room), each_bytes):
            self.room[at : at + 8] = at.to_bytes(8, "little")
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.room.madvise(mmap.MADV_HUGEPAGE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.room))

    @property
    def aligned(self) -> tuple[int, int]:
        return (
            -(-self.start // HUGE_BYTES) * HUGE_BYTES,
            (self.start + len(self.room)) // HUGE_BYTES * HUGE_BYTES,
        )

    def holds(self) -> bool:
        return all(
            self.room[at : at + 8] == at.to_bytes(8, "little") for at in range(0, len(self.room), self.each_bytes)
        )

    def bytes(self, kind: str) -> int:
        """Of this memory, as the kernel counts them (of its mapping: what lies beside it was there before, too)."""
        found = inside = 0
        for line in Path("/proc/self/smaps").read_text().splitlines():
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(bound, 16) for bound in first.split("-"))
                inside = low < self.start + len(self.room) and self.start < high
            elif inside and first == kind + ":":
                found += int(line.split()[1]) << 10
        return found


@pytest.fixture
def make_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Memory]:
    def make(each_bytes: int) -> Memory:
        memory = Memory(each_bytes)
        monkeypatch.setattr(hugepages, "anonymous_ranges", lambda _maps: [memory.aligned])
        return memory

    monkeypatch.setattr(hugepages, "MIN_REST_SECONDS", 0.0)
    monkeypatch.setattr(hugepages, "REST_PER_WORK", 0.0)
    monkeypatch.setattr(hugepages, "BUSY_REST_PER_WORK", 0.0)
    return make


@pytest.fixture
def pages() -> HugePages:
    return HugePages(Logger("error", "json"), Metrics())


def run_pass(pages: HugePages) -> int:
    try:
        return pages.run_pass()
    except (Refused, OSError) as error:
        pytest.skip(f"this system collapses nothing: {error}")


needs_them = pytest.mark.skipif(not hugepages.wanted(), reason="this system has no transparent huge pages")


@needs_them
def test_full_memory_is_collapsed_once_and_keeps_its_bytes(
    make_memory: Callable[[int], Memory], pages: HugePages
) -> None:
    memory = make_memory(64)
    if not run_pass(pages):
        pytest.skip("this system has no huge page to spare")
    for _ in range(20):  # one that was busy is tried again
        run_pass(pages)
    assert memory.bytes("AnonHugePages") >= (PARTS - 1) * HUGE_BYTES
    assert memory.holds()
    assert run_pass(pages) == 0, "what is collapsed is passed over"
    assert pages._metrics.collapse_seconds > 0


@needs_them
def test_memory_that_is_mostly_empty_stays_so(make_memory: Callable[[int], Memory], pages: HugePages) -> None:
    memory = make_memory(16 << 10)  # a quarter of the pages
    assert run_pass(pages) == 0
    assert memory.bytes("AnonHugePages") == 0 and memory.holds()


class Kernel:
    """Stands in for madvise."""

    def __init__(self, pages: HugePages, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self.calls = 0
        pages._madvise = self  # type: ignore[assignment]
        monkeypatch.setattr(ctypes, "get_errno", lambda: self.error)

    def __call__(self, *_: object) -> int:
        self.calls += 1
        return -1 if self.error else 0


@pytest.fixture
def kernel(pages: HugePages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never\n")
    monkeypatch.setattr(hugepages, "ENABLED", enabled)
    return Kernel(pages, monkeypatch)


def test_never_is_obeyed(make_memory: Callable[[int], Memory], pages: HugePages, kernel: Kernel) -> None:
    """The kernel itself would do it all the same."""
    make_memory(64)
    hugepages.ENABLED.write_text("always madvise [never]\n")
    assert pages.run_pass() == 0 and kernel.calls == 0
    hugepages.ENABLED.unlink()
    assert pages.run_pass() == 0 and kernel.calls == 0
    hugepages.ENABLED.write_text("always [madvise] never\n")
    assert pages.run_pass() == kernel.calls >= PARTS - 1


def test_no_memory_to_spare_is_tried_again_later(
    make_memory: Callable[[int], Memory], pages: HugePages, kernel: Kernel
) -> None:
    make_memory(64)
    for kernel.error in (errno.ENOMEM, errno.EBUSY) * hugepages.TRIES:
        assert pages.run_pass() == 0
    assert kernel.calls == 2 * hugepages.TRIES, "one for each pass"
    kernel.error = 0
    assert pages.run_pass() >= PARTS - 1


def test_memory_that_is_in_use_is_passed_over(
    make_memory: Callable[[int], Memory], pages: HugePages, kernel: Kernel
) -> None:
    """One part that was always in use used to end each pass: nothing behind it was ever collapsed."""
    make_memory(64)
    for kernel.error in [errno.EAGAIN] * hugepages.TRIES:
        before = kernel.calls
        assert pages.run_pass() == 0
        assert kernel.calls - before >= PARTS - 1
    kernel.error = 0
    assert pages.run_pass() >= PARTS - 1


@pytest.mark.parametrize(("processors", "rest_per_work"), [(0.0, 19), (0.05, 19), (0.2, 99)])
def test_a_twentieth_of_a_processor_goes_into_it_and_a_hundredth_while_there_is_other_work(
    make_memory: Callable[[int], Memory],
    pages: HugePages,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    processors: float,
    rest_per_work: int,
) -> None:
    """Of five members under load on two processors, a quarter of one went into it."""
    make_memory(64)
    rests: list[float] = []
    monkeypatch.setattr(hugepages, "process_time", lambda: processors * sum(rests))
    clock = iter(range(0, 1_000_000, 3))  # each collapse takes three seconds
    monkeypatch.setattr(hugepages, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(hugepages, "sleep", rests.append)
    monkeypatch.setattr(hugepages, "REST_PER_WORK", _REST_PER_WORK)
    monkeypatch.setattr(hugepages, "BUSY_REST_PER_WORK", _BUSY_REST_PER_WORK)
    done = pages.run_pass()
    assert pages._metrics.collapse_seconds == 3 * done
    assert sum(rests) == rest_per_work * 3 * done


def test_what_is_in_huge_pages_is_told() -> None:
    assert huge_bytes("Rss:  100 kB\nAnonHugePages:      4096 kB\nShmemPmdMapped: 0 kB\n") == 4096 << 10
    assert huge_bytes("Rss:  100 kB\n") == 0
    assert huge_bytes(Path("/proc/self/smaps_rollup").read_text()) >= 0


def test_where_the_kernel_refuses_it_is_given_up_and_told(
    make_memory: Callable[[int], Memory],
    pages: HugePages,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make_memory(64)
    kernel.error = errno.EINVAL
    with pytest.raises(Refused):
        pages.run_pass()
    assert kernel.calls == hugepages.TRIES
    monkeypatch.setattr(hugepages, "INTERVAL_SECONDS", 0.0)
    pages._logger = Logger("info", "json")
    pages._run()  # returns
    assert "memory is not collapsed to huge pages" in "".join(capfd.readouterr())


def test_some_that_are_refused_end_nothing(
    make_memory: Callable[[int], Memory], pages: HugePages, kernel: Kernel
) -> None:
    """Also when all memory is looked at again."""
    make_memory(64)
    assert pages.run_pass() >= PARTS - 1
    kernel.error = errno.EINVAL
    for _ in range(2 * hugepages.FORGET_PASSES):
        assert pages.run_pass() == 0
    assert kernel.calls > 2 * hugepages.TRIES
