"""`raftkv adr` as a person uses it: probe, inspect, verify, drain, through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adr_harness import CLUSTER, NUMBER, Machine, Member, contents, durably, entries
from raftkv_node.adr import (
    EXIT_ABSENT,
    EXIT_CORRUPT,
    EXIT_MISMATCH,
    EXIT_OWNED,
    EXIT_PROVEN_LOST,
    EXIT_UNUSABLE,
    Environment,
    Files,
    Level,
    Medium,
    Probe,
    hard_state,
    tools,
)
from raftkv_node.adr.manifest import State
from raftkv_node.adr.probing import probe, ring_reason
from raftkv_node.adr.ringfile import DATA_OFFSET_BYTES, read_headers
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.adr.segments import SEGMENT_HEADER_BYTES
from raftkv_node.cli import main
from raftkv_node.config import EXIT_USAGE
from test_adr_places import Sysfs

Cli = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """`raftkv adr ...`: exit code and lines."""

    def run(*words: object) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = main(["adr", *map(str, words)])
        return code, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def real(folder: Path) -> Member:
    """A member on the machine as it is, as the command line sees it."""
    changes = {"environment": Environment(), "minimum_durability": Level.PROCESS}
    return Member(folder, Machine(), changes=changes).make()


def used(member: Member, clean: bool, drained: bool = False) -> None:
    log, recovered = member.open()
    follows = recovered.last_index + 1
    durably(log, [hard_state(3, 5, follows), *entries(3, follows, 4)])
    if drained and isinstance(log, RingLog):
        log.drain()
        durably(log, entries(3, follows + 4, 2))
    log.close(clean=clean)


# --- verify ---


@pytest.mark.parametrize("clean", [True, False])
def test_verify_says_what_a_start_would_recover(real: Member, cli: Cli, clean: bool) -> None:
    used(real, clean, drained=True)
    before = contents(real.folder)
    code, lines = cli("verify", real.data)
    assert code == 0
    assert "entries 1 to 6 (term 3)" in lines[0]
    assert "term 3, vote 0000000000000005, commit 1" in lines[1]
    assert f"{0 if clean else 2} records" in lines[2]
    assert f"row {8 if clean else 13} " in lines[3]
    assert contents(real.folder) == before, "nothing is changed"
    code, lines = cli("verify", real.data, "--adr-path", real.pmem, "--json")
    found = json.loads("\n".join(lines))
    assert (code, found["last_index"], found["vote"], found["row"]) == (0, 6, "0" * 15 + "5", 8 if clean else 13)


def test_verify_tells_the_first_damage(real: Member, cli: Cli) -> None:
    used(real, clean=False, drained=True)
    segment = real.segments()[0]
    data = bytearray(segment.read_bytes())
    data[SEGMENT_HEADER_BYTES + 400] ^= 1
    segment.write_bytes(data)
    code, lines = cli("verify", real.data)
    assert code == EXIT_CORRUPT
    assert lines[0].startswith(f"damaged: segment {segment} is damaged") and "LSN" in lines[0]


def test_verify_refuses_as_a_start_would(real: Member, cli: Cli) -> None:
    used(real, clean=False)
    ring = real.rings()[0].path
    kept = ring.read_bytes()
    ring.write_bytes(kept[: DATA_OFFSET_BYTES + 64])
    assert cli("verify", real.data)[0] == EXIT_CORRUPT
    ring.unlink()
    code, lines = cli("verify", real.data)
    assert code == EXIT_ABSENT
    assert lines[0].startswith("refused (absent, row 11)") and str(real.pmem) in lines[0]
    shutil.rmtree(real.pmem)
    assert cli("verify", real.data)[0] == EXIT_ABSENT


def test_verify_and_drain_leave_a_running_member_alone(real: Member, cli: Cli) -> None:
    log, _ = real.open()
    durably(log, entries(1, 1, 3))
    for command in ("verify", "drain"):
        code, lines = cli(command, real.data)
        assert code == EXIT_OWNED
        assert "stop it first" in lines[0]
    log.close()


def test_a_clean_log_is_verified_without_its_ring(real: Member, cli: Cli) -> None:
    used(real, clean=True)
    shutil.rmtree(real.pmem)
    assert cli("verify", real.data)[0] == 0


@pytest.mark.parametrize("command", ["verify", "drain"])
def test_where_there_is_no_log_it_is_said(folder: Path, cli: Cli, command: str) -> None:
    code, lines = cli(command, folder)
    assert (code, lines) == (EXIT_UNUSABLE, [f"there is no log in {folder}"])
    code, lines = cli(command, folder / "nowhere")
    assert (code, lines) == (EXIT_UNUSABLE, [f"the data folder {folder / 'nowhere'} does not exist"])
    (folder / "wal").mkdir()
    (folder / "wal" / "0000000000000000-0000000000000001.seg").write_bytes(b"")
    assert cli(command, folder)[0] == EXIT_CORRUPT
    (folder / "manifest.json").write_bytes(b"{}")
    code, lines = cli(command, folder)
    assert code == EXIT_CORRUPT and "manifest" in lines[0]
    assert cli("inspect", folder)[0] == EXIT_CORRUPT


# --- drain ---


def test_d9_drain_brings_a_killed_members_log_to_disk_and_marks_it_clean(real: Member, cli: Cli) -> None:
    """Then its ring is not needed: it may move, or change to disk mode."""
    used(real, clean=False, drained=True)
    generation = real.manifest().generation
    code, lines = cli("drain", real.data)
    assert code == 0
    assert lines[0].startswith("drained: 2 records (")
    assert "entries 1 to 6" in lines[1]
    manifest = real.manifest()
    assert (manifest.state, manifest.generation) == (State.CLEAN, generation)
    header = real.rings()[0].header
    assert (header.clean, header.reclaimed_lsn) == (True, manifest.drained_lsn)
    code, lines = cli("drain", real.data)
    assert code == 0 and lines[0].startswith("nothing to do")
    shutil.rmtree(real.ring_folder)
    real.ring = False
    log, recovered = real.open()
    assert (recovered.last_index, recovered.row, recovered.hard_state) == (6, 8, (3, 5, 1))
    assert [item.payload for item in recovered.entries] == [b"value-%d" % n for n in range(1, 7)]
    log.close()


def test_row_12_a_disk_older_than_the_drain_is_found(real: Member, cli: Cli) -> None:
    """The ring's header says what was brought to disk: an old copy of the disk beside it is refused."""
    used(real, clean=False)
    copy = real.folder / "copy"
    shutil.copytree(real.data, copy)
    assert cli("drain", real.data)[0] == 0
    shutil.rmtree(real.data)
    copy.rename(real.data)
    code, lines = cli("drain", real.data)
    assert code == EXIT_MISMATCH
    assert lines[0].startswith("refused (mismatch, row 12)")


