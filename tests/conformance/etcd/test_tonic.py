"""A client of another HTTP/2 stack than Go's and C++'s: tonic, on hyper and h2 (``tests/conformance/tonic``)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "server"))

from processes import cluster

_CRATE = Path(__file__).parents[1] / "tonic"
_BUILD_SECONDS = 900

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not installed"),
]


def test_a_rust_client_gets_what_it_expects(tmp_path: Path) -> None:
    command = ["cargo", "build", "--quiet", "--release", "--locked"]
    subprocess.run(command, cwd=_CRATE, check=True, timeout=_BUILD_SECONDS)
    with cluster(tmp_path, 1, "adr", ()) as made:
        client = _CRATE / "target" / "release" / "raftkv-tonic-conformance"
        address = f"http://{made.members[0].endpoint}"
        done = subprocess.run([client, address], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok: ") == 11
