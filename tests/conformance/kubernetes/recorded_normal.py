"""Bring recorded and own answers into a form in which only real differences are left.

Two answers of the same API must differ in uids, resourceVersions, times and ages, managedFields' times (and therefore
their order), generated names, addresses and continue tokens; descriptions do not count. All else is compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_UID = re.compile(r"\b(?!00000000-)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_TIME = re.compile(r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_FIXED_TIMES = {"2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000Z"}
"""Times that the requests themselves contain."""
_AGE = re.compile(r"^(\d+[smhdy])+$")
_GENERATED = re.compile(r"\b(gen|e|kube-api-access)-[bcdfghjklmnpqrstvwxz2456789]{5}\b")
_REVISION = re.compile(r"\b(s|ap)-[bcdfghjklmnpqrstvwxz2456789]{6,10}\b")
_HASH = re.compile(r"^[bcdfghjklmnpqrstvwxz2456789]{6,10}$")
_CLUSTER_IP = re.compile(r"\b(10\.96|127\.96)\.\d+\.\d+\b(?<!10\.96\.9\.9)")
_VERSIONS = [
    (re.compile(r"(Too large resource version: \d+, current:) \d+"), r"\1 <version>"),
    (re.compile(r"(too old resource version: \d+) \(\d+\)"), r"\1 (<version>)"),
]


def text(value: str) -> str:
    """A string without what must differ."""
    if value in _FIXED_TIMES:
        return value
    value = _UID.sub("<uid>", value)
    value = _TIME.sub("<time>", value)
    value = _GENERATED.sub(r"\1-<generated>", value)
    value = _REVISION.sub(r"\1-<hash>", value)
    value = _CLUSTER_IP.sub("<address>", value)
    for pattern, replacement in _VERSIONS:
        value = pattern.sub(replacement, value)
    return value


def answer(value: Any, key: str = "") -> Any:
    """An answer's body without what must differ."""
    match value:
        case dict():
            out = {}
            for name, item in value.items():
                if name == "description" and isinstance(item, str):
                    continue
                out[text(name)] = _entry(name, item)
            return out
        case list() if key == "managedFields":
            entries = [answer({k: v for k, v in e.items() if k != "time"}) for e in value]
            return sorted(entries, key=lambda e: (e["operation"], e["manager"], e.get("subresource", "")))
        case list() if key == "resources" and all(isinstance(e, dict) and "name" in e for e in value):
            # Discovery's entries are found by name; their order means nothing.
            return {e["name"]: answer(e) for e in value}
        case list() if key == "cells":
            return ["<age>" if isinstance(c, str) and _AGE.match(c) else answer(c) for c in value]
        case list():
            return [answer(item) for item in value]
        case str():
            return text(value)
    return value


def _entry(name: str, value: Any) -> Any:
    if name == "resourceVersion" and isinstance(value, str) and value:
        return "<version>"
    if name == "continue" and value:
        return "<continue>"
    if name == "serverAddress":
        return "<address>"
    if name == "controller.kubernetes.io/hash" and isinstance(value, str) and _HASH.match(value):
        return "<hash>"
    return answer(value, name)


def differences(expected: Any, found: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, expected, found) of each difference; a missing member is ``<absent>``."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            below = f"{path}.{key}" if path else key
            if key not in found:
                yield below, expected[key], "<absent>"
            elif key not in expected:
                yield below, "<absent>", found[key]
            else:
                yield from differences(expected[key], found[key], below)
    elif isinstance(expected, list) and isinstance(found, list):
        for n in range(max(len(expected), len(found))):
            below = f"{path}[{n}]"
            if n >= len(found):
                yield below, expected[n], "<absent>"
            elif n >= len(expected):
                yield below, "<absent>", found[n]
            else:
                yield from differences(expected[n], found[n], below)
    elif expected != found or type(expected) is not type(found):
        yield path, expected, found


_COMMAND_TEXT = [
    (re.compile(r"(?m)(?<=\s)\d+[smh]\d*s?$"), "<age>"),
    (re.compile(r"\S*/(LIVE|MERGED)-\d+|(?:/\S*/)(?=LIVE|MERGED)"), r"\1"),
    (re.compile(r"(?m)^((?:---|\+\+\+) \S+)\t.*$"), r"\1"),
    (re.compile(r'(resourceVersion: )"\d+"'), r"\1<version>"),
    (re.compile(r"(Resource Version: +)\d+"), r"\1<version>"),
    (re.compile(r"( at) 20\d\d-\S+?Z"), r"\1 <time>"),
]


def command_text(value: str) -> str:
    """A command's output without what must differ."""
    value = text(value)
    for pattern, replacement in _COMMAND_TEXT:
        value = pattern.sub(replacement, value)
    return value
