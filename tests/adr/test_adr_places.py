"""Rings that move, grow, go and share (D8, D11, D12), and the memory that they lie on (D7, rows 9 and 10)."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adr_harness import CLUSTER, DISK, KIB, MEMBER, NUMBER, Machine, Member, durably, entries
from raftkv_node.adr import Environment, Files, Identity, Level, Log, Owned, Refusal, Refused, Unusable, wipe
from raftkv_node.adr.files import FOLDER_MODE
from raftkv_node.adr.manifest import State, write_manifest
from raftkv_node.adr.media import BadBlocks, Media, file_extents
from raftkv_node.adr.places import OLD_PLACES_KEPT
from raftkv_node.adr.ringfile import DATA_OFFSET_BYTES, find_rings, ring_folder
from raftkv_node.adr.ringlog import RingLog

ELSEWHERE = "pmem-2"


def used(member: Member, clean: bool) -> int:
    log, recovered = member.open()
    durably(log, entries(1, recovered.last_index + 1, 3))
    log.close(clean=clean)
    return recovered.last_index + 3


def rings_in(place: Path) -> list[Path]:
    return sorted(place.rglob("*.ring"))


# --- moving ---


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("other_file_system", [True, False])
def test_d8_a_ring_moves_to_another_folder(member: Member, clean: bool, other_file_system: bool) -> None:
    """After a crash, too: recovered from where the manifest says, then the next generation in the new place."""
    if other_file_system:
        member.machine.others = {ELSEWHERE: "uuid:pmem1"}
    last = used(member, clean)
    old = member.pmem
    member.place = ELSEWHERE
    log, recovered = member.open()
    assert (recovered.last_index, recovered.generation, recovered.row) == (last, 2, 8 if clean else 13)
    assert rings_in(old) == [] and len(rings_in(member.pmem)) == 1
    assert not (old / f"{CLUSTER:016x}").exists(), "and its folders, too"
    assert member.manifest().adr_path == str(member.pmem)
    durably(log, entries(1, last + 1, 1))
    assert isinstance(log, RingLog)
    log.drain()
    assert member.manifest().old_places == ()
    log.close(clean=False)
    member.place = "pmem"
    log, recovered = member.open()
    assert recovered.last_index == last + 1, "and back"
    log.close()


def test_d8_the_old_ring_goes_only_when_the_new_generation_is_in_use(member: Member) -> None:
    class Watched(Files):
        def unlink(self, path: Path) -> None:
            if path.suffix == ".ring":
                manifest = member.manifest()
                assert (manifest.state, manifest.generation) == (State.DIRTY, 2)
                seen.append(path)
            super().unlink(path)

    seen: list[Path] = []
    used(member, clean=False)
    member.place = ELSEWHERE
    log, _ = member.open(files=Watched())
    assert len(seen) == 1
    log.close()


def test_d8_an_old_ring_that_could_not_be_removed_is_remembered(member: Member) -> None:
    """Its folder was not mounted when the ring moved away after a clean stop."""
    used(member, clean=True)
    old, hidden = member.pmem, member.folder / "hidden"
    old.rename(hidden)
    member.place = ELSEWHERE
    used(member, clean=False)
    assert member.manifest().old_places == ((str(old), "uuid:pmem0"),)
    hidden.rename(old)
    assert len(rings_in(old)) == 1
    used(member, clean=True)
    assert rings_in(old) == []
    assert member.manifest().old_places == ()


def test_d8_so_many_old_places_are_remembered_and_no_more(member: Member) -> None:
    for number in range(OLD_PLACES_KEPT + 3):
        member.place = f"gone-{number}"
        member.pmem.mkdir()
        used(member, clean=True)
        shutil.rmtree(member.pmem)
    member.place = "pmem"
    used(member, clean=True)
    names = [Path(path).name for path, _ in member.manifest().old_places]
    assert names == [f"gone-{number}" for number in range(3, OLD_PLACES_KEPT + 3)]


def test_row_11_the_same_path_on_another_host_is_another_place(member: Member) -> None:
    """The recorded folder counts only on the recorded file system; what lies there is not touched."""
    last = used(member, clean=False)
    old = member.pmem
    member.machine.file_system = "uuid:of-another-host"
    member.place = ELSEWHERE
    with pytest.raises(Refused) as caught:
        member.open()
    assert (caught.value.kind, caught.value.row) == (Refusal.ABSENT, 11)
    assert str(old) in str(caught.value)
    assert len(rings_in(old)) == 1
    member.machine.file_system = "uuid:pmem0"
    log, recovered = member.open()
    assert recovered.last_index == last
    log.close()


def test_row_11_the_recorded_place_seen_from_another_host_is_another_place(member: Member) -> None:
    """Two hosts that share what lies behind a path, as the playground's do: the ring stays on its host (D10)."""
    last = used(member, clean=False)
    home = member.machine.name
    member.machine.name = "host-b"
    member.place = ELSEWHERE
    with pytest.raises(Refused) as caught:
        member.open()
    assert (caught.value.kind, caught.value.row) == (Refusal.ABSENT, 11)
    assert home in str(caught.value)
    member.machine.name = home
    log, recovered = member.open()
    assert recovered.last_index == last
    log.close()


