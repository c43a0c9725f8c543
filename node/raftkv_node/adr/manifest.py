"""The manifest: the small file on disk that ties ring, segments and backend together (docs/formats/manifest.md)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from raftkv_node._engine import crc32c
from raftkv_node.adr.files import Files, read_document, write_document
from raftkv_node.adr.ringfile import DATA_OFFSET_BYTES, GENERATION_LIMIT, LSN_LIMIT, SIZE_LIMIT_BYTES

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1
_LSN_ALIGN_BYTES = 64
_WORD_LIMIT = 1 << 64


class State(StrEnum):
    #: A new generation is being made; no record of it exists.
    PREPARED = "prepared"
    #: The generation is, or was, in use: ring and disk belong together.
    DIRTY = "dirty"
    #: All of the log is on disk; the ring is not needed.
    CLEAN = "clean"


class Mode(StrEnum):
    RING = "ring"
    DISK = "disk"


class ManifestInvalid(Exception):
    """There is a manifest, but it is damaged or of a version that this program does not know."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Ids, uuids and secrets are hexadecimal text. `drained_lsn`: below it, all is in synced segments."""

    state: State
    mode: Mode
    generation: int
    ring_uuid: str
    ring_file: str
    ring_size_bytes: int
    secret: str
    drained_lsn: int
    level: str
    host: str
    boot_id: str
    file_system: str
    #: None where the platform counts no unsafe shutdowns.
    unsafe_shutdowns: int | None
    cluster_id: str
    member_id: str
    number: int
    disk_uuid: str
    nonce: str
    namespace: str
    cluster_name: str
    #: The folder of persistent memory in which the ring lies ("" in disk mode).
    adr_path: str
    #: Folders and file-system identities where rings of older generations may still lie.
    old_places: tuple[tuple[str, str], ...] = ()

    @property
    def seed(self) -> int:
        return seed_of(bytes.fromhex(self.secret))

    def replace(self, **changes: Any) -> Manifest:
        return dataclasses.replace(self, **changes)


def seed_of(secret: bytes) -> int:
    """Start value of the checksums of a generation's records."""
    return crc32c(secret)


def write_manifest(files: Files, folder: Path, manifest: Manifest) -> None:
    """Replaces the manifest, atomically and durably."""
    write_document(files, folder / MANIFEST_FILE, {"format": MANIFEST_FORMAT, **dataclasses.asdict(manifest)})


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a data folder, None if there is none. ManifestInvalid if it cannot be relied upon."""
    try:
        document = read_document(folder / MANIFEST_FILE)
        if document is None:
            return None
        if document.pop("format", None) != MANIFEST_FORMAT:
            raise ManifestInvalid("its format is not one that this program knows")
        document["old_places"] = tuple((str(path), str(system)) for path, system in document.get("old_places", ()))
        manifest = Manifest(**document)
        manifest = manifest.replace(state=State(manifest.state), mode=Mode(manifest.mode))
        _check(manifest)
        return manifest
    except (ValueError, TypeError, RecursionError) as error:
        raise ManifestInvalid(str(error)) from error


def _check(manifest: Manifest) -> None:
    """ValueError or TypeError: a value is one that no log has, whatever the checksum says."""
    for name in ("ring_uuid", "secret", "disk_uuid", "nonce"):
        bytes.fromhex(getattr(manifest, name))
    for name in ("cluster_id", "member_id"):
        _within(name, int(getattr(manifest, name), 16), 0, _WORD_LIMIT)
    for name in ("level", "host", "boot_id", "file_system", "namespace", "cluster_name", "adr_path", "ring_file"):
        if not isinstance(getattr(manifest, name), str):
            raise TypeError(f"{name} is no text")
    _within("generation", manifest.generation, 0, GENERATION_LIMIT)
    _within("number", manifest.number, 0, _WORD_LIMIT)
    _within("drained_lsn", manifest.drained_lsn, 0, LSN_LIMIT)
    if manifest.drained_lsn % _LSN_ALIGN_BYTES:
        raise ValueError(f"drained_lsn {manifest.drained_lsn} is no multiple of {_LSN_ALIGN_BYTES}")
    if manifest.unsafe_shutdowns is not None:
        _within("unsafe_shutdowns", manifest.unsafe_shutdowns, 0, _WORD_LIMIT // 2)
    low = DATA_OFFSET_BYTES + 1 if manifest.mode == Mode.RING else 0
    _within("ring_size_bytes", manifest.ring_size_bytes, low, SIZE_LIMIT_BYTES + 1)


def _within(name: str, value: object, low: int, end: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} is no number")
    if not low <= value < end:
        raise ValueError(f"{name} is {value}, but from {low} to {end - 1} is possible")
