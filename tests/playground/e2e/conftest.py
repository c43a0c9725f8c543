"""A whole playground without operator, driven by kubectl."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

APP = Path(__file__).with_name("app.py")
PATIENCE_SECONDS = 60.0
"""How long anything is waited for before a test fails; generous, since the machine may be busy."""


def eventually(what: str, check: Callable[[], Any]) -> Any:
    """The first true value of ``check``; an exception or a false value is tried again."""
    deadline, last = time.monotonic() + PATIENCE_SECONDS, None
    while time.monotonic() < deadline:
        try:
            if value := check():
                return value
        except (AssertionError, LookupError, OSError, urllib.error.URLError, subprocess.CalledProcessError) as error:
            last = error
        time.sleep(0.1)
    pytest.fail(f"{what} did not come true: {last}")


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
        return text


class Playground:
    """One ``raftkv playground up`` in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = directory / "up.log"
        self.kubeconfig = directory / "kubeconfig"
        ready = directory / "ready"
        self.state: Path | None = None
        argv = [sys.executable, "-m", "raftkv_playground.cli", "up", "--no-operator"]
        argv += [f"--kubeconfig={self.kubeconfig}", f"--ready-file={ready}", f"--image=app={sys.executable} {APP}"]
        argv += ["--restart-backoff=0.2", "--restart-backoff-limit=1"]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
        eventually("the start", lambda: ready.exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.output.read_text()
        first = self.output.read_text().splitlines()[0]
        self.state = Path(first.split("state: ")[1])

    def kubectl(self, *args: str, input: str | None = None, check: bool = True) -> str:
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.directory)}
        done = subprocess.run(
            ["kubectl", *args], env=env, input=input, capture_output=True, text=True, timeout=90, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout + ("" if check else done.stderr)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))

    def get(self, *args: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", *args, "-o", "json"))
        return found

    def pid_of(self, pod: str) -> int:
        """The process of a pod's first container."""
        return int(self.get("pod", pod)["status"]["containerStatuses"][0]["containerID"].removeprefix("process://"))

    def marked(self) -> list[int]:
        """All processes of this playground: those that have its marker (the API server has it, too)."""
        from raftkv_playground.janitor import MARKER, marked

        assert self.state is not None
        pid = int((self.state / "pids" / "apiserver").read_text())
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        marker = next(v for v in variables if v.startswith(f"{MARKER}=".encode())).decode().partition("=")[2]
        self.marker = marker
        return marked(marker)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(60) == 0, self.output.read_text()


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (make packages)")
    running = Playground(tmp_path_factory.mktemp("playground"))
    try:
        yield running
        running.stop()
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Playground]:
    """A playground of its own, for a test that breaks it."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (make packages)")
    running = Playground(tmp_path)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
