"""Helpers of the log's tests: a machine that can be changed, small rings, and shorthands."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftkv_node.adr import Environment, Identity, Level, Log, LogOptions, Medium, Probe, Record, Recovered, entry
from raftkv_node.adr.levels import Whereabouts
from raftkv_node.adr.manifest import Manifest, read_manifest, write_manifest
from raftkv_node.adr.media import BadBlocks
from raftkv_node.adr.records import RECORD_ALIGN_BYTES
from raftkv_node.adr.ringfile import RingSeen, find_rings, ring_folder
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.adr.segments import SEGMENT_HEADER_BYTES

KIB = 1 << 10
#: Small enough to enumerate, large enough for a few records: two header pages and the data.
SMALL_RING_BYTES = 8 * KIB + 16 * KIB
CLUSTER, MEMBER, NUMBER, DISK = 0xC1, 0xA1, 3, b"\x07" * 16
#: Folders of persistent memory between which a member's ring may move.
PLACES = ("pmem", "pmem-2")
PATIENCE_SECONDS = 30.0
NEVER_BYTES = 1 << 62
NO_BAD_BLOCKS = BadBlocks()


@dataclass
class Machine(Environment):
    """A host with persistent memory at level `level`; all of it can be changed between openings."""

    name: str = "host-a"
    boot: str = "boot-1"
    level: Level = Level.POWER
    disk_level: Level = Level.POWER
    file_system: str = "uuid:pmem0"
    shutdowns: int | None = None
    #: File systems of folders by name, where it is another one.
    others: dict[str, str] = dataclasses.field(default_factory=dict)
    bad: BadBlocks = NO_BAD_BLOCKS

    def host(self) -> str:
        return self.name

    def boot_id(self) -> str:
        return self.boot

    def probe_ring(self, folder: Path) -> Probe:
        medium = Medium.FILE if self.level == Level.PROCESS else Medium.PMEM
        return Probe(
            self.level,
            medium,
            "ext4",
            self.file_system_of(folder),
            unsafe_shutdowns=self.shutdowns,
            bad_sectors=self.bad.sectors,
        )

    def whereabouts(self, folder: Path) -> Whereabouts:
        folder.stat()
        return Whereabouts(self.file_system_of(folder), self.shutdowns)

    def file_system_of(self, folder: Path) -> str:
        return self.others.get(folder.name, self.file_system)

    def bad_blocks(self, folder: Path) -> BadBlocks:
        return self.bad

    def deep_flush(self, folder: Path) -> bool | None:
        return None

    def probe_disk(self, folder: Path) -> Probe:
        return Probe(self.disk_level, Medium.DISK, "ext4", "uuid:disk0")


@dataclass
class Member:
    """A member's places. `folder` holds `data` and `pmem`."""

    folder: Path
    machine: Machine
    ring: bool = True
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    #: The folder of persistent memory; it may move to another one.
    place: str = "pmem"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def pmem(self) -> Path:
        return self.folder / self.place

    def make(self) -> Member:
        self.data.mkdir(parents=True, exist_ok=True)
        for place in (*PLACES, self.place):
            (self.folder / place).mkdir(exist_ok=True)
        return self

    def options(self, **changes: Any) -> LogOptions:
        values: dict[str, Any] = {
            "data_dir": self.data,
            "identity": Identity(CLUSTER, MEMBER, NUMBER, DISK, "default", "demo"),
            "adr_path": self.pmem if self.ring else None,
            "adr_size_bytes": SMALL_RING_BYTES,
            "adr_size_limits_bytes": (KIB, 100 << 20),
            # Tests drain when they say so.
            "drain_interval_seconds": 3600.0,
            "drain_size_bytes": 100 << 20,
            # A little more than a batch or two: it runs out all the time.
            "zero_ahead_bytes": 512,
            "environment": self.machine,
        }
        return LogOptions(**{**values, **self.changes, **changes})

    def open(self, **changes: Any) -> tuple[Log, Recovered]:
        log, recovered = Log.open(self.options(**changes))
        if isinstance(log, RingLog):
            log._drain_at_bytes = NEVER_BYTES
        return log, recovered

    @property
    def ring_folder(self) -> Path:
        return ring_folder(self.pmem, CLUSTER, NUMBER)

    def rings(self) -> list[RingSeen]:
        return find_rings(self.ring_folder)

    def manifest(self) -> Manifest:
        manifest = read_manifest(self.data)
        assert manifest is not None
        return manifest

    def rewrite_manifest(self, **changes: Any) -> None:
        options = self.options()
        write_manifest(options.files, self.data, self.manifest().replace(**changes))

    def segments(self) -> list[Path]:
        return self.segments_in(self.data / "wal")

    @staticmethod
    def segments_in(folder: Path) -> list[Path]:
        return sorted(folder.glob("*.seg"))


def entries(term: int, first: int, count: int, payload: bytes = b"value") -> list[Record]:
    return [entry(term, index, 0, payload + b"-%d" % index) for index in range(first, first + count)]


def durably(log: Log, batch: Iterable[Record]) -> int:
    """Appends, and waits until it is durable."""
    lsn = log.append(list(batch))
    until(lambda: log.durable_lsn >= lsn or log.failed is not None)
    assert log.failed is None, log.failed
    return lsn


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def last_lsn(segment: Path, start_lsn: int) -> int:
    """Where the last record of a segment's file ends, by its bytes: in disk mode zeros follow."""
    written = len(segment.read_bytes().rstrip(b"\0")) - SEGMENT_HEADER_BYTES
    return start_lsn + -(-max(0, written) // RECORD_ALIGN_BYTES) * RECORD_ALIGN_BYTES


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
