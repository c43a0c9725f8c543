"""Bugs planted on purpose (contracts D1 to D9): the crash states must find each, or they are blind.

Each is one way to get the order of things wrong, put into the real code while a scenario is explored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from adr_crash import Traced
from adr_harness import last_lsn
from crash_generations import SEED, cancelling_seed
from crash_generations import explore as explore_generations
from crash_scenarios import SCENARIOS, run
from crash_states import Bounds, Tally
from raftkv_node.adr import Files, hard_state
from raftkv_node.adr import log as log_module
from raftkv_node.adr import opening as opening_module
from raftkv_node.adr.manifest import State
from raftkv_node.adr.records import RECORD_ALIGN_BYTES
from raftkv_node.adr.ringfile import RingSeen, ring_files
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.adr.segments import SEGMENT_HEADER_BYTES, Segments

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Plant:
    name: str
    scenario: str
    patch: Patch | None = None
    options: dict[str, Any] = field(default_factory=dict)


def reclaim_before_manifest(patch: pytest.MonkeyPatch) -> None:
    write = RingLog._write_manifest

    def header_first(self: Any, manifest: Any) -> None:
        self._header = dataclasses.replace(
            self._header, sequence=self._header.sequence + 1, reclaimed_lsn=manifest.drained_lsn
        )
        self._ring.store_header(self._header.sequence % 2, self._header.encode())
        write(self, manifest)

    patch.setattr(RingLog, "_flip_header", lambda self, **_: None)
    patch.setattr(RingLog, "_write_manifest", header_first)


def manifest_before_segment(patch: pytest.MonkeyPatch) -> None:
    def no_sync(self: Any, end_lsn: int) -> None:
        self._unsynced = False
        self._chain[-1].end_lsn = end_lsn

    patch.setattr(Segments, "sync", no_sync)


def segments_read_to_their_last_byte(patch: pytest.MonkeyPatch) -> None:
    read = Segments._read_whole

    def to_the_end(self: Any, path: Path, start: int, end: int, index: Any) -> Any:
        return read(self, path, start, max(end, last_lsn(path, start)), index)

    patch.setattr(Segments, "_read_whole", to_the_end)
    for files in (Files, Traced):
        patch.setattr(files, "truncate", lambda self, fd, size_bytes: None)


def segment_without_hard_state(patch: pytest.MonkeyPatch) -> None:
    preamble = log_module.Log._preamble
    patch.setattr(
        log_module.Log, "_preamble", lambda self: [r for r in preamble(self) if r[0] != hard_state(0, 0, 0)[0]]
    )


def scan_from_the_first_record(patch: pytest.MonkeyPatch) -> None:
    load = RingSeen.load

    def wrong(self: RingSeen) -> Any:
        image, first = load(self), self.header.start_lsn

        class FromTheFirst:
            holds_any = image.holds_any

            def scan(self, start_lsn: int, generation: int, seed: int) -> Any:
                return image.scan(first, generation, seed)

            def linear(self, lo: int, hi: int, generation: int, seed: int) -> bytes:
                return image.linear(lo, max(lo, hi), generation, seed)

        return FromTheFirst()

    patch.setattr(RingSeen, "load", wrong)


def no_generation_bump(patch: pytest.MonkeyPatch) -> None:
    following = opening_module._next_manifest

    def same(opened: Any, findings: Any, mode: Any) -> Any:
        manifest = following(opened, findings, mode)
        return manifest.replace(generation=manifest.generation - (findings.previous is not None))

    patch.setattr(opening_module, "_next_manifest", same)


def generation_reused_after_prepared(patch: pytest.MonkeyPatch) -> None:
    following = opening_module._next_manifest

    def reused(opened: Any, findings: Any, mode: Any) -> Any:
        manifest = following(opened, findings, mode)
        reuse = findings.previous is not None and findings.previous.state == State.PREPARED
        return manifest.replace(generation=manifest.generation - reuse)

    patch.setattr(opening_module, "_next_manifest", reused)


def old_ring_unlinked_first(patch: pytest.MonkeyPatch) -> None:
    prepare = opening_module._prepare

    def too_early(opened: Any, found: Any, folder: Path) -> Path:
        for ring in ring_files(folder):
            opened.options.files.unlink(ring)
        return prepare(opened, found, folder)

    patch.setattr(opening_module, "_prepare", too_early)


def clean_before_drained(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any) -> None:
        self._write_manifest(self._manifest.replace(state=State.CLEAN))
        self.drain()

    patch.setattr(RingLog, "_mark_clean", wrong)


def acknowledged_before_the_flush_of_the_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Traced, "fdatasync", lambda self, fd: None)


def zeros_over_the_last_record(patch: pytest.MonkeyPatch) -> None:
    zero_ahead = Segments._zero_ahead
    patch.setattr(Segments, "_zero_ahead", lambda self, end: zero_ahead(self, end - RECORD_ALIGN_BYTES))


def zeros_over_durable_records(patch: pytest.MonkeyPatch) -> None:
    """A segment that runs out of zeros is given them from the place where they began, not from where they ended."""
    zero_ahead = Segments._zero_ahead

    def from_the_start(self: Any, end: int) -> None:
        segment = self._chain[-1]
        synced = segment.offset(segment.end_lsn)
        zero_ahead(self, end if synced == SEGMENT_HEADER_BYTES else min(end, synced - RECORD_ALIGN_BYTES))

    patch.setattr(Segments, "_zero_ahead", from_the_start)


PLANTS = (
    Plant("missing flush", "batches of few words", options={"without": "flush"}),
    Plant("missing fence", "batches of few words", options={"without": "fence"}),
    Plant("acknowledged before the fence", "batches of few words", options={"early_ack": 1}),
    Plant("drained past durable", "drain, header flip, reclaim", options={"early_drain": 1}),
    Plant("reclaimed before the manifest", "drain, header flip, reclaim", reclaim_before_manifest),
    Plant("manifest before the segment's sync", "drain, header flip, reclaim", manifest_before_segment),
    Plant("segment bytes past drained_lsn", "recovery after a power cut", segments_read_to_their_last_byte),
    Plant("segment without HardState", "segments released", segment_without_hard_state),
    Plant("scan from the wrong start after a wrap", "drain, header flip, reclaim", scan_from_the_first_record),
    Plant("no generation bump", "recovery after a power cut", no_generation_bump),
    Plant("generation reused after prepared", "switch after a clean shutdown", generation_reused_after_prepared),
    Plant("generation not in the checksum", ""),
    Plant("old ring unlinked before the new one", "recovery after a kill", old_ring_unlinked_first),
    Plant("marked clean before all is drained", "clean shutdown", clean_before_drained),
    Plant("disk mode: acknowledged before the sync", "disk mode, batches", acknowledged_before_the_flush_of_the_disk),
    Plant("disk mode: zeros over the last record", "disk mode, batches", zeros_over_the_last_record),
    Plant("disk mode: zeros over durable records", "disk mode, batches", zeros_over_durable_records),
)


def explore(plant: Plant, seed: int, bounds: Bounds) -> Tally:
    """What exploring the plant's scenario finds with the bug in place: at least one violation, or it is blind."""
    if not plant.scenario:
        return explore_generations(cancelling_seed(SEED, 1, 2))
    (scenario,) = (found for found in SCENARIOS if found.name == plant.scenario)
    with pytest.MonkeyPatch.context() as patch:
        if plant.patch is not None:
            plant.patch(patch)
        return run(scenario, seed, bounds, **plant.options)
