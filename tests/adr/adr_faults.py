"""A disk that fails, stalls and runs full when it is told to, and forgets as Linux does.

After a failed sync the pages that were to be written count as written: a later sync of the same file succeeds, and does
not write them. `power_cut` leaves of each file what syncs have really brought to disk.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from raftkv_node.adr import Files
from raftkv_node.adr.files import FolderSyncFailed, SyncFailed

SECTOR_BYTES = 512
STALL_SECONDS = 30.0


class FaultyDisk(Files):
    """See the module."""

    def __init__(self) -> None:
        #: How many of the next syncs of files fail; of folders; how many of the next writes.
        self.failing_syncs = 0
        self.failing_folder_syncs = 0
        self.failing_writes = 0
        self.failing_unlinks = 0
        self.full = False
        self.flowing = threading.Event()
        self.flowing.set()
        self.tries = 0
        #: Files by inode: what is on disk, and what was dropped by a failed sync.
        self._disk: dict[int, bytes] = {}
        self._dropped: dict[int, bytes] = {}
        self.synced_again: list[int] = []

    def create(self, path: Path) -> int:
        fd = super().create(path)
        for known in (self._disk, self._dropped):
            known.pop(os.fstat(fd).st_ino, None)
        return fd

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.failing_writes:
            self.failing_writes -= 1
            raise OSError(errno.EIO, "Input/output error")
        super().pwrite(fd, data, offset)

    def unlink(self, path: Path) -> None:
        if self.failing_unlinks:
            self.failing_unlinks -= 1
            raise OSError(errno.EIO, "Input/output error")
        super().unlink(path)

    def fsync(self, fd: int) -> None:
        assert self.flowing.wait(STALL_SECONDS)
        inode = os.fstat(fd).st_ino
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        if self.failing_syncs:
            self.tries += 1
            self.failing_syncs -= 1
            self._dropped[inode] = data
            raise SyncFailed(errno.EIO, "Input/output error")
        dropped, old = self._dropped.get(inode), self._disk.get(inode, b"")
        if dropped is not None:
            self.synced_again.append(inode)
        written = bytearray()
        for at in range(0, len(data), SECTOR_BYTES):
            sector = data[at : at + SECTOR_BYTES]
            lost = dropped is not None and dropped[at : at + SECTOR_BYTES] == sector
            written += old[at : at + SECTOR_BYTES].ljust(len(sector), b"\0")[: len(sector)] if lost else sector
        self._disk[inode] = bytes(written)

    fdatasync = fsync

    def sync_folder(self, path: Path) -> None:
        if self.failing_folder_syncs:
            self.failing_folder_syncs -= 1
            raise FolderSyncFailed(errno.EIO, "Input/output error")
        super().sync_folder(path)

    def power_cut(self, folder: Path) -> None:
        """Leaves on the files below `folder` what is on disk. Names are not forgotten."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                path.write_bytes(self._disk.get(path.stat().st_ino, b""))
