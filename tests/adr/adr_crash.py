"""A disk and a persistent memory that lose what was not made durable, under the very code that runs in production.

`Traced` is the log's `Files`: it does each operation on real files and keeps a model beside them, in which contents are
certain after fsync, and names after the folder's fsync. The ring's recorder (in Rust, beneath store, flush and fence)
does the same for the mapped words. One run of a workload thus gives every moment at which the power could have gone;
each moment gives many possible states; each state is laid out as real files, and the real code opens it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adr_harness import Machine, Member
from raftkv_node._engine import Ring
from raftkv_node.adr import CONFIGURATION, ENTRY, HARD_STATE, Files, Log, Record, Recovered
from raftkv_node.adr import opening as opening_module
from raftkv_node.adr.disklog import DiskLog
from raftkv_node.adr.files import decode_document, encode_document
from raftkv_node.adr.manifest import MANIFEST_FILE

SECTOR_BYTES = 512
PAGE_BYTES = 4096

Choice = Callable[[int], int]
"""Picks one of n+1 values of an uncertain thing: 0 is the old one, n the newest."""


def oldest(_: int) -> int:
    return 0


def newest(count: int) -> int:
    return count


def at_random(seed: int) -> Choice:
    rng = random.Random(seed)
    return lambda count: rng.randint(0, count)


@dataclass
class Inode:
    certain: bytes = b""
    current: bytes = b""
    #: Sectors that a failed sync has not written, and that the kernel counts as written since (fsyncgate).
    dropped: frozenset[int] = frozenset()

    def sync_failed(self) -> None:
        """None of what was to be written is on disk for certain, and no later sync will write it."""
        sectors = range(0, len(self.current), SECTOR_BYTES)
        self.dropped |= {at for at in sectors if self._sector(self.current, at) != self._sector(self.certain, at)}

    def touched(self, start: int, end: int) -> None:
        """The pages of these bytes are to be written again."""
        first, last = start // PAGE_BYTES * PAGE_BYTES, -(-end // PAGE_BYTES) * PAGE_BYTES
        self.dropped = frozenset(at for at in self.dropped if not first <= at < last)

    def after_sync(self) -> bytes:
        """What a sync that succeeds brings to disk."""
        data = bytearray(self.current)
        for at in self.dropped:
            end = min(at + SECTOR_BYTES, len(data))
            if at < end:
                data[at:end] = self._sector(self.certain, at)[: end - at]
        return bytes(data)

    @staticmethod
    def _sector(data: bytes, at: int) -> bytes:
        return data[at : at + SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0")


@dataclass
class Disk:
    """Folders, names and contents: what is certain, and what is current. Paths are relative to the member's folder."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    #: Path to inode; a folder is None.
    certain: dict[str, int | None] = field(default_factory=dict)
    current: dict[str, int | None] = field(default_factory=dict)
    following: int = 1

    def clone(self) -> Disk:
        inodes = {number: replace(inode) for number, inode in self.inodes.items()}
        return Disk(inodes, dict(self.certain), dict(self.current), self.following)

    @staticmethod
    def of(folder: Path) -> Disk:
        """What lies in a folder, all of it certain."""
        disk = Disk()
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_dir():
                disk.current[name] = None
            else:
                data = path.read_bytes()
                disk.inodes[disk.following] = Inode(data, data)
                disk.current[name] = disk.following
                disk.following += 1
        disk.certain = dict(disk.current)
        return disk

    def after_power_cut(self, choose: Choice) -> dict[str, bytes | None]:
        """One possible state: path to contents (None: a folder)."""
        names: dict[str, int | None] = {}
        for name in sorted(self.certain.keys() | self.current.keys()):
            old, new = name in self.certain, name in self.current
            if old and new and self.certain[name] == self.current[name]:
                names[name] = self.current[name]
            elif choose(1):
                if new:
                    names[name] = self.current[name]
            elif old:
                names[name] = self.certain[name]
        state: dict[str, bytes | None] = {}
        for name, number in names.items():
            if all(str(parent) in names for parent in Path(name).parents if str(parent) != "."):
                state[name] = None if number is None else self._contents(self.inodes[number], choose)
        return state

    @staticmethod
    def _contents(inode: Inode, choose: Choice) -> bytes:
        old, new = inode.certain, inode.current
        if old == new:
            return new
        length = len(new) if len(new) == len(old) or choose(1) else len(old)
        data = bytearray(length)
        for at in range(0, length, SECTOR_BYTES):
            end = min(at + SECTOR_BYTES, length)
            before, after = (source[at:end].ljust(end - at, b"\0") for source in (old, new))
            # Only what differs is a choice: there would be twice as many states, each of them twice.
            data[at:end] = after if before == after or choose(1) else before
        return bytes(data)

    def now(self) -> dict[str, bytes | None]:
        return {name: None if n is None else self.inodes[n].current for name, n in self.current.items()}