def test_drain_ends_disk_mode_cleanly_too(real: Member, cli: Cli) -> None:
    real.ring = False
    used(real, clean=False)
    assert cli("drain", real.data)[0] == 0
    assert real.manifest().state == State.CLEAN
    real.ring = True
    log, recovered = real.open()
    assert recovered.last_index == 4
    log.close()


def test_drain_refuses_what_the_table_refuses_and_changes_nothing(member: Member) -> None:
    used(member, clean=False)
    before = contents(member.folder)
    for change, expected in (({"shutdowns": 9}, EXIT_PROVEN_LOST), ({"file_system": "uuid:other"}, EXIT_ABSENT)):
        member.rewrite_manifest(unsafe_shutdowns=3)
        before = contents(member.folder)
        said: list[str] = []
        machine = Machine(**change)  # type: ignore[arg-type]
        assert tools.drain(member.data, member.pmem, said.append, environment=machine) == expected
        assert contents(member.folder) == before


class Killed(Exception):
    pass


class Mortal(Files):
    """Its process is killed at its n-th change."""

    left = 1 << 30

    def _change(self) -> None:
        Mortal.left -= 1
        if Mortal.left < 0:
            raise Killed

    def fsync(self, fd: int) -> None:
        self._change()
        super().fsync(fd)

    def fdatasync(self, fd: int) -> None:
        self._change()
        super().fdatasync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self._change()
        super().rename(source, target)

    def sync_folder(self, path: Path) -> None:
        self._change()
        super().sync_folder(path)


