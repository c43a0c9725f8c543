"""The newest etcd that Debian's suites have, unpacked beside the system.

A stable Debian carries etcd 3.4; the comparison wants the newest. So the packages of a later suite are downloaded with
an apt configuration of their own (the system's stays as it is, nothing is installed) and unpacked into a cache folder.
The mirror is the one that this machine's own apt sources name.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_SUITES = ("sid", "trixie")
_PACKAGES = ("etcd-server", "etcd-client")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT_SECONDS = 300


class EtcdUnavailable(Exception):
    """No etcd could be had from Debian's packages; the text says why."""


def debian_mirror() -> str:
    """The first Debian archive that the system's apt sources name."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for source in sources:
        if not source.is_file():
            continue
        for line in source.read_text().splitlines():
            if line.lstrip().startswith("#"):
                continue
            match = re.search(r"(https?://\S+/debian)/?(\s|$)", line)
            if match:
                return match.group(1)
    raise EtcdUnavailable("the apt sources of this machine name no Debian archive")


def _apt_options(root: Path) -> list[str]:
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/sources.list.d", "etc/preferences.d"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "state/status").touch()
    return [
        *("-o", f"Dir::State={root}/state", "-o", f"Dir::State::status={root}/state/status"),
        *("-o", f"Dir::Cache={root}/cache", "-o", f"Dir::Etc::sourcelist={root}/etc/sources.list"),
        *("-o", f"Dir::Etc::sourceparts={root}/etc/sources.list.d", "-o", "Acquire::Languages=none"),
        *("-o", "APT::Sandbox::User=root"),
    ]


def etcd_folder(cache: Path) -> Path:
    """The folder with ``etcd``, ``etcdctl`` and ``etcdutl``, downloaded at the first call.

    Raises:
        EtcdUnavailable: when apt is missing or cannot reach a Debian archive.
    """
    binaries = cache / "root" / "usr" / "bin"
    if (binaries / "etcd").exists():
        return binaries
    root = cache / "apt"
    options = _apt_options(root.absolute())
    mirror = debian_mirror()
    lines = [f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n" for suite in _SUITES]
    (root / "etc/sources.list").write_text("".join(lines))
    downloads = cache / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "-qq", *options, "update"], check=True, timeout=_APT_SECONDS)
        command = ["apt-get", "-qq", *options, "download", *_PACKAGES]
        subprocess.run(command, check=True, cwd=downloads, timeout=_APT_SECONDS)
        for package in sorted(downloads.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(cache / "root")], check=True, timeout=_APT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise EtcdUnavailable(f"apt could not download etcd: {error}") from error
    return binaries


if __name__ == "__main__":
    print(etcd_folder(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(".cache/etcd")))
