"""A ring file or a manifest with a right checksum and wrong contents: refused in words, never a wrong or lost log.

Each was found by the fuzz target `ring_file` (tests/fuzz/ring_file.py).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from adr_harness import KIB, SMALL_RING_BYTES, Member, contents, entries
from raftkv_node._engine import RingImage, crc32c
from raftkv_node.adr import EXIT_CORRUPT, LogError, Refusal, Refused, Unusable, entry, hard_state, mark, ringfile, tools
from raftkv_node.adr.manifest import ManifestInvalid, State, read_manifest
from raftkv_node.adr.records import MARK_USER
from raftkv_node.adr.ringfile import DATA_OFFSET_BYTES, HEADER_PAGE_BYTES, decode_header

LARGE = 1 << 29


def used(member: Member) -> None:
    """A log whose undrained part lies on both sides of the ring's end, left as by a crash."""
    log, _ = member.open()
    log.append([hard_state(1, 1, 0), *entries(1, 1, 20, b"x" * 500)])
    log.drain()  # type: ignore[attr-defined]
    log.append(entries(1, 21, 10, b"x" * 500))
    log.close(clean=False)


def rewrite_headers(member: Member, **changes: Any) -> None:
    ring = member.rings()[0]
    with ring.path.open("r+b") as file:
        for copy in (0, 1):
            file.seek(copy * HEADER_PAGE_BYTES)
            file.write(dataclasses.replace(ring.header, **{"sequence": copy, **changes}).encode())


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is held in memory of a ring than its file has."""

    class Bounded:
        @staticmethod
        def load(path: Path, data_bytes: int) -> RingImage:
            assert data_bytes <= path.stat().st_size
            return RingImage.load(path, data_bytes)

    monkeypatch.setattr(ringfile, "RingImage", Bounded)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("state", [State.DIRTY, State.PREPARED])
@pytest.mark.parametrize("more_bytes", [-64, 64, LARGE])
def test_d7_a_header_of_another_size_than_the_manifests_is_corrupt(
    member: Member, more_bytes: int, state: State
) -> None:
    """With a wrong size every record lies elsewhere: what was acknowledged was dropped in silence, and half a GiB was
    read for a file of 24 KiB."""
    used(member)
    member.rewrite_manifest(state=state)
    rewrite_headers(member, size_bytes=SMALL_RING_BYTES + more_bytes, reclaimed_lsn=0)
    before, said = contents(member.folder), list[str]()
    with pytest.raises(Refused, match="the manifest 24576") as found:
        member.open()
    assert found.value.kind == Refusal.CORRUPT
    assert tools.inspect(member.data, member.pmem, said.append) == 0
    assert "the manifest 24576" in "\n".join(said)
    assert contents(member.folder) == before


def test_d7_a_ring_file_that_is_too_long_is_corrupt_to_the_drain_tool_too(member: Member) -> None:
    used(member)
    with member.rings()[0].path.open("ab") as file:
        file.write(bytes(64))
    said: list[str] = []
    assert tools.drain(member.data, member.pmem, said.append, environment=member.machine) == EXIT_CORRUPT
    assert "the file has 24640 of 24576 bytes" in said[0]


@pytest.mark.parametrize(
    "changes",
    [{"sequence": (1 << 64) - 2}, {"generation": 1 << 62}, {"start_lsn": 1 << 63}, {"reclaimed_lsn": (1 << 64) - 64}],
)
def test_d7_a_header_with_a_number_that_no_ring_reaches_is_none(member: Member, changes: dict[str, int]) -> None:
    """The next sequence number could not be written: `adr drain` ended in a traceback."""
    used(member)
    header = member.rings()[0].header
    assert decode_header(header.encode()) == header
    assert decode_header(dataclasses.replace(header, **changes).encode()) is None
    rewrite_headers(member, **changes)
    with pytest.raises(LogError):
        member.open()


def test_d5_a_ring_that_does_not_begin_as_a_segment_is_corrupt(member: Member) -> None:
    """Its records were copied to a segment that the start after this one refused."""
    log, _ = member.open()
    log.append([hard_state(1, 1, 0), *entries(1, 1, 3)])
    log.close(clean=False)
    path, manifest = member.rings()[0].path, member.manifest()
    at = DATA_OFFSET_BYTES
    first = bytearray(path.read_bytes()[at : at + 64])
    first[9] = 1  # an entry where the hard state was
    first[48:56] = (1).to_bytes(8, "little")
    first[:4] = crc32c(bytes(first[4:]), manifest.seed).to_bytes(4, "little")
    with path.open("r+b") as file:
        file.seek(at)
        file.write(first)
    before = contents(member.folder)
    with pytest.raises(Refused, match="lacks its hard state") as found:
        member.open()
    assert found.value.kind == Refusal.CORRUPT and contents(member.folder) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"drained_lsn": -64},
        {"drained_lsn": 32},
        {"drained_lsn": 1 << 62},
        {"drained_lsn": "0"},
        {"generation": -1},
        {"generation": 1 << 64},
        {"ring_size_bytes": 1 << 40},
        {"number": -1},
        {"cluster_id": "no number"},
        {"disk_uuid": "xy"},
        {"adr_path": 7},
        {"unsafe_shutdowns": "many"},
    ],
)
def test_a_manifest_with_a_value_that_no_log_has_is_damaged(member: Member, changes: dict[str, Any]) -> None:
    used(member)
    assert read_manifest(member.data) is not None
    member.rewrite_manifest(**changes)
    with pytest.raises(ManifestInvalid):
        read_manifest(member.data)
    with pytest.raises(Refused) as found:
        member.open()
    assert (found.value.kind, found.value.row) == (Refusal.CORRUPT, 2)


def test_a_log_buffer_too_small_for_what_a_generation_begins_with_changes_nothing(member: Member) -> None:
    """It was found full after the manifest said that it was in use."""
    log, _ = member.open()
    log.append([mark(MARK_USER + n, 1, 0, b"m" * 900) for n in range(3)])
    log.append([hard_state(1, 1, 0), entry(1, 1, 0, b"one")])
    log.close(clean=False)
    before = contents(member.folder)
    with pytest.raises(Unusable, match="too small"):
        member.open(adr_size_bytes=DATA_OFFSET_BYTES + 2 * KIB)
    assert contents(member.folder) == before
    log, recovered = member.open(adr_size_bytes=DATA_OFFSET_BYTES + 8 * KIB)
    assert len(recovered.marks) == 3 and recovered.last_index == 1
    log.close()
