"""Opening a log: look, decide, recover, switch (D3, D8).

The order is the rule. First everything is only looked at: locks are taken, the manifest, the ring headers and the
machine are read, the decision table speaks, the durability found is held against the one asked for, segments and ring
are scanned. Up to here nothing has been changed, whatever is refused. Then what was found is made durable, dropped
tails are cut off, the ring's tail is copied to segments; then the next generation is made, and the old files go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from raftkv_node._engine import LogCorrupt, LogIndex, Ring, RingImage
from raftkv_node.adr.disklog import DiskLog
from raftkv_node.adr.errors import DurabilityTooLow, Refusal, Refused, Unusable
from raftkv_node.adr.files import RETRIED_ERRORS, create_zeroed, make_folder, may_retry, sync_file
from raftkv_node.adr.level import Level
from raftkv_node.adr.levels import Medium, Probe
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
from raftkv_node.adr.media import readable
from raftkv_node.adr.places import lock, places_left, recorded_place, remove_older
from raftkv_node.adr.recovered import recovered_of
from raftkv_node.adr.ringfile import (
    HEADER_COPIES,
    RING_SUFFIX,
    RingHeader,
    RingSeen,
    find_rings,
    ring_files,
    ring_folder,
)
from raftkv_node.adr.ringlog import RingLog, check_room
from raftkv_node.adr.segments import Generation, Segments, has_segments
from raftkv_node.adr.table import Action, Seen, Verdict, decide

SECRET_BYTES = 16
UUID_BYTES = 16
NONCE_BYTES = 16
#: So many files are made at most until one has no bad blocks.
MEDIA_TRIES = 3
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
    #: Known bad sectors of the ring's device.
    bad_sectors: int = 0
    manifest: Manifest = field(init=False)
    generation: Generation = field(init=False)


@dataclass(slots=True)
class Findings:
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
    opened = _to_open(options)
    try:
        found = _look(opened)
        if options.adr_path is not None:
            check_room(opened.index, options.adr_size_bytes)
        log = _begin(opened, found)
        recovered = recovered_of(opened, found, log, began)
        log.run()
        return log, recovered
    except BaseException as error:
        _give_back(opened)
        if isinstance(error, OSError):
            raise Unusable(_sentence(error)) from error
        raise


def _to_open(options: LogOptions) -> Opened:
    segments = Segments(options.files, options.segment_folder, options.identity.member)
    return Opened(options, LogIndex(), segments, locks=[])


def _give_back(opened: Opened) -> None:
    for fd in opened.locks:
        os.close(fd)
    opened.segments.close()


@dataclass(frozen=True, slots=True)
class Examined:
    """What a start would find. `replayed`: records that were only in the ring, which take `ring_bytes`."""

    manifest: Manifest | None
    verdict: Verdict
    index: LogIndex
    segments: Segments
    end_lsn: int
    replayed: int
    ring_bytes: int
    torn_tail_bytes: int


def examine(options: LogOptions, *, bring_to_disk: bool = False) -> Examined:
    """Reads a stopped member's whole log as an opening would, or refuses as one would (see `Log.open`).

    `bring_to_disk`: besides, everything is copied to segments and marked clean (D9), without a new generation: the
    member needs its ring no more. Otherwise nothing is changed.
    """
    opened = _to_open(options)
    try:
        found = _look(opened)
        if bring_to_disk and found.previous is not None and found.previous.state == State.DIRTY:
            _settle(opened, found)
            _mark_clean(opened, found, found.previous)
    except OSError as error:
        raise Unusable(_sentence(error)) from error
    finally:
        _give_back(opened)
    return Examined(
        found.previous,
        found.verdict,
        opened.index,
        opened.segments,
        found.end_lsn,
        found.replayed,
        len(found.tail),
        found.torn_tail_bytes,
    )


def _sentence(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"the log cannot write{where}: {error.strerror}; make the folder writable and start again"
    if error.errno in RETRIED_ERRORS:
        return f"the log finds no room{where}: {error.strerror}; make room on its disk and start again"
    return f"the log cannot use{where}: {error.strerror or error}"


# --- looking ---


def _look(opened: Opened) -> Findings:
    options = opened.options
    environment = options.environment
    if not options.data_dir.is_dir():
        raise Unusable(f"the data folder {options.data_dir} does not exist")
    opened.locks.append(lock(options.data_dir, "data folder"))
    mode = Mode.DISK if options.adr_path is None else Mode.RING
    folder = _own_ring_folder(options)
    if folder is not None and folder.is_dir():
        opened.locks.append(lock(folder, "log buffer"))
    manifest: Manifest | str | None
    try:
        manifest = read_manifest(options.data_dir)
    except ManifestInvalid as error:
        manifest = str(error)
    rings = find_rings(folder) if folder is not None else []
    elsewhere = None
    if isinstance(manifest, Manifest):
        elsewhere = recorded_place(manifest, options.adr_path, environment, opened.locks)
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
        elsewhere=elsewhere,
        holds_records=lambda ring: isinstance(manifest, Manifest) and _holds_records(ring, manifest),
    )
    verdict = decide(seen)
    if options.accept_loss and verdict.row in (9, 10, 11):
        verdict = Verdict(verdict.row, Action.SWITCH)
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
    found = Findings(previous, verdict, probe, later=[])
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
    return _load(ring, manifest).holds_any(manifest.generation, manifest.seed)


def _load(ring: RingSeen, manifest: Manifest) -> RingImage:
    why = ring.damage(manifest.ring_size_bytes)
    if why is not None:
        raise _ring_corrupt(ring, why)
    return ring.load()


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
    opened.level, opened.medium, opened.bad_sectors = weaker.level, probe.medium, probe.bad_sectors
    if weaker.level.rank < options.minimum_durability.rank:
        where = options.data_dir if weaker is disk else options.adr_path
        why = f", {weaker.because}" if weaker.because else ""
        raise DurabilityTooLow(
            f"{where} ({weaker.file_system}{why}) gives durability level {weaker.level}, weaker than the minimum "
            f"{options.minimum_durability}: give it a stronger medium, or lower --minimum-durability"
        )
    return probe


def _read_log(opened: Opened, found: Findings) -> None:
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


def _read_ring(opened: Opened, found: Findings, ring: RingSeen, generation: Generation) -> None:
    assert found.previous is not None
    start = found.previous.drained_lsn
    number, seed = generation.number, generation.seed
    image = _load(ring, found.previous)
    end, found.replayed, why, found.torn_tail_bytes = image.scan(start, number, seed)
    if why is not None:
        raise _ring_corrupt(ring, why)
    try:
        found.tail = image.linear(start, end, number, seed)
        # What becomes a segment must begin as one, or the next start could not read it.
        begins = not _goes_on(opened, start, generation)
        opened.index.absorb(found.tail, start, number, seed, begins)
    except LogCorrupt as error:
        raise _ring_corrupt(ring, str(error)) from error
    found.tail_lsn, found.end_lsn = start, end


def _goes_on(opened: Opened, lsn: int, generation: Generation) -> bool:
    """Whether the ring's tail at `lsn` goes on with the last segment; else it begins one."""
    last = opened.segments.segment_at(lsn - 1) if lsn else None
    return last is not None and last.generation == generation


