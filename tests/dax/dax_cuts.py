"""Power cuts on a real DAX file system: does every acknowledged write come back?

    python tests/dax/dax_cuts.py [--cuts N] [--seed S] [--plant NAME]          (make test-dax CUTS=N PLANT=NAME)

A virtual machine has persistent memory (an emulated NVDIMM, ext4 `dax=always`, rings mapped with `MAP_SYNC`) and a
disk that loses what was not flushed (`dax_disk`). Three members run in it under load from outside (`dax_load`). At a
random moment QEMU is killed and the disk drops a random part of what it had not flushed. Then the machine boots again;
all three members have to recover and to hold every write that was ever acknowledged, each on its own and by a
linearizable read. The run ends with a clean shutdown and a boot after it, which must find nothing to recover (D9,
row 8).

What this shows: the whole path from the file system's promise to the recovered store, on the kernel's real DAX code,
with a machine whose caches, timers and disk are cut off at once. What it cannot show: emulation has no CPU cache, so a
missing cache line flush or fence goes unnoticed here; the crash-state tests in `tests/adr/` are for that. Nor can an
NVDIMM of QEMU's raise the count of unsafe shutdowns or report damaged blocks.

A test that cannot fail shows nothing. Each `--plant` breaks the machine, not the program, and the run has to notice:
    lying-disk         flushes are answered and forgotten from the moment the load begins
    forgetful-memory   the NVDIMM goes back to its contents of a moment before the cut: no persistence domain at all
    ordinary-file      rings in ordinary files on the disk, at level `process`
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from dax_cluster import RAFTKV, START_SECONDS, Cluster, Member
from dax_disk import Disk, DiskServer, Flushes, Loss
from dax_kernel import KernelUnavailable, kernel
from dax_load import History, Load, contents, wait_for_answers
from dax_machine import GuestFailed, Machine
from machine import free_ports

NVDIMM_BYTES = 256 << 20
DISK_BYTES = 1 << 30
EMULATED_PMEM_BYTES = 64 << 20
WRITERS = 6
FEWEST_ANSWERS = 40
"""A round is cut at a random moment, but not before so many writes were acknowledged in it."""
MOST_LOAD_SECONDS = 6.0
DRAIN_INTERVALS = ("50ms", "500ms", "2s")
LONGEST_FLUSH_SECONDS = 0.05
EXIT_DURABILITY = 69
SKIPPED = 77
PACKAGES = "qemu-system-x86 busybox-static e2fsprogs ndctl"
_MOUNTS = "mount -t ext4 -o dax=always /dev/pmem0 /run/pmem && mount -t ext4 /dev/vda /run/disk"


class Plant(StrEnum):
    NONE = "none"
    LYING_DISK = "lying-disk"
    FORGETFUL_MEMORY = "forgetful-memory"
    ORDINARY_FILE = "ordinary-file"


class Unavailable(Exception):
    """The test cannot run on this machine; the text says what is missing."""


@dataclass
class Round:
    """One cut and the boot after it."""

    answered: int
    loss: Loss
    checked: int = 0
    problems: list[str] = field(default_factory=list)
    #: Why the machine did not come up again: a file system that is damaged.
    damage: str = ""
    refused: dict[str, int] = field(default_factory=dict)
    rows: Counter[int] = field(default_factory=Counter)
    replayed: int = 0
    torn_tails: int = 0
    seconds: float = 0.0


@dataclass
class Trial:
    """A whole run in a folder of its own."""

    folder: Path
    seed: int
    plant: Plant = Plant.NONE
    history: History = field(default_factory=History)
    rounds: list[Round] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    """What is wrong besides lost writes."""
    facts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        missing = [name for name in ("qemu-system-x86_64", "mkfs.ext4", "ndctl", "busybox") if not shutil.which(name)]
        if missing:
            raise Unavailable(f"{', '.join(missing)} missing; on Debian: apt-get install {PACKAGES}")
        try:
            guest_kernel = kernel()
        except KernelUnavailable as error:
            raise Unavailable(str(error)) from error
        nvdimm, image = self.folder / "nvdimm", self.folder / "disk"
        for path, size in ((nvdimm, NVDIMM_BYTES), (image, DISK_BYTES)):
            with path.open("wb") as file:
                file.truncate(size)
        # No checksums in the journal: with them, ext4 takes a commit block of which not all sectors were written for
        # corruption and refuses to mount. Here sectors are written one by one.
        options = ["-E", "lazy_itable_init=0", "-O", "^metadata_csum"]
        subprocess.run(["mkfs.ext4", "-q", "-F", *options, str(image)], check=True)
        self.disk = Disk(image, longest_flush_seconds=LONGEST_FLUSH_SECONDS)
        self.server = DiskServer(self.disk, self.folder / "disk.socket")
        members = [Member(f"n{i + 1}", port, 2380 + i) for i, port in enumerate(free_ports(3))]
        forwards = {member.client_port: member.client_port for member in members}
        self.machine = Machine(
            guest_kernel,
            self.folder,
            nvdimm,
            self.server.path,
            forwards,
            emulated_pmem_bytes=EMULATED_PMEM_BYTES,
        )
        self.cluster = Cluster(self.machine, members)
        if self.plant == Plant.ORDINARY_FILE:
            self.cluster.ring_root, self.cluster.minimum = "/run/disk/rings", "process"

    def close(self) -> None:
        self.machine.cut()
        self.server.close()

    # -- what the machine offers --------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """The first boot: makes the file systems and the cluster, and writes down what the folders are worth."""
        self.machine.boot()
        self.machine.must(
            "ndctl create-namespace -f -e namespace0.0 --mode=fsdax --map=mem && mkfs.ext4 -q -b 4096 /dev/pmem0"
        )
        self.machine.must(_MOUNTS)
        self.machine.must(
            "mkfs.ext4 -q -b 4096 /dev/pmem1 && mount -t ext4 -o dax=always /dev/pmem1 /run/kernel && "
            "busybox mkdir /run/kernel/ring"
        )
        self.facts["region"] = self.machine.must(
            "cd /sys/bus/nd/devices/region0; for file in persistence_domain deep_flush badblocks; do"
            ' echo "$file: $(cat $file)"; done; echo "dirty_shutdown files: $(ls ../nmem*/*/dirty_shutdown'
            ' 2>/dev/null | busybox wc -l)"; echo "badblocks of pmem0: $(cat /sys/block/pmem0/badblocks)"'
        )
        folders = {"pmem": "/run/pmem", "disk": "/run/disk", "emulated": "/run/kernel"}
        others = {name: ["adr", "probe", folder] for name, folder in folders.items()}
        others["weak"] = ["node", *_urls(2479, 2480), "--data-dir", "/run/disk/weak", "--adr-path", "/run/kernel/ring"]
        self.cluster.start(others)
        ended = self.cluster.wait()
        assert not ended, f"members ended at their first start: {ended}\n{self.cluster.report()}"
        codes = self.cluster.wait_for(list(others))
        self.facts |= {name: self.cluster.output(name) for name in folders}
        self._check_levels()
        weak = f"exit code {codes['weak']}: {self.cluster.output('weak')}"
        refused = codes["weak"] == EXIT_DURABILITY and "durability level kernel" in weak
        self._expect(refused, "emulated memory was not refused", weak)
        self.facts["emulated, --minimum-durability power"] = weak

    def _check_levels(self) -> None:
        self.facts["described"] = ", ".join(map(self.cluster.described_level, self.cluster.members))
        self.facts["measured"] = ", ".join(map(self.cluster.measured_level, self.cluster.members))
        if self.plant != Plant.ORDINARY_FILE:
            self._expect(self.facts["described"] == ", ".join(["power/pmem"] * 3), "Describe", self.facts["described"])
            self._expect(self.facts["measured"] == ", ".join(["power"] * 3), "metrics", self.facts["measured"])
        self._expect(
            "buffer:      level power" in self.facts["pmem"], "the DAX folder is not at level power", self.facts["pmem"]
        )
        self._expect("MAP_SYNC:             yes" in self.facts["pmem"], "MAP_SYNC was refused", self.facts["pmem"])
        self._expect("level kernel" in self.facts["emulated"], "memmap= is not level kernel", self.facts["emulated"])
        self._expect("buffer:      level process" in self.facts["disk"], "the disk is DAX", self.facts["disk"])

    def refused_outside(self) -> None:
        """The same member on this machine's own ext4, or whatever it has: below level power, and refused."""
        ring = self.folder / "outside"
        ring.mkdir()
        command = [
            RAFTKV,
            "node",
            "--data-dir",
            str(self.folder / "outside-data"),
            "--adr-path",
            str(ring),
            *_urls(*free_ports(2)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.facts["outside"] = f"exit code {done.returncode}: {done.stderr.strip()}"
        self._expect(done.returncode == EXIT_DURABILITY, "not refused outside", self.facts["outside"])

    def _expect(self, holds: bool, what: str, seen: str) -> None:
        if not holds:
            self.findings.append(f"{what}:\n{seen}")

    # -- rounds -------------------------------------------------------------------------------------------------------

    def cut(self) -> Round:
        """Load, power cut, boot, recovery, check."""
        began = time.monotonic()
        load = Load(self.history, self.cluster.ports, WRITERS, len(self.rounds) + 1)
        if self.plant == Plant.LYING_DISK:
            self.disk.flushes = Flushes.IGNORED
        load.start()
        wait_for_answers(load, FEWEST_ANSWERS, START_SECONDS)
        time.sleep(self.chance.uniform(0.0, MOST_LOAD_SECONDS))
        forgotten = self._remember() if self.plant == Plant.FORGETFUL_MEMORY else None
        loss = self.server.cut(self.chance, self.machine.cut)
        load.stop()
        if forgotten is not None:
            shutil.copyfile(forgotten, self.machine.nvdimm)
        this = Round(load.answered(), loss)
        self.rounds.append(this)
        try:
            self.machine.boot()
            self.machine.must(_MOUNTS)
        except GuestFailed as error:
            this.damage = str(error)
            return this
        self.cluster.drain_interval = self.chance.choice(DRAIN_INTERVALS)
        self.cluster.start()
        this.refused = self.cluster.wait()
        if not this.refused:
            self._check(this)
        this.seconds = time.monotonic() - began
        return this

    def _remember(self) -> Path:
        """Copies the NVDIMM, and lets half as many writes be acknowledged again before the cut: they will be lost."""
        copy = self.folder / "nvdimm.forgotten"
        shutil.copyfile(self.machine.nvdimm, copy)
        before = self.history.answers
        deadline = time.monotonic() + START_SECONDS
        while self.history.answers < before + FEWEST_ANSWERS // 2:
            assert time.monotonic() < deadline, "the load stands still"
            time.sleep(0.01)
        return copy

    def _check(self, this: Round) -> None:
        for member in self.cluster.members:
            recovery = self.cluster.recovery(member)
            this.rows[recovery.row] += 1
            this.replayed += recovery.replayed
            this.torn_tails += recovery.torn_tail_bytes > 0
            # A linearizable read first: after it, the member's own state must hold everything, too.
            for serializable in (False, True):
                found = contents(member.client_port, serializable=serializable)
                this.problems += [f"{member.name}: {one}" for one in self.history.problems(found)]
        this.checked = self.history.keys_checked

    def clean_reboot(self) -> None:
        """D9: a clean stop leaves nothing to recover, and the next start makes a new generation (row 8)."""
        codes = self.cluster.stop()
        self._expect(set(codes.values()) == {0}, "a clean stop ended otherwise", str(codes))
        self.machine.power_off()
        self.server.cut(self.chance)
        self.machine.boot()
        self.machine.must(_MOUNTS)
        self.cluster.start()
        ended = self.cluster.wait()
        self._expect(not ended, "after a clean stop", f"{ended}\n{self.cluster.report()}")
        if ended:
            return
        last = Round(0, Loss(0, 0))
        self._check(last)
        self.findings += last.problems
        self._expect(last.rows == Counter({8: 3}), "not row 8 after a clean stop", str(last.rows))
        self._expect(last.replayed == 0, "records replayed after a clean stop", str(last.replayed))
        self.facts["clean reboot"] = f"row 8 on {last.rows[8]} members, {last.replayed} records replayed"

    # -- the end ------------------------------------------------------------------------------------------------------

    @property
    def lost(self) -> int:
        return sum(len(one.problems) for one in self.rounds)

    @property
    def refused(self) -> int:
        return sum(len(one.refused) for one in self.rounds)

    def failures(self) -> list[str]:
        """Everything that is not as it must be. A cut at level power refuses no member and takes row 13."""
        failures = list(self.findings)
        for number, one in enumerate(self.rounds, 1):
            failures += [f"cut {number}: {problem}" for problem in one.problems]
            failures += [f"cut {number}: {name} refused with {code}" for name, code in one.refused.items()]
            failures += [f"cut {number}: the machine does not come up again: {one.damage}"] if one.damage else []
            if not one.refused and set(one.rows) - {13}:
                failures.append(f"cut {number}: recovered by rows {dict(one.rows)}")
        if self.server.failure is not None:
            failures.append(f"the disk failed: {self.server.failure!r}")
        return failures

    def table(self) -> str:
        head = "| cut | acknowledged | checked | lost | refused | row | replayed | torn tails | unflushed (lost) | s |"
        lines = [head, "| --- " * 10 + "|"]
        for number, one in enumerate(self.rounds, 1):
            rows = ", ".join(f"{row} ({count})" for row, count in sorted(one.rows.items())) or "-"
            refused = ", ".join(f"{name}: {code}" for name, code in one.refused.items()) or "0"
            lines.append(
                f"| {number} | {one.answered} | {one.checked} | {len(one.problems)} | {refused} | {rows} "
                f"| {one.replayed} | {one.torn_tails} | {one.loss.unflushed_sectors} ({one.loss.lost_sectors}) "
                f"| {one.seconds:.0f} |"
            )
        return "\n".join(lines)

    def summary(self) -> str:
        checked = sum(one.checked for one in self.rounds)
        rows = sum((one.rows for one in self.rounds), Counter[int]())
        return (
            f"cuts {len(self.rounds)}, boots {self.machine.boots}, writes acknowledged {self.history.answers}, "
            f"keys checked {checked} (each on 3 members, twice), lost {self.lost}, refused {self.refused}, "
            f"recovered by row {dict(rows)}, torn tails {sum(one.torn_tails for one in self.rounds)}, records replayed "
            f"{sum(one.replayed for one in self.rounds)}, flushes of the disk {self.disk.flush_count}, seed {self.seed}"
        )


def _urls(client_port: int, peer_port: int) -> list[str]:
    """Ports of its own for a node that is to be refused: it listens before it looks at its folders."""
    urls = ("--listen-client-urls", f"http://127.0.0.1:{client_port}")
    return [*urls, "--listen-peer-urls", f"http://127.0.0.1:{peer_port}"]


def run(cuts: int, seed: int, plant: Plant, say: Callable[[str], object] = print) -> Trial:
    """A whole run; with a plant, only until it is found."""
    folder = Path(tempfile.mkdtemp(prefix="raftkv-dax-"))
    trial = None
    try:
        trial = Trial(folder, seed, plant)
        trial.refused_outside()
        trial.prepare()
        say(f"levels inside: {trial.facts['described']} (Describe), {trial.facts['measured']} (metrics)")
        for number in range(1, cuts + 1):
            this = trial.cut()
            say(
                f"cut {number}: {this.answered} acknowledged, {this.checked} checked, {len(this.problems)} lost, "
                f"refused {this.refused}{', file system damaged' if this.damage else ''}, "
                f"rows {dict(this.rows)}, {this.seconds:.0f} s"
            )
            if this.problems or this.refused or this.damage:
                break
        else:
            if plant == Plant.NONE:
                trial.clean_reboot()
        return trial
    finally:
        if trial is not None:
            trial.close()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """0: as it must be; 1: something was lost or refused, or a plant was not found; 77: cannot run here."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the moments and of what the disk drops")
    parser.add_argument("--plant", type=Plant, choices=list(Plant), default=Plant.NONE)
    chosen = parser.parse_args()
    # So that the machine is ended and its files are removed however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 32)
    try:
        trial = run(chosen.cuts, seed, chosen.plant)
    except Unavailable as error:
        print(f"test-dax: skipped: {error}")
        return SKIPPED
    for name, text in trial.facts.items():
        print(f"[{name}]\n{text.rstrip()}")
    print(trial.table())
    print(trial.summary())
    failures = trial.failures()
    if chosen.plant != Plant.NONE:
        damaged = sum(bool(one.damage) for one in trial.rounds)
        found = trial.lost or trial.refused or damaged
        print(
            f"plant {chosen.plant}: {'found' if found else 'NOT FOUND'}: lost {trial.lost}, refused {trial.refused}, "
            f"file system damaged {damaged}"
        )
        for failure in failures[:10]:
            print(f"  {failure}")
        return 0 if found else 1
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
