"""A member's log opened over an arbitrary ring file, as a fuzz target.

The input is a setting, both header copies and the data area. Their checksums are made right where the setting says so,
so that what is behind them is reached. Whatever the file holds, the log refuses by one of its own errors, or it holds
exactly what a second reading of the file, written here without the log's own code, finds from `drained_lsn` on.
"""

from __future__ import annotations

import functools
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from adr_crash import laboratory
from adr_harness import KIB, SMALL_RING_BYTES, Machine, Member
from raftkv_node._engine import RingImage, crc32c
from raftkv_node.adr import Files, Log, LogError, Record, Recovered, configuration, entry, hard_state, mark, tools
from raftkv_node.adr import ringfile as ringfile_module
from raftkv_node.adr.manifest import Manifest, State, write_manifest
from raftkv_node.adr.ringfile import DATA_OFFSET_BYTES, HEADER_PAGE_BYTES
from raftkv_node.adr.segments import SEGMENT_HEADER_BYTES, decode_header

DATA_BYTES = 2 * KIB
RING_BYTES = DATA_OFFSET_BYTES + DATA_BYTES
#: Which disk, flags, state of the manifest, 64-byte units that the file lacks or has too many (from -8 to 7); what is
#: added to the manifest's drained LSN and generation.
SETTING = struct.Struct("<BBBBqq")
REPAIR_HEADERS, REPAIR_RECORDS, SAME_SIZE, CLEAN_END, DRAIN_FIRST = 1, 2, 4, 8, 16
STATES = (State.DIRTY, State.DIRTY, State.PREPARED, State.CLEAN)
WHOLE_FILE = 8

_HEADER_BYTES, _HEADER_CRC_AT = 568, 12
#: checksum, length, version, type, kind, generation, LSN, fenced LSN, term, index, auxiliary.
_RECORD = struct.Struct("<IIBBB5xQQQQQQ")
_ENTRY, _HARD_STATE, _CONFIGURATION, _MARK, _PAD = 1, 2, 3, 4, 5
_POSITION, _SNAPSHOT = 1, 2
_LAST_INDEX = 1 << 62


@dataclass(frozen=True)
class Base:
    """A member's disk, and the ring that belongs to it."""

    manifest: Manifest
    segments: dict[str, bytes]
    ring: bytes


def _base(use: Callable[[Member, Log], None], generations: int = 1) -> Base:
    folder = laboratory()
    try:
        member = Member(folder, Machine(), changes={"adr_size_bytes": RING_BYTES, "segment_size_bytes": KIB}).make()
        for _ in range(generations):
            log, _ = member.open()
            use(member, log)
            log.close(clean=False)
        segments = {path.name: path.read_bytes() for path in member.segments()}
        return Base(member.manifest(), segments, member.rings()[0].path.read_bytes())
    finally:
        shutil.rmtree(folder)


def _use_new(_: Member, log: Log) -> None:
    log.append([hard_state(1, 7, 0), configuration(1, 1, b"c"), entry(1, 1, 0, b"one"), entry(1, 2, 0, b"two")])
    log.append([entry(1, 2, 0, b"TWO"), mark(20, 1, 2, b"m")])


def _use_long(_: Member, log: Log) -> None:
    """Wraps with pads, and ends with a part that is not drained and lies on both sides of the ring's end."""
    while True:
        last = log.last_index
        log.append([hard_state(2, 9, last), entry(2, last + 1, 0, b"x" * 300), entry(2, last + 2, 0, b"y")])
        drained = log.stats()["drained_lsn"]
        if last > 20 and log.durable_lsn % DATA_BYTES and drained // DATA_BYTES < log.durable_lsn // DATA_BYTES:
            return
        if log.pressure() > 0.5:
            log.drain()  # type: ignore[attr-defined]


@functools.cache
def bases() -> tuple[Base, ...]:
    return _base(_use_new), _base(_use_long), _base(_use_long, generations=2)


def packed(number: int, flags: int, state: int = 0, drained: int = 0, generation: int = 0) -> bytes:
    """The input that is the ring of a base as it is."""
    ring = bases()[number].ring
    copies = b"".join(ring[at : at + _HEADER_BYTES] for at in (0, HEADER_PAGE_BYTES))
    return SETTING.pack(number, flags, state, WHOLE_FILE, drained, generation) + copies + ring[DATA_OFFSET_BYTES:]


