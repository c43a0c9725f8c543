"""The plain HTTP endpoints, as etcd has them: /health, /livez, /readyz, /version, /metrics.

Pure: :func:`parse` says what a request asks for, the ``render_*`` functions say how an answer looks; what is true is
the server's to find out. ``/health`` and the ``linearizable_read`` check need a quorum and are answered later.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qs

CHECKS: Mapping[str, tuple[str, ...]] = {
    "livez": ("serializable_read",),
    "readyz": ("data_corruption", "serializable_read", "linearizable_read", "non_learner"),
}
"""Checks of each probe, in the order in which they are printed."""

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
_NOSNIFF = (("X-Content-Type-Options", "nosniff"),)


class HttpReply(NamedTuple):
    """An answer as the engine takes it."""

    status: int
    content_type: str
    body: bytes
    headers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class HealthQuery:
    """``GET /health``."""

    serializable: bool
    exclude: frozenset[str]
    """Alarms that do not count."""


@dataclass(frozen=True, slots=True)
class ProbeQuery:
    """``GET /livez``, ``/readyz`` or one of their checks."""

    checks: tuple[str, ...]
    verbose: bool


class VersionQuery(NamedTuple):
    """``GET /version``."""


class MetricsQuery(NamedTuple):
    """``GET /metrics``."""


HttpQuery = HealthQuery | ProbeQuery | VersionQuery | MetricsQuery


def parse(method: str, target: str) -> HttpQuery | HttpReply:
    """What a request asks for, or the answer to one that makes no sense."""
    path, _, text = target.partition("#")[0].partition("?")
    if "://" in path:  # the absolute form, as a proxy is asked
        path = path.partition("://")[2].partition("/")[2]
    query = parse_qs(text, keep_blank_values=True)
    segments = [segment for segment in path.split("/") if segment]
    known = _route(segments, query)
    if known is None:
        return HttpReply(404, TEXT, b"404 page not found\n", _NOSNIFF)
    if method not in ("GET", "HEAD"):
        return HttpReply(405, TEXT, b"Method Not Allowed\n", (("Allow", "GET"), *_NOSNIFF))
    return known


def _route(segments: list[str], query: Mapping[str, list[str]]) -> HttpQuery | None:
    match segments:
        case ["health"]:
            serializable = query.get("serializable", ["false"])[0] == "true"
            return HealthQuery(serializable, frozenset(query.get("exclude", ())) - {""})
        case ["version"]:
            return VersionQuery()
        case ["metrics"]:
            return MetricsQuery()
        case [("livez" | "readyz") as probe]:
            excluded = set(query.get("exclude", ()))
            checks = tuple(check for check in CHECKS[probe] if check not in excluded)
            return ProbeQuery(checks, "verbose" in query)
        case [("livez" | "readyz") as probe, check] if check in CHECKS[probe]:
            return ProbeQuery((check,), "verbose" in query)
    return None


def render_health(reason: str) -> HttpReply:
    """``/health``: healthy when there is no reason against it."""
    body = json.dumps({"health": "false" if reason else "true", "reason": reason}, separators=(",", ":"))
    return HttpReply(503 if reason else 200, JSON, body.encode())


def alarm_reason(alarms: Collection[str], exclude: Collection[str]) -> str:
    """etcd's reason for the first alarm that counts; empty if there is none."""
    return next((f"ALARM {alarm}" for alarm in sorted(alarms) if alarm not in exclude), "")


def render_probe(query: ProbeQuery, failures: Mapping[str, str]) -> HttpReply:
    """``/livez`` and ``/readyz``: ``failures`` has a reason for each check that failed."""
    lines = [
        f"[-]{check} failed: {failures[check]}\n" if check in failures else f"[+]{check} ok\n" for check in query.checks
    ]
    if any(check in failures for check in query.checks):
        return HttpReply(503, TEXT, "".join(lines).encode(), _NOSNIFF)
    return HttpReply(200, TEXT, ("".join(lines) if query.verbose else "").encode() + b"ok\n", _NOSNIFF)


def render_version(server: str, cluster: str) -> HttpReply:
    """``/version``: the versions of etcd that the API corresponds to."""
    body = json.dumps(
        {"etcdserver": server, "etcdcluster": cluster, "storage": cluster.rpartition(".")[0] + ".0"},
        separators=(",", ":"),
    )
    return HttpReply(200, JSON, body.encode())
