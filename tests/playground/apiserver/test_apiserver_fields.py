"""Field ownership: comparing, updating, applying."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftkv_playground.apiserver import fields
from raftkv_playground.apiserver.errors import Failure
from raftkv_playground.apiserver.fields import Manager
from raftkv_playground.apiserver.schema.shapes import ANY, builtin, from_openapi

STATEFUL_SET = builtin("StatefulSet")
Managers = dict[tuple[str, str, str, str], Manager]


def _apply(
    live: dict[str, Any], config: dict[str, Any], managers: Managers, name: str, force: bool = False
) -> dict[str, Any]:
    writer = Manager(name, "Apply", "apps/v1", "", "2026-01-01T00:00:00Z")
    merged = fields.apply(live, config, STATEFUL_SET, managers, writer, set(), force)
    return live if merged is None else merged


def _containers(**images: str) -> dict[str, Any]:
    return {"spec": {"template": {"spec": {"containers": [{"name": n, "image": i} for n, i in images.items()]}}}}


def _images(item: dict[str, Any]) -> dict[str, Any]:
    return {c["name"]: c.get("image") for c in item["spec"]["template"]["spec"]["containers"]}


def test_items_of_keyed_lists_merge_by_their_key() -> None:
    managers: Managers = {}
    live = _apply({}, _containers(a="1"), managers, "one")
    live = _apply(live, _containers(b="2"), managers, "two")
    assert _images(live) == {"a": "1", "b": "2"}
    # What a manager no longer names is removed, what others named stays.
    live = _apply(live, _containers(), managers, "two")
    assert _images(live) == {"a": "1"}


def test_a_conflict_names_the_manager_and_the_field() -> None:
    managers: Managers = {}
    live = _apply({}, _containers(a="1"), managers, "one")
    before = copy.deepcopy(live)
    with pytest.raises(Failure) as refused:
        _apply(live, _containers(a="2"), managers, "two")
    assert refused.value.code == 409
    assert 'conflict with "one": .spec.template.spec.containers[name="a"].image' in refused.value.message
    assert live == before
    live = _apply(live, _containers(a="2"), managers, "two", force=True)
    assert _images(live) == {"a": "2"}
    path = ("f:spec", "f:template", "f:spec", "f:containers", 'k:{"name":"a"}', "f:image")
    owners = {m.name for m in managers.values() if path in m.paths}
    assert owners == {"two"}


def test_equal_values_are_shared_and_outlive_one_owner() -> None:
    managers: Managers = {}
    live = _apply({}, {"spec": {"replicas": 3, "minReadySeconds": 1}}, managers, "one")
    live = _apply(live, {"spec": {"replicas": 3}}, managers, "two")
    live = _apply(live, {"spec": {"minReadySeconds": 1}}, managers, "one")
    assert live["spec"] == {"replicas": 3, "minReadySeconds": 1}
    live = _apply(live, {"spec": {}}, managers, "two")
    assert live["spec"] == {"minReadySeconds": 1}


def test_atomic_values_are_owned_as_a_whole() -> None:
    config = {"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}}}}
    owned = fields.field_set(config, STATEFUL_SET)
    assert ("f:spec", "f:selector") in owned
    assert not any(p[:3] == ("f:spec", "f:selector", "f:matchLabels") for p in owned)
    assert ("f:spec", "f:template", "f:metadata", "f:labels", "f:a") in owned


def test_an_update_takes_what_it_changes_and_only_that() -> None:
    managers: Managers = {}
    old = _apply({"metadata": {}}, {"metadata": {}, "spec": {"replicas": 3, "serviceName": "s"}}, managers, "one")
    new = copy.deepcopy(old)
    new["spec"]["replicas"] = 4
    new["metadata"] = {"labels": {"x": "y"}}
    writer = Manager("two", "Update", "apps/v1", "", "2026-01-01T00:00:00Z")
    fields.update(old, new, STATEFUL_SET, managers, writer, set())
    by_name = {m.name: m.paths for m in managers.values()}
    assert by_name["one"] == {("f:spec", "f:serviceName")}
    assert by_name["two"] == {
        ("f:spec", "f:replicas"),
        ("f:metadata", "f:labels"),
        ("f:metadata", "f:labels", "f:x"),
    }
    gone = copy.deepcopy(new)
    del gone["spec"]["serviceName"]
    fields.update(new, gone, STATEFUL_SET, managers, Manager("two", "Update", "apps/v1", "", "t"), set())
    assert all(("f:spec", "f:serviceName") not in m.paths for m in managers.values())


def test_sets_are_owned_by_value() -> None:
    shape = from_openapi(
        {
            "type": "object",
            "properties": {"tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}},
        },
        root=True,
    )
    managers: Managers = {}
    one = Manager("one", "Apply", "v1", "", "t")
    live = fields.apply({}, {"tags": ["a"]}, shape, managers, one, set(), False) or {}
    two = Manager("two", "Apply", "v1", "", "t")
    live = fields.apply(live, {"tags": ["b"]}, shape, managers, two, set(), False) or {}
    assert live["tags"] == ["a", "b"]
    again = Manager("one", "Apply", "v1", "", "t")
    live = fields.apply(live, {"tags": []}, shape, managers, again, set(), False) or {}
    assert live["tags"] == ["b"]


def test_many_update_managers_become_one_entry() -> None:
    managers: Managers = {}
    item: dict[str, Any] = {"metadata": {}, "spec": {}}
    for n in range(15):
        new = copy.deepcopy(item)
        new["metadata"].setdefault("annotations", {})[f"k{n}"] = "v"
        writer = Manager(f"m{n:02}", "Update", "apps/v1", "", f"2026-01-01T00:00:{n:02}Z")
        fields.update(item, new, STATEFUL_SET, managers, writer, set())
        item = new
    names = [m.name for m in managers.values() if m.paths]
    assert "ancient-changes" in names
    assert len(names) <= fields.UPDATE_MANAGERS_LIMIT + 1
    every = set().union(*(m.paths for m in managers.values()))
    assert {("f:metadata", "f:annotations", f"f:k{n}") for n in range(15)} <= every


_names = st.text("abc.$", min_size=1, max_size=3)
_scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.text("xy", max_size=2)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3), max_leaves=12
)
_objects = st.dictionaries(_names, _values, max_size=4)


@given(_objects)
def test_paths_survive_their_nested_form(item: dict[str, Any]) -> None:
    paths = fields.field_set(item, ANY)
    assert fields.from_fields_v1(fields.to_fields_v1(paths)) == paths


@given(_objects, _objects)
def test_a_difference_leads_from_old_to_new(old: dict[str, Any], new: dict[str, Any]) -> None:
    difference = fields.compare(old, new, ANY)
    assert (old == new and not _type_change(old, new)) == (
        not (difference.added or difference.removed or difference.modified)
    )
    assert not difference.added & difference.removed


def _type_change(a: Any, b: Any) -> bool:
    """True and 1 are equal to Python and different to JSON."""
    if isinstance(a, dict) and isinstance(b, dict):
        return any(_type_change(a[k], b[k]) for k in a.keys() & b.keys())
    if isinstance(a, list) and isinstance(b, list):
        return any(_type_change(x, y) for x, y in zip(a, b, strict=False))
    return type(a) is not type(b)


@given(_objects, _objects)
def test_applying_nothing_more_removes_only_what_was_applied(live: dict[str, Any], config: dict[str, Any]) -> None:
    managers: Managers = {}
    first = Manager("m", "Apply", "v1", "", "t")
    merged = fields.apply(live, config, ANY, managers, first, set(), True) or live
    # Whatever the configuration says is in the result.
    assert fields.field_set(config, ANY) <= fields.field_set(merged, ANY) | fields.field_set(config, ANY)
    again = fields.apply(merged, config, ANY, managers, Manager("m", "Apply", "v1", "", "t"), set(), True)
    assert again is None or again == merged
