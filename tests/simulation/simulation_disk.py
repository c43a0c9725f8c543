"""A member's disk and persistent memory in the simulation: real files, and beside them what a power cut may leave.

The log's production code works on real files below one folder. Each operation of its `Files` and each append to its
ring is a point where the process may die. Then one of two things happens:

- **The process dies.** Files stay as they are. If it died inside a ring operation, the ring holds what had been stored
  by then. Nothing becomes certain by that: unsynced writes and unfenced words may still be lost at a later power cut.
- **The power is cut.** Every unsynced write, name and length of a file, and every unfenced word of a ring, of this
  opening's or an earlier one's, survives or not, each for itself; the files are laid out anew as one possible result.

The models (a disk that loses unsynced sectors and names, and the recorder beneath the ring's stores, flushes and
fences) are those of the log's own crash tests. The store's folder is left out: LMDB syncs within its commit (D13), so
that between two calls of the simulation there is nothing in it to lose.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adr_crash import Choice, Disk, Trace, Traced, newest, oldest, ring_image
from raftkv_node._engine import Ring
from raftkv_node.adr.segments import SEGMENT_SUFFIX
from simulation_node import CrashError

BACKEND = "data/backend"


def _is_backend(name: str) -> bool:
    return name == BACKEND or name.startswith(BACKEND + "/")


class SimFiles(Traced):
    """The log's file operations of one opening; each is a point where the process may die."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._segments: set[int] = set()
        super().__init__(place.folder, place.disk, Trace())

    def _done(self, what: str) -> None:
        self._place.reach(f"after {what.split(maxsplit=1)[0]}")

    def _opened(self, fd: int, path: Path) -> int:
        self._segments.discard(fd)
        if path.suffix == SEGMENT_SUFFIX:
            self._segments.add(fd)
        return fd

    def create(self, path: Path) -> int:
        return self._opened(super().create(path), path)

    def open(self, path: Path) -> int:
        return self._opened(super().open(path), path)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        super().pwrite(fd, data, offset)
        if fd in self._segments and offset:
            self._place.reach("after records")


class SimRing:
    """A ring whose appends and headers may be cut off between any two of their stores, flushes and fences."""

    def __init__(self, place: Place, path: str, *arguments: Any) -> None:
        self._place = place
        self._ring = Ring(path, *arguments)
        self._recording = self._ring.record()
        place.mapped(str(Path(path).relative_to(place.folder)), self._recording)

    def append(self, records: Any, index: Any) -> tuple[int, int]:
        before = len(self._recording)
        result = self._ring.append(records, index)
        self._place.reach_in_ring("in ring append", before)
        return result

    def store_header(self, copy: int, header: bytes) -> None:
        before = len(self._recording)
        self._ring.store_header(copy, header)
        self._place.reach_in_ring("in ring header", before)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ring, name)


class Place:
    """One member's folder over all of its lives."""

    def __init__(self, folder: Path, reach: Callable[[str], None], rng: random.Random) -> None:
        self.folder = folder
        self.reach = reach
        self._rng = rng
        (folder / "data").mkdir(parents=True)
        (folder / "pmem").mkdir()
        self.disk = self._all_certain()
        self._uncertain: dict[str, tuple[Any, int]] = {}
        self._mapped: tuple[str, Any] | None = None
        self._cut_at: int | None = None

    def _all_certain(self) -> Disk:
        disk = Disk.of(self.folder)
        for names in (disk.current, disk.certain):
            for name in [name for name in names if _is_backend(name)]:
                del names[name]
        return disk

    # -- while it lives ------------------------------------------------------------------------------------------------

    def mapped(self, name: str, recording: Any) -> None:
        """An opening has mapped its ring."""
        self._mapped = (name, recording)

    def reach_in_ring(self, point: str, before: int) -> None:
        """Something was done to the ring; the process may have died in the middle of it."""
        try:
            self.reach(point)
        except CrashError:
            assert self._mapped is not None
            self._cut_at = self._rng.randint(before, len(self._mapped[1]))
            raise

    # -- its ends ------------------------------------------------------------------------------------------------------

    def died(self, power: bool) -> None:
        """The process is gone (its log closed without a mark); with `power`, so is what was not certain."""
        if self._mapped is not None:
            name, recording = self._mapped
            at = len(recording) if self._cut_at is None else self._cut_at
            self._uncertain[name] = (recording, at)
            if self._cut_at is not None and (self.folder / name).exists():
                (self.folder / name).write_bytes(ring_image(recording, at, newest))
        self._mapped, self._cut_at = None, None
        if power:
            self._lay_out(self._choice())
            self.disk, self._uncertain = self._all_certain(), {}
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
                state[name] = ring_image(recording, at, choose)
        kept = {"data", "pmem"}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = str(path.relative_to(self.folder))
            if not _is_backend(name) and name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, data in sorted(state.items()):
            path = self.folder / name
            if data is None:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(data)
