"""Bugs planted on purpose: the crash exploration, or the scenario of a row, must find each of them.

A test here that finds nothing means that the tests are blind, not that the bug is harmless.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adr_crash import Lab, Trace, Traced, append, laboratory
from adr_harness import Member, durably, entries
from raftkv_node._engine import LogCorrupt
from raftkv_node.adr import Files, Log, Refused, entry, hard_state
from raftkv_node.adr import log as log_module
from raftkv_node.adr import opening as opening_module
from raftkv_node.adr.manifest import State
from raftkv_node.adr.ringfile import RingSeen
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.adr.segments import SEGMENT_HEADER_BYTES, Segments
from test_adr_crash import drain, explore, explore_twice, work


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    folder = laboratory()
    lab = Lab(folder, monkeypatch, ring=True)
    lab.changes = {"adr_size_bytes": 8192 + 4096, "segment_size_bytes": 1500}
    yield lab
    shutil.rmtree(folder)


def found(explore_it: Callable[[], Any]) -> None:
    with pytest.raises((AssertionError, Refused, LogCorrupt)):
        explore_it()


def test_the_harness_finds_nothing_where_nothing_is_planted(lab: Lab) -> None:
    explore(lab, one_batch, samples=8)


def one_batch(log: Log, trace: Trace) -> None:
    append(log, trace, [hard_state(1, 0xA1, 0), *entries(1, 1, 3)])


@pytest.mark.parametrize("without", ["flush", "fence"])
def test_a_missing_flush_or_fence_is_found(lab: Lab, without: str) -> None:
    found(lambda: explore(lab, one_batch, without=without))


def test_an_acknowledgement_before_the_fence_is_found(lab: Lab) -> None:
    found(lambda: explore(lab, one_batch, early_ack=1))


def test_a_reclaim_before_the_manifest_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, *, reclaimed_lsn: int, clean: bool = False) -> None:
        self._header = dataclasses.replace(
            self._header, sequence=self._header.sequence + 1, reclaimed_lsn=reclaimed_lsn, clean=clean
        )
        self._ring.store_header(self._header.sequence % 2, self._header.encode())

    write = RingLog._write_manifest

    def header_first(self: Any, manifest: Any) -> None:
        wrong(self, reclaimed_lsn=manifest.drained_lsn)
        write(self, manifest)

    monkeypatch.setattr(RingLog, "_flip_header", lambda self, **_: None)
    monkeypatch.setattr(RingLog, "_write_manifest", header_first)
    found(lambda: explore(lab, work))


def test_the_manifest_before_the_segments_sync_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sync(self: Any, end_lsn: int) -> None:
        self._unsynced = False
        self._chain[-1].end_lsn = end_lsn

    monkeypatch.setattr(Segments, "sync", no_sync)
    found(lambda: explore(lab, work))


def test_segment_bytes_past_drained_lsn_read_back_are_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut off at opening, and segments are read to their last byte."""
    read = Segments._read_whole

    def to_the_end(self: Any, path: Path, start: int, end: int, index: Any) -> Any:
        return read(self, path, start, max(end, start + path.stat().st_size - SEGMENT_HEADER_BYTES), index)

    monkeypatch.setattr(Segments, "_read_whole", to_the_end)
    for files in (Files, Traced):
        monkeypatch.setattr(files, "truncate", lambda self, fd, size_bytes: None)

    def both() -> None:
        explore(lab, work)
        explore_twice(lab, True)

    found(both)


def test_a_segment_without_hard_state_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module.Log, "_preamble", lambda self: [hard_state(*self._index.hard_state)])
    found(lambda: explore(lab, work))


def test_a_scan_from_the_generations_first_record_after_a_wrap_is_found(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    monkeypatch.setattr(RingSeen, "load", wrong)
    found(lambda: explore(lab, work))


def test_a_drain_past_what_is_durable_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not fenced is not looked at; a drain that goes on nevertheless finds no record there, and fails."""

    def draining(log: Log, trace: Trace) -> None:
        append(log, trace, entries(1, 1, 2))
        assert isinstance(log, RingLog)
        ring = log._ring
        end = ring.durable_lsn

        class Ahead:
            durable_lsn = end + 64

            def __getattr__(self, name: str) -> Any:
                return getattr(ring, name)

        log._ring = Ahead()  # type: ignore[assignment]
        try:
            log.drain()
        finally:
            log._ring = ring

    found(lambda: explore(lab, draining))


def test_an_unlinked_old_ring_before_the_new_ones_manifest_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """D8: the old file goes last. Here it goes as soon as the new one is made, before its tail is drained."""
    world = lab.new()
    trace, _ = lab.run(world, work)
    replay = opening_module._replay

    def too_early(opened: Any, findings: Any) -> None:
        for ring in world.member.folder.parent.glob(f"*/pmem/*/*/{findings.verdict.ring.path.name}"):
            opened.options.files.unlink(ring) if str(opened.options.data_dir.parent) in str(ring) else None
        replay(opened, findings)

    monkeypatch.setattr(opening_module, "_replay", too_early)

    def again() -> None:
        second = lab.crash(world, trace, (len(trace.disks) - 1, len(trace.recording)), lambda count: count)
        inner, _ = lab.run(second, None)
        monkeypatch.setattr(opening_module, "_replay", replay)
        for moment in inner.moments():
            third = lab.crash(second, inner, moment, lambda count: count)
            third.member.open()[0].close(clean=False)

    found(again)


# --- rules that only copies of disks and rings can show: the row's scenario must fail with the bug ---


def row_5(member: Member) -> None:
    log, _ = member.open()
    durably(log, entries(1, 1, 2))
    log.close()
    copy = member.folder / "copy"
    shutil.copytree(member.data, copy)
    log, _ = member.open()
    durably(log, [entry(1, 3, 0, b"forgotten")])
    log.close(clean=False)
    shutil.rmtree(member.data)
    copy.rename(member.data)
    with pytest.raises(Refused):
        member.open()


def test_no_generation_bump_is_found(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    following = opening_module._next_manifest

    def same(opened: Any, findings: Any, mode: Any) -> Any:
        manifest = following(opened, findings, mode)
        if findings.previous is None:
            return manifest
        # The same generation again, in the same ring.
        old = findings.previous
        return manifest.replace(generation=old.generation, ring_uuid=old.ring_uuid)

    monkeypatch.setattr(opening_module, "_next_manifest", same)
    with pytest.raises(pytest.fail.Exception):
        row_5(member)


def test_the_scenario_of_row_5_passes_without_the_bug(member: Member) -> None:
    row_5(member)


def test_a_generation_reused_after_prepared_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 6 stands on it: two openings of one generation are two histories that no later one can tell apart."""
    following = opening_module._next_manifest

    def reused(opened: Any, findings: Any, mode: Any) -> Any:
        manifest = following(opened, findings, mode)
        if findings.previous is not None and findings.previous.state == State.PREPARED:
            return manifest.replace(generation=findings.previous.generation)
        return manifest

    def prepared_twice() -> None:
        world = lab.new()
        trace, _ = lab.run(world, lambda log, trace: drain(log))
        for moment in trace.moments():
            second = lab.crash(world, trace, moment, lambda count: count)
            try:
                before = second.member.manifest()
            except AssertionError:
                continue
            log, recovered = second.member.open()
            log.close()
            assert recovered.generation > before.generation, "a generation was reused"

    prepared_twice()
    monkeypatch.setattr(opening_module, "_next_manifest", reused)
    found(prepared_twice)
