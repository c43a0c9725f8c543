"""Openings, kills at every step, moved pods, lost rings, restored disks, reboots, and rings that move and change their
size, in every order that fits.

The oracle knows nothing of the decision table. It knows what was acknowledged, and three facts: a log that opens over
the newest disk, or beside the newest ring, shows everything that was acknowledged and nothing that was never written; a
member with its newest disk and its newest ring, or a cleanly stopped one with its newest disk anywhere, opens; an old
disk without the newest ring beside it is another rule's to find out (the peers').
"""

from __future__ import annotations

import errno
import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from adr_crash import laboratory
from adr_harness import Machine, Member
from raftkv_node.adr import Files, Level, Log, Refused, entry
from raftkv_node.adr import opening as opening_module
from raftkv_node.adr.manifest import Manifest, State
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.adr.table import Action, Seen, Verdict, decide

HOSTS = ("host-a", "host-b")
#: Folders of persistent memory on each host, on file systems of their own, and the size of a ring in each.
PLACES = {"p0": 8192 + 4096, "p1": 8192 + 6144}
WALKS = 120
WALK_STEPS = 8


class Killed(Exception):
    """The process was killed."""


class Mortal(Files):
    """Kills its process at its n-th change."""

    def __init__(self, changes: int) -> None:
        self.left = changes

    def _change(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def create(self, path: Path) -> int:
        self._change()
        return super().create(path)

    def rename(self, source: Path, target: Path) -> None:
        self._change()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._change()
        super().unlink(path)

    def fdatasync(self, fd: int) -> None:
        self._change()
        super().fdatasync(fd)


@dataclass
class Story:
    """One member's life. Its data folder is in `disk`, each host's persistent memory in a folder of the host's name."""

    folder: Path
    level: Level = Level.POWER
    host: str = HOSTS[0]
    place: str = "p0"
    boots: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HOSTS, 0))
    acknowledged: int = 0
    attempted: int = 0
    #: Whether the disk is the newest one, the newest state is a clean one, and where the newest ring is (None: lost).
    disk_is_newest: bool = True
    saved_is_newest: bool = False
    clean: bool = False
    ring_host: str | None = None
    #: Whether an old disk went on as if nothing had happened: then later ones may be refused for it.
    forked: bool = False
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("data", *(f"{host}/{place}" for host in HOSTS for place in PLACES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def member(self) -> Member:
        machine = Machine(
            self.host,
            f"boot-{self.host}-{self.boots[self.host]}",
            self.level,
            file_system=f"uuid:{self.host}",
            others={place: f"uuid:{self.host}-{place}" for place in PLACES},
        )
        changes = {"adr_path": self.folder / self.host / self.place, "adr_size_bytes": PLACES[self.place]}
        return Member(self.folder, machine, changes={**changes, "minimum_durability": Level.PROCESS})

    # --- what happens to a member ---

    def nothing(self) -> None:
        pass

    def save_disk(self) -> None:
        shutil.rmtree(self.folder / "saved", ignore_errors=True)
        shutil.copytree(self.folder / "data", self.folder / "saved")
        self.saved_is_newest = self.disk_is_newest

    def restore_disk(self) -> None:
        if (self.folder / "saved").is_dir():
            shutil.rmtree(self.folder / "data")
            shutil.copytree(self.folder / "saved", self.folder / "data")
            self.disk_is_newest = self.saved_is_newest

    def move(self) -> None:
        self.host = HOSTS[1 - HOSTS.index(self.host)]

    def relocate(self) -> None:
        """It is started with another folder of the host's memory from now on, and another size."""
        self.place = "p1" if self.place == "p0" else "p0"

    def lose_ring(self) -> None:
        shutil.rmtree(self.folder / self.host)
        for place in PLACES:
            (self.folder / self.host / place).mkdir(parents=True)
        if self.ring_host == self.host:
            self.ring_host = None

    def reboot(self) -> None:
        self.boots[self.host] += 1
        if self.level == Level.PROCESS:
            for path in (self.folder / self.host).rglob("*.ring"):
                data = path.read_bytes()
                # Any part of what was in the page cache may be gone; headers survive.
                path.write_bytes(data[: 8192 + 64] + bytes(len(data) - 8192 - 64))
            if self.ring_host == self.host:
                self.ring_host = None

    # --- what it does itself ---

    def open(self, work: Callable[[Log], None], files: Files | None = None) -> None:
        member = self.member()
        sure = self.disk_is_newest and (self.clean or self.ring_host == self.host) and not self.forked
        bound = self.disk_is_newest or self.ring_host == self.host
        before = self._manifest()
        try:
            log, recovered = Log.open(member.options(files=files or Files()))
        except Refused as error:
            self.told.append(str(error))
            assert not sure or before is None, f"refused: {error}"
            return
        except Killed:
            self._killed_while_opening(before, bound)
            return
        if bound:
            assert self.acknowledged <= recovered.last_index <= self.attempted, "a write is lost, or none of ours"
            assert [item.payload for item in recovered.entries] == [
                b"%d" % number for number in range(1, recovered.last_index + 1)
            ]
        else:
            self.forked = True  # the peers find it out (M5); the story goes on as that of the older member
        self.acknowledged = self.attempted = recovered.last_index
        self.disk_is_newest, self.saved_is_newest = True, False
        self.clean, self.ring_host = False, self.host
        try:
            work(log)
        except Killed:
            pass
        finally:
            log.close(clean=False)

    def _manifest(self) -> bytes | None:
        path = self.folder / "data" / "manifest.json"
        return path.read_bytes() if path.exists() else None

    def _killed_while_opening(self, before: bytes | None, bound: bool) -> None:
        """If it came as far as a manifest of its own, the disk is the newest one now."""
        if self._manifest() == before:
            return
        if not bound:
            self.forked = True
            self.acknowledged = 0  # an older member goes on; how much of it there is shows the next opening
        self.disk_is_newest, self.saved_is_newest = True, False
        dirty = self.member().manifest().state == "dirty"
        # Prepared is as good as clean: all of the log is on disk.
        self.clean, self.ring_host = not dirty, self.host if dirty else None

    def append(self, log: Log) -> None:
        self.attempted += 1
        log.append([entry(1, self.attempted, 0, b"%d" % self.attempted)])
        self.acknowledged += 1

    def write_and_die(self) -> None:
        def work(log: Log) -> None:
            self.append(log)
            self.append(log)

        self.open(work)

    def write_drain_and_die(self) -> None:
        def work(log: Log) -> None:
            assert isinstance(log, RingLog)
            self.append(log)
            log.drain()
            self.append(log)

        self.open(work)

    def write_and_stop(self) -> None:
        def work(log: Log) -> None:
            self.append(log)
            log.close()
            self.clean = True

        self.open(work)

    def die_at(self, change: int) -> None:
        """Opens, writes, drains and stops, but is killed at its n-th change to the disk."""

        def work(log: Log) -> None:
            assert isinstance(log, RingLog)
            self.append(log)
            log.drain()
            self.append(log)
            log.close()
            self.clean = True

        self.open(work, Mortal(change))


EVENTS = ("nothing", "save_disk", "restore_disk", "move", "relocate", "lose_ring", "reboot")
OPENINGS: tuple[tuple[str, int | None], ...] = (
    ("write_and_die", None),
    ("write_drain_and_die", None),
    ("write_and_stop", None),
    *(("die_at", change) for change in range(12)),
)


def happen(story: Story, event: str, opening: tuple[str, int | None]) -> None:
    getattr(story, event)()
    name, change = opening
    if change is None:
        getattr(story, name)()
    else:
        story.die_at(change)


@pytest.fixture
def room() -> Iterator[Path]:
    folder = laboratory()
    yield folder
    shutil.rmtree(folder)


def tell(room: Path, steps: list[tuple[str, tuple[str, int | None]]], level: Level = Level.POWER) -> None:
    story = Story(room / "story", level)
    try:
        for number, (event, opening) in enumerate(steps):
            try:
                happen(story, event, opening)
            except AssertionError as error:
                raise AssertionError(f"after {steps[: number + 1]}: {error}; told: {story.told}") from error
    finally:
        shutil.rmtree(story.folder)


FIRST = [("nothing", opening) for opening in OPENINGS]
STEPS = list(itertools.product(EVENTS, OPENINGS))


@pytest.mark.parametrize("level", [Level.POWER, Level.PROCESS])
def test_every_pair_of_steps_after_every_first(room: Path, level: Level) -> None:
    """Each first opening, a disk saved or not, then each event and opening; a plain opening tells how it ended."""
    stories = list(itertools.product(FIRST, STEPS))
    # The lower level differs in reboots only: a third of the stories will do.
    for first, step in stories[:: 1 if level == Level.POWER else 3]:
        tell(room, [first, step, ("nothing", ("write_and_stop", None))], level)


@pytest.mark.parametrize("level", [Level.POWER, Level.PROCESS])
def test_long_stories(room: Path, level: Level) -> None:
    rng = random.Random(2015)
    for _ in range(WALKS):
        tell(room, [rng.choice(STEPS) for _ in range(WALK_STEPS)], level)


@pytest.mark.parametrize("row", [5, 11])
def test_a_row_that_is_left_out_is_found(room: Path, monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    """Planted: where this row refuses, the log opens with what it has."""

    def blind(seen: Seen) -> Verdict:
        verdict = decide(seen)
        if verdict.row != row:
            return verdict
        assert isinstance(seen.manifest, Manifest)
        same = [ring for ring in seen.rings if ring.header.uuid.hex() == seen.manifest.ring_uuid]
        if seen.manifest.state == State.DIRTY and same:
            return Verdict(13, Action.RECOVER, ring=same[0])
        return Verdict(8, Action.SWITCH)

    monkeypatch.setattr(opening_module, "decide", blind)
    with pytest.raises((AssertionError, Refused)):
        for first, (event, opening) in itertools.product(FIRST, STEPS):
            for third in (("restore_disk", ("write_and_stop", None)), ("nothing", ("write_and_stop", None))):
                tell(room, [first, ("save_disk", opening), (event, ("write_and_die", None)), third])


def test_the_same_stories_with_all_rows_hold(room: Path) -> None:
    for first, third in itertools.product(FIRST, ("restore_disk", "nothing")):
        for event in EVENTS:
            for opening in OPENINGS[:3]:
                steps = [first, ("save_disk", opening), (event, OPENINGS[0]), (third, OPENINGS[2])]
                tell(room, steps)


class OneRing(Mortal):
    """A medium with room for one ring only."""

    def __init__(self, changes: int, ring: Path) -> None:
        super().__init__(changes)
        self._ring = ring

    def create(self, path: Path) -> int:
        if path.suffix == ".ring" and list(self._ring.rglob("*.ring")):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return super().create(path)


@pytest.mark.parametrize("change", range(12))
def test_a_medium_with_room_for_one_ring_is_enough(room: Path, change: int) -> None:
    """D8 where two rings do not fit: `prepared` first, then the old file goes; killed anywhere, nothing is lost."""
    story = Story(room / "story")
    story.write_drain_and_die()
    for _ in range(2):
        written = story.acknowledged
        story.open(lambda log: None, OneRing(change, story.folder / story.host))
        story.open(story.append, OneRing(100, story.folder / story.host))
        assert story.acknowledged == written + 1
        assert story.told == []