@dataclass
class Trace:
    """Everything that happened in one opening and its workload."""

    #: The disk after so many operations, and the ring events at that time.
    disks: list[tuple[Disk, int]] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    ring_name: str = ""
    recording: Any = None
    #: (operations, events) when a record was handed in, and when its batch was acknowledged; one per record.
    attempts: list[tuple[int, int, Record]] = field(default_factory=list)
    acks: list[tuple[int, int]] = field(default_factory=list)
    #: When the opening was over.
    opened: tuple[int, int] | None = None
    #: The ring's events when an append had returned, and the LSN that it had made durable.
    fenced: list[tuple[int, int]] = field(default_factory=list)
    #: When entries below an index were given up, and which; and when a log was given up as a whole.
    released: list[tuple[int, int, int]] = field(default_factory=list)
    retired: tuple[int, int] | None = None

    def position(self) -> tuple[int, int]:
        return len(self.disks) - 1, len(self.recording) if self.recording is not None else 0

    def durable_at(self, moment: tuple[int, int]) -> int | None:
        """How far the ring's log was fenced; None before the opening was over, or without a ring."""
        if self.recording is None or self.opened is None or moment < self.opened:
            return None
        return max((lsn for events, lsn in self.fenced if events <= moment[1]), default=None)

    def moments(self) -> Iterator[tuple[int, int]]:
        """All positions at which the power may go: (operations, ring events)."""
        last = len(self.recording) if self.recording is not None else 0
        for operations, (_, events) in enumerate(self.disks):
            until = self.disks[operations + 1][1] if operations + 1 < len(self.disks) else last
            for event in range(events, until + 1):
                yield operations, event


class Traced(Files):
    """Real operations, and the model beside them. A state is kept after each one."""

    def __init__(self, root: Path, disk: Disk, trace: Trace) -> None:
        self._root, self._disk, self._trace = root, disk, trace
        self._open: dict[int, int] = {}
        self._done("start")

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._root))

    def _done(self, what: str) -> None:
        trace = self._trace
        trace.operations.append(what)
        trace.disks.append((self._disk.clone(), len(trace.recording) if trace.recording is not None else 0))

    def create(self, path: Path) -> int:
        fd = super().create(path)
        disk = self._disk
        disk.inodes[disk.following] = Inode()
        disk.current[self._name(path)] = disk.following
        self._open[fd] = disk.following
        disk.following += 1
        self._done(f"create {path.name}")
        return fd

    def open(self, path: Path) -> int:
        fd = super().open(path)
        number = self._disk.current[self._name(path)]
        assert number is not None
        self._open[fd] = number
        return fd

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        super().pwrite(fd, data, offset)
        inode = self._disk.inodes[self._open[fd]]
        old = inode.current.ljust(offset, b"\0")
        inode.current = old[:offset] + bytes(data) + old[offset + len(data) :]
        inode.touched(offset, offset + len(data))
        self._done("write")

    def truncate(self, fd: int, size_bytes: int) -> None:
        super().truncate(fd, size_bytes)
        inode = self._disk.inodes[self._open[fd]]
        inode.current = inode.current[:size_bytes].ljust(size_bytes, b"\0")
        inode.touched(size_bytes, 1 << 62)
        self._done("truncate")

    def fsync(self, fd: int) -> None:
        inode = self._disk.inodes[self._open[fd]]
        inode.certain = inode.after_sync()
        self._done("fsync")

    fdatasync = fsync

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._disk.current[self._name(target)] = self._disk.current.pop(self._name(source))
        self._done(f"rename {target.name}")

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self._disk.current.pop(self._name(path))
        self._done(f"unlink {path.name}")

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self._disk.current[self._name(path)] = None
        self._done(f"mkdir {path.name}")

    def sync_folder(self, path: Path) -> None:
        here = self._name(path)
        for names, others in ((self._disk.certain, self._disk.current), (self._disk.current, self._disk.certain)):
            for name in list(names.keys() | others.keys()):
                if (name.rpartition("/")[0] or ".") == here:
                    if name in self._disk.current:
                        self._disk.certain[name] = self._disk.current[name]
                    else:
                        self._disk.certain.pop(name, None)
        self._done(f"sync folder {path.name}")


