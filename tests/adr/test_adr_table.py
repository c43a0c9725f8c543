"""The decision table, a test per row, on real files: what is refused is named, and nothing is changed by it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from adr_harness import MEMBER, Member, contents, durably, entries
from raftkv_node.adr import (
    EXIT_ABSENT,
    EXIT_CORRUPT,
    EXIT_DURABILITY,
    EXIT_MISMATCH,
    EXIT_PROVEN_LOST,
    DurabilityTooLow,
    Files,
    Identity,
    Level,
    Refusal,
    Refused,
    Unusable,
)
from raftkv_node.adr.files import FOLDER_MODE
from raftkv_node.adr.log import LogOptions
from raftkv_node.adr.manifest import MANIFEST_FILE, State, read_manifest
from raftkv_node.adr.ringlog import RingLog

EXITS = {
    Refusal.ABSENT: EXIT_ABSENT,
    Refusal.PROVEN_LOST: EXIT_PROVEN_LOST,
    Refusal.CORRUPT: EXIT_CORRUPT,
    Refusal.MISMATCH: EXIT_MISMATCH,
}


def refused(member: Member, row: int, kind: Refusal, says: str = "", options: LogOptions | None = None) -> str:
    """Opening is refused, by this row, in one sentence, and changes nothing."""
    before = contents(member.folder)
    with pytest.raises(Refused) as caught:
        member.open() if options is None else RingLog.open(options)
    error = caught.value
    assert (error.row, error.kind) == (row, kind), str(error)
    assert error.exit_code == EXITS[kind]
    assert says in str(error)
    assert "\n" not in str(error)
    assert contents(member.folder) == before, "a refusal changes nothing"
    return str(error)


def used(member: Member, count: int = 3, *, clean: bool, drain: bool = False) -> None:
    """One opening with a few entries in it."""
    log, recovered = member.open()
    durably(log, entries(1, recovered.last_index + 1, count))
    if drain:
        assert isinstance(log, RingLog)
        log.drain()
    log.close(clean=clean)


@contextmanager
def old_disk(member: Member) -> Iterator[None]:
    """What happens inside is forgotten by the disk afterwards, as by a restored volume; the ring remembers it."""
    copy = member.folder / "copy"
    shutil.copytree(member.data, copy)
    yield
    shutil.rmtree(member.data)
    copy.rename(member.data)


class CopyAtPrepared(Files):
    """Copies the data folder when the manifest has become `prepared`."""

    def __init__(self, data: Path, copy: Path) -> None:
        self.data, self.copy = data, copy

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        manifest = read_manifest(self.data)
        if manifest is not None and manifest.state == State.PREPARED and not self.copy.exists():
            shutil.copytree(self.data, self.copy)


def test_row_1_another_members_ring_is_never_touched(member: Member) -> None:
    used(member, clean=False)
    other = member.options()
    stranger = Identity(other.identity.cluster_id, MEMBER + 1, other.identity.number, b"\x08" * 16, "default", "demo")
    elsewhere = member.folder / "other"
    elsewhere.mkdir()
    changed = member.options(data_dir=elsewhere, identity=stranger)
    refused(member, 1, Refusal.MISMATCH, "belongs to member", changed)


def test_row_1_comes_before_every_other(member: Member) -> None:
    used(member, clean=False)
    path = member.rings()[0].path
    shutil.copy(path, path.with_name("z.ring"))
    foreign = path.with_name("z.ring")
    header = member.rings()[0].header
    import dataclasses

    with foreign.open("r+b") as file:
        file.write(dataclasses.replace(header, cluster_id=1, sequence=header.sequence + 2).encode())
    (member.data / MANIFEST_FILE).unlink()
    refused(member, 1, Refusal.MISMATCH)


@pytest.mark.parametrize("manifest", [None, b"", b"{}\ncrc32c 00000000\n", b"\xff\x00garbage"])
@pytest.mark.parametrize("beside", ["segments", "backend"])
def test_row_2_a_log_or_backend_without_a_manifest_is_corrupt(
    either: Member, manifest: bytes | None, beside: str
) -> None:
    used(either, clean=True)
    path = either.data / MANIFEST_FILE
    path.unlink()
    if manifest is not None:
        path.write_bytes(manifest)
    if beside == "backend":
        shutil.rmtree(either.data / "wal")
        (either.data / "db").write_bytes(b"backend")
    refused(either, 2, Refusal.CORRUPT, "manifest")


def test_row_2_a_flipped_bit_of_the_manifest_is_found(either: Member) -> None:
    used(either, clean=True)
    path = either.data / MANIFEST_FILE
    good = path.read_bytes()
    for at in range(0, len(good), 37):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        refused(either, 2, Refusal.CORRUPT)


def test_row_3_an_empty_disk_beside_this_members_ring_is_a_lost_disk(member: Member) -> None:
    used(member, clean=True)
    shutil.rmtree(member.data)
    member.make()
    (member.data / "identity.json").write_text("identity")
    refused(member, 3, Refusal.MISMATCH, "disk was lost")


def test_row_4_a_folder_with_nothing_but_the_identity_is_empty(either: Member) -> None:
    (either.data / "identity.json").write_text("identity")
    (either.data / "wal").mkdir(mode=FOLDER_MODE)
    log, recovered = either.open()
    assert (recovered.row, recovered.fresh, recovered.generation) == (4, True, 1)
    log.close()


@pytest.mark.parametrize("clean", [True, False])
def test_row_5_a_ring_of_a_later_generation_means_an_old_disk(member: Member, clean: bool) -> None:
    used(member, clean=clean)
    with old_disk(member):
        used(member, clean=False)
    refused(member, 5, Refusal.MISMATCH, "older")


def test_row_5_holds_for_prepared_too(member: Member) -> None:
    copy = member.folder / "copy"
    log, _ = member.open(files=CopyAtPrepared(member.data, copy))
    log.close(clean=False)
    used(member, clean=False)
    shutil.rmtree(member.data)
    copy.rename(member.data)
    refused(member, 5, Refusal.MISMATCH)


def test_row_6_one_generation_with_two_uuids_is_two_histories(member: Member) -> None:
    used(member, clean=True)
    kept = member.folder / "kept.ring"
    with old_disk(member):
        used(member, clean=True)
        shutil.move(member.rings()[0].path, kept)
    used(member, clean=True)
    shutil.move(kept, member.ring_folder / "kept.ring")
    refused(member, 6, Refusal.MISMATCH, "two histories")


def test_row_7_a_prepared_disk_beside_a_ring_in_use_is_older(member: Member) -> None:
    copy = member.folder / "copy"
    log, _ = member.open(files=CopyAtPrepared(member.data, copy))
    durably(log, entries(1, 1, 2))
    log.close(clean=False)
    shutil.rmtree(member.data)
    copy.rename(member.data)
    assert member.manifest().state == State.PREPARED
    refused(member, 7, Refusal.MISMATCH, "older")


@pytest.mark.parametrize("ring", ["kept", "gone", "moved"])
def test_row_8_a_clean_member_needs_no_ring(member: Member, ring: str) -> None:
    used(member, clean=True)
    if ring == "gone":
        member.rings()[0].path.unlink()
    if ring == "moved":
        member.machine.name, member.machine.file_system = "host-b", "uuid:elsewhere"
        shutil.rmtree(member.ring_folder)
    log, recovered = member.open()
    assert (recovered.row, recovered.generation, recovered.last_index) == (8, 2, 3)
    log.close()
    assert len(member.rings()) == 1, "files of older generations go"


def test_row_8_prepared_is_never_reused(member: Member) -> None:
    used(member, clean=True)
    copy = member.folder / "copy"
    log, _ = member.open(files=CopyAtPrepared(member.data, copy))
    log.close(clean=False)
    prepared = member.manifest()
    shutil.rmtree(member.data)
    copy.rename(member.data)
    for path in member.ring_folder.iterdir():
        path.unlink()
    log, recovered = member.open()
    assert (recovered.row, recovered.last_index) == (8, 3)
    assert recovered.generation == prepared.generation + 1
    assert member.manifest().ring_uuid != prepared.ring_uuid
    log.close()


@pytest.mark.parametrize("there", [True, False])
def test_row_9_level_process_does_not_survive_a_reboot(member: Member, there: bool) -> None:
    member.machine.level = Level.PROCESS
    member.changes["minimum_durability"] = Level.PROCESS
    used(member, clean=False)
    member.machine.boot = "boot-2"
    if not there:
        member.rings()[0].path.unlink()
    refused(member, 9, Refusal.PROVEN_LOST, "rebooted")


def test_row_9_is_about_the_recorded_host_and_level(member: Member) -> None:
    used(member, clean=False)
    member.machine.boot = "boot-2"
    log, recovered = member.open()
    assert (recovered.row, recovered.last_index) == (13, 3), "levels above process outlive a boot"
    log.close(clean=False)
    member.machine.level = Level.PROCESS
    member.changes["minimum_durability"] = Level.PROCESS
    used(member, clean=False)
    member.machine.name, member.machine.boot = "host-b", "boot-3"
    log, recovered = member.open()
    assert recovered.row == 13, "another name, the same file system, the ring is there: nothing proves a loss"
    log.close()


def test_d10_four_refusals_have_four_exit_codes_and_the_file_is_left_as_it_was(member: Member) -> None:
    """One life, four things that can happen to it; what is done about each differs, so each says which it is."""
    member.machine.shutdowns = 4
    used(member, clean=False)
    ring = member.rings()[0].path
    elsewhere = member.folder / "elsewhere"
    ring.rename(elsewhere)
    refused(member, 11, Refusal.ABSENT)
    elsewhere.rename(ring)
    manifest = member.data / MANIFEST_FILE
    whole = manifest.read_bytes()
    manifest.write_bytes(b"garbage")
    refused(member, 2, Refusal.CORRUPT)
    manifest.unlink()
    hidden = member.folder / "hidden"
    member.data.rename(hidden)
    member.data.mkdir(FOLDER_MODE)
    refused(member, 3, Refusal.MISMATCH)
    member.data.rmdir()
    hidden.rename(member.data)
    manifest.write_bytes(whole)
    member.machine.shutdowns = 5
    refused(member, 10, Refusal.PROVEN_LOST)
    assert len(set(EXITS.values())) == len(Refusal) == 4


def test_row_10_a_counted_unsafe_shutdown_makes_the_ring_worthless(member: Member) -> None:
    member.machine.shutdowns = 4
    used(member, clean=False)
    member.machine.shutdowns = 5
    refused(member, 10, Refusal.PROVEN_LOST, "unsafe shutdown")


def test_row_10_needs_a_dirty_manifest(member: Member) -> None:
    member.machine.shutdowns = 4
    used(member, clean=True)
    member.machine.shutdowns = 5
    used(member, clean=True)


@pytest.mark.parametrize("what", ["gone", "no mount", "other file system", "other uuid", "older", "no header"])
def test_row_11_an_absent_ring_is_waited_for_and_its_host_named(member: Member, what: str) -> None:
    used(member, clean=True)
    if what in ("older", "other uuid"):
        old = member.folder / "old.ring"
        with old_disk(member):
            used(member, clean=False)
            shutil.move(member.rings()[0].path, old)
    used(member, clean=False)
    path = member.rings()[0].path
    if what == "other file system":
        member.machine.file_system = "uuid:other"
    elif what == "no mount":
        shutil.rmtree(member.pmem)
    elif what == "no header":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        path.unlink()
    if what == "other uuid":
        shutil.move(old, path.with_name("old.ring"))
    if what == "older":
        member.rewrite_manifest(generation=member.manifest().generation + 1)
        shutil.move(old, path.with_name("old.ring"))
    member.machine.name = "host-b"
    assert "host-a" in refused(member, 11, Refusal.ABSENT, "is on host host-a")


def test_row_12_a_disk_older_than_what_the_ring_gave_up(member: Member) -> None:
    log, _ = member.open()
    assert isinstance(log, RingLog)
    durably(log, entries(1, 1, 2))
    log.drain()
    copy = member.folder / "copy"
    shutil.copytree(member.data, copy)
    durably(log, entries(1, 3, 2))
    log.drain()
    log.close(clean=False)
    shutil.rmtree(member.data)
    copy.rename(member.data)
    refused(member, 12, Refusal.MISMATCH, "old copy")


@pytest.mark.parametrize("drain", [True, False])
def test_row_13_ring_and_disk_of_one_age_recover(member: Member, drain: bool) -> None:
    used(member, clean=False, drain=drain)
    log, recovered = member.open()
    assert (recovered.row, recovered.last_index, recovered.generation) == (13, 3, 2)
    assert bool(recovered.replayed) == (not drain)
    log.close()


def test_a_disk_of_another_member_uuid_or_place_is_refused(either: Member) -> None:
    used(either, clean=True)
    good = either.options().identity
    for bad in (
        Identity(good.cluster_id, good.member_id + 1, good.number, good.disk_uuid, "default", "demo"),
        Identity(good.cluster_id, good.member_id, good.number, b"\x09" * 16, "default", "demo"),
        Identity(good.cluster_id, good.member_id, good.number, good.disk_uuid, "default", "other"),
    ):
        changed = either.options(identity=bad, adr_path=None)
        refused(either, 0, Refusal.MISMATCH, "", changed)


@pytest.mark.parametrize("first_with_ring", [True, False])
def test_a_member_changes_its_mode_only_through_clean(member: Member, first_with_ring: bool) -> None:
    member.ring = first_with_ring
    used(member, clean=False)
    member.ring = not first_with_ring
    refused(member, 0, Refusal.MISMATCH, "--adr-path")
    member.ring = first_with_ring
    used(member, clean=True)
    member.ring = not first_with_ring
    log, recovered = member.open()
    assert recovered.last_index == 6
    log.close()


# --- what people and disks do wrong ---


def test_a_truncated_ring_is_corrupt(member: Member) -> None:
    used(member, clean=False)
    path = member.rings()[0].path
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    refused(member, 0, Refusal.CORRUPT, "has")


@pytest.mark.parametrize("where", ["header", "record", "zeros", "name", "short"])
def test_a_garbage_segment_is_corrupt(either: Member, where: str) -> None:
    used(either, clean=True)
    segment = either.segments()[0]
    data = bytearray(segment.read_bytes())
    last = len(data.rstrip(b"\0")) - 1  # in disk mode zeros follow
    if where == "header":
        data[100] ^= 1
    elif where == "record":
        data[last] ^= 1
    elif where == "zeros":
        data[last // 64 * 64 :] = bytes(len(data) - last // 64 * 64)
    elif where == "short":
        del data[last:]
    segment.write_bytes(data)
    if where == "name":
        segment.rename(segment.with_name("garbage.seg"))
    refused(either, 0, Refusal.CORRUPT)


class ReadOnly(Files):
    def create(self, path: Path) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))


def test_a_read_only_disk_is_one_sentence(either: Member) -> None:
    used(either, clean=False)
    before = contents(either.data)
    with pytest.raises(Unusable, match="cannot write"):
        either.open(files=ReadOnly())
    assert contents(either.data)[MANIFEST_FILE] == before[MANIFEST_FILE]
    log, recovered = either.open()
    assert recovered.last_index == 3
    log.close()


def test_weaker_than_asked_for_is_refused(either: Member) -> None:
    either.machine.level = Level.KERNEL
    either.machine.disk_level = Level.POWER if either.ring else Level.PROCESS
    for minimum in (Level.POWER, Level.POWER if either.ring else Level.KERNEL):
        with pytest.raises(DurabilityTooLow, match="weaker than the minimum") as caught:
            either.open(minimum_durability=minimum)
        assert caught.value.exit_code == EXIT_DURABILITY
        assert contents(either.folder) == {}


def test_a_log_is_as_durable_as_the_weaker_of_ring_and_disk(member: Member) -> None:
    member.machine.disk_level = Level.PROCESS
    with pytest.raises(DurabilityTooLow):
        member.open()
    log, _ = member.open(minimum_durability=Level.PROCESS)
    assert log.level == Level.PROCESS
    log.close()
