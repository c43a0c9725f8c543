"""What sysfs tells of the persistent memory beneath a folder: regions, bad blocks, unsafe shutdowns, deep flush.

A folder's file system lies on a block device, perhaps on several through device mapper; each persistent-memory device
has a region above it in sysfs, and the region names the modules that it is spread over. All paths start at `sysfs`, so
that tests can put another machine there. Nothing here raises for what a machine does not tell.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

SECTOR_BYTES = 512
POWER_DOMAINS = frozenset({"memory_controller", "cpu_cache"})

#: struct fiemap {u64 start, length; u32 flags, mapped, count, reserved} and its extents: _IOWR('f', 11, ...).
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP = struct.Struct("<QQIIII")
_EXTENT = struct.Struct("<QQQ16xI12x")
_FIEMAP_SYNC = 1
_EXTENTS_AT_ONCE = 128
_LAST = 0x1
#: Extents whose place on the device is not known: unknown, delayed, encoded, not aligned, inline, tail.
_NO_PLACE = 0x2 | 0x4 | 0x8 | 0x100 | 0x200 | 0x400

Extent = tuple[int, int]
"""First byte on the device, and bytes."""


@dataclass(frozen=True, slots=True)
class BadBlocks:
    """Bad sectors of 512 bytes. `extents`: where they are on the file system's device; None: that cannot be told."""

    sectors: int = 0
    extents: tuple[Extent, ...] | None = ()

    def overlap_sectors(self, extents: list[Extent] | None) -> int | None:
        """How many of them lie in a file with these extents. None: that cannot be told."""
        if self.sectors == 0:
            return 0
        if extents is None or self.extents is None:
            return None
        return sum(
            -(-max(0, min(first + size, bad + length) - max(first, bad)) // SECTOR_BYTES)
            for first, size in extents
            for bad, length in self.extents
        )


class Media:
    """See the module."""

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self._sysfs = sysfs

    def _devices(self, folder: Path) -> list[Path]:
        """The block devices beneath the file system of `folder`, its own one first, then those that it is made of."""
        device = folder.stat().st_dev
        waiting = [self._sysfs / "dev" / "block" / f"{os.major(device)}:{os.minor(device)}"]
        found: list[Path] = []
        while waiting:
            with contextlib.suppress(OSError):
                here = waiting.pop(0).resolve(strict=True)
                if here in found:
                    continue
                found.append(here)
                if (here / "slaves").is_dir():
                    waiting += sorted((here / "slaves").iterdir())
        return found

    def regions(self, folder: Path) -> list[Path]:
        """The regions of persistent memory beneath the file system of `folder`."""
        found: list[Path] = []
        for device in self._devices(folder):
            found += [parent for parent in device.parents if parent.name.startswith("region") and parent not in found]
        return found

    def persistence_domain(self, folder: Path) -> str | None:
        """What all regions promise at power loss; the weakest counts, None if one promises nothing."""
        domains = {_text(region / "persistence_domain") or "" for region in self.regions(folder)}
        if not domains or not domains <= POWER_DOMAINS:
            return None
        return "memory_controller" if "memory_controller" in domains else "cpu_cache"

    def unsafe_shutdowns(self, folder: Path) -> int | None:
        """The sum of the modules' counts of shutdowns that the platform could not finish; None if none is counted."""
        counts: dict[Path, int] = {}
        for region in self.regions(folder):
            for module in self._modules(region):
                for kind in ("nfit", "papr", "cxl"):
                    text = _text(module / kind / "dirty_shutdown")
                    with contextlib.suppress(ValueError):
                        if text is not None:
                            counts[module] = int(text, 0)
        return sum(counts.values()) if counts else None

    def _modules(self, region: Path) -> list[Path]:
        """The modules that a region is spread over: those that it names, else all of its bus."""
        named = []
        for mapping in sorted(region.glob("mapping[0-9]*")):
            text = _text(mapping)
            if text:
                named.append(region.parent / text.split(",")[0])
        return [path for path in named if path.is_dir()] or sorted(region.parent.glob("nmem*"))

    def bad_blocks(self, folder: Path) -> BadBlocks:
        """Known bad blocks of the device of `folder`'s file system."""
        devices = self._devices(folder)
        if not devices:
            return BadBlocks()
        first = devices[0]
        whole, start = first, 0
        if (first / "partition").exists():
            whole, start = first.parent, int(_text(first / "start") or "0")
        text = _text(whole / "badblocks")
        if text is not None:
            extents = _parse(text)
            if whole != first:
                size = int(_text(first / "size") or "0")
                extents = _cut(extents, start * SECTOR_BYTES, size * SECTOR_BYTES)
            return BadBlocks(sum(size for _, size in extents) // SECTOR_BYTES, tuple(extents))
        # Device mapper, or a driver that tells only of the region: how many, but not where.
        places = [*(device / "badblocks" for device in devices), *(r / "badblocks" for r in self.regions(folder))]
        counts = [sum(size for _, size in _parse(_text(place) or "")) // SECTOR_BYTES for place in places]
        sectors = max(counts, default=0)
        return BadBlocks(sectors, None if sectors else ())

    def deep_flush(self, folder: Path) -> bool | None:
        """Asks the platform to write its own buffers to the memory itself. None: there is nothing to ask; False: it may
        not be asked (a container's sysfs is read-only)."""
        asked: list[bool] = []
        for region in self.regions(folder):
            file = region / "deep_flush"
            if _text(file) != "1":
                continue
            try:
                file.write_text("1\n")
                asked.append(True)
            except OSError:
                asked.append(False)
        return all(asked) if asked else None


def file_extents(path: Path) -> list[Extent] | None:
    """Where a file lies on its file system's device, by FIEMAP. None: the file system does not tell."""
    found: list[Extent] = []
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start, last = 0, False
        while not last:
            buffer = bytearray(_FIEMAP.size + _EXTENTS_AT_ONCE * _EXTENT.size)
            _FIEMAP.pack_into(buffer, 0, start, (1 << 64) - 1 - start, _FIEMAP_SYNC, 0, _EXTENTS_AT_ONCE, 0)
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
            mapped = _FIEMAP.unpack_from(buffer)[3]
            if mapped == 0:
                return found
            for number in range(mapped):
                logical, physical, length, flags = _EXTENT.unpack_from(buffer, _FIEMAP.size + number * _EXTENT.size)
                if flags & _NO_PLACE:
                    return None
                found.append((physical, length))
                start, last = logical + length, bool(flags & _LAST)
    except OSError:
        return None
    finally:
        os.close(fd)
    return found


def readable(path: Path, chunk_bytes: int = 1 << 20) -> bool:
    """Whether all of a file can be read by `read()`: poisoned memory is an error there, and a signal elsewhere."""
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(chunk_bytes):
                pass
    except OSError:
        return False
    return True


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _parse(text: str) -> list[Extent]:
    """Lines of "first-sector sectors", as bytes."""
    found = []
    for line in text.splitlines():
        words = line.split()
        with contextlib.suppress(ValueError, IndexError):
            found.append((int(words[0]) * SECTOR_BYTES, int(words[1]) * SECTOR_BYTES))
    return found


def _cut(extents: list[Extent], start: int, size: int) -> list[Extent]:
    """What of the extents lies in [start, start + size), counted from `start`."""
    cut = [(max(first, start), min(first + length, start + size)) for first, length in extents]
    return [(first - start, end - first) for first, end in cut if end > first]
