"""The decision table: do ring and disk prove that they are both there, whole and of the same age?

A pure function of what was seen. Rows are numbered as in docs/durability.md; the first matching row counts. While a
ring holds acknowledged entries or votes that are not on disk, ring and disk belong together, and a member that cannot
prove that it has both must not vote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from raftkv_node.adr.errors import Refusal
from raftkv_node.adr.level import Level
from raftkv_node.adr.manifest import Manifest, Mode, State
from raftkv_node.adr.ringfile import RingSeen


class Action(StrEnum):
    #: Nothing is there yet: generation 1.
    START = "start"
    #: All is on disk: the next generation, the old ring is never replayed.
    SWITCH = "switch"
    #: The log's tail is in the ring (or, in disk mode, behind the manifest's drained LSN).
    RECOVER = "recover"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Member:
    """Who is opening its log."""

    cluster_id: int
    member_id: int
    number: int
    disk_uuid: bytes


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The manifest's own folder of persistent memory, where it is not the one that the log was started with."""

    file_system: str
    unsafe_shutdowns: int | None
    rings: Sequence[RingSeen]


@dataclass(frozen=True, slots=True)
class Seen:
    """All that the decision rests on. `manifest` is a text when there is one that is invalid: what is wrong with it.

    `others` says whether anything but the identity lies in the data folder (segments, a backend). `holds_records` tells
    whether a ring holds any valid record of the manifest's generation; asked only where that matters.
    """

    member: Member
    manifest: Manifest | str | None
    others: bool
    rings: Sequence[RingSeen]
    mode: Mode
    host: str
    boot_id: str
    file_system: str | None
    unsafe_shutdowns: int | None
    holds_records: Callable[[RingSeen], bool]
    begun: bool = False
    """Whether the member's identity says that its log was opened before."""
    elsewhere: Elsewhere | None = None
    """Given when that folder is there, on the recorded file system."""

    def all_rings(self) -> list[RingSeen]:
        """This member's rings in the given and in the recorded place. (At the given one, row 1 lets no other pass.)"""
        more = self.elsewhere.rings if self.elsewhere is not None else []
        return [*self.rings, *(ring for ring in more if _ours(self, ring))]


@dataclass(frozen=True, slots=True)
class Verdict:
    row: int
    action: Action
    refusal: Refusal | None = None
    message: str = ""
    ring: RingSeen | None = None


def _refuse(row: int, refusal: Refusal, message: str) -> Verdict:
    return Verdict(row, Action.REFUSE, refusal, message)


def decide(seen: Seen) -> Verdict:
    """The row that counts."""
    verdict = _before_manifest(seen)
    if verdict is not None:
        return verdict
    assert isinstance(seen.manifest, Manifest)
    manifest = seen.manifest
    return (
        _wrong_disk(seen, manifest)
        or _wrong_mode(seen, manifest)
        or _newer_ring(seen, manifest)
        or (_at_rest(seen, manifest) if manifest.state != State.DIRTY else _in_use(seen, manifest))
    )


def _ours(seen: Seen, ring: RingSeen) -> bool:
    header, member = ring.header, seen.member
    return (header.cluster_id, header.member_id) == (member.cluster_id, member.member_id)


def _before_manifest(seen: Seen) -> Verdict | None:
    for ring in seen.rings:
        if not _ours(seen, ring):
            return _refuse(
                1,
                Refusal.MISMATCH,
                f"the log buffer {ring.path} belongs to member {ring.header.member_id:016x} of cluster "
                f"{ring.header.cluster_id:016x}, not to this member: point --adr-path elsewhere, or move that "
                "file away",
            )
    if isinstance(seen.manifest, str) and not seen.others:
        # A damaged manifest is itself something beside which a log was kept: the folder is not empty.
        return _refuse(2, Refusal.CORRUPT, f"the manifest is damaged: {seen.manifest}; the files were left as they are")
    if not isinstance(seen.manifest, Manifest) and seen.others:
        what = "there is no manifest" if seen.manifest is None else f"the manifest is damaged ({seen.manifest})"
        return _refuse(
            2,
            Refusal.CORRUPT,
            f"{what} beside segments or a backend in the data folder: replace this member; its files were left as "
            "they are",
        )
    if seen.manifest is None and seen.rings:
        return _refuse(
            3,
            Refusal.MISMATCH,
            f"the data folder is empty but this member's log buffer {seen.rings[0].path} exists: the disk was lost, or "
            "another one is mounted",
        )
    if seen.manifest is None and seen.begun:
        return _refuse(
            4,
            Refusal.PROVEN_LOST,
            "the data folder is empty but for the identity of a member that was started before: its log was lost, and "
            "with it votes and entries that it promised; replace this member",
        )
    if seen.manifest is None:
        return Verdict(4, Action.START)
    return None


