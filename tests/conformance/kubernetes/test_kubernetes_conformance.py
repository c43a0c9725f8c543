"""The API server against the recording of a real one, where the recording is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import recorded_normal as normal
from recorded_replay import Difference, Known, strict_labels

HERE = Path(__file__).parent


def _recording() -> Path | None:
    given = os.environ.get("RECORDING")
    return Path(given) if given else None


@pytest.mark.slow
def test_the_server_answers_like_the_recorded_one() -> None:
    recording = _recording()
    if recording is None:
        pytest.skip("no recording: set RECORDING to its folder")
    done = subprocess.run(
        [sys.executable, str(HERE / "recorded_replay.py"), str(recording)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]


def test_what_must_differ_is_not_compared() -> None:
    recorded = {
        "metadata": {
            "uid": "a10d3c9c-730e-4903-8618-103550428614",
            "resourceVersion": "491",
            "creationTimestamp": "2026-11-22T20:16:22Z",
            "managedFields": [
                {"manager": "b", "operation": "Update", "time": "2026-11-22T20:16:22Z"},
                {"manager": "a", "operation": "Update", "time": "2026-11-22T20:16:23Z"},
            ],
        },
        "rows": [{"cells": ["a", 3, "5s"]}],
    }
    own = {
        "metadata": {
            "uid": "ffffffff-730e-4903-8618-103550428614",
            "resourceVersion": "7",
            "creationTimestamp": "2027-01-22T20:16:22Z",
            "managedFields": [{"manager": "a", "operation": "Update"}, {"manager": "b", "operation": "Update"}],
        },
        "rows": [{"cells": ["a", 3, "11m4s"]}],
    }
    assert list(normal.differences(normal.answer(recorded), normal.answer(own))) == []


def test_what_should_be_equal_is_compared() -> None:
    recorded = {"spec": {"replicas": 3, "list": [1, 2]}, "status": None, "flag": True}
    own = {"spec": {"replicas": 4, "list": [1]}, "flag": 1, "more": 0}
    found = {path for path, _, _ in normal.differences(normal.answer(recorded), normal.answer(own))}
    assert found == {"spec.replicas", "spec.list[1]", "status", "flag", "more"}
    # A uid that a request made up is a value like any other.
    made_up = normal.text("00000000-0000-0000-0000-000000000000")
    assert made_up == "00000000-0000-0000-0000-000000000000"


def test_a_listed_difference_covers_its_place_only() -> None:
    known = Known("pod *", "body.items[*].a", "because")
    assert known.covers(Difference("pod get", "body.items[3].a", 1, 2))
    assert not known.covers(Difference("sts get", "body.items[3].a", 1, 2))
    assert not known.covers(Difference("pod get", "body.b", 1, 2))


def test_nothing_may_be_listed_for_custom_resources() -> None:
    requests = [
        {"label": "cr get", "path": "/apis/example.dev/v1/namespaces/conf/widgets/a"},
        {"label": "openapi", "path": "/openapi/v3/apis/example.dev/v1"},
        {"label": "sts selector immutable", "path": "/apis/apps/v1/namespaces/conf/statefulsets/s"},
        {"label": "rbac role", "path": "/apis/rbac.authorization.k8s.io/v1/namespaces/conf/roles"},
        {"label": "pod get", "path": "/api/v1/namespaces/conf/pods/p"},
    ]
    assert strict_labels(requests) == {"cr get", "sts selector immutable", "rbac role"}
