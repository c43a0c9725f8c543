"""What a load has measured, for people (in the form that etcd's benchmark made familiar) and for programs."""

from __future__ import annotations

import math
from typing import Any

import grpc

from .._engine import Histogram
from .running import Outcome

PERCENTILES = (10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
_BARS = 10
_BAR_WIDTH = 40
_CODES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
UNIMPLEMENTED = 12
BUSY_SHARE = 0.9
"""From this share of one processor on the generator may have been the limit."""


def code_name(code: int) -> str:
    """A gRPC status code by name."""
    return _CODES.get(code, f"CODE_{code}")


def summary(histogram: Histogram, seconds: float) -> dict[str, float]:
    """The figures of a histogram in seconds."""
    count = histogram.count
    mean = histogram.sum_ns / count if count else 0.0
    variance = max(0.0, histogram.sum_squares / count - mean * mean) if count else 0.0
    return {
        "count": count,
        "total_seconds": seconds,
        "slowest_seconds": histogram.max_ns / 1e9,
        "fastest_seconds": histogram.min_ns / 1e9,
        "average_seconds": mean / 1e9,
        "stddev_seconds": math.sqrt(variance) / 1e9,
        "per_second": count / seconds if seconds else 0.0,
    }


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything that was measured; latencies in seconds."""
    snapshot = outcome.snapshot
    whole = outcome.all_latencies()
    operations = {}
    for one, measured in zip(outcome.plan.operations, snapshot.operations, strict=True):
        operations[one.label] = {
            **_figures(measured.latency, snapshot.elapsed_seconds),
            "failed": measured.failed,
            "answer_bytes": measured.answer_bytes,
            "missed": measured.missed if one.verdict else None,
        }
    return {
        "clients": outcome.size.clients,
        "connections": outcome.size.connections,
        "rate": outcome.size.rate,
        "key_space": outcome.size.key_space,
        "key_bytes": outcome.shape.key_bytes,
        "value_bytes": outcome.shape.value_bytes,
        "interrupted": outcome.interrupted,
        "failure": snapshot.failure,
        "started": snapshot.started,
        "unsent": snapshot.unsent,
        "errors": outcome.errors,
        "errors_by_code": _errors_by_code(outcome),
        "error_messages": [
            {"operation": _label(outcome, at), "code": code_name(code), "message": message, "count": count}
            for at, code, message, count in snapshot.errors
        ],
        **_figures(whole, snapshot.elapsed_seconds),
        "operations": operations,
        "events": {
            **_figures(snapshot.events, snapshot.events_elapsed_seconds),
            "expected": snapshot.events_expected,
        },
        "generator_cpu_seconds": outcome.cpu_seconds,
        "timeline": [vars(one) for one in outcome.intervals],
    }


def _figures(histogram: Histogram, seconds: float) -> dict[str, Any]:
    return {
        **summary(histogram, seconds),
        "percentiles_seconds": {f"{p:g}": histogram.percentile(p) / 1e9 for p in PERCENTILES},
        "histogram": [[low / 1e9, (low + width) / 1e9, count] for low, width, count in histogram.buckets()],
    }


def _label(outcome: Outcome, at: int | None) -> str:
    return "stream" if at is None else outcome.plan.operations[at].label


def _errors_by_code(outcome: Outcome) -> dict[str, int]:
    codes: dict[str, int] = {}
    for _, code, _, count in outcome.snapshot.errors:
        codes[code_name(code)] = codes.get(code_name(code), 0) + count
    return codes


def as_text(outcome: Outcome, *, precise: bool) -> str:
    """The report for people."""
    snapshot = outcome.snapshot
    digits = ".9f" if precise else ".4f"
    lines: list[str] = []
    if outcome.interrupted:
        lines += ["Interrupted: what was measured until then.", ""]
    lines += _section("Summary", outcome.all_latencies(), snapshot.elapsed_seconds, digits, "Requests")
    if len(outcome.plan.operations) > 1:
        for one, measured in zip(outcome.plan.operations, snapshot.operations, strict=True):
            if not measured.latency.count:
                continue
            title = f"Operation {one.label}"
            lines += ["", *_section(title, measured.latency, snapshot.elapsed_seconds, digits, "Requests")]
    for one, measured in zip(outcome.plan.operations, snapshot.operations, strict=True):
        if one.verdict and measured.missed:
            lines += ["", f"{one.label}: {measured.missed:,} of {measured.latency.count:,} {one.missed}"]
    if snapshot.events_expected or snapshot.events.count:
        title = "Events, from the intended time of the write to their arrival"
        lines += ["", *_section(title, snapshot.events, snapshot.events_elapsed_seconds, digits, "Events")]
        lines += ["", f"Events: {snapshot.events.count:,} of {snapshot.events_expected:,} expected"]
    lines += _error_lines(outcome)
    lines += _notes(outcome)
    return "\n".join(lines)


def _section(title: str, histogram: Histogram, seconds: float, digits: str, unit: str) -> list[str]:
    figures = summary(histogram, seconds)
    lines = [
        f"{title}:",
        f"  Total:        {figures['total_seconds']:{digits}} secs.",
        f"  Slowest:      {figures['slowest_seconds']:{digits}} secs.",
        f"  Fastest:      {figures['fastest_seconds']:{digits}} secs.",
        f"  Average:      {figures['average_seconds']:{digits}} secs.",
        f"  Stddev:       {figures['stddev_seconds']:{digits}} secs.",
        f"  {unit + '/sec:':<13} {figures['per_second']:{digits}}",
    ]
    if not histogram.count:
        return lines
    lines += ["", "Response time histogram:", *_bars(histogram, digits), "", "Latency distribution:"]
    lines += [f"  {p:g}% in {histogram.percentile(p) / 1e9:{digits}} secs." for p in PERCENTILES]
    return lines


def _bars(histogram: Histogram, digits: str) -> list[str]:
    """Ten bars between the fastest and the slowest; a bucket counts where its middle lies."""
    low, high = histogram.min_ns, histogram.max_ns
    step = max(1, math.ceil((high - low) / _BARS))
    counts = [0] * (_BARS + 1)
    for first, width, count in histogram.buckets():
        middle = min(max(first + width // 2, low), high)
        counts[min(_BARS, math.ceil((middle - low) / step))] += count
    most = max(counts)
    return [
        f"  {min(low + n * step, high) / 1e9:{digits}} [{count}]\t|{'∎' * (_BAR_WIDTH * count // most)}"
        for n, count in enumerate(counts)
    ]


def _error_lines(outcome: Outcome) -> list[str]:
    if not outcome.snapshot.errors:
        return []
    lines = ["", "Error distribution:"]
    for at, code, message, count in sorted(outcome.snapshot.errors, key=lambda error: -error[3]):
        lines.append(f"  [{count}] {_label(outcome, at)}: {code_name(code)}: {message}")
    missing = sorted({_label(outcome, at) for at, code, _, _ in outcome.snapshot.errors if code == UNIMPLEMENTED})
    if missing:
        lines += ["", f"The server does not implement: {', '.join(missing)}."]
    return lines


def _notes(outcome: Outcome) -> list[str]:
    lines = []
    if outcome.snapshot.failure and not outcome.interrupted:
        lines += ["", f"The load could not go on: {outcome.snapshot.failure}"]
    if outcome.snapshot.unsent:
        lines += [
            "",
            f"{outcome.snapshot.unsent:,} calls were due and never sent: the server cannot keep up with --rate.",
        ]
    share = outcome.cpu_seconds / outcome.wall_seconds if outcome.wall_seconds else 0.0
    if share >= BUSY_SHARE:
        lines += ["", f"The load generator used {share:.0%} of a processor: it may have been the limit."]
    return lines
