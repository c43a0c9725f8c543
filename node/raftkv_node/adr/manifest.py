"""The manifest: the small file on disk that ties ring, segments and backend together (docs/formats/manifest.md)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from raftkv_node._engine import crc32c
from raftkv_node.adr.files import Files, read_document, write_document

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1


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
        manifest = Manifest(**document)
        bytes.fromhex(manifest.secret)
        return manifest.replace(state=State(manifest.state), mode=Mode(manifest.mode))
    except (ValueError, TypeError, RecursionError) as error:
        raise ManifestInvalid(str(error)) from error