def test_row_11_a_copied_ring_in_the_new_place_is_not_the_ring(member: Member) -> None:
    used(member, clean=False)
    member.machine.others = {ELSEWHERE: "uuid:pmem1"}
    old = member.ring_folder
    member.place = ELSEWHERE
    shutil.copytree(old, member.ring_folder)
    shutil.rmtree(old)
    with pytest.raises(Refused) as caught:
        member.open()
    assert caught.value.row == 11


@pytest.mark.parametrize("clean", [True, False])
def test_row_5_is_seen_in_the_recorded_place_too(member: Member, clean: bool) -> None:
    """A restored disk, started with another folder: the ring in its own one has gone on."""
    used(member, clean=clean)
    copy = member.folder / "copy"
    shutil.copytree(member.data, copy)
    used(member, clean=False)
    shutil.rmtree(member.data)
    copy.rename(member.data)
    member.place = ELSEWHERE
    with pytest.raises(Refused) as caught:
        member.open()
    assert (caught.value.row, caught.value.kind) == (5, Refusal.MISMATCH)


def test_d11_a_recorded_place_in_use_is_not_taken(member: Member) -> None:
    """Another process has the folder where this disk's ring is said to be."""
    used(member, clean=False)
    fd = os.open(member.ring_folder, os.O_RDONLY)
    import fcntl

    fcntl.flock(fd, fcntl.LOCK_EX)
    member.place = ELSEWHERE
    try:
        with pytest.raises(Owned, match="former"):
            member.open()
    finally:
        os.close(fd)
    log, _ = member.open()
    log.close()


@pytest.mark.parametrize("first_bytes, second_bytes", [(24 * KIB, 64 * KIB), (64 * KIB, 24 * KIB)])
@pytest.mark.parametrize("clean", [True, False])
def test_d8_a_ring_grows_and_shrinks(member: Member, first_bytes: int, second_bytes: int, clean: bool) -> None:
    member.changes["adr_size_bytes"] = first_bytes
    last = used(member, clean)
    member.changes["adr_size_bytes"] = second_bytes
    log, recovered = member.open()
    assert recovered.last_index == last
    assert [ring.header.size_bytes for ring in member.rings()] == [second_bytes]
    assert log.stats()["ring_size_bytes"] == second_bytes - DATA_OFFSET_BYTES
    durably(log, entries(1, last + 1, 2))
    log.close(clean=False)
    log, recovered = member.open()
    assert recovered.last_index == last + 2
    log.close()


def test_d12_from_ring_to_disk_and_back_only_through_clean_and_no_old_ring_stays(member: Member) -> None:
    last = used(member, clean=False)
    member.ring = False
    with pytest.raises(Refused) as caught:
        member.open()
    assert caught.value.kind == Refusal.MISMATCH
    member.ring = True
    last = used(member, clean=True)
    member.ring = False
    log, recovered = member.open()
    assert recovered.last_index == last
    assert rings_in(member.pmem) == [], "the old ring goes when the disk's generation is in use"
    assert (member.manifest().adr_path, member.manifest().old_places) == ("", ((str(member.pmem), "uuid:pmem0"),))
    log.close()
    assert member.manifest().old_places == ()
    member.ring = True
    log, recovered = member.open()
    assert recovered.last_index == last
    log.close()


