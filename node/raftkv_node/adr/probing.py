"""`raftkv adr probe`: which durability a folder gives, and why. Changes nothing.

Each check has a finding of its own; the level follows from them as in `levels`, and the first check that rules a higher
level out is the reason that is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from raftkv_node._engine import probe_flush
from raftkv_node.adr.disks import VOLATILE_FILE_SYSTEMS
from raftkv_node.adr.errors import EXIT_UNUSABLE
from raftkv_node.adr.level import Level
from raftkv_node.adr.levels import Environment, Probe

Print = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its value, and what that means."""

    check: str
    value: str
    means: str


def probe(folder: Path, say: Print = print, environment: Environment | None = None, *, as_json: bool = False) -> int:
    """Says which durability a log buffer, and which a disk, in `folder` would have, check by check. Exit code 0, or 70
    where the folder cannot be probed."""
    environment = environment if environment is not None else Environment()
    try:
        ring, disk = environment.probe_ring(folder), environment.probe_disk(folder)
        boot = environment.boot_id()
        found = _findings(folder, ring, environment)
    except OSError as error:
        say(f"cannot probe {folder}: {error.strerror or error}")
        return EXIT_UNUSABLE
    ring_why, disk_why = ring_reason(ring), disk.because
    if as_json:
        document = {
            "folder": str(folder),
            "host": environment.host(),
            "boot_id": boot,
            "log_buffer": {"level": ring.level, "medium": ring.medium, "because": ring_why},
            "disk": {"level": disk.level, "because": disk_why},
            "checks": [asdict(one) for one in found],
        }
        say(json.dumps(document, indent=2))
        return 0
    _line(say, "folder", str(folder))
    for one in found:
        _line(say, one.check, f"{one.value} ({one.means})")
    _line(say, "host, boot", f"{environment.host()}, {boot}")
    _line(say, "as a log buffer", f"level {ring.level}, medium {ring.medium}: {ring_why}")
    _line(say, "as a disk", f"level {disk.level}: {disk_why}")
    return 0


def _line(say: Print, name: str, text: str) -> None:
    say(f"{name + ':':<21} {text}")


def _findings(folder: Path, ring: Probe, environment: Environment) -> list[Finding]:
    media = environment.media
    volatile = ring.file_system in VOLATILE_FILE_SYSTEMS
    regions = media.regions(folder)
    bad = environment.bad_blocks(folder)
    domain = media.persistence_domain(folder) if ring.persistence_domain is None else ring.persistence_domain
    counted = media.unsafe_shutdowns(folder) if ring.unsafe_shutdowns is None else ring.unsafe_shutdowns
    flush = "not needed" if ring.flush == "none" else probe_flush()
    flushing = {
        "not needed": "caches are in the persistence domain; the fence is enough",
        "none": "this processor has no known instruction to write cache lines back",
    }
    where = "" if bad.extents is not None else ", where is not told"
    return [
        Finding(
            "file system", ring.file_system, f"identity {ring.identity}; {'memory' if volatile else 'not volatile'}"
        ),
        Finding(
            "DAX",
            _yes(ring.dax),
            "statx: files are accessed without a page cache" if ring.dax else "statx: files are in the page cache",
        ),
        Finding(
            "MAP_SYNC",
            _yes(ring.map_sync),
            "a flushed store is durable, the file's metadata too"
            if ring.map_sync
            else "refused: the kernel may still lose what was stored",
        ),
        Finding(
            "memory regions",
            ", ".join(region.name for region in regions) or "none",
            "persistent memory beneath the file system" if regions else "no persistent memory beneath the file system",
        ),
        Finding(
            "persistence domain",
            domain or "none",
            "what the platform saves at power loss" if domain else "no region promises anything at power loss",
        ),
        Finding("cache line flush", flush, flushing.get(flush, "the best instruction that this processor has")),
        Finding(
            "bad blocks",
            str(bad.sectors),
            f"known bad sectors of the device{where}; a log buffer is never put on them",
        ),
        Finding(
            "unsafe shutdowns",
            "not counted" if counted is None else str(counted),
            "row 10 cannot be told here" if counted is None else "if it rises while a log buffer is in use, it is lost",
        ),
    ]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def ring_reason(ring: Probe) -> str:
    """Why a log buffer there has its level, by the first check that rules out more."""
    if ring.file_system in VOLATILE_FILE_SYSTEMS:
        return f"{ring.file_system} is gone at a reboot"
    if not ring.dax:
        return "files there are not in DAX state: mount with -o dax=always, on persistent memory"
    if not ring.map_sync:
        return "the file system does not grant MAP_SYNC"
    if ring.level == Level.PROCESS:
        return "this processor cannot write cache lines back"
    if ring.level == Level.KERNEL:
        return "no region names a persistence domain: emulated memory, it survives a warm reboot only"
    return f"MAP_SYNC on memory whose platform saves it at power loss ({ring.persistence_domain})"
