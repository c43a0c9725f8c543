"""What a disk is worth by what lies beneath it: machines of a fake mountinfo and sysfs, and this kernel's overlays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from adr_harness import Machine, Member
from raftkv_node.adr import DurabilityTooLow, Environment, Level, Probe
from raftkv_node.adr.disks import Disks
from raftkv_node.cli import main

FDATASYNC = "as far as the device keeps what it acknowledges"
UNSEEN = "cannot be seen from here"
MOUNTS = {
    "/": "8:1 ext4 /dev/sda1 rw",
    "/memory": "0:30 tmpfs tmpfs rw,size=1024k",
    "/xfs": "8:2 xfs /dev/sda2 rw,attr2",
    "/over-disk": "0:40 overlay overlay rw,lowerdir=/l,upperdir=/xfs/upper,workdir=/xfs/w",
    "/over-memory": r"0:41 overlay overlay rw,lowerdir=/l,upperdir=/memory/an\040upper\054,workdir=/memory/w",
    "/over-volatile": "0:42 overlay overlay rw,lowerdir=/l,upperdir=/xfs/u,workdir=/xfs/w,volatile",
    "/over-fsync-volatile": "0:43 overlay overlay rw,upperdir=/xfs/u,workdir=/xfs/w,fsync=volatile",
    "/over-unseen": "0:44 overlay overlay rw,lowerdir=/l,upperdir=/nowhere/upper,workdir=/nowhere/w",
    "/over-itself": "0:45 overlay overlay rw,lowerdir=/l,upperdir=/over-itself/upper,workdir=/w",
    "/over-nothing": "0:46 overlay overlay ro,lowerdir=/l:/m",
    "/over-over": "0:47 overlay overlay rw,lowerdir=/l,upperdir=/over-memory/u,workdir=/over-memory/w",
    "/ext4-nobarrier": "8:3 ext4 /dev/sda3 rw,nobarrier",
    "/ext4-barrier-0": "8:4 ext4 /dev/sda4 rw,barrier=0,data=ordered",
    "/ext4-barrier-1": "8:5 ext4 /dev/sda5 rw,barrier=1",
    "/xfs-nobarrier": "8:6 xfs /dev/sda6 rw,nobarrier",
    "/over-nobarrier": "0:48 overlay overlay rw,upperdir=/xfs-nobarrier/u,workdir=/xfs-nobarrier/w",
    "/loop-in-memory": "7:0 ext4 /dev/loop0 rw",
    "/loop-on-disk": "7:1 xfs /dev/loop1 rw",
    "/loop-in-memory-nobarrier": "7:5 xfs /dev/loop5 rw,nobarrier",
    "/loop-deleted": "7:2 ext4 /dev/loop2 rw",
    "/loop-partition": "259:0 ext4 /dev/loop0p1 rw",
    "/mapped-loop": "253:0 ext4 /dev/mapper/data rw",
    "/btrfs-loop": "0:50 btrfs /dev/loop0 rw",
    "/ram": "1:0 ext4 /dev/ram0 rw",
    "/zram": "252:0 ext4 /dev/zram0 rw",
    "/nfs": "0:51 nfs4 server:/export rw",
    "/fuse": "0:52 fuse.sshfs me@there: rw",
}
#: Loop devices and their files.
LOOPS = {
    "loop0": ("7:0", "/memory/image"),
    "loop1": ("7:1", "/xfs/image"),
    "loop2": ("7:2", "/memory/image (deleted)"),
    "loop5": ("7:5", "/memory/image"),
}


class FakeDisks(Disks):
    """A machine with the mounts above."""

    def device_of(self, path: Path) -> str:
        if path.is_relative_to("/nowhere"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        points = [point for point in MOUNTS if path.is_relative_to(point)]
        return MOUNTS[max(points, key=len)].split()[0] if path != Path("/unshown") else "9:9"


def mountinfo(mounts: dict[str, str]) -> str:
    lines = []
    for number, (point, text) in enumerate(mounts.items()):
        device, kind, source, options = text.split(" ")
        lines.append(f"{number} 1 {device} / {point} rw,relatime shared:1 - {kind} {source} {options}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def disks(tmp_path: Path) -> FakeDisks:
    sysfs, numbers = tmp_path / "sys", tmp_path / "sys" / "dev" / "block"
    numbers.mkdir(parents=True)
    (sysfs / "class" / "block").mkdir(parents=True)

    def device(name: str, number: str, folder: str = "") -> Path:
        made = sysfs / "devices" / (folder or "block") / name
        made.mkdir(parents=True)
        (numbers / number).symlink_to(made)
        (sysfs / "class" / "block" / name).symlink_to(made)
        return made

    for name, (number, backing) in LOOPS.items():
        loop = device(name, number)
        (loop / "loop").mkdir()
        (loop / "loop" / "backing_file").write_text(backing + "\n")
    device("loop0p1", "259:0", "block/loop0")
    mapper = device("dm-0", "253:0")
    (mapper / "slaves").mkdir()
    (mapper / "slaves" / "loop0").symlink_to(sysfs / "devices" / "block" / "loop0")
    for name, number in (("ram0", "1:0"), ("zram0", "252:0"), ("sda1", "8:1"), ("sda2", "8:2")):
        device(name, number)
    (tmp_path / "mountinfo").write_text("half a line\n" + mountinfo(MOUNTS))
    return FakeDisks(sysfs, tmp_path / "mountinfo")


@pytest.mark.parametrize(
    "folder, level, because",
    [
        ("/data", Level.POWER, FDATASYNC),
        ("/xfs", Level.POWER, FDATASYNC),
        ("/memory/data", Level.PROCESS, "tmpfs is gone at a reboot"),
        ("/over-disk", Level.POWER, f"upper layer in /xfs/upper: fdatasync, {FDATASYNC}"),
        ("/over-memory", Level.PROCESS, "upper layer in /memory/an upper,: tmpfs is gone"),
        ("/over-volatile", Level.PROCESS, "mounted with volatile: it syncs nothing"),
        ("/over-fsync-volatile", Level.PROCESS, "mounted with fsync=volatile"),
        ("/over-unseen", Level.POWER, UNSEEN),
        ("/over-itself", Level.POWER, UNSEEN),
        ("/over-nothing", Level.POWER, UNSEEN),
        ("/over-over", Level.PROCESS, "tmpfs is gone"),
        ("/ext4-nobarrier", Level.KERNEL, "mounted with nobarrier"),
        ("/ext4-barrier-0", Level.KERNEL, "mounted with barrier=0"),
        ("/ext4-barrier-1", Level.POWER, FDATASYNC),
        ("/xfs-nobarrier", Level.KERNEL, "xfs is mounted with nobarrier"),
        ("/over-nobarrier", Level.KERNEL, "mounted with nobarrier"),
        ("/loop-in-memory", Level.PROCESS, "loop0 lies in /memory/image: tmpfs is gone"),
        ("/loop-on-disk", Level.POWER, f"loop1 lies in /xfs/image: fdatasync, {FDATASYNC}"),
        ("/loop-in-memory-nobarrier", Level.PROCESS, "tmpfs is gone"),
        ("/loop-deleted", Level.POWER, UNSEEN),
        ("/loop-partition", Level.PROCESS, "tmpfs is gone"),
        ("/mapped-loop", Level.PROCESS, "loop0 lies in /memory/image"),
        ("/btrfs-loop", Level.PROCESS, "loop0 lies in /memory/image"),
        ("/ram", Level.PROCESS, "ram0 is memory"),
        ("/zram", Level.PROCESS, "zram0 is memory"),
        ("/nfs", Level.POWER, "as far as what is behind it"),
        ("/fuse", Level.POWER, "as far as what is behind it"),
        ("/unshown", Level.POWER, "mountinfo does not show the mount"),
    ],
)
def test_d12_a_disk_is_worth_what_lies_beneath_it(disks: FakeDisks, folder: str, level: Level, because: str) -> None:
    worth = disks.worth(Path(folder))
    assert (Level(worth.level), because in worth.because) == (level, True), worth


def test_d12_layers_without_an_end_are_given_up(disks: FakeDisks, tmp_path: Path) -> None:
    """Two overlays that each name the other: mountinfo of another place may say so."""
    one = MOUNTS | {
        "/over-over": "0:47 overlay overlay rw,upperdir=/over-unseen/u",
        "/over-unseen": "0:44 overlay overlay rw,upperdir=/over-over/u",
    }
    (tmp_path / "mountinfo").write_text(mountinfo(one))
    assert "so many layers" in disks.worth(Path("/over-over")).because


@pytest.mark.parametrize(
    "mount, level, because",
    [
        ("overlay overlay rw,upperdir=/u,volatile", "process", "overlay is mounted with volatile"),
        ("ext4 /dev/sda1 rw,nobarrier", "kernel", "ext4 is mounted with nobarrier"),
        ("ext4 /dev/sda1 rw", "power", FDATASYNC),
    ],
)
def test_d12_adr_probe_tells_what_lies_beneath_a_disk(
    mount: str,
    level: str,
    because: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = tmp_path / "mountinfo"
    fake.write_text(mountinfo({"/": f"{Disks().device_of(tmp_path)} {mount}"}))
    monkeypatch.setattr(Environment, "mountinfo", fake)
    monkeypatch.setattr(Environment, "sysfs", tmp_path / "sys")
    assert main(["adr", "probe", str(tmp_path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("as a disk:"))
    assert f"level {level}: " in line and because in line
    assert main(["adr", "probe", str(tmp_path), "--json"]) == 0
    disk = json.loads(capsys.readouterr().out)["disk"]
    assert disk["level"] == level and because in disk["because"]


def test_d12_a_refusal_says_why_a_disk_is_weaker(folder: Path) -> None:
    class Overlay(Machine):
        def probe_disk(self, folder: Path) -> Probe:
            found = super().probe_disk(folder)
            return Probe(Level.KERNEL, found.medium, "ext4", found.identity, because="ext4 is mounted with nobarrier")

    member = Member(folder, Overlay(), ring=False).make()
    with pytest.raises(
        DurabilityTooLow, match=r"\(ext4, ext4 is mounted with nobarrier\) gives durability level kernel"
    ):
        member.open()
    member.open(minimum_durability=Level.KERNEL)[0].close()


@pytest.mark.parametrize("upper, level", [("memory", "process"), ("volatile", "process"), ("disk", "power")])
def test_d12_this_kernels_overlays_are_told(tmp_path: Path, upper: str, level: str) -> None:
    """Real overlays in a mount namespace of their own, where the kernel lets anyone make them."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    place = tmp_path / "place"
    (tmp_path / "over").mkdir()
    place.mkdir()
    script = (
        'set -e; [ "$1" != memory ] || mount -t tmpfs none "$2" || exit 77; mkdir "$2/l" "$2/u" "$2/w"; '
        'mount -t overlay overlay -o "userxattr,lowerdir=$2/l,upperdir=$2/u,workdir=$2/w$3" "$4" || exit 77; '
        'exec "$5" -m raftkv_node.cli adr probe "$4" --json'
    )
    option = ",volatile" if upper == "volatile" else ""
    words = [script, "sh", upper, str(place), option, str(tmp_path / "over"), sys.executable]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", *words],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"no overlays for everyone here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    disk = json.loads(done.stdout)["disk"]
    assert disk["level"] == level and "overlay" in disk["because"], disk
    assert UNSEEN not in disk["because"]
