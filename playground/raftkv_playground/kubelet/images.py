"""Images: the white list of what a pod may run.

There is no container engine. An image is known by the last part of its repository
(``registry.example/team/raftkv:1.2`` is ``raftkv``) and stands for programs of this machine: an entrypoint, and the
only commands that ``command:``, exec probes and hooks may name. Tag and digest do not matter. An unknown image cannot
be pulled; an unknown command cannot be started.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Image:
    """``programs`` maps what a pod may name as a command (``raftkv``) to what is really run."""

    entrypoint: tuple[str, ...]
    programs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    def command_line(self, command: Iterable[str], args: Iterable[str]) -> list[str]:
        """What to execute for a container's ``command`` and ``args``, as Kubernetes combines them with the image.

        Raises LookupError if the command is none of the image's programs.
        """
        words = list(command)
        if not words:
            return [*self.entrypoint, *args]
        name = words[0].rsplit("/", 1)[-1]
        if name not in self.programs:
            raise LookupError(f'exec: "{words[0]}": executable file not found in the playground\'s image')
        return [*self.programs[name], *words[1:], *args]


def repository_name(reference: str) -> str:
    """``registry:5000/team/raftkv:1.2@sha256:...`` -> ``raftkv``."""
    last = reference.split("@", 1)[0].rsplit("/", 1)[-1]
    return last.split(":", 1)[0]


def raftkv_image() -> Image:
    """This environment's own ``raftkv``, next to the running interpreter."""
    folder = Path(sys.executable).parent
    raftkv = (str(folder / "raftkv"),)
    return Image(
        entrypoint=raftkv,
        programs={"raftkv": raftkv, "kubectl-raftkv": (str(folder / "kubectl-raftkv"),)},
        env={"PYTHONUNBUFFERED": "1"},
    )


def parse_rule(rule: str) -> tuple[str, Image]:
    """``NAME=COMMAND LINE`` of the ``--image`` option; NAME is the command's name inside the image, too.

    Raises ValueError.
    """
    name, separator, command = rule.partition("=")
    words = tuple(shlex.split(command))
    if not separator or not name or not words:
        raise ValueError(f"--image wants NAME=COMMAND, not {rule!r}")
    return name, Image(entrypoint=words, programs={name: words}, env={"PYTHONUNBUFFERED": "1"})


def image_map(rules: Iterable[str] = ()) -> dict[str, Image]:
    """``raftkv`` and what ``--image`` options add."""
    return {"raftkv": raftkv_image(), **dict(map(parse_rule, rules))}
