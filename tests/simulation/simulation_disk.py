"""A member's disk and persistent memory in the simulation: real files, and beside them what a power cut may leave.

The log's production code works on real files below one folder. Each operation of its `Files` and each append to its
ring is a point where the process may die. Then one of two things happens:

- **The process dies.** Files stay as they are. If it died inside a ring operation, the ring holds what had been stored
  by then. Nothing becomes certain by that: unsynced writes and unfenced words may still be lost at a later power cut.
- **The power is cut.** Every unsynced write, name and length of a file, and every unfenced word of a ring, of this
  opening's or an earlier one's, survives or not, each for itself; the files are laid out anew as one possible result.

The models (a disk that loses unsynced sectors and names, and the recorder beneath the ring's stores, flushes and
fences) are those of the log's own crash tests. The store's folder and snapshots' are left out: LMDB syncs within its
commit (D13), so that between two calls of the simulation there is nothing in it to lose.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from adr_crash import Choice, Disk, Trace, Traced, newest, oldest, ring_image
from adr_invariants import DRAIN_NEVER_PASSES_DURABLE
from raftkv_node._engine import Ring
from raftkv_node.adr.files import decode_document
from raftkv_node.adr.manifest import MANIFEST_FILE
from raftkv_node.adr.segments import REBUILT_SUFFIX, SEGMENT_HEADER_BYTES, SEGMENT_SUFFIX
from raftkv_node.store import install
from simulation_checks import Violation
from simulation_node import CrashError

BACKEND = "data/backend"


SNAPSHOTS = tuple(f"data/{name}" for name in (install.PARTIAL, install.WHOLE, install.REPLACED))


def _is_backend(name: str) -> bool:
    return any(name == one or name.startswith(one + "/") for one in (BACKEND, *SNAPSHOTS))


class SimFiles(Traced):
    """The log's file operations of one opening; each is a point where the process may die."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._segments: dict[int, int] = {}
        """Start LSNs of the segments that are open, whole ones and those that are made beside a suspect one."""
        self._records_to: dict[int, int] = {}
        """Offsets up to which records, not zeros, were written to those."""
        super().__init__(place.folder, place.disk, Trace())

    def _done(self, what: str) -> None:
        self._place.reach(f"after {what.split(maxsplit=1)[0]}")

    def _opened(self, fd: int, path: Path) -> int:
        self._segments.pop(fd, None)
        self._records_to.pop(fd, None)
        if path.name.endswith((SEGMENT_SUFFIX, REBUILT_SUFFIX)):
            self._segments[fd] = int(path.name.partition("-")[0], 16)
        return fd

    def create(self, path: Path) -> int:
        return self._opened(super().create(path), path)

    def open(self, path: Path) -> int:
        return self._opened(super().open(path), path)

    def rename(self, source: Path, target: Path) -> None:
        if _is_backend(self._name(source)):
            source.rename(target)
            self._done(f"swap {target.name}")
        else:
            if target.name == MANIFEST_FILE:
                self._place.drained(decode_document(source.read_bytes())["drained_lsn"])
            super().rename(source, target)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        zeros = bytes(data).count(0) == len(data)
        if fd in self._segments and not zeros:
            end = offset + len(data)
            self._records_to[fd] = max(self._records_to.get(fd, 0), end)
            self._place.copied(self._segments[fd] + end - SEGMENT_HEADER_BYTES)
        super().pwrite(fd, data, offset)
        if fd in self._segments and offset:
            self._place.reach("after zeros" if zeros else "after records")

    def fsync(self, fd: int) -> None:
        if fd in self._segments:
            # the size says it only of a file that nothing is written to any more: zeros are ahead of records
            end = self._segments[fd] + self._records_to.get(fd, os.fstat(fd).st_size) - SEGMENT_HEADER_BYTES
            self._place.synced_lsn = max(self._place.synced_lsn, end)
        super().fsync(fd)

    fdatasync = fsync


class SimRing:
    """A ring whose appends and headers may be cut off between any two of their stores, flushes and fences."""

    def __init__(self, place: Place, path: str, *arguments: Any) -> None:
        self._place = place
        self._ring = Ring(path, *arguments)
        self._recording = self._ring.record()
        self._name = str(Path(path).relative_to(place.folder))
        place.mapped(self._name, self._recording, self._ring.durable_lsn)

    def append(self, records: Any, index: Any) -> tuple[int, int]:
        before = len(self._recording)
        start, end = self._ring.append(records, index)
        self._place.durable_lsn = end
        self._place.reach_in_ring("in ring append", before)
        self._place.last_batch = Batch(self._name, start, end, self._ring.data_bytes)
        return start, end

    def store_header(self, copy: int, header: bytes) -> None:
        before = len(self._recording)
        self._ring.store_header(copy, header)
        self._place.reach_in_ring("in ring header", before)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ring, name)


class Batch(NamedTuple):
    """The last batch that was fenced in a ring: each of its records says that all before it is durable."""

    ring: str
    start_lsn: int
    end_lsn: int
    data_bytes: int
    """Of the ring."""


