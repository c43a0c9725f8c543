"""Programs from Debian's later suites, unpacked beside the system.

A stable Debian carries an etcd 3.4 and a Prometheus without Kubernetes service discovery; the tests want newer ones. So
packages of a later suite are downloaded with an apt configuration of their own (the system's stays as it is, nothing is
installed) and unpacked into a cache folder. The mirror is the one that this machine's own apt sources name.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_SUITES = ("sid", "trixie")
CACHE = Path(__file__).parents[2] / ".cache" / "debian"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT_SECONDS = 300


class PackageUnavailable(Exception):
    """A package could not be had from Debian's later suites; the text says why."""


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
    raise PackageUnavailable("the apt sources of this machine name no Debian archive")


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


def unpacked(packages: tuple[str, ...], cache: Path = CACHE) -> Path:
    """The folder of the packages' programs (their ``/usr/bin``), downloaded at the first call.

    Raises:
        PackageUnavailable: when apt is missing or cannot reach a Debian archive.
    """
    target = cache / "+".join(packages)
    binaries = target / "root" / "usr" / "bin"
    done = target / "unpacked"
    if done.exists():
        return binaries
    downloads = target / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    root = (cache / "apt").absolute()
    options = _apt_options(root)
    mirror = debian_mirror()
    lines = [f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n" for suite in _SUITES]
    (root / "etc/sources.list").write_text("".join(lines))
    try:
        subprocess.run(["apt-get", "-qq", *options, "update"], check=True, timeout=_APT_SECONDS)
        command = ["apt-get", "-qq", *options, "download", *packages]
        subprocess.run(command, check=True, cwd=downloads, timeout=_APT_SECONDS)
        for package in sorted(downloads.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(target / "root")], check=True, timeout=_APT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise PackageUnavailable(f"apt could not download {', '.join(packages)}: {error}") from error
    done.touch()
    return binaries
