"""A virtual machine whose power can be cut: QEMU, an emulated NVDIMM, and a disk that loses what was not flushed.

Software emulation only (KVM hangs on nested hosts). The NVDIMM is a shared file: what the guest stored is in it at
once, which is what a persistence domain promises, and it is still there after QEMU was killed; the machine's ACPI
tables call that domain `mem-ctrl`. A second range of memory (`memmap=`) is persistent memory without such a promise.
Commands reach the guest over a folder that both share; ports of the guest are forwarded from the loopback address.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dax_kernel import Kernel

BOOT_SECONDS = 180.0
"""Bound for a boot, and for each command: it tells "hangs" from "works" under emulation on a busy machine."""
_NVDIMM_LABEL_BYTES = 16 << 20
_KERNEL_OPTIONS = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr"
_CHECKOUT = Path(__file__).parents[2]
"""Where the guest finds the programs, in the host's file system."""
_POLL_SECONDS = 0.05


class GuestFailed(Exception):
    """The guest did not come up, or did not answer; the text holds the end of its console."""


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    text: str


@dataclass
class Machine:
    """One machine over many boots.

    `nvdimm` is the file behind its persistent memory, `disk` the NBD server's socket, `ports` the host's ports with the
    guest's that they lead to.
    """

    kernel: Kernel
    folder: Path
    nvdimm: Path
    disk: Path
    ports: Mapping[int, int]
    emulated_pmem_bytes: int = 0
    boots: int = 0
    process: subprocess.Popen[bytes] | None = None
    _command: int = field(default=0)

    @property
    def share(self) -> Path:
        """The folder shared with the guest in this boot."""
        return self.folder / f"boot-{self.boots:02d}"

    def _arguments(self) -> list[str]:
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in self.ports.items())
        memmap = f" memmap={self.emulated_pmem_bytes >> 20}M!512M" if self.emulated_pmem_bytes else ""
        size = self.nvdimm.stat().st_size
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2"),
            *("-machine", "q35,nvdimm=on,nvdimm-persistence=mem-ctrl", "-m", "1G,slots=2,maxmem=4G"),
            *("-kernel", str(self.kernel.image), "-initrd", str(self.kernel.initial)),
            *("-append", f"{_KERNEL_OPTIONS} raftkv.checkout={_CHECKOUT}{memmap}"),
            *("-serial", f"file:{self.share / 'console'}"),
            *("-object", f"memory-backend-file,id=pmem,share=on,mem-path={self.nvdimm},size={size}"),
            *("-device", f"nvdimm,id=nvdimm0,memdev=pmem,label-size={_NVDIMM_LABEL_BYTES}"),
            *("-drive", f"if=none,id=disk,format=raw,cache=writeback,file=nbd+unix:///?socket={self.disk}"),
            *("-device", "virtio-blk-pci,drive=disk,serial=raftkv"),
            *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
            *("-fsdev", f"local,id=share,path={self.share},security_model=none"),
            *("-device", "virtio-9p-pci,fsdev=share,mount_tag=share"),
            *("-netdev", f"user,id=net,restrict=on{forwards}", "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-device", "virtio-rng-pci"),
        ]

    def boot(self) -> float:
        """Starts the machine and waits until it carries out commands; the seconds that took."""
        assert self.process is None, "it runs already"
        began = time.monotonic()
        self.boots += 1
        self._command = 0
        self.share.mkdir(parents=True)
        agent = (Path(__file__).parent / "dax_agent.sh").read_bytes()
        (self.share / "agent.sh").write_bytes(agent)
        with (self.share / "qemu").open("wb") as log:
            self.process = subprocess.Popen(self._arguments(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.run("true")
        return time.monotonic() - began

    def run(self, script: str, seconds: float = BOOT_SECONDS) -> Answer:
        """Carries out a shell script in the guest.

        Raises:
            GuestFailed: the machine has ended, or no answer came in time.
        """
        assert self.process is not None
        self._command += 1
        name = self.share / str(self._command)
        part = name.with_suffix(".part")
        part.write_text(script + "\n")
        part.rename(name.with_suffix(".sh"))
        deadline = time.monotonic() + seconds
        while not (code := name.with_suffix(".rc")).exists():
            if self.process.poll() is not None:
                raise GuestFailed(f"the machine has ended ({self.process.returncode}):\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise GuestFailed(f"no answer within {seconds:.0f} s to: {script}\n{self.last_words()}")
            time.sleep(_POLL_SECONDS)
        return Answer(int(code.read_text()), name.with_suffix(".out").read_text(errors="replace"))

    def must(self, script: str, seconds: float = BOOT_SECONDS) -> str:
        """Carries out a script that has to succeed; its output."""
        answer = self.run(script, seconds)
        if answer.code != 0:
            raise GuestFailed(f"exit code {answer.code} from: {script}\n{answer.text}\n{self.last_words()}")
        return answer.text

    def last_words(self) -> str:
        """The ends of QEMU's and of the guest's console."""
        found = [self.share / name for name in ("qemu", "console")]
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in found if path.exists())

    def cut(self) -> None:
        """The power fails: QEMU is killed, with whatever it was doing."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def power_off(self) -> None:
        """Unmounts, and ends the machine as a person would."""
        assert self.process is not None
        self.must("busybox sync; busybox umount /run/disk /run/pmem")
        part = self.share / "off.part"
        part.write_text("busybox poweroff -f\n")
        part.rename(self.share / f"{self._command + 1}.sh")
        self.process.wait(BOOT_SECONDS)
        self.process = None
