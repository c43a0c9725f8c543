"""Opening a log: look, decide, recover, switch (D3, D8).

The order is the rule. First everything is only looked at: locks are taken, the manifest, the ring headers and the
machine are read, the decision table speaks, the durability found is held against the one asked for, segments and ring
are scanned. Up to here nothing has been changed, whatever is refused. Then what was found is made durable, dropped
tails are cut off, the ring's tail is copied to segments; then the next generation is made, and the old files go.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from raftkv_node._engine import LogCorrupt, LogIndex, Ring
from raftkv_node.adr.disklog import DiskLog
from raftkv_node.adr.errors import DurabilityTooLow, Owned, Refusal, Refused, Unusable
from raftkv_node.adr.files import RETRIED_ERRORS, create_zeroed, make_folder, may_retry, sync_file
from raftkv_node.adr.levels import Level, Medium, Probe
from raftkv_node.adr.log import Log, LogOptions, Recovered
from raftkv_node.adr.manifest import (
    MANIFEST_FILE,
    Manifest,
    ManifestInvalid,
    Mode,
    State,
    read_manifest,
    write_manifest,
)
from raftkv_node.adr.records import MARK_SNAPSHOT, MARK_USER, HardState, Mark, StoredEntry
from raftkv_node.adr.ringfile import (
    RING_SUFFIX,
    RingHeader,
    RingSeen,
    find_rings,
    is_blank,
    ring_files,
    ring_folder,
)
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.adr.segments import Generation, Segments, has_segments
from raftkv_node.adr.table import Action, Seen, Verdict, decide

SECRET_BYTES = 16
UUID_BYTES = 16
NONCE_BYTES = 16
#: Names that do not make a data folder a used one, beside the identity's: what file systems put there themselves.
_HARMLESS = frozenset({"lost+found", MANIFEST_FILE, MANIFEST_FILE + ".tmp"})


@dataclass(slots=True)
class Opened:
    """What the steps of an opening hand on, and what the log is made of in the end."""

    options: LogOptions
    index: LogIndex
    segments: Segments
    locks: list[int]
    level: Level = Level.PROCESS
    medium: Medium = Medium.DISK
    manifest: Manifest = field(init=False)
    generation: Generation = field(init=False)


@dataclass(slots=True)
class _Findings:
    """What looking has brought; nothing is changed yet."""

    previous: Manifest | None
    verdict: Verdict
    probe: Probe
    later: list[tuple[Path, int, int]]
    #: The ring's tail, to be copied to segments, and where it lies.
    tail: bytes = b""
    tail_lsn: int = 0
    replayed: int = 0
    torn_tail_bytes: int = 0
    end_lsn: int = 0


def open_log(options: LogOptions) -> tuple[Log, Recovered]:
    """See `Log.open`."""
    options.check()
    began = time.monotonic()
    opened = Opened(
        options,
        LogIndex(),
        Segments(options.files, options.segment_folder, options.identity.member),
        locks=[],
    )
    try:
        found = _look(opened)
        log = _begin(opened, found)
        recovered = _recovered(opened, found, log, began)
        log.run()
        return log, recovered
    except BaseException as error:
        for fd in opened.locks:
            os.close(fd)
        opened.segments.close()
        if isinstance(error, OSError):
            raise Unusable(_sentence(error)) from error
        raise


def _sentence(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"the log cannot write{where}: {error.strerror}; make the folder writable and start again"
    if error.errno in RETRIED_ERRORS:
        return f"the log finds no room{where}: {error.strerror}; make room on its disk and start again"
    return f"the log cannot use{where}: {error.strerror or error}"


# --- looking ---


def _lock(opened: Opened, folder: Path, what: str) -> None:
    """D11: one owner. The lock ends with the process."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise Owned(f"another process uses the {what} {folder}: stop it first") from error
    opened.locks.append(fd)


