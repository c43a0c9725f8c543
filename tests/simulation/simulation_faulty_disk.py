"""A disk that fails now and then, and which of its errors a member may end by.

`FailingFiles` gives errors in place of operations. After a failed sync the kernel counts the pages as written: a later
sync of that file succeeds, also in a later life of the process, and does not bring them to disk (`Inode.after_sync`).
To try it within the same opening is a violation at once (D15).

`DiskErrors` remembers each error that was given to one life of a member, as the object that it is. An exception that
ends the member is excused only if such an object is among its causes, and only if docs/durability.md says that the
member may end by it:

| when | which error | may end the member |
| --- | --- | --- |
| at a start, or at a clean stop | any | yes: it starts again |
| while it drains (ring) | no room to write | never: it goes on degraded, and its alarm says so |
| | a failed write, rename or unlink, or sync of a file | when three passes in a row have failed so |
| | a failed sync of a folder | yes |
| while it flushes (no ring) | no room to write | never |
| | any other | yes |
| while it notes openings of others | any | never: it is tried again |
| while it puts a snapshot in its place | any | yes |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from errno import EDQUOT, ENOSPC
from pathlib import Path

from raftkv_node.adr.files import FolderSyncFailed, SyncFailed
from raftkv_node.server import openings
from simulation_checks import Violation
from simulation_disk import Place, SimFiles

PASSES = 3
"""So many drains in a row may fail until the member ends."""
NO_ROOM = (ENOSPC, EDQUOT)
RARE = 0.2
"""How much rarer names and folders fail than data: most of those errors end a member at once."""


class Phase(Enum):
    """What a member does with its disk."""

    START = auto()
    BACKGROUND = auto()
    STOP = auto()
    OTHER = auto()
    """A turn, or a worker's job."""


@dataclass(frozen=True)
class DiskError:
    """One error that was given."""

    error: OSError
    what: str
    path: Path
    phase: Phase

    @property
    def no_room(self) -> bool:
        """Whether nothing is unknown after it: there was no room, and no sync found it out."""
        return self.error.errno in NO_ROOM and not isinstance(self.error, SyncFailed)

    @property
    def of_openings(self) -> bool:
        return self.path.name.startswith(openings.FILE_NAME)

    def __str__(self) -> str:
        return f"{self.what} of {self.path.name} failed with {self.error.errno} ({self.phase.name})"


@dataclass
class DiskErrors:
    """The errors of one life of a member."""

    ring: bool
    given: list[DiskError] = field(default_factory=list)
    phase: Phase = Phase.START
    failed_passes: int = 0
    """Passes in a row that an error has ended which is not of room."""

    def tied(self, error: BaseException | None) -> DiskError | None:
        """The given error that an exception has come from; None: it has come from somewhere else."""
        for cause in causes(error):
            for one in self.given:
                if one.error is cause:
                    return one
        return None

    def passed(self, error: DiskError | None) -> None:
        """A pass of the drain is over."""
        if error is None:
            self.failed_passes = 0
        elif not error.no_room:
            self.failed_passes += 1

    def may_end(self, error: DiskError) -> bool:
        """Whether this error may end the member (the table above)."""
        if error.phase in (Phase.START, Phase.STOP):
            return True
        if error.phase is Phase.OTHER:
            return not error.of_openings
        if isinstance(error.error, FolderSyncFailed):
            return True
        if error.no_room:
            return False
        return not self.ring or self.failed_passes >= PASSES


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


Failing = Callable[[str, Path, float], int]
"""Operation, path, how much rarer than data: the error number with which it fails; 0: it does not."""


class FailingFiles(SimFiles):
    """The log's file operations on a disk that fails now and then, and never forgives a failed sync."""

    def __init__(self, place: Place, errors: DiskErrors, fails: Failing, who: int) -> None:
        self._errors, self._fails, self._who = errors, fails, who
        self._paths: dict[int, Path] = {}
        self._poisoned: set[int] = set()
        """Inodes whose sync has failed: what the kernel did with their pages is unknown (fsyncgate)."""
        super().__init__(place)

    def _may_fail(self, what: str, path: Path, kind: type[OSError] = OSError, rare: float = 1.0) -> None:
        number = self._fails(what, path, rare)
        if number:
            error = kind(number, "simulated", str(path))
            self._errors.given.append(DiskError(error, what, path, self._errors.phase))
            raise error

    def _opened(self, fd: int, path: Path) -> int:
        self._paths[fd] = path
        return super()._opened(fd, path)

    def create(self, path: Path) -> int:
        self._may_fail("create", path)
        return super().create(path)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self._may_fail("write", self._paths[fd])
        super().pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        inode = self._open[fd]
        if inode in self._poisoned:
            raise Violation("D15_SYNC_NOT_RETRIED", f"{self._who} syncs a file again whose sync had failed")
        try:
            self._may_fail("sync", self._paths[fd], SyncFailed)
        except SyncFailed:
            self._poisoned.add(inode)
            self._disk.inodes[inode].sync_failed()
            raise
        super().fsync(fd)

    fdatasync = fsync

    def rename(self, source: Path, target: Path) -> None:
        self._may_fail("rename", target, rare=RARE)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._may_fail("unlink", path, rare=RARE)
        super().unlink(path)

    def sync_folder(self, path: Path) -> None:
        self._may_fail("folder sync", path, FolderSyncFailed, rare=RARE)
        super().sync_folder(path)