# --- several rings on one file system ---


def neighbour(member: Member, cluster: int, number: int, name: str) -> Member:
    other = Member(member.folder / name, member.machine, place="../pmem")
    other.data.mkdir(parents=True)
    other.changes["identity"] = Identity(cluster, MEMBER + number, number, name.encode().ljust(16), "default", "demo")
    return other


def test_d11_members_and_clusters_share_a_folder_of_persistent_memory(member: Member) -> None:
    """Each has a folder, a lock and files of its own, and removes nobody else's."""
    members = [
        member,
        neighbour(member, CLUSTER, NUMBER + 1, "second"),
        neighbour(member, CLUSTER + 1, NUMBER, "third"),
    ]
    logs: list[Log] = []
    for one in members:
        log, _ = one.open()
        logs.append(log)
    for number, log in enumerate(logs):
        durably(log, entries(number + 1, 1, 3 + number))
    for one in members:
        with pytest.raises(Owned):
            one.open()
    logs[0].close(clean=False)
    logs[1].close()
    logs[2].close(clean=False)
    for number, one in enumerate(members):
        log, recovered = one.open()
        assert (recovered.last_index, recovered.last_term) == (3 + number, number + 1)
        log.close(clean=False)
    assert len(rings_in(member.pmem)) == 3
    log, _ = members[0].open()
    log.retire()
    assert len(rings_in(member.pmem)) == 2
    for one in members[1:]:
        log, recovered = one.open()
        assert recovered.last_index > 0
        log.close()


class Small(Files):
    """Persistent memory with room for so many rings."""

    def __init__(self, place: Path, rings: int) -> None:
        self.place, self.room = place, rings

    def create(self, path: Path) -> int:
        if path.suffix == ".ring" and len(rings_in(self.place)) >= self.room:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return super().create(path)


def test_a_file_system_without_room_for_one_more_ring_says_what_to_do(member: Member) -> None:
    files = Small(member.pmem, 1)
    log, _ = member.open(files=files)
    other = neighbour(member, CLUSTER, NUMBER + 1, "second")
    with pytest.raises(Unusable, match=r"does not fit.*1 log buffers are there.*lower --adr-size") as caught:
        other.open(files=files)
    assert "\n" not in str(caught.value)
    log.close()
    assert len(rings_in(member.pmem)) == 1, "the neighbour's is not touched"
    log, _ = member.open(files=files)
    log.close()


def test_no_room_in_the_new_place_leaves_the_ring_in_the_old_one(member: Member) -> None:
    last = used(member, clean=False)
    member.place = ELSEWHERE
    with pytest.raises(Unusable, match="does not fit"):
        member.open(files=Small(member.pmem, 0))
    member.place = "pmem"
    log, recovered = member.open()
    assert (recovered.last_index, recovered.row) == (last, 13)
    log.close()


def test_two_members_make_the_folder_of_their_cluster_at_once(member: Member) -> None:
    class Late(Files):
        def mkdir(self, path: Path) -> None:
            path.mkdir(mode=FOLDER_MODE, exist_ok=True)
            super().mkdir(path)

    log, _ = member.open(files=Late())
    log.close()


# --- what sysfs tells ---


class Sysfs:
    """A machine's persistent memory as sysfs shows it: one region over two modules, one device with a partition."""

    def __init__(self, root: Path, for_folder: Path) -> None:
        self.bus = root / "devices" / "ndbus0"
        self.region = self.bus / "region0"
        self.disk = self.region / "namespace0.0" / "block" / "pmem0"
        self.disk.mkdir(parents=True)
        for module in ("nmem0", "nmem1", "nmem2"):
            (self.bus / module / "nfit").mkdir(parents=True)
            (self.bus / module / "nfit" / "dirty_shutdown").write_text("1\n")
        (self.region / "mapping0").write_text("nmem0,0,268435456,0\n")
        (self.region / "mapping1").write_text("nmem1,0,268435456,1\n")
        (self.region / "persistence_domain").write_text("memory_controller\n")
        (self.region / "deep_flush").write_text("1\n")
        (self.disk / "badblocks").write_text("")
        self.root = root
        self.point(for_folder, self.disk)

    def point(self, folder: Path, device: Path) -> None:
        number = folder.stat().st_dev
        link = self.root / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(device)


