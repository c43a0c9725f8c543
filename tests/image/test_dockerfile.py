"""The Dockerfile is not read but executed: every stage is built, and both commands run from the finished image.

Where no registry can be reached the base image is made with debootstrap. The machine's own certificate authorities go
into that base, as they would where images are built behind a company's proxy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from debian import debian_mirror

_ROOT = Path(__file__).parents[2]
_BASE = "raftkv-test-base"
_IMAGE = "raftkv-test"
_BUILD_SECONDS = 1800


def _docker(*arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=seconds, check=False)


def _why_not() -> str | None:
    if shutil.which("docker") is None or _docker("info").returncode != 0:
        return "no Docker engine answers on this machine"
    if shutil.which("debootstrap") is None:
        return "debootstrap is not installed (make packages)"
    return None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A minimal Debian 13, imported as an image."""
    if _docker("image", "inspect", _BASE).returncode == 0:
        return _BASE
    root = tmp_path_factory.mktemp("base") / "root"
    command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "trixie", str(root), debian_mirror()]
    subprocess.run(command, check=True, capture_output=True, timeout=_BUILD_SECONDS)
    own = Path("/usr/local/share/ca-certificates")
    for certificate in own.glob("*.crt"):
        shutil.copy(certificate, root / own.relative_to("/"))
    subprocess.run(["chroot", str(root), "update-ca-certificates"], check=True, capture_output=True)
    archive = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(["docker", "import", "-", _BASE], stdin=archive.stdout, check=True, capture_output=True)
    assert archive.wait() == 0
    shutil.rmtree(root)
    return _BASE


@pytest.fixture(scope="module")
def image(base: str) -> Iterator[str]:
    """The image, built from the working tree with all its stages."""
    done = _docker(
        *("build", "--network", "host", "--build-arg", f"BASE={base}", "--tag", _IMAGE, str(_ROOT)),
        seconds=_BUILD_SECONDS,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    yield _IMAGE
    _docker("image", "rm", "--force", _IMAGE)


pytestmark = [pytest.mark.slow, pytest.mark.skipif(_why_not() is not None, reason=_why_not() or "")]


def test_both_commands_run_from_the_image(image: str) -> None:
    node = _docker("run", "--rm", image, "node", "--help")
    assert node.returncode == 0
    assert "--adr-path" in node.stdout
    operator = _docker("run", "--rm", image, "operator", "--help")
    assert operator.returncode == 0
    assert "--kubeconfig" in operator.stdout


def test_the_image_runs_without_privileges(image: str) -> None:
    done = _docker("run", "--rm", "--entrypoint", "id", image, "-u")
    assert done.stdout.strip() == "65532"


def test_a_member_serves_from_the_image(image: str) -> None:
    script = (
        "raftkv node --name n1 --data-dir /tmp/data --log-level error & "
        "for i in $(seq 100); do "
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:2379/health\").read().decode())' "
        "2>/dev/null && exit 0; sleep 0.3; done; exit 1"
    )
    done = _docker("run", "--rm", "--entrypoint", "sh", image, "-c", script)
    assert done.returncode == 0, done.stderr
    assert '"health":"true"' in done.stdout


def test_bad_arguments_get_a_sentence_and_a_code(image: str) -> None:
    done = _docker("run", "--rm", image, "node", "--no-such-flag")
    assert done.returncode == 64
    assert "--no-such-flag" in done.stderr
