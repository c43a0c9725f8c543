"""Renders a Helm chart with Helm's own libraries (``render/main.go``), built from Debian's Go packages.

With a ``helm`` on the path one would use that; machines without it get the same text from the same engine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_SOURCE = Path(__file__).parent / "render"
_GOPATH = Path("/usr/share/gocode")


def why_not() -> str | None:
    """Why charts cannot be rendered here, or None."""
    if shutil.which("go") is None or not (_GOPATH / "src/github.com/Masterminds/sprig").exists():
        return "Go and sprig are not installed (make packages)"
    return None


@cache
def _binary() -> Path:
    target = Path(tempfile.mkdtemp(prefix="raftkv-render-")) / "render"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(_GOPATH), "GOFLAGS": ""}
    subprocess.run(["go", "build", "-o", str(target), "."], cwd=_SOURCE, env=environment, check=True)
    return target


class RenderError(Exception):
    """The chart's templates refused; the text is theirs."""


@dataclass(frozen=True)
class Release:
    """What a chart renders to."""

    crds: list[dict[str, Any]]
    objects: list[dict[str, Any]]
    notes: str


def render(chart: Path, name: str, namespace: str, revision: int = 1, values: dict[str, Any] | None = None) -> Release:
    """``helm template``: revision 1 is an install, later ones are upgrades. Raises RenderError."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values or {}, file)
        file.flush()
        command = [str(_binary()), str(chart), name, namespace, str(revision), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RenderError(done.stderr.strip())
    texts: dict[str, str] = json.loads(done.stdout)
    notes = texts.pop("templates/NOTES.txt", "")

    def documents(prefix: str) -> list[dict[str, Any]]:
        paths = sorted(path for path in texts if path.startswith(prefix))
        return [document for path in paths for document in yaml.safe_load_all(texts[path]) if document]

    return Release(documents("crds/"), documents("templates/"), notes)
