"""Bad custom resources get one clear sentence, from the API server or as a condition, and harm nothing."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from kube import SAMPLE, Kubectl, ScenarioError, wait_until

_NAME = "bad"

pytestmark = pytest.mark.slow


def _resource(**changes: Any) -> dict[str, Any]:
    """The sample under another name, with dotted paths in its spec replaced."""
    resource: dict[str, Any] = deepcopy(yaml.safe_load(SAMPLE.read_text()))
    resource["metadata"]["name"] = _NAME
    for path, value in changes.items():
        target = resource["spec"]
        *parents, last = path.split("__")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return resource


@pytest.fixture
def clean(kubectl: Kubectl) -> Iterator[Kubectl]:
    yield kubectl
    kubectl.run("delete", "rkv", _NAME, "--ignore-not-found", "--timeout=120s")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replicas": -1}, ["spec.replicas", "-1"]),
        ({"logBuffer__size": "200Mi"}, ["spec.logBuffer.size", "100Mi"]),
        ({"noSuchField": 1}, ["noSuchField"]),
        ({"logBuffer__minimumDurability": "perhaps"}, ["minimumDurability", "power"]),
    ],
    ids=["replicas -1", "size 200Mi", "unknown field", "unknown level"],
)
def test_refused_by_the_api_server(clean: Kubectl, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ScenarioError) as refused:
        clean.apply(_resource(**changes))
    for word in words:
        assert word in str(refused.value)
    assert not clean.run("get", "rkv", _NAME, "--ignore-not-found", "-o", "name")


def test_power_without_persistent_memory_is_a_condition_that_says_so(clean: Kubectl) -> None:
    clean.apply(_resource(logBuffer__minimumDurability="power", replicas=1))

    def condition() -> dict[str, str]:
        conditions = clean.get("rkv", _NAME)["status"]["conditions"]
        return next(c for c in conditions if c["type"] == "LogBufferReady")

    wait_until("LogBufferReady=False", lambda: condition()["status"] == "False", 90)
    assert "power" in condition()["message"]
    assert "process" in condition()["message"]
    conditions = {c["type"]: c["status"] for c in clean.get("rkv", _NAME)["status"]["conditions"]}
    assert conditions.get("Ready") == "False"
    events = clean.get("events", "--field-selector", f"involvedObject.name={_NAME}")["items"]
    assert any(e["type"] == "Warning" and "power" in e["message"] for e in events)
