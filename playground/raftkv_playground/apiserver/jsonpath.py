"""The part of JSONPath that printer columns and kubectl use: fields, indexes, ``[*]`` and ``[?(@.a=="b")]``."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

_STEP = re.compile(
    r"""\.\.?(?P<name>(?:[^.\[\]\\]|\\.)+)|\[(?P<index>-?\d+)\]|\[(?P<all>\*)\]|\['(?P<quoted>[^']*)'\]"""
    r"""|\[\?\(@\.(?P<field>[\w.\-]+)\s*(?P<op>==|!=)\s*(?P<value>"[^"]*"|'[^']*'|[^)]+)\)\]"""
)


@lru_cache(maxsize=512)
def _compile(path: str) -> tuple[dict[str, str | None], ...]:
    text = path.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    if not text.startswith((".", "[")):
        text = "." + text
    steps, at = [], 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise ValueError(f"cannot parse JSONPath {path!r} at {at}")
        steps.append(match.groupdict())
        at = match.end()
    return tuple(steps)


def find(item: Any, path: str) -> list[Any]:
    """All values at ``path``. ``ValueError`` for a path that is not understood."""
    found = [item]
    for step in _compile(path):
        following: list[Any] = []
        for value in found:
            following += _step(value, step)
        found = following
    return found


def _step(value: Any, step: dict[str, str | None]) -> list[Any]:
    name = step["name"] or step["quoted"]
    if name is not None:
        name = name.replace("\\", "")
        if name == "*":
            return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []
        return [value[name]] if isinstance(value, dict) and name in value else []
    if step["all"]:
        return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []
    if step["index"] is not None:
        index = int(step["index"])
        return [value[index]] if isinstance(value, list) and -len(value) <= index < len(value) else []
    return [entry for entry in value if _fits(entry, step)] if isinstance(value, list) else []


def _fits(entry: Any, step: dict[str, str | None]) -> bool:
    raw = str(step["value"])
    wanted: Any
    if raw[0] in "\"'":
        wanted = raw[1:-1]
    else:
        try:
            wanted = json.loads(raw)
        except ValueError:
            wanted = raw
    for key in str(step["field"]).split("."):
        entry = entry.get(key) if isinstance(entry, dict) else None
    return bool((entry == wanted) == (step["op"] == "=="))