class Place:
    """One member's folder over all of its lives."""

    def __init__(self, folder: Path, reach: Callable[[str], None], rng: random.Random) -> None:
        self.folder = folder
        self.reach = reach
        self._rng = rng
        (folder / "data").mkdir(parents=True)
        (folder / "pmem").mkdir()
        self.keep = {"data", "pmem"}
        self.disk = self.all_certain()
        self._uncertain: dict[str, tuple[Any, int]] = {}
        self._mapped: tuple[str, Any] | None = None
        self._cut_at: int | None = None
        self.durable_lsn: int | None = None
        """Everything below was fenced in the ring of this opening; None: it has mapped none yet."""
        self.synced_lsn = 0
        """Everything below is in segments that were synced."""
        self.last_batch: Batch | None = None
        self._flips: dict[str, list[tuple[int, int]]] = {}
        """Bits that have flipped in rings, by offset and mask: a power cut does not flip them back."""

    def all_certain(self) -> Disk:
        """What lies in the folder now, as if all of it were synced."""
        disk = Disk.of(self.folder)
        for names in (disk.current, disk.certain):
            for name in [name for name in names if _is_backend(name)]:
                del names[name]
        return disk

    # -- while it lives ------------------------------------------------------------------------------------------------

    def mapped(self, name: str, recording: Any, lsn: int) -> None:
        """An opening has mapped its ring, which begins at an LSN."""
        self._mapped = (name, recording)
        self.durable_lsn, self.last_batch = lsn, None

    def copied(self, end_lsn: int) -> None:
        """Records up to an LSN are written to a segment: none that is not fenced in the ring (D6)."""
        if self.durable_lsn is not None and end_lsn > self.durable_lsn:
            raise Violation(
                DRAIN_NEVER_PASSES_DURABLE, f"a segment is written up to LSN {end_lsn}, durable is {self.durable_lsn}"
            )

    def drained(self, drained_lsn: int) -> None:
        """A manifest says up to where segments have everything: they are synced up to there."""
        if drained_lsn > self.synced_lsn:
            raise Violation(
                DRAIN_NEVER_PASSES_DURABLE,
                f"a manifest says {drained_lsn}, segments are synced up to {self.synced_lsn}",
            )

    def reach_in_ring(self, point: str, before: int) -> None:
        """Something was done to the ring; the process may have died in the middle of it."""
        try:
            self.reach(point)
        except CrashError:
            assert self._mapped is not None
            self._cut_at = self._rng.randint(before, len(self._mapped[1]))
            raise

    # -- while it is down ----------------------------------------------------------------------------------------------

    def forget(self, place: str) -> None:
        """A file system is replaced by an empty one."""
        for names in (self.disk.current, self.disk.certain):
            for name in [name for name in names if name.startswith(place + "/")]:
                del names[name]
        self._uncertain = {name: found for name, found in self._uncertain.items() if not name.startswith(place + "/")}
        shutil.rmtree(self.folder / place)
        (self.folder / place).mkdir()

    def restored(self, place: str) -> None:
        """Other files lie in a file system now, all of them certain."""
        here = Disk.of(self.folder / place)
        for name, number in here.current.items():
            if not _is_backend(f"{place}/{name}"):
                new = None if number is None else self.disk.following
                if number is not None:
                    self.disk.inodes[self.disk.following] = here.inodes[number]
                    self.disk.following += 1
                self.disk.current[f"{place}/{name}"] = self.disk.certain[f"{place}/{name}"] = new

    def flip(self, path: Path, offset: int, mask: int) -> None:
        """A bit is another one from now on, whatever of the file is certain."""
        data = bytearray(path.read_bytes())
        data[offset] ^= mask
        self.rewrite(path, bytes(data))
        self._flips.setdefault(str(path.relative_to(self.folder)), []).append((offset, mask))

    def rewrite(self, path: Path, data: bytes) -> None:
        """The medium gives other bytes from now on."""
        path.write_bytes(data)
        number = self.disk.current.get(str(path.relative_to(self.folder)))
        if number is not None:
            self.disk.inodes[number].certain = self.disk.inodes[number].current = data

    # -- its ends ------------------------------------------------------------------------------------------------------

    def died(self, power: bool) -> None:
        """The process is gone (its log closed without a mark); with `power`, so is what was not certain."""
        if self._mapped is not None:
            name, recording = self._mapped
            at = len(recording) if self._cut_at is None else self._cut_at
            self._uncertain[name] = (recording, at)
            if self._cut_at is not None and (self.folder / name).exists():
                (self.folder / name).write_bytes(ring_image(recording, at, newest))
        self._mapped, self._cut_at, self.durable_lsn = None, None, None
        if power:
            self._lay_out(self._choice())
            self.disk, self._uncertain, self._flips = self.all_certain(), {}, {}
        names = self.disk.certain.keys() | self.disk.current.keys()
        self._uncertain = {name: found for name, found in self._uncertain.items() if name in names}

    def _choice(self) -> Choice:
        rng = self._rng
        style = rng.random()
        if style < 0.1:
            return oldest
        if style < 0.2:
            return newest
        # often all but a few: a hole with whole records behind it is the interesting picture
        keep = rng.choice((0.2, 0.5, 0.9, 0.97, 0.99))
        return lambda count: rng.randint(1, count) if rng.random() < keep else 0

    def _lay_out(self, choose: Choice) -> None:
        state = self.disk.after_power_cut(choose)
        for name, (recording, at) in self._uncertain.items():
            if state.get(name) is not None:
                image = bytearray(ring_image(recording, at, choose))
                for offset, mask in self._flips.get(name, ()):
                    image[offset] ^= mask
                state[name] = bytes(image)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = str(path.relative_to(self.folder))
            if not _is_backend(name) and name not in self.keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, data in sorted(state.items()):
            path = self.folder / name
            if data is None:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(data)