def _ring_corrupt(ring: RingSeen, why: str) -> Refused:
    return Refused(
        Refusal.CORRUPT,
        f"the log buffer {ring.path} is damaged: {why}; replace this member (its files were left as they are)",
    )


# --- changing ---


def _begin(opened: Opened, found: Findings) -> RingLog | DiskLog:
    """From here on the disk is changed: D3, then D8."""
    _settle(opened, found)
    disk_log = opened.options.adr_path is None
    return _begin_disk(opened, found) if disk_log else _begin_ring(opened, found)


def _settle(opened: Opened, found: Findings) -> None:
    """D3: what was found becomes durable, dropped tails are cut off, the ring's tail is copied to segments."""
    options = opened.options
    if found.previous is not None:
        sync_file(options.files, options.data_dir / MANIFEST_FILE)
        options.files.sync_folder(options.data_dir)
    make_folder(options.files, options.segment_folder)
    opened.segments.settle(found.later, found.previous.drained_lsn if found.previous is not None else 0)
    if found.tail:
        _replay(opened, found)


def _mark_clean(opened: Opened, found: Findings, previous: Manifest) -> None:
    """D9 for a log that is not open: everything is in synced segments. Order as in a drain (D6), the manifest last."""
    files, data_dir = opened.options.files, opened.options.data_dir
    drained = previous.replace(drained_lsn=found.end_lsn)
    seen = found.verdict.ring
    if seen is not None:
        write_manifest(files, data_dir, drained)
        _take(opened, drained)
        header = dataclasses.replace(
            seen.header, sequence=seen.header.sequence + 1, reclaimed_lsn=found.end_lsn, clean=True
        )
        ring = _map(opened, found, seen.path, seen.header.size_bytes)
        try:
            ring.store_header(header.sequence % HEADER_COPIES, header.encode())
        finally:
            ring.close()
    write_manifest(files, data_dir, drained.replace(state=State.CLEAN))


def _replay(opened: Opened, found: Findings) -> None:
    """Copies the ring's tail to segments. Needs no fence: what was read is copied whatever wrote it."""
    assert found.previous is not None
    generation = _generation_of(found.previous)
    segments = opened.segments
    if _goes_on(opened, found.tail_lsn, generation):
        segments.reopen()
    else:
        segments.start(generation, found.tail_lsn)
    segments.write(found.tail, found.tail_lsn, opened.index.last[0])
    segments.sync(found.end_lsn)


def _next_manifest(opened: Opened, found: Findings, mode: Mode) -> Manifest:
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
        adr_path=str(options.adr_path.absolute()) if options.adr_path is not None else "",
        old_places=places_left(found.previous, options.adr_path),
    )


def _take(opened: Opened, manifest: Manifest) -> None:
    opened.manifest = manifest
    opened.generation = _generation_of(manifest)


