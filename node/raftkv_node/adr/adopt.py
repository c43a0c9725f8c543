"""Handing a log that was closed clean to another member id: the part of `--force-new-cluster` that is the log's.

Ids stand in the header of every segment, in the manifest, and in the ring's header. A clean log needs no ring, so
segments and manifest are what is to be restamped: segments first, each replaced whole, the manifest last. Cut off
anywhere, it is run again, and then finds some of them restamped; nobody else opens the log meanwhile, since it is half
one member's and half another's.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os

from raftkv_node.adr.errors import Owned, Refusal, Refused
from raftkv_node.adr.files import make_folder, replace_file
from raftkv_node.adr.log import Identity, LogOptions
from raftkv_node.adr.manifest import State, read_manifest, write_manifest
from raftkv_node.adr.segments import SEGMENT_HEADER_BYTES, SEGMENT_SUFFIX, decode_header, encode_header


def adopt_log(options: LogOptions, new: Identity) -> None:
    """Make the clean log of `options.identity` that of `new`; idempotent. Refused: it is not clean, or of neither."""
    fd = os.open(options.data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Owned(f"another process uses the data folder {options.data_dir}: stop it first") from error
        _adopt(options, new)
    finally:
        os.close(fd)


def adoption_begun(options: LogOptions, new: Identity) -> bool:
    """Whether an earlier run has restamped anything: then the log is not to be opened before the rest is."""
    manifest = read_manifest(options.data_dir)
    if manifest is not None and manifest.member_id == f"{new.member_id:016x}":
        return True
    for path in options.segment_folder.glob("*" + SEGMENT_SUFFIX):
        with path.open("rb") as file:
            header = decode_header(file.read(SEGMENT_HEADER_BYTES))
        if header is not None and header[0] == new.member:
            return True
    return False


def _adopt(options: LogOptions, new: Identity) -> None:
    manifest = read_manifest(options.data_dir)
    old = options.identity
    ours = [(f"{one.cluster_id:016x}", f"{one.member_id:016x}") for one in (old, new)]
    if manifest is None or (manifest.cluster_id, manifest.member_id) not in ours:
        raise Refused(Refusal.MISMATCH, f"the log in {options.data_dir} belongs to neither of the two members")
    if (manifest.cluster_id, manifest.member_id) == ours[1]:
        return  # the manifest comes last
    if manifest.state != State.CLEAN:
        raise Refused(Refusal.MISMATCH, f"the log in {options.data_dir} was not closed clean")
    make_folder(options.files, options.segment_folder)
    for path in sorted(options.segment_folder.glob("*" + SEGMENT_SUFFIX)):
        data = path.read_bytes()
        header = decode_header(data)
        if header is None or header[0] not in (old.member, new.member):
            raise Refused(Refusal.CORRUPT, f"segment {path} has no valid header of this member")
        owner, generation, start_lsn = header
        if owner != new.member:
            stamped = encode_header(new.member, generation, start_lsn)
            replace_file(options.files, path, stamped + data[SEGMENT_HEADER_BYTES:])
    stamped_manifest = dataclasses.replace(manifest, cluster_id=ours[1][0], member_id=ours[1][1])
    write_manifest(options.files, options.data_dir, stamped_manifest)
