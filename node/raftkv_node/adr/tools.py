"""What an operator may ask about a member's log: `raftkv adr inspect`, `verify` and `drain`.

`inspect` and `verify` change nothing. `verify` and `drain` take the log's locks, and read it by the very code that
opens it: they refuse as a start would, with the same sentence and exit code. Each takes a function that prints a line
and returns an exit code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raftkv_node._engine import LogCorrupt, log_scan
from raftkv_node.adr.errors import EXIT_CORRUPT, EXIT_UNUSABLE, LogError, Refused
from raftkv_node.adr.level import Level
from raftkv_node.adr.levels import Environment
from raftkv_node.adr.log import SEGMENT_FOLDER, Identity, LogOptions
from raftkv_node.adr.manifest import Manifest, ManifestInvalid, Mode, State, read_manifest
from raftkv_node.adr.opening import Examined, examine
from raftkv_node.adr.ringfile import (
    DATA_OFFSET_BYTES,
    RingHeader,
    RingSeen,
    read_headers,
    ring_files,
    ring_folder,
)
from raftkv_node.adr.segments import SEGMENT_HEADER_BYTES, decode_header, has_segments

Print = Callable[[str], object]
_SECRET = "secret"


# --- inspect ---


def inspect(
    data_dir: Path,
    adr_path: Path | None = None,
    say: Print = print,
    drain_dir: Path | None = None,
    *,
    as_json: bool = False,
) -> int:
    """Shows manifest, rings and segments as they are. Takes no lock: beside a running member the figures move."""
    try:
        found = _inspected(data_dir, adr_path, drain_dir)
    except ManifestInvalid as error:
        say(f"manifest: damaged: {error}")
        return EXIT_CORRUPT
    except OSError as error:
        say(f"cannot read {error.filename or data_dir}: {error.strerror or error}")
        return EXIT_UNUSABLE
    if as_json:
        say(json.dumps(found, indent=2))
        return 0
    _show(found, say)
    return 0


def _inspected(data_dir: Path, adr_path: Path | None, drain_dir: Path | None) -> dict[str, Any]:
    if not data_dir.is_dir():
        raise NotADirectoryError(20, "there is no such folder", str(data_dir))
    manifest = read_manifest(data_dir)
    document: dict[str, Any] = {"manifest": None, "rings": [], "segments": []}
    if manifest is not None:
        # The secret is what keeps a client's value from passing for a record: nobody's business.
        document["manifest"] = {name: getattr(manifest, name) for name in Manifest.__slots__ if name != _SECRET}
        document["rings"] = [
            _ring(path, manifest) for folder in _ring_folders(manifest, adr_path) for path in ring_files(folder)
        ]
    segment_folder = drain_dir if drain_dir is not None else data_dir / SEGMENT_FOLDER
    document["segments"] = [_segment(path) for path in sorted(segment_folder.glob("*.seg"))]
    return document


def _ring_folders(manifest: Manifest, adr_path: Path | None) -> list[Path]:
    """The member's folders at the given, the recorded and the older places."""
    places = [*([str(adr_path)] if adr_path is not None else []), manifest.adr_path]
    places += [path for path, _ in manifest.old_places]
    cluster = int(manifest.cluster_id, 16)
    return list(dict.fromkeys(ring_folder(Path(path), cluster, manifest.number) for path in places if path))


def _ring(path: Path, manifest: Manifest) -> dict[str, Any]:
    copies = read_headers(path)
    ring: dict[str, Any] = {
        "path": str(path),
        "file_size_bytes": path.stat().st_size,
        "headers": [_header(header) for header in copies],
        "is": "no ring (no valid header)",
    }
    if not copies:
        return ring
    header = copies[0]
    if (f"{header.cluster_id:016x}", f"{header.member_id:016x}") != (manifest.cluster_id, manifest.member_id):
        ring["is"] = f"of member {header.member_id:016x} of cluster {header.cluster_id:016x}"
    elif (header.generation, header.uuid.hex()) == (manifest.generation, manifest.ring_uuid):
        ring["is"] = "the manifest's"
        ring |= _contents(RingSeen(path, header, ring["file_size_bytes"]), manifest)
    else:
        ring["is"] = "older" if header.generation < manifest.generation else "newer than the disk, or another history"
    return ring