@dataclass
class World:
    """A member's folder as files, its disk model, and rings of earlier openings that may still lose words."""

    member: Member
    disk: Disk
    #: Ring name to its recording, the events that happened: after a process crash, until the power goes.
    uncertain: dict[str, tuple[Any, int]] = field(default_factory=dict)


def ring_image(recording: Any, at: int, choose: Choice, without: str = "") -> bytes:
    """One possible content of a ring."""
    counts = recording.uncertain(at, without)
    return bytes(recording.image(at, [choose(count) for count in counts], without))


class Lab:
    """Makes worlds, runs workloads in them under trace, and lays possible states out as new worlds."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, ring: bool, seed: int = 0) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self.ring = ring
        self._count = 0
        self.changes: dict[str, Any] = {}
        self.traced: type[Traced] = Traced
        #: The folder of the member's that is its persistent memory.
        self.place = "pmem"
        #: Where it was before: mounted still.
        self.places: list[str] = []
        self._rng = random.Random(seed)

    def new(self) -> World:
        member = self._member()
        return World(member, Disk.of(member.folder))

    def _member(self) -> Member:
        self._count += 1
        member = Member(self._folder / str(self._count), Machine(), self.ring, dict(self.changes), self.place).make()
        for place in self.places:
            (member.folder / place).mkdir(exist_ok=True)
        return member

    def discard(self, world: World) -> None:
        shutil.rmtree(world.member.folder)

    def run(self, world: World, work: Callable[[Log, Trace], None] | None) -> tuple[Trace, Recovered]:
        """Opens the log under trace, works, and stops as a killed process does."""
        trace = Trace()
        files = self.traced(world.member.folder, world.disk, trace)

        def recorded(path: str, *arguments: Any) -> Ring:
            ring = Ring(path, *arguments)
            trace.recording = ring.record()
            trace.ring_name = str(Path(path).relative_to(world.member.folder))
            return ring

        with self._monkeypatch.context() as patch:
            patch.setattr(opening_module, "Ring", recorded)
            # Uuids and secrets from the seed: a state can be named, and found again.
            patch.setattr(opening_module, "secrets", SimpleNamespace(token_bytes=self._rng.randbytes))
            log, recovered = world.member.open(files=files)
            trace.opened = trace.position()
            trace.fenced.append((trace.opened[1], log.durable_lsn))
            try:
                if work is not None:
                    work(log, trace)
            finally:
                with contextlib.suppress(Exception):
                    log.close(clean=False)
        return trace, recovered

    def crash(
        self,
        world: World,
        trace: Trace,
        moment: tuple[int, int],
        choose: Choice,
        *,
        power: bool = True,
        without: str = "",
    ) -> World:
        """The world after a power cut (or, with `power` False, the end of the process) at a moment."""
        operations, events = moment
        state = self.lay_out(world, trace, moment, choose, power=power, without=without)
        member = self.settle(state)
        if power:
            return World(member, Disk.of(member.folder))
        disk = trace.disks[operations][0].clone()
        uncertain = self._uncertain(world, trace, events)
        for name in uncertain:
            number = disk.current.get(name)
            if number is not None:
                disk.inodes[number].current = disk.inodes[number].certain = state[name] or b""
        return World(member, disk, uncertain)

    @staticmethod
    def _uncertain(world: World, trace: Trace, events: int) -> dict[str, tuple[Any, int]]:
        uncertain = dict(world.uncertain)
        if trace.recording is not None and trace.disks[-1]:
            uncertain[trace.ring_name] = (trace.recording, events)
        return uncertain

    def lay_out(
        self,
        world: World,
        trace: Trace,
        moment: tuple[int, int],
        choose: Choice,
        *,
        power: bool = True,
        without: str = "",
    ) -> dict[str, bytes | None]:
        """The files after a crash at a moment: path to contents (None: a folder)."""
        operations, events = moment
        disk = trace.disks[operations][0]
        state = disk.after_power_cut(choose) if power else disk.now()
        for name, (recording, at) in self._uncertain(world, trace, events).items():
            if state.get(name) is not None and (name != trace.ring_name or events or at):
                # Before the first event the recorder's base is the file as it was made.
                state[name] = ring_image(recording, at, choose if power else newest, without)
        return state

    def settle(self, state: dict[str, bytes | None]) -> Member:
        """A new member whose files are these."""
        member = self._member()
        for name, data in sorted(state.items()):
            path = member.folder / name
            if data is None:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(self._moved(data, member) if path.name == MANIFEST_FILE else data)
        return member

    def _moved(self, manifest: bytes, member: Member) -> bytes:
        """A manifest as it would be in this world: its folders are named by their paths, and this is another folder."""
        try:
            document = decode_document(manifest)
        except ValueError:
            return manifest

        def moved(path: str) -> str:
            inside = path.removeprefix(f"{self._folder}/").partition("/")[2]
            return str(member.folder / inside) if path else ""

        document["adr_path"] = moved(document["adr_path"])
        document["old_places"] = [(moved(path), system) for path, system in document["old_places"]]
        return encode_document(document)


def laboratory() -> Path:
    """A folder for many small files, in memory where there is some."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="raftkv-adr-", dir=where))


