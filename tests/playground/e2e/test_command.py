"""The command itself: wrong use, and a folder that is in use, each with one clear sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import raftkv_playground

from .conftest import Playground, eventually


def up(*args: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "raftkv_playground.cli", "up", "--no-operator", *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--nodes=0"], "--nodes must be 1 to 9"),
        (["--nodes=10"], "--nodes must be 1 to 9"),
        (["--sample=/no/such.yaml"], "no such file: /no/such.yaml"),
    ],
)
def test_wrong_use(args: list[str], message: str) -> None:
    done = up(*args)
    assert done.returncode == 2 and message in done.stderr


def test_an_installation_without_the_manifests_says_what_to_name(tmp_path: Path) -> None:
    """A wheel holds the packages only."""
    packages = tmp_path / "lib" / "site-packages"
    shutil.copytree(Path(raftkv_playground.__file__).parent, packages / "raftkv_playground")
    done = subprocess.run(
        [sys.executable, "-m", "raftkv_playground.cli", "up"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and "deploy/rbac.yaml with --apply" in done.stderr


def test_a_folder_has_one_playground(playground: Playground) -> None:
    done = up(f"--state-dir={playground.state}")
    assert done.returncode == 1 and f"cannot start: another playground uses {playground.state}" in done.stdout
    assert playground.get("nodes")["items"], "the first one goes on"


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = up(f"--state-dir={tmp_path / 'file' / 'state'}")
    assert done.returncode == 1 and done.stderr.startswith("cannot start: ") and "Traceback" not in done.stderr


def test_a_port_in_use_is_told(playground: Playground, tmp_path: Path) -> None:
    port = playground.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}").rsplit(":", 1)[1]
    done = up(f"--port={port}", f"--state-dir={tmp_path}")
    assert done.returncode == 1 and "cannot start: the apiserver ended (exit code 1); its log says why" in done.stdout
    assert "address already in use" in done.stdout


def test_a_pod_deleted_by_force_is_gone_soon(playground: Playground) -> None:
    metadata = {"name": "forced"}
    container = {"name": "c", "image": "app", "args": ["--listen=0.0.0.0:8080", "--deaf"]}
    playground.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})
    playground.kubectl("wait", "pod/forced", "--for=condition=Ready", "--timeout=60s")
    process = Path(f"/proc/{playground.pid_of('forced')}")
    playground.kubectl("delete", "pod", "forced", "--force", "--grace-period=0")
    assert not playground.get("pods", "--field-selector=metadata.name=forced")["items"]
    eventually("its process ends", lambda: not process.exists())
