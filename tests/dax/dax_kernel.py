"""A kernel for the guest, without installing one.

Debian's kernel package is downloaded and unpacked into a cache folder: installing it would run hooks for boot loaders
and initial file systems that a container has no use for. The kernel is unpacked from its compressed image once here
rather than at every boot in the guest, where emulation makes that take seconds; QEMU starts it by its PVH entry. The
initial file system holds busybox, the modules in the order in which they are to be loaded, and `dax_init.sh`, which
mounts the host's own root read-only. So what is installed here, the project's virtual environment included, is there in
the guest. (virtme-ng does the like; this does without udev and Python before the first command, which halves a boot.)
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "dax"
_APT_SECONDS = 300
_HERE = Path(__file__).parent

#: What the guest needs, besides what these depend on. crc32c is what ext4 asks the crypto layer for by name.
MODULES = (
    *("virtio_pci", "9pnet_virtio", "9p", "virtio_blk", "virtio_net", "virtio-rng"),
    *("crc32c_generic", "crc32c-intel", "ext4", "nfit", "nd_e820", "nd_pmem"),
)


class KernelUnavailable(Exception):
    """No kernel could be had; the text says why."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """Files that QEMU starts: the uncompressed kernel and the initial file system."""

    release: str
    image: Path
    initial: Path


def kernel(cache: Path = CACHE) -> Kernel:
    """The guest's kernel, downloaded at the first call.

    Raises:
        KernelUnavailable: no apt, no archive, or no static busybox.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise KernelUnavailable("there is no busybox: apt-get install busybox-static")
    tree = _unpacked(cache)
    compressed = next((tree / "boot").glob("vmlinuz-*"))
    release = compressed.name.removeprefix("vmlinuz-")
    image = cache / f"vmlinux-{release}"
    if not image.exists():
        _write_whole(image, _uncompressed(compressed.read_bytes()))
    initial = cache / f"initial-{release}.cpio.gz"
    folder = next(path for path in (tree / "lib/modules", tree / "usr/lib/modules") if path.is_dir()) / release
    _write_whole(initial, gzip.compress(_initial_file_system(Path(busybox), folder), 1))
    return Kernel(release, image, initial)


def _write_whole(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.rename(path)


def _unpacked(cache: Path) -> Path:
    tree = cache / "kernel"
    if tree.is_dir():
        return tree
    cache.mkdir(parents=True, exist_ok=True)
    try:
        depends = _run(["apt-cache", "depends", "linux-image-amd64"], cache)
        found = re.search(r"Depends: (linux-image-[0-9]\S+)", depends)
        if found is None:
            raise KernelUnavailable("apt knows no linux-image-amd64: run apt-get update, or this is no Debian")
        _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", found[1]], cache)
        package = next(cache.glob(f"{found[1]}_*.deb"))
        part = cache / "kernel.part"
        shutil.rmtree(part, ignore_errors=True)
        _run(["dpkg-deb", "-x", str(package), str(part)], cache)
        part.rename(tree)
        package.unlink()
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelUnavailable(f"apt could not download a kernel: {error}") from error
    return tree


def _run(command: list[str], folder: Path) -> str:
    return subprocess.run(
        command, check=True, cwd=folder, timeout=_APT_SECONDS, stdout=subprocess.PIPE, text=True
    ).stdout


def _uncompressed(image: bytes) -> bytes:
    """The ELF file inside a bzImage that is compressed with xz, as Debian's is."""
    start = 0
    while (start := image.find(b"\xfd7zXZ\0", start)) >= 0:
        try:
            found = lzma.LZMADecompressor().decompress(image[start:])
        except lzma.LZMAError:
            found = b""
        if found.startswith(b"\x7fELF"):
            return found
        start += 1
    raise KernelUnavailable("the kernel's image holds no xz-compressed ELF file")


def _load_order(folder: Path) -> list[Path]:
    """The modules and what they depend on, each after what it needs. Built-in ones have no file."""
    files = {path.name.split(".")[0].replace("-", "_"): path for path in folder.rglob("*.ko*")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in order:
            return
        found = re.search(rb"\0depends=([^\0]*)\0", _module(path))
        for needed in found[1].decode().split(",") if found else []:
            if needed:
                add(needed)
        order.append(path)

    for name in MODULES:
        add(name)
    return order


def _module(path: Path) -> bytes:
    """A module's contents; some Debian releases compress them."""
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _initial_file_system(busybox: Path, modules: Path) -> bytes:
    order = _load_order(modules)
    names = [f"{number:02d}-{path.name.split('.')[0]}.ko" for number, path in enumerate(order)]
    archive = [_member(folder, 0o040755) for folder in ("bin", "modules", "root", "proc", "sys", "dev")]
    archive.append(_member("bin/busybox", 0o100755, busybox.read_bytes()))
    archive.append(_member("init", 0o100755, (_HERE / "dax_init.sh").read_bytes()))
    archive += [_member(f"modules/{name}", 0o100644, _module(path)) for name, path in zip(names, order, strict=True)]
    archive.append(_member("TRAILER!!!", 0))
    return b"".join(archive)


def _member(name: str, mode: int, data: bytes = b"") -> bytes:
    """A file or folder in cpio's "newc" form, as the kernel unpacks it."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + "".join(f"{value:08X}" for value in fields).encode() + encoded
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
