"""What an acknowledged write survives, found out from the machine and never overstated (D12).

`power`: power loss. A mapping that the file system granted with MAP_SYNC, on memory whose region names a persistence
domain; or a disk's fdatasync, where nothing beneath it is known to be less (`disks`). `kernel`: a kernel crash or warm
reboot. Emulated persistent memory: MAP_SYNC is granted, but the region names no persistence domain; or a disk that is
mounted without barriers. `process`: the end of the process only. tmpfs, and every ordinary file.

A log is as durable as the weaker of its ring and its disk, since what was drained is given up by the ring.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from raftkv_node._engine import probe_dax, probe_flush, probe_map_sync
from raftkv_node.adr.disks import MOUNTINFO, VOLATILE_FILE_SYSTEMS, Disks
from raftkv_node.adr.level import Level
from raftkv_node.adr.media import POWER_DOMAINS, BadBlocks, Extent, Media, file_extents

PROBE_BYTES = 4096

#: struct fsuuid2 {u8 len; u8 uuid[16]}: _IOR(0x15, 0, ...), Linux 6.9 on, any file system.
_FS_IOC_GETFSUUID = 0x80111500
#: struct fsuuid {u32 len; u32 flags; u8 uuid[]}: _IOR('f', 44, ...), ext4.
_EXT4_IOC_GETFSUUID = 0x8008662C


class Medium(StrEnum):
    #: A ring in DAX-mapped memory.
    PMEM = "pmem"
    #: A ring in an ordinary mapped file.
    FILE = "file"
    #: No ring: the segments are the log.
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Probe:
    """What a folder's file system gives. `flush` is "auto" or "none" (caches are in the persistence domain).

    `bad_sectors`: known bad sectors (512 bytes) of its device. `because`: why a disk has its level.
    """

    level: Level
    medium: Medium
    file_system: str
    identity: str
    map_sync: bool = False
    dax: bool = False
    persistence_domain: str | None = None
    flush: str = "auto"
    unsafe_shutdowns: int | None = None
    bad_sectors: int = 0
    because: str = ""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Which file system a folder is on, and how often its memory was not shut down safely."""

    file_system: str
    unsafe_shutdowns: int | None = None


class Environment:
    """The machine as the log sees it; tests put another one in its place."""

    #: Where the kernel tells of devices.
    sysfs: Path = Path("/sys")
    #: And of what is mounted.
    mountinfo: Path = MOUNTINFO

    @property
    def disks(self) -> Disks:
        return Disks(self.sysfs, self.mountinfo)

    @property
    def media(self) -> Media:
        return Media(self.sysfs)

    def host(self) -> str:
        """The Kubernetes node's name where the pod was told it, else the host's."""
        return os.environ.get("RAFTKV_NODE_NAME") or os.environ.get("NODE_NAME") or socket.gethostname()

    def boot_id(self) -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def probe_ring(self, folder: Path) -> Probe:
        """What a ring in `folder` would be worth. Makes a small file there, without a name."""
        identity, kind = file_system_identity(folder, self.boot_id(), self.disks)
        # Without a name, so that nothing is left behind whenever the process ends.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
            path = f"/proc/self/fd/{file.fileno()}"
            map_sync = probe_map_sync(path)
            dax = probe_dax(path)
        media = self.media
        bad = media.bad_blocks(folder).sectors
        if not (map_sync and dax):
            return Probe(Level.PROCESS, Medium.FILE, kind, identity, map_sync, dax, bad_sectors=bad)
        domain = media.persistence_domain(folder)
        # Only processors whose cache lines this program can write back may claim more than the process.
        flushable = probe_flush() != "none" or domain == "cpu_cache"
        level = Level.POWER if domain in POWER_DOMAINS else Level.KERNEL
        return Probe(
            level if flushable else Level.PROCESS,
            Medium.PMEM,
            kind,
            identity,
            map_sync,
            dax,
            domain,
            "none" if domain == "cpu_cache" else "auto",
            media.unsafe_shutdowns(folder),
            bad,
        )

    def whereabouts(self, folder: Path) -> Whereabouts:
        """As `probe_ring` finds them, without making a file."""
        return Whereabouts(
            file_system_identity(folder, self.boot_id(), self.disks)[0], self.media.unsafe_shutdowns(folder)
        )

    def extents(self, path: Path) -> list[Extent] | None:
        """Where a file lies on its device; None if its file system does not tell."""
        return file_extents(path)

    def bad_blocks(self, folder: Path) -> BadBlocks:
        """Known bad blocks of the device beneath a folder."""
        return self.media.bad_blocks(folder)

    def deep_flush(self, folder: Path) -> bool | None:
        """See `Media.deep_flush`."""
        return self.media.deep_flush(folder)

    def probe_disk(self, folder: Path) -> Probe:
        """What fdatasync in `folder` is worth, by what lies beneath it."""
        identity, kind = file_system_identity(folder, self.boot_id(), self.disks)
        worth = self.disks.worth(folder)
        return Probe(worth.level, Medium.DISK, kind, identity, because=worth.because)


def file_system_identity(folder: Path, boot_id: str, disks: Disks) -> tuple[str, str]:
    """The identity of the file system that holds `folder`, and its type (D7).

    A superblock's uuid where there is one. For tmpfs, which lives as long as the boot, the boot id and the device
    number that the kernel gave its superblock (a mount id is another for each container that sees the same tmpfs).
    Never st_dev or f_fsid of a disk: they may change at reboot. A file system without a uuid (overlay) is known by its
    type alone: the ring's own uuid, which is in the manifest, too, tells the rest.
    """
    mount = disks.mount_of(folder)
    kind, source, device = mount.kind, mount.source, mount.device
    if kind in VOLATILE_FILE_SYSTEMS:
        return f"{kind}:{boot_id}:{device}", kind
    uuid = _uuid_by_ioctl(folder) or _uuid_by_udev(source)
    return (f"uuid:{uuid}" if uuid else f"type:{kind}"), kind


def _uuid_by_ioctl(folder: Path) -> str | None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            answer = fcntl.ioctl(fd, _FS_IOC_GETFSUUID, bytes(17))
            if answer[0] == 16 and any(answer[1:17]):
                return answer[1:17].hex()
        with contextlib.suppress(OSError):
            answer = fcntl.ioctl(fd, _EXT4_IOC_GETFSUUID, struct.pack("<II16x", 16, 0))
            if any(answer[8:24]):
                return answer[8:24].hex()
    finally:
        os.close(fd)
    return None


def _uuid_by_udev(source: str) -> str | None:
    folder = Path("/dev/disk/by-uuid")
    with contextlib.suppress(OSError):
        device = Path(source).resolve(strict=True)
        for link in folder.iterdir():
            if link.resolve() == device:
                return link.name.replace("-", "").lower()
    return None
