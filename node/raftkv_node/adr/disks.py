"""What a disk's fdatasync is worth, by what the machine tells of what lies beneath a folder (D12).

Mount options say whether a file system syncs at all (overlay's `volatile`), and whether it has the device write its
cache back (`nobarrier`). An overlay lies on its upper layer, a loop device on its backing file: these are followed down
to a device. What cannot be seen from here (a container sees no layers of its own root) is said, and not guessed at.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from raftkv_node.adr.level import Level

VOLATILE_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
#: Another machine, or a program, does the sync.
REMOTE_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "fuse", "fuseblk"})
#: Mount options of ext3, ext4, xfs, btrfs and others, by which a sync leaves data in the device's own cache.
NO_BARRIER_OPTIONS = frozenset({"nobarrier", "barrier=0", "barrier=none"})
#: Options of overlay by which it syncs nothing.
VOLATILE_OPTIONS = frozenset({"volatile", "fsync=volatile"})
#: Layers on layers are followed so far.
LAYERS_MAXIMUM = 8
MOUNTINFO = Path("/proc/self/mountinfo")

_ESCAPED = re.compile(r"\\([0-7]{3})")
_RAM_DEVICE = re.compile(r"z?ram[0-9]+")
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system as mountinfo shows it. `device`: major:minor. `options`: of the mount and of the file system."""

    kind: str
    source: str
    device: str
    options: tuple[str, ...] = ()

    def option(self, name: str) -> str | None:
        """The value of `name=value`."""
        return next((word[len(name) + 1 :] for word in self.options if word.startswith(name + "=")), None)


@dataclass(frozen=True, slots=True)
class Worth:
    """`because`: why it has its level, in words for a person."""

    level: Level
    because: str


class Disks:
    """Reads mountinfo and sysfs; tests put another machine in their place. What is not told is not an error."""

    def __init__(self, sysfs: Path = Path("/sys"), mountinfo: Path = MOUNTINFO) -> None:
        self._sysfs, self._mountinfo = sysfs, mountinfo

    def device_of(self, path: Path) -> str:
        """The device number (major:minor) of the file system that holds `path`. OSError: there is none such."""
        device = path.stat().st_dev
        return f"{os.major(device)}:{os.minor(device)}"

    def mount_of(self, path: Path) -> Mount:
        """The file system that holds `path`; of kind "unknown" where mountinfo does not show it."""
        wanted = self.device_of(path)
        found = Mount("unknown", "", wanted)
        # A name that is no UTF-8 is another mount's business.
        for line in self._mountinfo.read_text(errors="surrogateescape").splitlines():
            before, _, after = line.partition(" - ")
            fields, rest = before.split(" "), after.split(" ")
            if len(fields) >= 6 and len(rest) >= 3 and fields[2] == wanted:
                options = [*_words(fields[5]), *_words(rest[2])]
                found = Mount(rest[0], _plain(rest[1]), wanted, tuple(options))
        return found

    def worth(self, folder: Path) -> Worth:
        """What fdatasync in `folder` is worth, and why. OSError: there is no such folder."""
        return self._worth(folder, self.mount_of(folder), LAYERS_MAXIMUM)

    def _worth(self, path: Path, mount: Mount, layers: int) -> Worth:
        kind = mount.kind
        if kind in VOLATILE_FILE_SYSTEMS:
            return Worth(Level.PROCESS, f"{kind} is gone at a reboot")
        if layers == 0:
            return Worth(Level.POWER, f"{kind}: what lies beneath so many layers is not looked at")
        if kind == "overlay":
            return self._overlay(mount, layers)
        beneath = self._beneath(mount, layers)
        if beneath is not None and beneath.level == Level.PROCESS:
            return beneath
        barrier = next((word for word in mount.options if word in NO_BARRIER_OPTIONS), None)
        if barrier is not None:
            return Worth(
                Level.KERNEL, f"{kind} is mounted with {barrier}: a sync leaves data in the device's own cache"
            )
        if beneath is not None:
            return beneath
        if kind == "unknown":
            return Worth(
                Level.POWER, "fdatasync, as far as what lies beneath keeps it; mountinfo does not show the mount"
            )
        if kind in REMOTE_FILE_SYSTEMS or kind.startswith("fuse."):
            return Worth(Level.POWER, f"fdatasync by {kind}, as far as what is behind it keeps what it acknowledges")
        return Worth(Level.POWER, "fdatasync, as far as the device keeps what it acknowledges")

    def _overlay(self, mount: Mount, layers: int) -> Worth:
        volatile = next((word for word in mount.options if word in VOLATILE_OPTIONS), None)
        if volatile is not None:
            return Worth(Level.PROCESS, f"overlay is mounted with {volatile}: it syncs nothing")
        upper = mount.option("upperdir")
        found = self._layer(Path(upper), mount, layers) if upper else None
        if found is None:
            return Worth(
                Level.POWER, "fdatasync by overlay, as far as its upper layer keeps it, which cannot be seen from here"
            )
        return Worth(found.level, f"overlay with its upper layer in {upper}: {found.because}")

    def _beneath(self, mount: Mount, layers: int) -> Worth | None:
        """Of what loop devices and disks in memory beneath a file system make of it: the weakest; None without any."""
        found: list[Worth] = []
        for device in self._devices(mount):
            if _RAM_DEVICE.fullmatch(device.name):
                found.append(Worth(Level.PROCESS, f"the device {device.name} is memory, and gone at a reboot"))
            backing = _text(device / "loop" / "backing_file") or _text(device.parent / "loop" / "backing_file")
            if backing is not None:
                found.append(self._loop(device.name, backing, mount, layers))
        return min(found, key=lambda worth: worth.level.rank, default=None)

    def _loop(self, name: str, backing: str, mount: Mount, layers: int) -> Worth:
        worth = None if backing.endswith(_DELETED) else self._layer(Path(backing), mount, layers)
        if worth is None:
            return Worth(
                Level.POWER,
                f"fdatasync to the loop device {name}, as far as its file {backing} keeps it, which cannot be seen "
                "from here",
            )
        return Worth(worth.level, f"the loop device {name} lies in {backing}: {worth.because}")

    def _layer(self, path: Path, above: Mount, layers: int) -> Worth | None:
        """What a layer at `path` is worth; None where it cannot be seen.

        The path is that of who mounted it: here it may name nothing, or a file of this very file system.
        """
        if not path.is_absolute():
            return None
        try:
            mount = self.mount_of(path)
        except OSError:
            return None
        return None if mount.device == above.device else self._worth(path, mount, layers - 1)

    def _devices(self, mount: Mount) -> list[Path]:
        """The block devices beneath a file system in sysfs: its own, and those that it is made of."""
        waiting = [self._sysfs / "dev" / "block" / mount.device]
        if mount.source.startswith("/dev/"):  # btrfs has a device number of its own
            name = mount.source
            with contextlib.suppress(OSError):
                name = str(Path(name).resolve(strict=True))
            waiting.append(self._sysfs / "class" / "block" / Path(name).name)
        found: list[Path] = []
        while waiting:
            with contextlib.suppress(OSError):
                here = waiting.pop(0).resolve(strict=True)
                if here not in found:
                    found.append(here)
                    if (here / "slaves").is_dir():
                        waiting += sorted((here / "slaves").iterdir())
        return found


def _plain(word: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), word)


def _words(options: str) -> list[str]:
    """The options of a list; a comma within one is written as octal digits, too."""
    return [_plain(word) for word in options.split(",")]


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