def _header(header: RingHeader) -> dict[str, Any]:
    return {
        "sequence": header.sequence,
        "generation": header.generation,
        "size_bytes": header.size_bytes,
        "start_lsn": header.start_lsn,
        "reclaimed_lsn": header.reclaimed_lsn,
        "unsafe_shutdowns": header.unsafe_shutdowns,
        "clean": header.clean,
        "level": header.level,
        "host": header.host,
        "boot_id": header.boot_id,
        "file_system": header.file_system,
    }


def _contents(ring: RingSeen, manifest: Manifest) -> dict[str, Any]:
    """How far the ring's log goes beyond the disk."""
    damage = ring.damage(manifest.ring_size_bytes)
    if damage is not None:
        return {"damage": damage}
    end, records, why, torn = ring.load().scan(manifest.drained_lsn, manifest.generation, manifest.seed)
    data_bytes = ring.header.size_bytes - DATA_OFFSET_BYTES
    return {
        "end_lsn": end,
        "undrained_records": records,
        "undrained_bytes": end - manifest.drained_lsn,
        "fill": round((end - ring.header.reclaimed_lsn) / data_bytes, 4),
        "torn_tail_bytes": torn,
        "damage": why,
    }


def _segment(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header = decode_header(data)
    segment: dict[str, Any] = {"file": path.name, "size_bytes": len(data), "valid": header is not None}
    if header is not None:
        _, generation, start = header
        end = log_scan(data[SEGMENT_HEADER_BYTES:], start, generation.number, generation.seed)[0]
        segment |= {"generation": generation.number, "start_lsn": start, "end_lsn": end}
    return segment


def _show(found: Mapping[str, Any], say: Print) -> None:
    manifest = found["manifest"]
    if manifest is None:
        say("manifest: none")
    for name, value in (manifest or {}).items():
        say(f"manifest {name}: {value}")
    for ring in found["rings"]:
        say(f"ring {ring['path']}: {ring['is']}, {ring['file_size_bytes']} bytes")
        for header in ring["headers"]:
            say("  header " + ", ".join(f"{name} {value}" for name, value in header.items()))
        if "end_lsn" in ring:
            say(
                f"  {ring['undrained_records']} records ({ring['undrained_bytes']} bytes) up to LSN {ring['end_lsn']} "
                f"are not known to be on disk; {ring['fill']:.1%} full"
            )
            if ring["torn_tail_bytes"]:
                say(f"  behind them {ring['torn_tail_bytes']} bytes of a torn batch, never acknowledged")
        if ring.get("damage"):
            say(f"  damaged: {ring['damage']}")
    for segment in found["segments"]:
        if not segment["valid"]:
            say(f"segment {segment['file']}: {segment['size_bytes']} bytes, no valid header")
        else:
            say(
                f"segment {segment['file']}: {segment['size_bytes']} bytes, generation {segment['generation']}, LSN "
                f"{segment['start_lsn']} to {segment['end_lsn']}"
            )


# --- verify and drain ---


def verify(
    data_dir: Path,
    adr_path: Path | None = None,
    say: Print = print,
    drain_dir: Path | None = None,
    environment: Environment | None = None,
    *,
    as_json: bool = False,
) -> int:
    """Reads every record of a stopped member's log. Says what a start would recover, or the first damage, or why a
    start would refuse."""
    found = _examined(data_dir, adr_path, say, drain_dir, environment, bring_to_disk=False)
    if not isinstance(found, Examined):
        return found
    _tell(found, say, as_json)
    return 0


def drain(
    data_dir: Path,
    adr_path: Path | None = None,
    say: Print = print,
    drain_dir: Path | None = None,
    environment: Environment | None = None,
    *,
    as_json: bool = False,
) -> int:
    """Brings a stopped member's log to disk and marks it clean: it needs its log buffer no more, and may be moved. Does
    nothing where that is so already."""
    found = _examined(data_dir, adr_path, say, drain_dir, environment, bring_to_disk=True)
    if not isinstance(found, Examined):
        return found
    assert found.manifest is not None
    if not as_json:
        if found.manifest.state == State.DIRTY:
            say(f"drained: {found.replayed} records ({found.ring_bytes} bytes) were copied; the log is marked clean")
        else:
            say(f"nothing to do: all of the log is on disk (the manifest is {found.manifest.state})")
    _tell(found, say, as_json, drained=True)
    return 0


def _examined(
    data_dir: Path,
    adr_path: Path | None,
    say: Print,
    drain_dir: Path | None,
    environment: Environment | None,
    *,
    bring_to_disk: bool,
) -> Examined | int:
    """What a start would find; or the exit code, when the reason was said."""
    try:
        manifest = read_manifest(data_dir) if data_dir.is_dir() else None
        if manifest is None:
            return _no_log(data_dir, drain_dir, say)
        return examine(_options(data_dir, adr_path, drain_dir, environment, manifest), bring_to_disk=bring_to_disk)
    except ManifestInvalid as error:
        say(f"damaged: the manifest: {error}")
        return EXIT_CORRUPT
    except Refused as error:
        kind = "damaged" if error.exit_code == EXIT_CORRUPT else f"refused ({error.kind}, row {error.row})"
        say(f"{kind}: {error}")
        return error.exit_code
    except LogError as error:
        say(str(error))
        return error.exit_code
    except LogCorrupt as error:
        say(f"damaged: {error}")
        return EXIT_CORRUPT
    except OSError as error:
        say(f"cannot read {error.filename or data_dir}: {error.strerror or error}")
        return EXIT_UNUSABLE


def _no_log(data_dir: Path, drain_dir: Path | None, say: Print) -> int:
    if not data_dir.is_dir():
        say(f"the data folder {data_dir} does not exist")
        return EXIT_UNUSABLE
    folder = drain_dir if drain_dir is not None else data_dir / SEGMENT_FOLDER
    if has_segments(folder):
        say(f"damaged: there are segments in {folder}, but no manifest")
        return EXIT_CORRUPT
    say(f"there is no log in {data_dir}")
    return EXIT_UNUSABLE


def _options(
    data_dir: Path, adr_path: Path | None, drain_dir: Path | None, environment: Environment | None, manifest: Manifest
) -> LogOptions:
    """Options for the manifest's own member. The ring is where the manifest says, unless another folder is given."""
    identity = Identity(
        int(manifest.cluster_id, 16),
        int(manifest.member_id, 16),
        manifest.number,
        bytes.fromhex(manifest.disk_uuid),
        manifest.namespace,
        manifest.cluster_name,
    )
    ring = adr_path if adr_path is not None else Path(manifest.adr_path)
    # A log that is all on disk can be read anywhere.
    needs_ring = manifest.mode == Mode.RING and (manifest.state == State.DIRTY or ring.is_dir())
    return LogOptions(
        data_dir=data_dir,
        identity=identity,
        adr_path=ring if needs_ring else None,
        drain_dir=drain_dir,
        minimum_durability=Level.PROCESS,
        environment=environment if environment is not None else Environment(),
    )


def _tell(found: Examined, say: Print, as_json: bool, drained: bool = False) -> None:
    index = found.index
    term, vote, commit = index.hard_state
    last_index, last_term = index.last
    if as_json:
        document = {
            "row": found.verdict.row,
            "end_lsn": found.end_lsn,
            "first_index": index.first_index,
            "last_index": last_index,
            "last_term": last_term,
            "term": term,
            "vote": f"{vote:016x}",
            "commit": commit,
            "segments": found.segments.count(),
            "segment_bytes": found.segments.total_bytes(),
            "ring_records": found.replayed,
            "ring_bytes": found.ring_bytes,
            "torn_tail_bytes": found.torn_tail_bytes,
        }
        say(json.dumps(document, indent=2))
        return
    say(f"whole up to LSN {found.end_lsn}: entries {index.first_index} to {last_index} (term {last_term})")
    say(f"hard state: term {term}, vote {vote:016x}, commit {commit}")
    if drained:
        return
    say(
        f"{found.segments.count()} segments with {found.segments.total_bytes()} bytes; {found.replayed} records "
        f"({found.ring_bytes} bytes) in the log buffer only; {found.torn_tail_bytes} bytes of a torn batch dropped"
    )
    say(f"a start takes row {found.verdict.row} of the decision table ({found.verdict.action})")