def _look(opened: Opened) -> _Findings:
    options = opened.options
    environment = options.environment
    if not options.data_dir.is_dir():
        raise Unusable(f"the data folder {options.data_dir} does not exist")
    _lock(opened, options.data_dir, "data folder")
    mode = Mode.DISK if options.adr_path is None else Mode.RING
    folder = _own_ring_folder(options)
    if folder is not None and folder.is_dir():
        _lock(opened, folder, "log buffer")
    manifest: Manifest | str | None
    try:
        manifest = read_manifest(options.data_dir)
    except ManifestInvalid as error:
        manifest = str(error)
    rings = find_rings(folder) if folder is not None else []
    ring_probe = None
    if options.adr_path is not None and options.adr_path.is_dir():
        ring_probe = environment.probe_ring(options.adr_path)
    seen = Seen(
        member=options.identity.member,
        manifest=manifest,
        others=_others(options),
        rings=rings,
        mode=mode,
        host=environment.host(),
        boot_id=environment.boot_id(),
        file_system=ring_probe.identity if ring_probe is not None else None,
        unsafe_shutdowns=ring_probe.unsafe_shutdowns if ring_probe is not None else None,
        begun=options.begun,
        holds_records=lambda ring: isinstance(manifest, Manifest) and _holds_records(ring, manifest),
    )
    verdict = decide(seen)
    if verdict.refusal is not None:
        raise Refused(verdict.refusal, verdict.message, verdict.row)
    previous = manifest if isinstance(manifest, Manifest) else None
    _check_place(options, previous)
    if mode == Mode.RING and ring_probe is None:
        raise Refused(
            Refusal.ABSENT,
            f"the log buffer's folder {options.adr_path} does not exist on {seen.host}: is it mounted?",
        )
    probe = _check_durability(opened, ring_probe)
    found = _Findings(previous, verdict, probe, later=[])
    _read_log(opened, found)
    return found


def _own_ring_folder(options: LogOptions) -> Path | None:
    if options.adr_path is None:
        return None
    return ring_folder(options.adr_path, options.identity.cluster_id, options.identity.number)


def _others(options: LogOptions) -> bool:
    """Whether the data folder holds more than the identity: a log, or anything that may be a backend."""
    ignored = options.identity_files | _HARMLESS | {name + ".tmp" for name in options.identity_files}
    if has_segments(options.segment_folder):
        return True
    for path in options.data_dir.iterdir():
        if path.name in ignored:
            continue
        if path.is_dir() and not any(path.iterdir()):
            continue
        return True
    return False


def _holds_records(ring: RingSeen, manifest: Manifest) -> bool:
    return ring.load().holds_any(manifest.generation, manifest.seed)


def _check_place(options: LogOptions, previous: Manifest | None) -> None:
    """M5: a volume that turns up elsewhere is not used until it was adopted under a new cluster id."""
    if previous is None:
        return
    place = (options.identity.namespace, options.identity.cluster_name)
    recorded = (previous.namespace, previous.cluster_name)
    if place != recorded:
        raise Refused(
            Refusal.MISMATCH,
            f"the data folder belongs to cluster {'/'.join(recorded)}, not to {'/'.join(place)}",
        )


def _check_durability(opened: Opened, ring_probe: Probe | None) -> Probe:
    """A log is as durable as the weaker of ring and disk; what is weaker than asked for is refused (D12)."""
    options = opened.options
    disk = options.environment.probe_disk(options.data_dir)
    probe = ring_probe if ring_probe is not None else disk
    weaker = min((probe, disk), key=lambda item: item.level.rank)
    opened.level, opened.medium = weaker.level, probe.medium
    if weaker.level.rank < options.minimum_durability.rank:
        where = options.data_dir if weaker is disk else options.adr_path
        raise DurabilityTooLow(
            f"{where} ({weaker.file_system}) gives durability level {weaker.level}, weaker than the minimum "
            f"{options.minimum_durability}: give it a stronger medium, or lower --minimum-durability"
        )
    return probe


def _read_log(opened: Opened, found: _Findings) -> None:
    """Scans segments and ring: the whole log, or Refused as corrupt. Changes nothing."""
    previous, verdict = found.previous, found.verdict
    if previous is None:
        opened.index.reset(0, 0)
        return
    drained = previous.drained_lsn
    found.later = opened.segments.load(drained, opened.index, log_may_begin_there=previous.mode == Mode.DISK)
    found.end_lsn = drained
    if verdict.action != Action.RECOVER:
        return
    generation = _generation_of(previous)
    if verdict.ring is None:
        found.end_lsn, found.torn_tail_bytes = opened.segments.scan_tail(found.later, generation, opened.index)
        return
    _read_ring(opened, found, verdict.ring, generation)


def _generation_of(manifest: Manifest) -> Generation:
    return Generation(manifest.generation, bytes.fromhex(manifest.ring_uuid), bytes.fromhex(manifest.secret))