def _wrong_disk(seen: Seen, manifest: Manifest) -> Verdict | None:
    member = seen.member
    if (manifest.cluster_id, manifest.member_id) != (f"{member.cluster_id:016x}", f"{member.member_id:016x}"):
        return _refuse(
            0,
            Refusal.MISMATCH,
            f"the data folder belongs to member {manifest.member_id} of cluster {manifest.cluster_id}, not to member "
            f"{member.member_id:016x} of cluster {member.cluster_id:016x}",
        )
    if manifest.disk_uuid != member.disk_uuid.hex():
        return _refuse(
            0, Refusal.MISMATCH, f"the manifest is of disk {manifest.disk_uuid}, not of {member.disk_uuid.hex()}"
        )
    return None


def _wrong_mode(seen: Seen, manifest: Manifest) -> Verdict | None:
    """A member changes its mode only through `clean` (D12)."""
    if manifest.state == State.CLEAN or manifest.mode == seen.mode:
        return None
    if manifest.state == State.PREPARED:
        return None
    if manifest.mode == Mode.RING:
        message = (
            f"this member's log is partly in its log buffer on host {manifest.host}, but it was started without "
            "--adr-path: start it with the log buffer, and stop it cleanly before changing to disk mode"
        )
    else:
        message = (
            "this member was not stopped cleanly in disk mode, but it was started with --adr-path: start it "
            "without, and "
            "stop it cleanly before changing to a log buffer"
        )
    return _refuse(0, Refusal.MISMATCH, message)


def _newer_ring(seen: Seen, manifest: Manifest) -> Verdict | None:
    newest = max((ring.header.generation for ring in seen.all_rings()), default=0)
    if newest > manifest.generation:
        return _refuse(
            5,
            Refusal.MISMATCH,
            f"the log buffer is of generation {newest}, the disk only of {manifest.generation}: the disk is older "
            "than the "
            "log buffer (a restored or wrong volume?)",
        )
    return None


def _same(ring: RingSeen, manifest: Manifest) -> bool:
    return ring.header.generation == manifest.generation and ring.header.uuid.hex() == manifest.ring_uuid


def _at_rest(seen: Seen, manifest: Manifest) -> Verdict:
    for ring in seen.all_rings():
        if ring.header.generation == manifest.generation and not _same(ring, manifest):
            return _refuse(
                6,
                Refusal.MISMATCH,
                f"log buffer and disk are both of generation {manifest.generation}, but of two histories: this "
                "disk, or the "
                "log buffer, is a copy",
            )
    if manifest.state == State.PREPARED:
        for ring in seen.all_rings():
            if not _same(ring, manifest):
                continue
            if ring.header.reclaimed_lsn > manifest.drained_lsn or seen.holds_records(ring):
                return _refuse(
                    7,
                    Refusal.MISMATCH,
                    f"the log buffer was in use in generation {manifest.generation}, which the disk only "
                    "prepares: the disk "
                    "is older than the log buffer (a restored volume?)",
                )
    return Verdict(8, Action.SWITCH)


def _in_use(seen: Seen, manifest: Manifest) -> Verdict:
    if manifest.mode == Mode.DISK:
        return Verdict(13, Action.RECOVER)
    rebooted = seen.host == manifest.host and seen.boot_id != manifest.boot_id
    if manifest.level == Level.PROCESS and rebooted:
        return _refuse(
            9,
            Refusal.PROVEN_LOST,
            f"host {manifest.host} was rebooted while this member ran at durability level process: what its log "
            "buffer held "
            "may be lost; replace this member",
        )
    places = [(seen.file_system, seen.unsafe_shutdowns, seen.rings)]
    if seen.elsewhere is not None:
        place = seen.elsewhere
        places.append((place.file_system, place.unsafe_shutdowns, [ring for ring in place.rings if _ours(seen, ring)]))
    here = [place for place in places if place[0] is not None and place[0] == manifest.file_system]
    matching = next((ring for _, _, rings in here for ring in rings if _same(ring, manifest)), None)
    before, now = manifest.unsafe_shutdowns, max((count for _, count, _ in here if count is not None), default=None)
    if seen.host == manifest.host and before is not None and now is not None and now > before:
        return _refuse(
            10,
            Refusal.PROVEN_LOST,
            f"the platform reports {now - before} unsafe shutdown(s) of the persistent memory since this member "
            "started: "
            "its log buffer cannot be relied upon; replace this member",
        )
    if matching is None:
        return _refuse(
            11,
            Refusal.ABSENT,
            f"this member's log buffer (generation {manifest.generation}, {manifest.ring_file}) is on host "
            f"{manifest.host} in {manifest.adr_path} "
            f"and not here ({seen.host}): start it on that host, with the same --adr-path mounted",
        )
    if matching.header.reclaimed_lsn > manifest.drained_lsn:
        return _refuse(
            12,
            Refusal.MISMATCH,
            "the log buffer gave up bytes that this disk does not have: the disk is an old copy of this member's "
            "volume",
        )
    return Verdict(13, Action.RECOVER, ring=matching)
