"""What the end-to-end scenarios need of a cluster: kubectl, pods and members, and nothing of how it is made."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "deploy" / "samples" / "three-nodes.yaml"
NAME = "demo"
CLIENT_PORT = 2379
METRICS_PORT = 2381
START_SECONDS = 180.0
_POLL_SECONDS = 0.2


class ScenarioError(Exception):
    """Something that the scenario expects did not come true."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl against one kubeconfig and namespace."""

    kubeconfig: Path
    namespace: str = "default"

    @property
    def folder(self) -> Path:
        """On a playground: the folder below which all its files are."""
        return self.kubeconfig.parent

    def run(self, *arguments: str, check: bool = True, timeout_seconds: float = 300) -> str:
        """Runs kubectl and returns its standard output; what it says on failure is in the error."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        command = ["kubectl", "-n", self.namespace, *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
        if check and done.returncode != 0:
            raise ScenarioError(f"{' '.join(command)} failed ({done.returncode}): {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """``kubectl get -o json``."""
        answer: dict[str, Any] = json.loads(self.run("get", *arguments, "-o", "json"))
        return answer

    def apply(self, *objects: dict[str, Any]) -> None:
        """``kubectl apply`` of objects."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all(objects, file)
            file.flush()
            self.run("apply", "-f", file.name)

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """The pods of a label selector."""
        items: list[dict[str, Any]] = self.get("pods", "-l", selector)["items"]
        return items


def wait_until(what: str, condition: Callable[[], bool], timeout_seconds: float) -> float:
    """Waits for a condition and returns the seconds it took; an expired wait names what was waited for.

    A failing kubectl counts as "not yet": the API may be busy, the object not there.
    """
    start = time.monotonic()
    last = ""
    while True:
        try:
            if condition():
                return time.monotonic() - start
        except (ScenarioError, KeyError, IndexError, ValueError) as error:
            last = f" (last error: {error})"
        if time.monotonic() - start > timeout_seconds:
            raise ScenarioError(f"waited {timeout_seconds:.0f} s for {what}{last}")
        time.sleep(_POLL_SECONDS)


@contextmanager
def playground(
    state: Path, *options: str, ready: tuple[str, ...] = ("get", "crd", "raftkvclusters.raftkv.dev")
) -> Iterator[Kubectl]:
    """A playground as a person starts it, ended as Ctrl-C would; ``ready`` is the kubectl call that tells it is up."""
    if shutil.which("kubectl") is None:
        raise ScenarioError("kubectl is not installed (make packages)")
    kubeconfig = state / "kubeconfig"
    command = [str(Path(sys.executable).with_name("raftkv")), "playground", "up"]
    command += ["--state-dir", str(state / "state"), "--kubeconfig", str(kubeconfig), *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=ROOT)
    try:
        kubectl = Kubectl(kubeconfig)

        def is_up() -> bool:
            if process.poll() is not None:
                raise SystemExit(f"the playground ended with code {process.returncode}")
            return kubeconfig.exists() and bool(kubectl.run(*ready))

        wait_until("the playground's API", is_up, START_SECONDS)
        yield kubectl
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cluster(kubectl: Kubectl) -> dict[str, Any]:
    """The custom resource."""
    return kubectl.get("rkv", NAME)


def settled(kubectl: Kubectl, replicas: int) -> bool:
    """Whether the operator says that the wish for so many members is fulfilled, and all of them are ready."""
    resource = cluster(kubectl)
    status = resource["status"]
    conditions = {c["type"]: c for c in status["conditions"]}
    return (
        status["observedGeneration"] == resource["metadata"]["generation"]
        and conditions["Ready"]["status"] == "True"
        and status["readyReplicas"] == replicas
        and len(status["members"]) == replicas
    )


def member_pods(kubectl: Kubectl) -> dict[str, str]:
    """Pod name to address of the cluster's members that run."""
    pods = kubectl.pods(f"raftkv.dev/cluster={NAME}")
    return {
        pod["metadata"]["name"]: pod["status"]["podIP"]
        for pod in pods
        if pod["status"].get("podIP") and not pod["metadata"].get("deletionTimestamp")
    }


def processes(pattern: str, within: Path) -> list[int]:
    """Process ids whose command line matches and names a path below the folder (other playgrounds may be running)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(within) in command and re.search(pattern, command):
                found.append(int(entry.name))
    return found
