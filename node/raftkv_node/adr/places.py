"""Where a member's rings lie, were, and may still lie: rings that move (D8).

The manifest names the folder of persistent memory of its generation's ring, and older ones from which old files could
not be removed yet. A member that is started with another folder looks into the recorded one, too: after a crash its
ring is there, and is recovered from there before the next generation begins in the new place. A folder counts as the
recorded one only on the recorded host and file system: the same path on another host is another place, even where two
hosts share what lies behind it (D10: a member that was moved with its ring left behind is *absent*).

Old files go only after the new generation is in use (`dirty`), and only what is surely this member's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from raftkv_node.adr.errors import Owned, Refusal, Refused
from raftkv_node.adr.files import Files
from raftkv_node.adr.levels import Environment
from raftkv_node.adr.manifest import MANIFEST_FILE, Manifest, ManifestInvalid, State, read_manifest
from raftkv_node.adr.ringfile import RingSeen, find_rings, is_blank, ring_files, ring_folder
from raftkv_node.adr.segments import wipe_segments
from raftkv_node.adr.table import Elsewhere

#: So many older folders are remembered; the oldest are forgotten first, with whatever lies there.
OLD_PLACES_KEPT = 4

Place = tuple[str, str]
"""A folder of persistent memory, and the identity of its file system."""


def lock(folder: Path, what: str) -> int:
    """D11: one owner. The lock ends with the process, or with the descriptor that is returned. Raises Owned."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise Owned(f"another process uses the {what} {folder}: stop it first") from error
    return fd


def recorded_place(
    manifest: Manifest, given: Path | None, environment: Environment, locks: list[int]
) -> Elsewhere | None:
    """Looks into the manifest's folder where it is not the given one, on the recorded host; locks it.

    Raises Owned: another process uses it, and the log's tail may be there.
    """
    path = Path(manifest.adr_path)
    if not manifest.adr_path or _same(path, given) or manifest.host != environment.host():
        return None
    folder = ring_folder(path, int(manifest.cluster_id, 16), manifest.number)
    try:
        if not folder.is_dir():
            return None
        found = environment.whereabouts(path)
        if found.file_system != manifest.file_system:
            return None
        locks.append(lock(folder, "former log buffer"))
    except Owned:
        if manifest.state == State.DIRTY:
            raise
        return None
    except OSError:
        return None
    return Elsewhere(found.file_system, found.unsafe_shutdowns, find_rings(folder))


def _same(one: Path, other: Path | None) -> bool:
    if other is None:
        return False
    try:
        return one.samefile(other)
    except OSError:
        return one == other


def places_left(manifest: Manifest | None, given: Path | None) -> tuple[Place, ...]:
    """Where rings of generations up to the manifest's may lie, besides the given folder."""
    if manifest is None:
        return ()
    places = [*manifest.old_places, (manifest.adr_path, manifest.file_system)]
    left = [place for place in places if place[0] and not _same(Path(place[0]), given)]
    return tuple(dict.fromkeys(left))[-OLD_PLACES_KEPT:]


def remove_older(files: Files, manifest: Manifest, current: Path | None, environment: Environment) -> tuple[Place, ...]:
    """Removes files of this member's older generations, beside the current ring and in older places; and files that
    were never finished. Others are left alone. Returns the older places that could not be looked at."""
    if current is not None:
        _remove_in(files, manifest, current.parent, current)
    left = []
    for place in manifest.old_places:
        path, file_system = place
        folder = ring_folder(Path(path), int(manifest.cluster_id, 16), manifest.number)
        try:
            if environment.whereabouts(Path(path)).file_system != file_system:
                left.append(place)
            elif folder.is_dir():
                _empty(files, manifest, folder)
        except (OSError, Owned):
            left.append(place)
    return tuple(left)


def _empty(files: Files, manifest: Manifest, folder: Path) -> None:
    """Removes this member's rings from a place that it has left, and the folders if nothing else is there."""
    held: list[int] = []
    with contextlib.suppress(Owned):  # held by this very opening
        held.append(lock(folder, "former log buffer"))
    try:
        _remove_in(files, manifest, folder, None)
        _remove_folder(files, folder)
    finally:
        for fd in held:
            os.close(fd)


def _remove_folder(files: Files, folder: Path) -> None:
    """Removes a member's folder, and its cluster's, if they are empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _remove_in(files: Files, manifest: Manifest, folder: Path, current: Path | None) -> None:
    older = {ring.path for ring in find_rings(folder) if _is_older(ring, manifest)}
    removed = False
    for path in ring_files(folder):
        if path != current and (path in older or is_blank(path)):
            with contextlib.suppress(FileNotFoundError):
                files.unlink(path)
                removed = True
    if removed:
        files.sync_folder(folder)


def _is_older(ring: RingSeen, manifest: Manifest) -> bool:
    header = ring.header
    owner = (f"{header.cluster_id:016x}", f"{header.member_id:016x}", header.disk_uuid.hex())
    return owner == (manifest.cluster_id, manifest.member_id, manifest.disk_uuid) and (
        header.generation < manifest.generation
    )


def wipe(
    files: Files,
    data_dir: Path,
    segment_folder: Path,
    adr_path: Path | None,
    member: tuple[int, int],
    environment: Environment,
) -> None:
    """Deletes a member's log: rings wherever they may lie, segments, the manifest last. Again after an interruption.

    `member`: cluster id and number. Refused (*mismatch*): a ring at `adr_path` is another cluster's.
    """
    cluster_id, number = member
    try:
        manifest = read_manifest(data_dir)
    except ManifestInvalid:
        manifest = None
    folders = [] if adr_path is None else [ring_folder(adr_path, cluster_id, number)]
    for path, file_system in places_left(manifest, adr_path):
        with contextlib.suppress(OSError):
            if environment.whereabouts(Path(path)).file_system == file_system:
                folders.append(ring_folder(Path(path), cluster_id, number))
    for folder in folders:
        for ring in find_rings(folder):
            if ring.header.cluster_id != cluster_id:
                raise Refused(
                    Refusal.MISMATCH, f"the log buffer {ring.path} is of cluster {ring.header.cluster_id:016x}", 1
                )
    for folder in folders:
        paths = ring_files(folder)
        for ring_path in paths:
            with contextlib.suppress(FileNotFoundError):
                files.unlink(ring_path)
        if paths:
            files.sync_folder(folder)
        _remove_folder(files, folder)
    wipe_segments(files, segment_folder)
    with contextlib.suppress(FileNotFoundError):
        files.unlink(data_dir / MANIFEST_FILE)
    files.sync_folder(data_dir)