def seeds() -> tuple[bytes, ...]:
    every = REPAIR_HEADERS | REPAIR_RECORDS
    return (
        *(packed(number, every) for number in range(len(bases()))),
        packed(1, every | SAME_SIZE | CLEAN_END),
        packed(2, every | DRAIN_FIRST),
        packed(0, REPAIR_HEADERS, state=2),
        packed(2, REPAIR_HEADERS | CLEAN_END, state=3),
    )


# --- laying an input out ---


def repaired_header(data: bytes) -> bytes:
    """A header copy with magic, version and checksum made right."""
    header = bytearray(data.ljust(_HEADER_BYTES, b"\0"))
    header[:_HEADER_CRC_AT] = b"RAFTKVRB" + (1).to_bytes(4, "little")
    header[_HEADER_CRC_AT : _HEADER_CRC_AT + 4] = bytes(4)
    struct.pack_into("<I", header, _HEADER_CRC_AT, crc32c(bytes(header)))
    return bytes(header)


def _repaired_records(data: bytes, manifest: Manifest) -> bytes:
    """Whatever says that it is of the manifest's generation, and fits, gets its checksum."""
    fixed, at = bytearray(data), 0
    while at + _RECORD.size <= len(fixed):
        _, length, _, kind, _, generation, *_ = _RECORD.unpack_from(fixed, at)
        total = -(-(_RECORD.size + length) // 64) * 64
        if generation != manifest.generation or at + total > len(fixed):
            at += 64
            continue
        covered = fixed[at + 4 : at + _RECORD.size + (0 if kind == _PAD else length)]
        struct.pack_into("<I", fixed, at, crc32c(bytes(covered), manifest.seed))
        at += total
    return bytes(fixed)


@dataclass(frozen=True)
class Case:
    """An input, laid out: what the disk says, and the ring file beside it."""

    base: Base
    manifest: Manifest
    ring: bytes
    flags: int


def case_of(data: bytes) -> Case | None:
    if len(data) < SETTING.size:
        return None
    number, flags, state, units, drained, generation = SETTING.unpack_from(data)
    base = bases()[number % len(bases())]
    manifest = base.manifest.replace(
        state=STATES[state % len(STATES)],
        drained_lsn=base.manifest.drained_lsn + drained,
        generation=base.manifest.generation + generation,
    )
    rest = data[SETTING.size :]
    copies = [rest[at : at + _HEADER_BYTES].ljust(_HEADER_BYTES, b"\0") for at in (0, _HEADER_BYTES)]
    area = rest[2 * _HEADER_BYTES :][:DATA_BYTES].ljust(DATA_BYTES, b"\0")
    if flags & REPAIR_HEADERS:
        copies = [repaired_header(copy) for copy in copies]
    if flags & REPAIR_RECORDS:
        area = _repaired_records(area, manifest)
    ring = b"".join(copy.ljust(HEADER_PAGE_BYTES, b"\0") for copy in copies) + area
    size = len(ring) + (units % 16 - WHOLE_FILE) * 64
    return Case(base, manifest, ring[:size].ljust(size, b"\0"), flags)


def _lay_out(folder: Path, case: Case) -> Member:
    size = RING_BYTES if case.flags & SAME_SIZE else SMALL_RING_BYTES
    member = Member(folder, Machine(), changes={"adr_size_bytes": size, "segment_size_bytes": KIB}).make()
    (member.data / "wal").mkdir()
    for name, content in case.base.segments.items():
        (member.data / "wal" / name).write_bytes(content)
    write_manifest(Files(), member.data, case.manifest.replace(adr_path=str(member.pmem)))
    member.ring_folder.mkdir(parents=True)
    (member.ring_folder / case.manifest.ring_file).write_bytes(case.ring)
    return member


# --- the second reading ---


@dataclass
class View:
    """The log by docs/formats: what must be recovered."""

    hard_state: tuple[int, int, int] = (0, 0, 0)
    configuration: tuple[int, int, bytes] | None = None
    entries: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)

    def take(self, kind: int, detail: int, term: int, index: int, vote: int, payload: bytes) -> None:
        if kind == _ENTRY:
            self.entries = {at: found for at, found in self.entries.items() if at < index}
            self.entries[index] = (term, detail, payload)
        elif kind == _HARD_STATE:
            self.hard_state = (term, vote, index)
        elif kind == _CONFIGURATION:
            self.configuration = (term, index, payload) if payload else None
        elif kind == _MARK and detail == _SNAPSHOT:
            self.entries = {}


