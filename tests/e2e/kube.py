"""What the end-to-end scenarios need of a cluster: kubectl, pods and members, and nothing of how it is made."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.2


class ScenarioError(Exception):
    """Something that the scenario expects did not come true."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl against one kubeconfig and namespace."""

    kubeconfig: Path
    namespace: str = "default"

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
