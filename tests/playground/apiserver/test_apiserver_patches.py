"""The plain patches, and the forms of values."""

from __future__ import annotations

from typing import Any

import pytest
from raftkv_playground.apiserver import patches
from raftkv_playground.apiserver.errors import Failure
from raftkv_playground.apiserver.schema.decode import DecodeError, normalise, prune
from raftkv_playground.apiserver.schema.quantity import canonical
from raftkv_playground.apiserver.schema.shapes import builtin, from_openapi

POD = builtin("Pod")


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        # The cases of RFC 7386's appendix that concern objects.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert patches.merge_patch(target, patch) == result


def test_a_json_patch_that_cannot_be_applied_is_422() -> None:
    item = {"spec": {"replicas": 3}}
    assert patches.json_patch(item, [{"op": "replace", "path": "/spec/replicas", "value": 4}]) == {
        "spec": {"replicas": 4}
    }
    assert item == {"spec": {"replicas": 3}}
    for operation in (
        {"op": "test", "path": "/spec/replicas", "value": 4},
        {"op": "remove", "path": "/spec/nothing"},
        {"op": "add", "path": "/no/such/parent", "value": 1},
        {"op": "replace", "path": "/spec/list/7", "value": 1},
    ):
        with pytest.raises(Failure) as refused:
            patches.json_patch(item, [operation])
        assert refused.value.code == 422
    with pytest.raises(Failure) as malformed:
        patches.json_patch(item, {"spec": 1})
    assert malformed.value.code == 400


def _pod(*env: tuple[str, str]) -> dict[str, Any]:
    entries = [{"name": n, "value": v} for n, v in env]
    return {"spec": {"containers": [{"name": "c", "env": entries}, {"name": "d"}]}}


def _env(item: dict[str, Any]) -> list[str]:
    return [f"{e['name']}={e['value']}" for e in item["spec"]["containers"][0]["env"]]


def _patch(**container: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "c", **container}]}}


def test_strategic_patches_merge_lists_by_key() -> None:
    pod = _pod(("A", "1"), ("B", "2"))
    changed = patches.strategic_patch(pod, _patch(env=[{"name": "B", "value": "3"}]), POD)
    assert _env(changed) == ["A=1", "B=3"]
    added = patches.strategic_patch(pod, _patch(env=[{"name": "C", "value": "3"}]), POD)
    assert _env(added) == ["C=3", "A=1", "B=2"]
    removed = patches.strategic_patch(pod, _patch(env=[{"name": "A", "$patch": "delete"}]), POD)
    assert _env(removed) == ["B=2"]
    replaced = patches.strategic_patch(pod, _patch(env=[{"name": "Z", "value": "9"}, {"$patch": "replace"}]), POD)
    assert _env(replaced) == ["Z=9"]
    order = [{"name": "C"}, {"name": "A"}, {"name": "B"}]
    ordered = patches.strategic_patch(
        pod, _patch(**{"env": [{"name": "C", "value": "3"}], "$setElementOrder/env": order}), POD
    )
    assert _env(ordered) == ["C=3", "A=1", "B=2"]
    assert [c["name"] for c in ordered["spec"]["containers"]] == ["c", "d"]
    assert _env(pod) == ["A=1", "B=2"]


def test_strategic_directives() -> None:
    item = {"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}}
    out = patches.strategic_patch(item, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}, POD)
    assert out["metadata"]["finalizers"] == ["b"]
    out = patches.strategic_patch(item, {"metadata": {"finalizers": ["c"]}}, POD)
    assert sorted(out["metadata"]["finalizers"]) == ["a", "b", "c"]
    out = patches.strategic_patch(item, {"metadata": {"labels": {"$patch": "replace", "z": "3"}}}, POD)
    assert out["metadata"]["labels"] == {"z": "3"}
    volumes = {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    swap = {"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}
    out = patches.strategic_patch(volumes, swap, POD)
    assert out["spec"]["volumes"] == [{"name": "v", "hostPath": {"path": "/x"}}]
    with pytest.raises(Failure) as refused:
        patches.strategic_patch(_pod(), {"spec": {"containers": [{"image": "x"}]}}, POD)
    assert refused.value.code == 400


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("1024Mi", "1Gi"),
        ("1000m", "1"),
        ("0.5", "500m"),
        (2, "2"),
        ("64Mi", "64Mi"),
        ("1536Mi", "1536Mi"),
        ("100M", "100M"),
        ("0", "0"),
        ("1e3", "1e3"),
    ],
)
def test_quantities_have_one_form(text: Any, result: str) -> None:
    assert canonical(text) == result


@pytest.mark.parametrize("text", ["", "1G i", "many", "1Kii", "--1"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="quantities must match"):
        canonical(text)


def test_typed_values_lose_what_their_type_does_not_know() -> None:
    unknown: list[str] = []
    item = normalise(
        {
            "metadata": {"name": "p", "labels": {}, "annotations": None},
            "spec": {
                "containers": [{"name": "c", "image": "i", "typo": 1}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
            "more": 1,
        },
        POD,
        "Pod",
        unknown,
    )
    assert unknown == ["spec.containers[0].typo", "more"]
    assert item["metadata"] == {"name": "p"}
    assert item["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]
    assert item["spec"]["containers"] == [{"name": "c", "image": "i", "resources": {}}]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"containers": {}}, "cannot unmarshal object into Go struct field PodSpec.spec.containers of type []"),
        ({"hostname": 1}, "cannot unmarshal number into Go struct field PodSpec.spec.hostname of type string"),
        ({"hostNetwork": "yes"}, "cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool"),
    ],
)
def test_values_of_a_wrong_type_are_refused(spec: dict[str, Any], text: str) -> None:
    with pytest.raises(DecodeError) as refused:
        normalise({"spec": spec}, POD, "Pod", [])
    assert text in str(refused.value)


def test_pruning_follows_the_schema() -> None:
    shape = from_openapi(
        {
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object",
                    "properties": {
                        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
                        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        "list": {
                            "type": "array",
                            "items": {"type": "object", "properties": {"a": {"type": "string"}}},
                        },
                    },
                }
            },
        },
        root=True,
    )
    unknown: list[str] = []
    item = prune(
        {
            "apiVersion": "v",
            "spec": {"map": {"k": 1}, "free": {"x": {"y": 1}}, "list": [{"a": "b", "c": "d"}], "no": 1},
        },
        shape,
        unknown,
    )
    assert unknown == ["spec.list[0].c", "spec.no"]
    assert item == {"apiVersion": "v", "spec": {"map": {"k": 1}, "free": {"x": {"y": 1}}, "list": [{"a": "b"}]}}