def _valid(data: bytes, lsn: int, generation: int, seed: int) -> tuple[int, tuple[Any, ...]] | None:
    """The bytes, fenced LSN, type, kind, term, index, vote and payload of the record at `lsn`, if one is there."""
    if len(data) < _RECORD.size:
        return None
    crc, length, _, kind, detail, of, at, fenced, term, index, vote = _RECORD.unpack_from(data)
    total = -(-(_RECORD.size + length) // 64) * 64
    payload = b"" if kind == _PAD else data[_RECORD.size : _RECORD.size + length]
    if of != generation or at != lsn or fenced > lsn or total > len(data):
        return None
    if crc != crc32c(data[4 : _RECORD.size] + payload, seed):
        return None
    return total, (fenced, kind, detail, term, index, vote, payload)


def _second_reading(case: Case) -> tuple[View, bool]:
    """What the file's log is, and whether it is whole (D2): else it must be refused."""
    view, whole, manifest = View(), True, case.manifest
    starts = {name: int(name[:16], 16) for name in sorted(case.base.segments)}
    below = [name for name, start in starts.items() if start < manifest.drained_lsn]
    for position, name in enumerate(below):
        content = case.base.segments[name]
        header = decode_header(content)
        assert header is not None
        at, end = starts[name], starts[below[position + 1]] if position + 1 < len(below) else manifest.drained_lsn
        while at < end:
            offset = SEGMENT_HEADER_BYTES + at - starts[name]
            found = _valid(
                content[offset : SEGMENT_HEADER_BYTES + end - starts[name]], at, header[1].number, header[1].seed
            )
            if found is None:
                return view, False
            view.take(*found[1][1:])
            at += found[0]
    if manifest.state != State.DIRTY:
        return view, whole
    area, end = case.ring[DATA_OFFSET_BYTES:RING_BYTES], manifest.drained_lsn
    while end < manifest.drained_lsn + DATA_BYTES:
        room = manifest.drained_lsn + DATA_BYTES - end
        found = _valid(area[end % DATA_BYTES :][:room], end, manifest.generation, manifest.seed)
        if found is None:
            break
        view.take(*found[1][1:])
        end += found[0]
    for offset in range(0, len(area), 64):
        lsn = int.from_bytes(area[offset + 24 : offset + 32], "little")
        found = _valid(area[offset:], lsn, manifest.generation, manifest.seed) if lsn % DATA_BYTES == offset else None
        whole = whole and (found is None or found[1][0] <= end)
    return view, whole


def _compare(recovered: Recovered, view: View) -> None:
    assert tuple(recovered.hard_state) == view.hard_state
    assert (tuple(recovered.configuration) if recovered.configuration else None) == view.configuration
    # What the position at a segment's start tells of entries before it is not in the view.
    got = {found.index: (found.term, found.kind, found.payload) for found in recovered.entries}
    assert got == view.entries
    assert recovered.last_index == max(view.entries, default=recovered.last_index)


# --- the target ---


def _load(path: Path, data_bytes: int) -> RingImage:
    assert data_bytes <= path.stat().st_size, f"{data_bytes} bytes are held for a smaller file"
    return RingImage.load(path, data_bytes)


def ring_file(data: bytes) -> None:
    """See the module."""
    case = case_of(data)
    if case is None:
        return
    folder = laboratory()
    try:
        with mock.patch.object(ringfile_module, "RingImage", SimpleNamespace(load=_load)):
            member = _lay_out(folder, case)
            said: list[str] = []
            tools.inspect(member.data, member.pmem, said.append)
            tools.verify(member.data, member.pmem, said.append, environment=member.machine)
            if case.flags & DRAIN_FIRST:
                tools.drain(member.data, member.pmem, said.append, environment=member.machine)
            assert said
            with suppress(LogError):
                log, recovered = member.open()
                _go_on(member, case, log, recovered)
    finally:
        shutil.rmtree(folder)


def _go_on(member: Member, case: Case, log: Log, recovered: Recovered) -> None:
    """What was recovered is right, can be appended to, and is there again after the next stop."""
    try:
        view, whole = _second_reading(case)
        assert whole, "a log with a hole was opened"
        _compare(recovered, view)
        if recovered.last_index < _LAST_INDEX:
            log.drain()  # type: ignore[attr-defined]
            more: Record = entry(recovered.last_term, recovered.last_index + 1, 0, b"more")
            log.append([more])
            view.take(*more[:4], 0, more[-1])
        log.close(clean=bool(case.flags & CLEAN_END))
    except BaseException:
        log.close(clean=False)
        raise
    try:
        log, again = member.open()
    except LogError as error:
        raise AssertionError(f"what was opened and ended is refused: {error}") from error
    log.close(clean=False)
    _compare(again, view)
