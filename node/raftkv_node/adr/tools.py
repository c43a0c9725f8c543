"""What an operator may ask about a log buffer: `raftkv adr probe`, `inspect` and `verify`. They change nothing.

Each takes a function that prints a line and returns an exit code.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from raftkv_node._engine import LogCorrupt, LogIndex, probe_flush
from raftkv_node.adr.errors import EXIT_CORRUPT, EXIT_OWNED, EXIT_UNUSABLE, Refused
from raftkv_node.adr.files import Files
from raftkv_node.adr.levels import Environment
from raftkv_node.adr.log import SEGMENT_FOLDER
from raftkv_node.adr.manifest import Manifest, ManifestInvalid, Mode, State, read_manifest
from raftkv_node.adr.ringfile import RingSeen, find_rings, read_headers, ring_files, ring_folder
from raftkv_node.adr.segments import Generation, Segments, decode_header
from raftkv_node.adr.table import Member

Print = Callable[[str], object]


def probe(folder: Path, say: Print = print, environment: Environment | None = None) -> int:
    """Says which durability a ring, and which a disk, in `folder` would have, and why."""
    environment = environment if environment is not None else Environment()
    try:
        ring, disk = environment.probe_ring(folder), environment.probe_disk(folder)
        boot = environment.boot_id()
    except OSError as error:
        say(f"cannot probe {folder}: {error.strerror or error}")
        return EXIT_UNUSABLE
    domain = ring.persistence_domain or "none"
    say(f"folder:               {folder}")
    say(f"file system:          {ring.file_system} ({ring.identity})")
    say(f"MAP_SYNC:             {'yes' if ring.map_sync else 'no'}")
    say(f"DAX:                  {'yes' if ring.dax else 'no'}")
    say(f"persistence domain:   {domain}")
    say(f"cache line flush:     {'not needed' if ring.flush == 'none' else probe_flush()}")
    say(f"unsafe shutdowns:     {'not counted' if ring.unsafe_shutdowns is None else ring.unsafe_shutdowns}")
    say(f"host, boot:           {environment.host()}, {boot}")
    say(f"as a log buffer:      level {ring.level}, medium {ring.medium}")
    say(f"as a disk:            level {disk.level}")
    return 0


def inspect(data_dir: Path, adr_path: Path | None = None, say: Print = print, drain_dir: Path | None = None) -> int:
    """Shows manifest, rings and segments as they are."""
    try:
        manifest = read_manifest(data_dir)
    except ManifestInvalid as error:
        say(f"manifest: damaged: {error}")
        return EXIT_CORRUPT
    except OSError as error:
        say(f"cannot read {data_dir}: {error.strerror or error}")
        return EXIT_UNUSABLE
    if manifest is None:
        say("manifest: none")
    else:
        for name in Manifest.__slots__:
            if name != "secret":
                say(f"manifest {name}: {getattr(manifest, name)}")
    if manifest is not None and adr_path is not None:
        _inspect_rings(ring_folder(adr_path, int(manifest.cluster_id, 16), manifest.number), say)
    for path in sorted(_segment_folder(data_dir, drain_dir).glob("*.seg")):
        with path.open("rb") as file:
            header = decode_header(file.read(4096))
        size = path.stat().st_size
        if header is None:
            say(f"segment {path.name}: {size} bytes, no valid header")
        else:
            say(f"segment {path.name}: {size} bytes, generation {header[1].number}, from LSN {header[2]}")
    return 0


def _segment_folder(data_dir: Path, drain_dir: Path | None) -> Path:
    return drain_dir if drain_dir is not None else data_dir / SEGMENT_FOLDER


def _inspect_rings(folder: Path, say: Print) -> None:
    for path in ring_files(folder):
        headers = read_headers(path)
        if not headers:
            say(f"ring {path}: no valid header")
        for header in headers:
            say(
                f"ring {path}: sequence {header.sequence}, generation {header.generation}, size {header.size_bytes}, "
                f"reclaimed to {header.reclaimed_lsn}, level {header.level}, host {header.host}, "
                f"boot {header.boot_id}, file system {header.file_system}{', clean' if header.clean else ''}"
            )


def verify(data_dir: Path, adr_path: Path | None = None, say: Print = print, drain_dir: Path | None = None) -> int:
    """Reads and checks the whole log of a stopped member. Says what a start would recover, or what is damaged."""
    lock = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        manifest = read_manifest(data_dir)
        if manifest is None:
            say("there is no manifest: nothing to verify")
            return 0
        index = LogIndex()
        end = _verify(_segment_folder(data_dir, drain_dir), adr_path, manifest, index)
    except BlockingIOError:
        say(f"{data_dir} is in use: stop the member first")
        return EXIT_OWNED
    except (ManifestInvalid, LogCorrupt, Refused) as error:
        say(f"damaged: {error}")
        return EXIT_CORRUPT
    finally:
        os.close(lock)
    term, vote, commit = index.hard_state
    last_index, last_term = index.last
    say(f"whole up to LSN {end}: entries {index.first_index} to {last_index} (term {last_term})")
    say(f"hard state: term {term}, vote {vote:016x}, commit {commit}")
    return 0


def _verify(folder: Path, adr_path: Path | None, manifest: Manifest, index: LogIndex) -> int:
    member = Member(
        int(manifest.cluster_id, 16), int(manifest.member_id, 16), manifest.number, bytes.fromhex(manifest.disk_uuid)
    )
    generation = Generation(manifest.generation, bytes.fromhex(manifest.ring_uuid), bytes.fromhex(manifest.secret))
    segments = Segments(Files(), folder, member)
    later = segments.load(manifest.drained_lsn, index, log_may_begin_there=manifest.mode == Mode.DISK)
    if manifest.state != State.DIRTY:
        return manifest.drained_lsn
    if manifest.mode == Mode.DISK:
        return segments.scan_tail(later, generation, index)[0]
    ring = _ring_of(manifest, adr_path)
    end, _, why, _ = ring.load().scan(manifest.drained_lsn, generation.number, generation.seed)
    if why is not None:
        raise LogCorrupt(why)
    tail = ring.load().linear(manifest.drained_lsn, end, generation.number, generation.seed)
    index.absorb(tail, manifest.drained_lsn, generation.number, generation.seed)
    return end


def _ring_of(manifest: Manifest, adr_path: Path | None) -> RingSeen:
    if adr_path is not None:
        for ring in find_rings(ring_folder(adr_path, int(manifest.cluster_id, 16), manifest.number)):
            if ring.header.uuid.hex() == manifest.ring_uuid:
                return ring
    raise LogCorrupt(f"the log's tail is in its log buffer on host {manifest.host}, which is not at hand")
