"""Members whose hardware fails: rings that are lost, pods that move, disks that fail, stall and rot, clocks that jump.

`HardNode` is a `MemberNode` on a machine that can be changed. A member that may not start, since ring and disk do not
prove that they belong together, refuses: the world looks at which refusal it is (`HardWorld`), and an operator replaces
what is lost for ever. Nothing here knows the decision table: what is *expected* follows from what was done to the
member, and from what its manifest said when it died.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from enum import Enum, auto
from errno import EIO, ENOSPC
from pathlib import Path
from typing import Any

from adr_harness import Machine
from raftkv_node.adr.log import ALARM_FAILING, ALARM_NO_SPACE
from raftkv_node.adr.manifest import MANIFEST_FILE, Manifest, ManifestInvalid, State, read_manifest
from raftkv_node.adr.ringfile import DATA_OFFSET_BYTES
from raftkv_node.adr.segments import SEGMENT_SUFFIX
from simulation_checks import Violation
from simulation_disk import SimFiles
from simulation_faulty_disk import DiskError, DiskErrors, FailingFiles, Phase
from simulation_member import MemberNode, Surroundings

HOSTS = {"a": "pmem", "b": "pmem-b"}
"""The hosts that a member may stand on, and the folder that is persistent memory there."""


RARE_AT_START = 0.1
"""Most operations are those of a start, which may end by any error: what matters more comes while a member runs."""


class Loss(Enum):
    """What was done to a member while it was down."""

    NOTHING = auto()
    RING = auto()
    """Its ring is gone for ever."""
    ROT = auto()
    """Bytes that must be valid are not."""
    OLD_DISK = auto()
    """Its disk is a copy from before it went on and promised more."""


class HardNode(MemberNode):
    """A member on hardware that fails."""

    def __init__(self, member_id: int, world: Surroundings, folder: Path, founding: Any, rng: random.Random) -> None:
        self.host = self.home = "a"
        """Where it comes up next, and where its ring is."""
        self.loss = Loss.NOTHING
        self.stalled_until = self.full_until = self.broken_until = 0
        self.clock_offset = 0.0
        self.was_dirty = False
        self._boots = 0
        self._complaint: DiskError | None = None
        self.rotten = ""
        self.copy: Path | None = None
        self._copied_generation = 0
        self.clean_stops = 0
        super().__init__(member_id, world, folder, founding, rng)
        self.errors = DiskErrors(not self._disk_mode)
        self.machine = Machine(name="host-a", file_system="uuid:pmem-a")
        (folder / HOSTS["b"]).mkdir()
        self.place.keep |= {HOSTS["b"]}
        self.place.disk = self.place.all_certain()
        self._configs = {host: self._config_on(folder / place) for host, place in HOSTS.items()}

    def _config_on(self, pmem: Path) -> Any:
        return self._config if self._disk_mode else dataclasses.replace(self._config, adr_path=pmem)

    # -- what happens to it while it lives -----------------------------------------------------------------------------

    def start(self) -> None:
        self.errors = DiskErrors(not self._disk_mode)
        super().start()
        self.errors.phase = Phase.OTHER

    def _disk_error(self, what: str, path: Path, rare: float) -> int:
        """The error number with which this operation fails now; 0: it does not."""
        world: Any = self.world
        faults = world.setup.faults
        if not world.faulty or not (faults.disk_error or faults.full or faults.broken):
            return 0
        data = what in ("create", "write", "sync")
        if world.now < self.full_until and data and what != "sync":
            number = ENOSPC
        elif world.now < self.broken_until or self.rng.random() < rare * faults.disk_error * (
            RARE_AT_START if self.errors.phase is Phase.START else 1
        ):
            number = self.rng.choice((EIO, ENOSPC)) if data else EIO
        else:
            return 0
        if self.errors.phase is Phase.START:
            world.checks.count("disk errors at a start")
        else:
            world.checks.count("disk errors")
            world.checks.count(f"disk errors: {what} without room" if number == ENOSPC else f"disk errors: {what}")
        world.note(f"{self.id}: {what} of {path.name} fails with {number}")
        return number

    def now_seconds(self) -> float:
        return self.world.seconds() + self.clock_offset

    def stop_well(self) -> None:
        """SIGTERM: the log is drained and marked clean (D9), unless the process dies on the way."""
        member = self.member
        self.errors.phase = Phase.STOP
        member.abandon()
        if self._disk_mode:
            self.flush_now()
        member.close()
        self.log.fenced(1 << 62)
        self.clean_stops += 1
        self._open = []
        self.up = False
        self.place.died(False)
        self.world.forgotten(self)

    def flush_now(self) -> None:
        """Everything that waits for the disk is written."""
        log: Any = self.member.log
        log.flush()
        self.log.fenced(log.durable_lsn)

    @property
    def disk_mode(self) -> bool:
        """Whether it has no ring."""
        return self._disk_mode

    def make_files(self) -> SimFiles:
        return FailingFiles(self.place, self.errors, self._disk_error, self.id)

    # -- what happens to it while it is down ---------------------------------------------------------------------------

    def manifest(self) -> Manifest | None:
        """What its disk says now."""
        try:
            return read_manifest(self.place.folder / "data")
        except (OSError, ManifestInvalid):
            return None

    @property
    def needs_its_ring(self) -> bool:
        """Whether the ring may hold promises that the disk does not: only then it must not start without."""
        manifest = self.manifest()
        return not self._disk_mode and manifest is not None and manifest.state == State.DIRTY

    def _pass(self, log: Any) -> None:
        self.errors.phase, self._complaint = Phase.BACKGROUND, None
        try:
            super()._pass(log)
        finally:
            self.errors.phase = Phase.OTHER
        self.errors.passed(self._complaint)
        if self._complaint is not None:
            self._must_go_on(log, self._complaint)

    def disk_complained(self, error: Exception) -> None:
        """An error of the disk is the log's to get over; anything else is a bug."""
        self._complaint = self.errors.tied(error) if isinstance(error, OSError) else None
        if self._complaint is None:
            raise error

    def _must_go_on(self, log: Any, error: DiskError) -> None:
        """After an error that a member must survive it goes on degraded, and says so."""
        if log.failed is not None:
            return  # the member's next turn ends it, and it is judged then
        wanted = ALARM_NO_SPACE if error.no_room else ALARM_FAILING
        if wanted not in log.alarms():
            raise Violation("DISK_ERROR_IS_TOLD", f"{self.id}: {error}, but its alarms are {sorted(log.alarms())}")
        self.world.checks.count("disk errors survived by a drain or flush")

    def drain(self, log: Any) -> None:
        if not self.stalled:
            super().drain(log)

    def flush(self) -> None:
        if self.stalled:
            self.world.later(self, 20, 60, self.flush)
        else:
            super().flush()

    def commit_store(self) -> None:
        if not self.stalled:
            super().commit_store()

    @property
    def stalled(self) -> bool:
        """Whether its disk does nothing now."""
        world: Any = self.world
        return bool(world.faulty and world.now < self.stalled_until)

    def move(self, host: str) -> None:
        """The pod comes up on another host next time, where another persistent memory is mounted."""
        self.host = host
        self._config = self._configs[host]
        self.machine = dataclasses.replace(self.machine, name=f"host-{host}", file_system=f"uuid:pmem-{host}")

    def lose_ring(self) -> None:
        """The persistent memory of its host is replaced."""
        self.was_dirty = self.needs_its_ring
        for place in HOSTS.values():
            self.place.forget(place)
        self.loss = Loss.RING

    def rot(self) -> bool:
        """Flip a bit; whether there was one to flip."""
        self.rotten = "records"
        if self._disk_mode or self.rng.random() < 0.5:
            flipped = self._rot_disk()
        else:
            flipped = self._rot_ring()
        if flipped:
            self.loss = Loss.ROT
        return flipped

    def _rot_ring(self) -> bool:
        """In the ring: where records are needed, in a header, or where nothing is.

        The last batch is spared. Nothing tells its damage from a power cut in the middle of it (D2): no later record
        says that it was durable.
        """
        last, manifest, rng = self.place.last_batch, self.manifest(), self.rng
        if last is None or manifest is None or not (self.place.folder / last.ring).exists():
            return False
        drained = manifest.drained_lsn
        where = rng.choice(("needed", "needed", "needed", "header", "free"))
        if where == "needed" and drained >= last.start_lsn:
            where = rng.choice(("header", "free"))
        low, high = (drained, last.start_lsn) if where == "needed" else (last.end_lsn, drained + last.data_bytes)
        if where == "header":
            offset, self.rotten = rng.randrange(DATA_OFFSET_BYTES), "header"
        elif low < high:
            offset, self.rotten = DATA_OFFSET_BYTES + rng.randrange(low, high) % last.data_bytes, "ring"
        else:
            return False
        self.place.flip(self.place.folder / last.ring, offset, 1 << rng.randrange(8))
        self.world.checks.count(f"bits flipped in rings ({where})")
        return True

    def _rot_disk(self) -> bool:
        """Where bytes must be valid: in a segment that is not the newest, or in the manifest."""
        rng, folder = self.rng, self.place.folder
        segments = sorted((folder / "data" / "wal").glob(f"*{SEGMENT_SUFFIX}"))[:-1]
        chosen = rng.choice([*segments, folder / "data" / MANIFEST_FILE])
        data = bytearray(chosen.read_bytes()) if chosen.exists() else bytearray()
        if not data:
            return False
        data[rng.randrange(len(data.rstrip(b"\0")))] ^= 1 << rng.randrange(8)  # not in the zeros ahead of records
        self.place.rewrite(chosen, bytes(data))
        self.world.checks.count("bits flipped on disks")
        return True

    # -- an older disk -------------------------------------------------------------------------------------------------

    def copy_disk(self, to: Path) -> None:
        """A snapshot of its volume, after a clean stop."""
        manifest = self.manifest()
        if manifest is not None and manifest.state == State.CLEAN:
            shutil.rmtree(to, ignore_errors=True)
            shutil.copytree(self.place.folder / "data", to)
            self.copy, self._copied_generation = to, manifest.generation

    @property
    def went_on(self) -> bool:
        """Whether it may have promised anything since its disk was copied."""
        manifest = self.manifest()
        return self.copy is not None and manifest is not None and manifest.generation > self._copied_generation

    def restore_disk(self) -> None:
        """The copy takes the place of its disk. (Its ring stays: it shows that the disk is an old one.)"""
        assert self.copy is not None
        self.place.forget("data")
        shutil.rmtree(self.place.folder / "data")
        self.copy.rename(self.place.folder / "data")
        self.place.restored("data")
        self.copy, self.loss = None, Loss.OLD_DISK

    def crash(self) -> None:
        super().crash()
        self._boots += 1
        self.machine = dataclasses.replace(self.machine, boot=f"boot-{self._boots}")