@pytest.fixture
def sysfs(tmp_path: Path, folder: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys", folder)


def test_d7_unsafe_shutdowns_are_those_of_the_regions_own_modules(folder: Path, sysfs: Sysfs) -> None:
    media = Media(sysfs.root)
    assert media.unsafe_shutdowns(folder) == 2
    (sysfs.bus / "nmem1" / "nfit" / "dirty_shutdown").write_text("0x5\n")
    (sysfs.bus / "nmem2" / "nfit" / "dirty_shutdown").write_text("99\n")
    assert media.unsafe_shutdowns(folder) == 6, "another region's module does not count"
    shutil.rmtree(sysfs.bus / "nmem0" / "nfit")
    (sysfs.bus / "nmem0" / "cxl").mkdir()
    (sysfs.bus / "nmem0" / "cxl" / "dirty_shutdown").write_text("3\n")
    assert media.unsafe_shutdowns(folder) == 8
    for module in ("nmem0", "nmem1"):
        shutil.rmtree(sysfs.bus / module)
        (sysfs.bus / module).mkdir()
    assert media.unsafe_shutdowns(folder) is None, "not counted is not zero"


def test_d12_the_persistence_domain_is_the_weakest_of_all_regions(folder: Path, sysfs: Sysfs) -> None:
    media = Media(sysfs.root)
    assert media.persistence_domain(folder) == "memory_controller"
    second = sysfs.bus / "region1"
    (second / "namespace1.0" / "block" / "pmem1").mkdir(parents=True)
    mapped = sysfs.root / "devices" / "virtual" / "block" / "dm-0"
    (mapped / "slaves").mkdir(parents=True)
    (mapped / "slaves" / "pmem0").symlink_to(sysfs.disk)
    (mapped / "slaves" / "pmem1").symlink_to(second / "namespace1.0" / "block" / "pmem1")
    sysfs.point(folder, mapped)
    assert len(media.regions(folder)) == 2
    assert media.persistence_domain(folder) is None
    (second / "persistence_domain").write_text("cpu_cache\n")
    assert media.persistence_domain(folder) == "memory_controller"
    (sysfs.region / "persistence_domain").write_text("cpu_cache\n")
    assert media.persistence_domain(folder) == "cpu_cache"


def test_bad_blocks_are_counted_and_placed(folder: Path, sysfs: Sysfs) -> None:
    media = Media(sysfs.root)
    assert media.bad_blocks(folder) == BadBlocks(0, ())
    (sysfs.disk / "badblocks").write_text("8 2\n4096 1\n")
    assert media.bad_blocks(folder) == BadBlocks(3, ((4096, 1024), (4096 * 512, 512)))
    part = sysfs.disk / "pmem0p1"
    part.mkdir()
    for name, text in (("partition", "1"), ("start", "9"), ("size", "2048")):
        (part / name).write_text(text)
    sysfs.point(folder, part)
    assert media.bad_blocks(folder) == BadBlocks(1, ((0, 512),)), "counted from the partition's start, and to its end"
    mapped = sysfs.root / "devices" / "virtual" / "block" / "dm-0"
    (mapped / "slaves").mkdir(parents=True)
    (mapped / "slaves" / "pmem0").symlink_to(sysfs.disk)
    sysfs.point(folder, mapped)
    assert media.bad_blocks(folder) == BadBlocks(3, None), "how many, but not where"


def test_bad_blocks_are_found_in_a_files_extents() -> None:
    bad = BadBlocks(3, ((4096, 1024), (1 << 20, 512)))
    assert bad.overlap_sectors([(0, 4096)]) == 0
    assert bad.overlap_sectors([(0, 4097)]) == 1
    assert bad.overlap_sectors([(4608, 8192), (1 << 20, 4096)]) == 2
    assert bad.overlap_sectors(None) is None
    assert BadBlocks().overlap_sectors(None) == 0
    assert BadBlocks(1, None).overlap_sectors([(0, 1)]) is None


def test_a_files_extents_are_found_where_the_file_system_tells(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(100 * KIB))
    extents = file_extents(file)
    assert extents is None or sum(size for _, size in extents) >= 100 * KIB


def test_a_machine_that_tells_nothing_is_no_error(folder: Path, tmp_path: Path) -> None:
    media = Media(tmp_path / "nowhere")
    assert (media.regions(folder), media.unsafe_shutdowns(folder), media.persistence_domain(folder)) == ([], None, None)
    assert (media.bad_blocks(folder), media.deep_flush(folder)) == (BadBlocks(), None)


def test_deep_flush_is_asked_for_where_it_is_offered(
    folder: Path, sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = Media(sysfs.root)
    (sysfs.region / "deep_flush").write_text("0\n")
    assert media.deep_flush(folder) is None
    (sysfs.region / "deep_flush").write_text("1\n")
    asked: list[Path] = []
    write = Path.write_text

    def watched(self: Path, text: str, *given: Any, **named: Any) -> int:
        asked.append(self)
        return write(self, text, *given, **named)

    monkeypatch.setattr(Path, "write_text", watched)
    assert media.deep_flush(folder) is True
    assert asked == [sysfs.region / "deep_flush"]

    def read_only(self: Path, *_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", read_only)
    assert media.deep_flush(folder) is False


def test_d7_the_header_is_deeply_flushed_before_the_generation_is_in_use(member: Member) -> None:
    """Row 10 rests on it: the count and "in use" must not be lost with what they tell of."""
    seen: list[tuple[State, list[int]]] = []

    class Flushing(Machine):
        def deep_flush(self, folder: Path) -> bool | None:
            rings = [ring for ring in find_rings(folder) if ring.header.generation == 1]
            seen.append((member.manifest().state, [ring.header.sequence for ring in rings]))
            return True

    member.machine = Flushing(shutdowns=7)
    log, _ = member.open()
    assert seen == [(State.PREPARED, [1])], "both header copies are there, the manifest is not dirty yet"
    assert member.rings()[0].header.unsafe_shutdowns == 7
    assert log.stats()["unsafe_shutdowns"] == 7
    log.close()


def test_row_10_holds_in_the_recorded_place_too(member: Member) -> None:
    member.machine.shutdowns = 3
    used(member, clean=False)
    member.machine.shutdowns = 4
    member.place = ELSEWHERE
    with pytest.raises(Refused) as caught:
        member.open()
    assert (caught.value.row, caught.value.kind) == (10, Refusal.PROVEN_LOST)


# --- bad blocks ---


class Worn(Machine):
    """Memory with a bad block: so many of the next files get it."""

    hits = 0

    def extents(self, path: Path) -> list[tuple[int, int]] | None:
        self.hits -= 1
        return [(0, 1 << 20)] if self.hits >= 0 else [(1 << 30, 1 << 20)]


@pytest.mark.parametrize("hits", [0, 1, 2])
def test_a_ring_is_put_where_there_are_no_bad_blocks(member: Member, hits: int) -> None:
    worn = Worn(bad=BadBlocks(2, ((4096, 1024),)))
    worn.hits = hits
    member.machine = worn
    log, _ = member.open()
    assert len(rings_in(member.pmem)) == 1, "the bad ones are gone again"
    assert member.rings()[0].path.name == member.manifest().ring_file
    assert log.stats()["bad_sectors"] == 2
    last = durably(log, entries(1, 1, 3))
    assert last
    log.close()


def test_a_memory_that_is_bad_everywhere_is_refused_and_nothing_is_lost(member: Member) -> None:
    last = used(member, clean=False)
    worn = Worn(bad=BadBlocks(2, ((4096, 1024),)))
    worn.hits = 100
    good, member.machine = member.machine, worn
    with pytest.raises(Unusable, match=r"bad blocks \(2 sectors.*another --adr-path"):
        member.open()
    assert len(rings_in(member.pmem)) == 1
    member.machine = good
    log, recovered = member.open()
    assert recovered.last_index == last
    log.close()


def test_where_a_file_lies_is_not_told_reading_it_decides(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    from raftkv_node.adr import opening as opening_module

    class Mapped(Machine):
        def extents(self, path: Path) -> list[tuple[int, int]] | None:
            return None

    member.machine = Mapped(bad=BadBlocks(5, None))
    answers = [False, True]
    monkeypatch.setattr(opening_module, "readable", lambda path: answers.pop(0))
    log, _ = member.open()
    assert answers == []
    log.close()


def test_memory_that_cannot_be_written_is_left_for_another(member: Member) -> None:
    class Poisoned(Files):
        left = 1

        def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
            if self.left and Path(f"/proc/self/fd/{fd}").readlink().suffix == ".ring":
                self.left -= 1
                raise OSError(errno.EIO, "Input/output error")
            super().pwrite(fd, data, offset)

    log, _ = member.open(files=Poisoned())
    assert len(rings_in(member.pmem)) == 1
    log.close()


# --- retiring ---


class Interrupted(Exception):
    pass


class Stops(Files):
    """Stops at its n-th deletion."""

    def __init__(self, deletions: int) -> None:
        self.left = deletions

    def unlink(self, path: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        super().unlink(path)


@pytest.mark.parametrize("deletions", range(7))
def test_an_interrupted_wipe_is_finished(member: Member, deletions: int) -> None:
    """Rings in both places, segments in a folder of their own, one that was being made anew; the manifest last."""
    drain = member.folder / "drain"
    drain.mkdir()
    member.changes.update(drain_dir=drain, segment_size_bytes=600)
    used(member, clean=True)
    shutil.copytree(member.pmem, member.folder / "kept")
    member.place = ELSEWHERE
    log, _ = member.open()
    for first in (4, 7, 10):
        durably(log, entries(1, first, 3))
        assert isinstance(log, RingLog)
        log.drain()
    shutil.copytree(member.folder / "kept", member.folder / "pmem", dirs_exist_ok=True)
    member.rewrite_manifest(old_places=((str(member.folder / "pmem"), "uuid:pmem0"),))
    (drain / (member.segments_in(drain)[-1].name + ".new")).write_bytes(b"half")
    assert len(member.segments_in(drain)) > 2
    log._files = Stops(deletions)
    try:
        log.retire()
    except Interrupted:
        assert member.manifest(), "the manifest goes last: it says where the rest is"
        log._unlock()
        wipe(Files(), member.data, drain, member.pmem, (CLUSTER, NUMBER), member.machine)
    assert rings_in(member.folder / "pmem") + rings_in(member.pmem) == []
    assert [path for path in [*member.data.rglob("*"), *drain.rglob("*")] if path.is_file()] == []
    wipe(Files(), member.data, drain, member.pmem, (CLUSTER, NUMBER), member.machine)
    log, recovered = member.open()
    assert recovered.fresh
    log.close()


def test_a_wipe_touches_no_other_clusters_ring(member: Member) -> None:
    used(member, clean=True)
    header = member.rings()[0].header
    path = ring_folder(member.pmem, CLUSTER, NUMBER) / ("ff" * 16 + ".ring")
    path.write_bytes(replace(header, cluster_id=CLUSTER + 1).encode().ljust(DATA_OFFSET_BYTES, b"\0"))
    with pytest.raises(Refused) as caught:
        wipe(Files(), member.data, member.data / "wal", member.pmem, (CLUSTER, NUMBER), member.machine)
    assert (caught.value.kind, caught.value.row) == (Refusal.MISMATCH, 1)
    assert path.exists() and len(member.rings()) == 2


def test_a_manifest_of_another_shape_is_invalid(member: Member) -> None:
    used(member, clean=True)
    write_manifest(Files(), member.data, member.manifest().replace(old_places=(("only one",),)))  # type: ignore[arg-type]
    with pytest.raises(Refused) as caught:
        member.open()
    assert caught.value.row == 2


def test_the_real_machine_is_asked_without_harm(tmp_path: Path) -> None:
    machine = Environment()
    found = machine.whereabouts(tmp_path)
    assert found.file_system == machine.probe_ring(tmp_path).identity
    assert machine.bad_blocks(tmp_path).sectors >= 0
    assert Level.PROCESS.rank < Level.POWER.rank and DISK