def _read_ring(opened: Opened, found: _Findings, ring: RingSeen, generation: Generation) -> None:
    assert found.previous is not None
    start = found.previous.drained_lsn
    number, seed = generation.number, generation.seed
    if ring.file_size_bytes < ring.header.size_bytes:
        raise _ring_corrupt(ring, f"the file has {ring.file_size_bytes} of {ring.header.size_bytes} bytes")
    image = ring.load()
    end, found.replayed, why, found.torn_tail_bytes = image.scan(start, number, seed)
    if why is not None:
        raise _ring_corrupt(ring, why)
    try:
        found.tail = image.linear(start, end, number, seed)
        opened.index.absorb(found.tail, start, number, seed)
    except LogCorrupt as error:
        raise _ring_corrupt(ring, str(error)) from error
    found.tail_lsn, found.end_lsn = start, end


def _ring_corrupt(ring: RingSeen, why: str) -> Refused:
    return Refused(
        Refusal.CORRUPT,
        f"the log buffer {ring.path} is damaged: {why}; replace this member (its files were left as they are)",
    )


# --- changing ---


def _begin(opened: Opened, found: _Findings) -> RingLog | DiskLog:
    """From here on the disk is changed: D3, then D8."""
    options = opened.options
    if found.previous is not None:
        sync_file(options.files, options.data_dir / MANIFEST_FILE)
        options.files.sync_folder(options.data_dir)
    make_folder(options.files, options.segment_folder)
    opened.segments.settle(found.later)
    if found.tail:
        _replay(opened, found)
    disk_log = options.adr_path is None
    return _begin_disk(opened, found) if disk_log else _begin_ring(opened, found)


def _replay(opened: Opened, found: _Findings) -> None:
    """Copies the ring's tail to segments. Needs no fence: what was read is copied whatever wrote it."""
    assert found.previous is not None
    generation = _generation_of(found.previous)
    segments = opened.segments
    last = segments.segment_at(found.tail_lsn - 1) if found.tail_lsn else None
    if last is not None and last.generation == generation:
        segments.reopen()
    else:
        segments.start(generation, found.tail_lsn)
    segments.write(found.tail, found.tail_lsn, opened.index.last[0])
    segments.sync(found.end_lsn)


def _next_manifest(opened: Opened, found: _Findings, mode: Mode) -> Manifest:
    options, identity = opened.options, opened.options.identity
    uuid = secrets.token_bytes(UUID_BYTES)
    environment = options.environment
    return Manifest(
        state=State.PREPARED,
        mode=mode,
        generation=(found.previous.generation if found.previous is not None else 0) + 1,
        ring_uuid=uuid.hex(),
        ring_file=uuid.hex() + RING_SUFFIX if mode == Mode.RING else "",
        ring_size_bytes=options.adr_size_bytes // 64 * 64 if mode == Mode.RING else 0,
        secret=secrets.token_bytes(SECRET_BYTES).hex(),
        drained_lsn=found.end_lsn,
        level=opened.level,
        host=environment.host(),
        boot_id=environment.boot_id(),
        file_system=found.probe.identity,
        unsafe_shutdowns=found.probe.unsafe_shutdowns,
        cluster_id=f"{identity.cluster_id:016x}",
        member_id=f"{identity.member_id:016x}",
        number=identity.number,
        disk_uuid=identity.disk_uuid.hex(),
        nonce=secrets.token_bytes(NONCE_BYTES).hex(),
        namespace=identity.namespace,
        cluster_name=identity.cluster_name,
    )


def _take(opened: Opened, manifest: Manifest) -> None:
    opened.manifest = manifest
    opened.generation = _generation_of(manifest)


def _begin_disk(opened: Opened, found: _Findings) -> DiskLog:
    options = opened.options
    # Without a ring there is nothing to prepare: the generation's first bytes follow its manifest.
    manifest = _next_manifest(opened, found, Mode.DISK).replace(state=State.DIRTY)
    write_manifest(options.files, options.data_dir, manifest)
    _take(opened, manifest)
    log = DiskLog(opened, found.end_lsn)
    log.begin()
    return log