def test_a_drain_that_is_killed_anywhere_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raftkv_node.adr.log import LogOptions

    original = LogOptions

    def mortal(**values: Any) -> LogOptions:
        return original(**values, files=Mortal())

    monkeypatch.setattr(tools, "LogOptions", mortal)
    for changes in range(40):
        member = Member(folder / str(changes), Machine()).make()
        used(member, clean=False, drained=True)
        Mortal.left = changes
        try:
            tools.drain(member.data, say=lambda _: None, environment=member.machine)
            killed = False
        except Killed:
            killed = True
        log, recovered = member.open()
        assert recovered.last_index == 6
        log.close(clean=False)
        if not killed:
            assert changes > 8
            return
    raise AssertionError("it never ended")


# --- inspect ---


def test_inspect_shows_what_is_there(real: Member, cli: Cli) -> None:
    used(real, clean=False, drained=True)
    secret = real.manifest().secret
    for place in ([], ["--adr-path", real.pmem]):
        code, lines = cli("inspect", real.data, *place)
        text = "\n".join(lines)
        assert code == 0
        assert secret not in text, "the secret is nobody's business"
        assert "manifest state: dirty" in lines
        assert f"ring {real.rings()[0].path}: the manifest's, " in text
        assert text.count("  header sequence ") == 2
        assert "2 records (256 bytes) up to LSN" in text
        assert f"segment {real.segments()[0].name}: " in text and "generation 1, LSN 0 to " in text


def test_inspect_gives_json(real: Member, cli: Cli) -> None:
    used(real, clean=False, drained=True)
    code, lines = cli("inspect", real.data, "--json")
    found = json.loads("\n".join(lines))
    assert code == 0
    assert found["manifest"]["generation"] == 1 and "secret" not in found["manifest"]
    (ring,) = found["rings"]
    assert ring["is"] == "the manifest's" and ring["undrained_records"] == 2 and ring["damage"] is None
    assert 0 < ring["fill"] < 0.1
    assert [header["sequence"] for header in ring["headers"]] == [2, 1]
    assert found["segments"][0]["valid"] and found["segments"][0]["start_lsn"] == 0


def test_inspect_tells_strangers_old_rings_and_damage(real: Member, cli: Cli) -> None:
    used(real, clean=False)
    ring = real.rings()[0]
    (real.ring_folder / ("00" * 16 + ".ring")).write_bytes(bytes(DATA_OFFSET_BYTES))
    code, lines = cli("inspect", real.data)
    assert code == 0 and any("no ring (no valid header)" in line for line in lines)
    real.rewrite_manifest(generation=ring.header.generation + 1)
    assert any(": older, " in line for line in cli("inspect", real.data)[1])
    real.rewrite_manifest(generation=ring.header.generation - 1)
    assert any("newer than the disk" in line for line in cli("inspect", real.data)[1])
    real.rewrite_manifest(member_id="ff" * 8)
    assert any(f"of member {0xA1:016x} of cluster {CLUSTER:016x}" in line for line in cli("inspect", real.data)[1])
    code, lines = cli("inspect", real.folder / "nowhere")
    assert code == EXIT_UNUSABLE and "there is no such folder" in lines[0]
    assert read_headers(ring.path) and NUMBER == 3