# --- what must be true after every crash ---

State = tuple[tuple[int, ...], tuple[tuple[int, int, bytes], ...], tuple[int, int, bytes] | None]


def states(batch: list[Record], start: State) -> list[State]:
    """The states of a log after none, one, two, ... of the records."""
    hard, log, membership = start
    result = [start]
    for kind, _, term, index, payload in batch:
        if kind == ENTRY:
            log = (*(found for found in log if found[1] < index), (term, index, payload))
        elif kind == HARD_STATE:
            hard = (term, int.from_bytes(payload, "little"), index)
        elif kind == CONFIGURATION:
            membership = (term, index, payload)
        result.append((hard, log, membership))
    return result


EMPTY: State = ((0, 0, 0), (), None)


def state_of(recovered: Recovered) -> State:
    log = tuple((found.term, found.index, found.payload) for found in recovered.entries)
    membership = recovered.configuration
    return tuple(recovered.hard_state), log, None if membership is None else tuple(membership)


def expected(trace: Trace, start: State, moment: tuple[int, int], early_ack: int = 0) -> list[State]:
    """The states that a recovery after a crash at `moment` may show: all acknowledged, nothing that was not written."""

    def before(position: tuple[int, int]) -> bool:
        return position[0] <= moment[0] and position[1] <= moment[1]

    attempted = [record for operations, events, record in trace.attempts if before((operations, events))]
    acknowledged = sum(1 for operations, events in trace.acks if before((operations, events - early_ack)))
    return states(attempted, start)[acknowledged:]


def append(log: Log, trace: Trace, batch: list[Record]) -> None:
    """Appends a batch, and says in the trace when it was handed in and when acknowledged."""
    begin = trace.position()
    trace.attempts += [(*begin, record) for record in batch]
    lsn = log.append(batch)
    if isinstance(log, DiskLog):
        while log.durable_lsn < lsn:
            assert log.failed is None, log.failed
            os.sched_yield()
    trace.fenced.append((trace.position()[1], lsn))
    trace.acks += [trace.position()] * len(batch)