def _begin_ring(opened: Opened, found: _Findings) -> RingLog:
    options = opened.options
    files = options.files
    folder = _own_ring_folder(options)
    assert folder is not None
    is_new = not folder.is_dir()
    make_folder(files, folder.parent)
    make_folder(files, folder)
    if is_new:
        _lock(opened, folder, "log buffer")
    manifest = _next_manifest(opened, found, Mode.RING)
    path = folder / manifest.ring_file
    _take(opened, manifest)
    _make_ring(opened, path)
    ring = _map(opened, found, path)
    header = _header(opened)
    ring.store_header(0, header.encode())
    header = _header(opened, sequence=1)
    ring.store_header(1, header.encode())
    opened.manifest = manifest.replace(state=State.DIRTY)
    write_manifest(files, options.data_dir, opened.manifest)
    log = RingLog(opened, ring, header, path)
    log.begin()
    _remove_older(opened, path)
    return log


def _make_ring(opened: Opened, path: Path) -> None:
    """The new ring file, whole; and `prepared`.

    The file comes first. Where there is no room for two rings, `prepared` does: all of the log is on disk, so that the
    old ring is not needed from then on, and goes to make room. A stop in between finds `prepared` without its ring,
    which is row 8.
    """
    files, manifest = opened.options.files, opened.manifest
    try:
        create_zeroed(files, path, manifest.ring_size_bytes)
    except OSError as error:
        if not may_retry(error):
            raise
        write_manifest(files, opened.options.data_dir, manifest)
        _remove_older(opened, path)
        create_zeroed(files, path, manifest.ring_size_bytes)
    else:
        write_manifest(files, opened.options.data_dir, manifest)


def _map(opened: Opened, found: _Findings, path: Path) -> Ring:
    manifest, generation = opened.manifest, opened.generation
    ring = Ring(
        str(path),
        manifest.ring_size_bytes,
        generation.number,
        generation.seed,
        found.end_lsn,
        "none" if found.probe.flush == "none" else None,
    )
    if found.probe.map_sync and not ring.map_sync and opened.level != Level.PROCESS:
        ring.close()
        raise DurabilityTooLow(f"{path} cannot be mapped with MAP_SYNC, though its folder's probe could")
    return ring


def _header(opened: Opened, sequence: int = 0) -> RingHeader:
    manifest, identity = opened.manifest, opened.options.identity
    return RingHeader(
        sequence=sequence,
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        number=identity.number,
        uuid=opened.generation.ring_uuid,
        disk_uuid=identity.disk_uuid,
        size_bytes=manifest.ring_size_bytes,
        generation=manifest.generation,
        start_lsn=manifest.drained_lsn,
        reclaimed_lsn=manifest.drained_lsn,
        unsafe_shutdowns=manifest.unsafe_shutdowns,
        clean=False,
        level=manifest.level,
        boot_id=manifest.boot_id,
        host=manifest.host,
        file_system=manifest.file_system,
    )


def _remove_older(opened: Opened, current: Path) -> None:
    """Files of this member's older generations, and files that were never finished. Others are left alone."""
    files = opened.options.files
    older = {ring.path for ring in find_rings(current.parent) if ring.header.generation < opened.generation.number}
    removed = False
    for path in ring_files(current.parent):
        if path != current and (path in older or is_blank(path)):
            with contextlib.suppress(FileNotFoundError):
                files.unlink(path)
                removed = True
    if removed:
        files.sync_folder(current.parent)


# --- telling ---


def _recovered(opened: Opened, found: _Findings, log: Log, began: float) -> Recovered:
    index = opened.index
    last_index, last_term = index.last
    first_index = index.first_index
    lo = max(first_index, index.tail(opened.options.recovered_entries_bytes))
    entries: list[StoredEntry] = []
    while lo <= last_index:
        read = log.read_entries(lo, last_index + 1, opened.options.recovered_entries_bytes)
        if not read:
            raise Refused(Refusal.CORRUPT, f"entry {lo} of the log cannot be read back")
        entries += read
        lo = read[-1].index + 1
    membership = index.configuration
    snapshot = index.mark(MARK_SNAPSHOT)
    return Recovered(
        hard_state=HardState(*index.hard_state),
        configuration=Mark(*membership) if membership is not None else None,
        snapshot=Mark(*snapshot) if snapshot is not None else None,
        marks={item[0]: Mark(*item[1:]) for item in index.marks_from(MARK_USER)},
        first_index=first_index,
        last_index=last_index,
        last_term=last_term,
        base_term=index.term(first_index - 1) or 0,
        entries=entries,
        torn_tail_bytes=found.torn_tail_bytes,
        replayed=found.replayed,
        duration_seconds=time.monotonic() - began,
        generation=opened.generation.number,
        nonce=bytes.fromhex(opened.manifest.nonce),
        fresh=found.previous is None,
        row=found.verdict.row,
    )