def test_a_folder_of_segments_of_its_own_is_named_by_its_flag(real: Member, cli: Cli) -> None:
    drain = real.folder / "drain"
    drain.mkdir()
    real.changes["drain_dir"] = drain
    used(real, clean=False, drained=True)
    assert cli("verify", real.data)[0] == EXIT_CORRUPT, "the segments are missing"
    for command in ("inspect", "verify", "drain"):
        code, lines = cli(command, real.data, "--adr-drain-dir", drain)
        assert code == 0, lines


def test_wrong_words_are_usage(cli: Cli, folder: Path) -> None:
    assert cli("drain")[0] == EXIT_USAGE
    assert cli("defragment", folder)[0] == EXIT_USAGE
    assert cli("--help")[0] == 0


# --- probe ---


class Found(Environment):
    """A machine with memory of which everything can be said."""

    def __init__(self, found: Probe, sysfs: Path) -> None:
        self._found, self.sysfs = found, sysfs

    def probe_ring(self, folder: Path) -> Probe:
        return self._found


@pytest.mark.parametrize(
    "found, because",
    [
        (Probe(Level.PROCESS, Medium.FILE, "tmpfs", "t"), "gone at a reboot"),
        (Probe(Level.PROCESS, Medium.FILE, "ext4", "u"), "not in DAX state"),
        (Probe(Level.PROCESS, Medium.FILE, "virtiofs", "u", dax=True), "does not grant MAP_SYNC"),
        (Probe(Level.PROCESS, Medium.PMEM, "ext4", "u", True, True, "memory_controller"), "cannot write cache lines"),
        (Probe(Level.KERNEL, Medium.PMEM, "ext4", "u", True, True), "no region names a persistence domain"),
        (Probe(Level.POWER, Medium.PMEM, "ext4", "u", True, True, "cpu_cache", "none"), "saves it at power loss"),
    ],
)
def test_d12_probe_says_why_a_level_is_what_it_is(found: Probe, because: str) -> None:
    assert because in ring_reason(found)


def test_probe_tells_each_check(folder: Path, tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path / "sys", folder)
    (sysfs.disk / "badblocks").write_text("8 2\n")
    found = Probe(Level.POWER, Medium.PMEM, "ext4", "uuid:1", True, True, "memory_controller", "auto", 2, 2)
    said: list[str] = []
    assert probe(folder, said.append, Found(found, sysfs.root)) == 0
    values = {line.partition(":")[0]: line.partition(":")[2].strip() for line in said}
    assert values["DAX"].startswith("yes (statx")
    assert values["MAP_SYNC"].startswith("yes")
    assert values["memory regions"].startswith("region0")
    assert values["persistence domain"].startswith("memory_controller")
    assert values["bad blocks"].startswith("2 (")
    assert values["unsafe shutdowns"].startswith("2 (")
    assert values["as a log buffer"].startswith("level power, medium pmem: MAP_SYNC")
    said.clear()
    assert probe(folder, said.append, Found(found, sysfs.root), as_json=True) == 0
    document: dict[str, Any] = json.loads(said[0])
    assert document["log_buffer"]["level"] == "power"
    assert {check["check"] for check in document["checks"]} >= {"DAX", "MAP_SYNC", "bad blocks", "unsafe shutdowns"}
    assert contents(folder) == {}, "nothing is left behind"
    assert contents(folder) == {}


def test_probe_tells_of_this_machine_and_leaves_nothing_behind(folder: Path, cli: Cli) -> None:
    code, lines = cli("probe", folder)
    assert code == 0 and any(line.startswith("as a log buffer:") for line in lines)
    code, lines = cli("probe", folder, "--json")
    assert json.loads("\n".join(lines))["disk"]["level"] in ("process", "power")
    assert list(folder.iterdir()) == []
    code, lines = cli("probe", folder / "nowhere")
    assert code == EXIT_UNUSABLE and lines[0].startswith("cannot probe")
