"""Every change that the log makes to a disk, as a few small operations, and checksummed documents made of them.

Nothing else in this package writes, syncs, renames or unlinks. That makes the order of the operations, which the rules
D3, D6, D8 and D9 are about, visible in one place, and lets tests put a model of a disk that loses unsynced changes
beneath the very code that runs in production.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from raftkv_node._engine import crc32c

FILE_MODE = 0o600
FOLDER_MODE = 0o700
ZERO_CHUNK_BYTES = 1 << 20

#: A write that fails so may be tried again: nothing was promised, and the bytes are still in memory.
RETRIED_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})


class SyncFailed(OSError):
    """A sync failed: the kernel may have dropped the pages. It is never tried again on that file (D15)."""


class FolderSyncFailed(SyncFailed):
    """Which names a folder has on disk is unknown. There is no other folder to go to: the log ends."""


def may_retry(error: OSError) -> bool:
    """Whether an operation that failed so left nothing unknown behind: no space, and not found out by a sync."""
    return error.errno in RETRIED_ERRORS and not isinstance(error, SyncFailed)


class Files:
    """The operations, as the operating system does them. File handles are descriptors."""

    def create(self, path: Path) -> int:
        """A new, empty file, open for reading and writing. FileExistsError if there is one."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)

    def open(self, path: Path) -> int:
        """An existing file, open for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Writes all of `data` at `offset`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written

    def truncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def fsync(self, fd: int) -> None:
        """SyncFailed: what of the file is on disk is unknown from now on."""
        try:
            os.fsync(fd)
        except OSError as error:
            raise SyncFailed(error.errno, error.strerror) from error

    def fdatasync(self, fd: int) -> None:
        """SyncFailed: as for fsync."""
        try:
            os.fdatasync(fd)
        except OSError as error:
            raise SyncFailed(error.errno, error.strerror) from error

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def mkdir(self, path: Path) -> None:
        path.mkdir(mode=FOLDER_MODE)

    def sync_folder(self, path: Path) -> None:
        """Makes the names in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            raise FolderSyncFailed(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(fd)


def sync_file(files: Files, path: Path) -> None:
    """Makes the contents of an existing file durable."""
    fd = files.open(path)
    try:
        files.fsync(fd)
    finally:
        files.close(fd)


def create_zeroed(files: Files, path: Path, size_bytes: int) -> None:
    """A new file of zeros, every block written (no later write can lack space), synced; its folder, too."""
    fd = files.create(path)
    try:
        zeros = bytes(min(size_bytes, ZERO_CHUNK_BYTES))
        for offset in range(0, size_bytes, ZERO_CHUNK_BYTES):
            files.pwrite(fd, memoryview(zeros)[: size_bytes - offset], offset)
        files.fsync(fd)
    except OSError:
        with contextlib.suppress(OSError):
            files.unlink(path)
        raise
    finally:
        files.close(fd)
    files.sync_folder(path.parent)


def make_folder(files: Files, path: Path) -> None:
    """Makes a folder inside an existing one, durably; fine if it is there (a killed process may not have synced it)."""
    if not path.is_dir():
        # Another member may make the folder of the cluster that both belong to.
        with contextlib.suppress(FileExistsError):
            files.mkdir(path)
    files.sync_folder(path.parent)


def replace_file(files: Files, path: Path, data: bytes) -> None:
    """Replaces a whole file atomically and durably: write beside, fsync, rename, fsync of the folder."""
    beside = path.with_name(path.name + ".tmp")
    with contextlib.suppress(FileNotFoundError):
        files.unlink(beside)
    fd = files.create(beside)
    try:
        files.pwrite(fd, data, 0)
        files.fsync(fd)
    finally:
        files.close(fd)
    files.rename(beside, path)
    files.sync_folder(path.parent)


def encode_document(document: dict[str, Any]) -> bytes:
    """A JSON document in one line, and its CRC32C in a second one."""
    body = json.dumps(document, sort_keys=True, ensure_ascii=True).encode() + b"\n"
    return body + f"crc32c {crc32c(body):08x}\n".encode()


def decode_document(data: bytes) -> dict[str, Any]:
    """The document in `data`. ValueError if it is not whole."""
    body, newline, check = data.partition(b"\n")
    body += newline
    if check != f"crc32c {crc32c(body):08x}\n".encode():
        raise ValueError("the checksum does not match")
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("no document")
    return document


def write_document(files: Files, path: Path, document: dict[str, Any]) -> None:
    """Replaces the checksummed document at `path`, atomically and durably."""
    replace_file(files, path, encode_document(document))


def read_document(path: Path) -> dict[str, Any] | None:
    """The checksummed document at `path`, None if there is no file. ValueError if it is not whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return decode_document(data)