def _begin_disk(opened: Opened, found: Findings) -> DiskLog:
    options = opened.options
    # Without a ring there is nothing to prepare: the generation's first bytes follow its manifest.
    manifest = _next_manifest(opened, found, Mode.DISK).replace(state=State.DIRTY)
    write_manifest(options.files, options.data_dir, manifest)
    _take(opened, manifest)
    log = DiskLog(opened, found.end_lsn)
    log.begin()
    _leave_older(opened, log, None)
    return log


def _begin_ring(opened: Opened, found: Findings) -> RingLog:
    options = opened.options
    files = options.files
    folder = _own_ring_folder(options)
    assert folder is not None
    is_new = not folder.is_dir()
    make_folder(files, folder.parent)
    make_folder(files, folder)
    if is_new:
        opened.locks.append(lock(folder, "log buffer"))
    path = _prepare(opened, found, folder)
    ring = _map(opened, found, path, opened.manifest.ring_size_bytes)
    header = _header(opened)
    ring.store_header(0, header.encode())
    header = _header(opened, sequence=1)
    ring.store_header(1, header.encode())
    # The count of unsafe shutdowns and the header that says "in use" reach the memory itself before the first record.
    options.environment.deep_flush(folder)
    opened.manifest = opened.manifest.replace(state=State.DIRTY)
    write_manifest(files, options.data_dir, opened.manifest)
    log = RingLog(opened, ring, header, path)
    log.begin()
    _leave_older(opened, log, path)
    return log


def _leave_older(opened: Opened, log: RingLog | DiskLog, current: Path | None) -> None:
    """D8: now that the generation is in use, the files of older ones go. What cannot be reached stays remembered."""
    left = remove_older(opened.options.files, opened.manifest, current, opened.options.environment)
    log.left_places(left)


def _prepare(opened: Opened, found: Findings, folder: Path) -> Path:
    """The new ring file, whole; and `prepared`. Returns its path.

    The file comes first. Where there is no room for two rings, `prepared` does: all of the log is on disk, so that the
    old ring is not needed from then on, and goes to make room. A stop in between finds `prepared` without its ring,
    which is row 8. Where the old ring lies in another place, that makes no room, and nothing is changed.
    """
    files, data_dir = opened.options.files, opened.options.data_dir
    _take(opened, _next_manifest(opened, found, Mode.RING))
    size_bytes = opened.manifest.ring_size_bytes
    try:
        try:
            path = _make_ring(opened, found, folder)
        except OSError as error:
            if not may_retry(error) or not ring_files(folder):
                raise
            write_manifest(files, data_dir, opened.manifest)
            remove_older(files, opened.manifest, folder / opened.manifest.ring_file, opened.options.environment)
            path = _make_ring(opened, found, folder)
    except OSError as error:
        if may_retry(error):
            raise Unusable(_no_room(folder, size_bytes)) from error
        raise
    write_manifest(files, data_dir, opened.manifest)
    return path


def _make_ring(opened: Opened, found: Findings, folder: Path) -> Path:
    """A file of zeros on good memory. The manifest that is being made names it.

    A file that has bad blocks is kept until a better one is made, so that the next does not get them again.
    """
    files, bad = opened.options.files, []
    try:
        for _ in range(MEDIA_TRIES):
            path = folder / opened.manifest.ring_file
            try:
                create_zeroed(files, path, opened.manifest.ring_size_bytes)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
            else:
                if _is_good(opened, found, path):
                    return path
                bad.append(path)
            uuid = secrets.token_bytes(UUID_BYTES).hex()
            _take(opened, opened.manifest.replace(ring_uuid=uuid, ring_file=uuid + RING_SUFFIX))
        raise Unusable(
            f"wherever the log buffer was put in {folder} it has bad blocks ({found.probe.bad_sectors} sectors are "
            "known to be bad): repair the memory (ndctl clear-errors), or choose another --adr-path"
        )
    finally:
        for path in bad:
            with contextlib.suppress(OSError):
                files.unlink(path)


def _is_good(opened: Opened, found: Findings, path: Path) -> bool:
    """Whether no known bad block lies in the new file, and it can be read. A load of bad memory would be a signal."""
    environment = opened.options.environment
    bad = environment.bad_blocks(path.parent)
    if bad.sectors and bad.overlap_sectors(environment.extents(path)):
        return False
    # Where the file's place is not told, what can be read is good.
    return found.probe.medium != Medium.PMEM or readable(path)


def _no_room(folder: Path, size_bytes: int) -> str:
    status = os.statvfs(folder)
    others = len(list(folder.parent.parent.glob(f"*/*/*{RING_SUFFIX}")))
    return (
        f"a log buffer of {size_bytes} bytes does not fit into {folder.parent.parent} "
        f"({status.f_bavail * status.f_frsize} bytes are free, {others} log buffers are there): make room, lower "
        "--adr-size, or choose another --adr-path"
    )


def _map(opened: Opened, found: Findings, path: Path, size_bytes: int) -> Ring:
    generation = opened.generation
    ring = Ring(
        str(path),
        size_bytes,
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
