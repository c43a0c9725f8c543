"""Field management: who owns which field, server-side apply, and ``metadata.managedFields``.

Theory of operation
-------------------
A *path* is a tuple of elements as FieldsV1 writes them: ``f:name`` for a struct field or map key, ``k:{"name":"c"}``
for an item of a keyed list, ``v:"x"`` for a member of a set. An owner's fields are a set of paths. A path to a map or
list item itself (FieldsV1's ``.``) means that the owner brought it into being.

*Update* (POST, PUT and the plain patches): what the request changed, added or removed, found by comparing the object
before and after, becomes the writer's, and is taken from everybody else. *Apply*: the writer owns exactly what its
configuration names; fields that it owned before and no longer names are removed unless another manager owns them; a
field that somebody else owns with another value is a conflict, unless forced. Both follow the published merge rules
of Kubernetes (list and map types; see ``schema.shapes``).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from raftkv_playground.apiserver.errors import Failure, Object
from raftkv_playground.apiserver.schema.shapes import Shape

Path = tuple[str, ...]
Paths = set[Path]

UPDATE_MANAGERS_LIMIT = 10
"""More ``Update`` entries than this are merged, oldest first, into one named ``ancient-changes``."""

_NEVER_OWNED = {
    ("f:apiVersion",),
    ("f:kind",),
    ("f:metadata",),
    ("f:metadata", "f:name"),
    ("f:metadata", "f:namespace"),
    ("f:metadata", "f:creationTimestamp"),
    ("f:metadata", "f:selfLink"),
    ("f:metadata", "f:uid"),
    ("f:metadata", "f:generation"),
    ("f:metadata", "f:managedFields"),
    ("f:metadata", "f:resourceVersion"),
}


@dataclass(slots=True)
class Manager:
    """One entry of managedFields."""

    name: str
    operation: str
    api_version: str
    subresource: str
    time: str | None
    paths: Paths = field(default_factory=set)

    @property
    def identity(self) -> tuple[str, str, str, str]:
        # Apply entries of one manager are one whatever version they came through.
        version = "" if self.operation == "Apply" else self.api_version
        return (self.name, self.operation, version, self.subresource)


# ---------------------------------------------------------------------------------------------------- FieldsV1


def to_fields_v1(paths: Iterable[Path]) -> Object:
    """The nested form of FieldsV1."""
    root: Object = {}
    for path in sorted(paths):
        node = root
        for element in path[:-1]:
            child = node.setdefault(element, {})
            node = child
        leaf = node.setdefault(path[-1], {})
        leaf["."] = {}
    return _tidy(root)


def _tidy(node: Object) -> Object:
    return {key: ({} if set(child) <= {"."} else _tidy(child)) if key != "." else {} for key, child in node.items()}


def from_fields_v1(node: Object, prefix: Path = ()) -> Paths:
    """The paths in a FieldsV1 value; what is no object is ignored."""
    paths: Paths = set()
    for element, child in node.items():
        if element == ".":
            paths.add(prefix)
        elif not isinstance(child, dict) or not child:
            paths.add((*prefix, element))
        else:
            paths |= from_fields_v1(child, (*prefix, element))
    return paths


def decode_managers(entries: list[Object] | None) -> dict[tuple[str, str, str, str], Manager]:
    managers = {}
    for entry in entries or []:
        manager = Manager(
            entry.get("manager", ""),
            entry.get("operation", "Update"),
            entry.get("apiVersion", ""),
            entry.get("subresource", ""),
            entry.get("time"),
            from_fields_v1(entry.get("fieldsV1") or {}),
        )
        managers[manager.identity] = manager
    return managers


def encode_managers(managers: Iterable[Manager]) -> list[Object]:
    """The entries in the server's order: applies first, then by time and name; empty ones are dropped."""
    kept = [m for m in managers if m.paths]
    kept.sort(key=lambda m: (m.operation != "Apply", m.time or "", m.name, m.api_version, m.subresource))
    out = []
    for manager in kept:
        entry: Object = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.api_version,
        }
        if manager.time:
            entry["time"] = manager.time
        entry |= {"fieldsType": "FieldsV1", "fieldsV1": to_fields_v1(manager.paths)}
        if manager.subresource:
            entry["subresource"] = manager.subresource
        out.append(entry)
    return out


# ------------------------------------------------------------------------------------------------ walking values


def item_element(item: Any, shape: Shape) -> str:
    """The path element of a list item: its keys, or for a set its value."""
    if shape.list_type == "set":
        return "v:" + json.dumps(item, separators=(",", ":"), ensure_ascii=False)
    keys = {}
    for key in sorted(shape.keys):
        if isinstance(item, dict) and key in item:
            keys[key] = item[key]
        elif key in shape.key_defaults:
            keys[key] = shape.key_defaults[key]
    return "k:" + json.dumps(keys, separators=(",", ":"), ensure_ascii=False)


def _is_leaf(value: Any, shape: Shape) -> bool:
    if isinstance(value, dict):
        return shape.atomic or shape.kind not in {"map", "any"}
    if isinstance(value, list):
        return shape.kind != "list" or shape.list_type == "atomic"
    return True


def field_set(value: Any, shape: Shape, prefix: Path = ()) -> Paths:
    """All paths that a configuration names (the fields of an apply)."""
    paths: Paths = set()
    if _is_leaf(value, shape):
        return {prefix} if prefix else paths
    if isinstance(value, dict):
        for key, item in value.items():
            below = (*prefix, "f:" + key)
            child = shape.child(key)
            paths |= field_set(item, child or _deduced(), below)
            named = shape.kind == "map" and key in shape.fields
            if item is None or item == {} or not named:
                paths.add(below)
    else:
        for item in value:
            below = (*prefix, item_element(item, shape))
            paths |= field_set(item, shape.element(), below)
            paths.add(below)
    return paths


def _deduced() -> Shape:
    from raftkv_playground.apiserver.schema.shapes import ANY

    return ANY


def _everything(value: Any, shape: Shape, prefix: Path) -> Paths:
    """Every path at and below ``prefix``."""
    paths: Paths = {prefix} if prefix else set()
    if _is_leaf(value, shape):
        return paths
    if isinstance(value, dict):
        for key, item in value.items():
            paths |= _everything(item, shape.child(key) or _deduced(), (*prefix, "f:" + key))
    else:
        for item in value:
            paths |= _everything(item, shape.element(), (*prefix, item_element(item, shape)))
    return paths


@dataclass(slots=True)
class Difference:
    added: Paths = field(default_factory=set)
    removed: Paths = field(default_factory=set)
    modified: Paths = field(default_factory=set)


def compare(old: Any, new: Any, shape: Shape) -> Difference:
    """What distinguishes ``new`` from ``old``."""
    out = Difference()
    _compare(old, new, shape, (), out)
    return out


def _compare(old: Any, new: Any, shape: Shape, prefix: Path, out: Difference) -> None:
    if old is new:
        return
    old_leaf, new_leaf = _is_leaf(old, shape), _is_leaf(new, shape)
    if old_leaf and new_leaf:
        if old != new or type(old) is not type(new):
            out.modified.add(prefix)
        return
    if old_leaf or new_leaf or type(old) is not type(new):
        # One side is null or of another type: its inner paths come or go, the place itself was there.
        if not old_leaf:
            out.removed |= _everything(old, shape, prefix) - {prefix}
        if not new_leaf:
            out.added |= _everything(new, shape, prefix) - {prefix}
        if old is not None and new is not None:
            out.modified.add(prefix)
        return
    if isinstance(old, dict):
        for key in old.keys() | new.keys():
            child = shape.child(key) or _deduced()
            _member(old.get(key, _ABSENT), new.get(key, _ABSENT), child, (*prefix, "f:" + key), out)
        return
    element = shape.element()
    before = {item_element(item, shape): item for item in old}
    after = {item_element(item, shape): item for item in new}
    for key in before.keys() | after.keys():
        _member(before.get(key, _ABSENT), after.get(key, _ABSENT), element, (*prefix, key), out)


_ABSENT = object()


def _member(old: Any, new: Any, shape: Shape, path: Path, out: Difference) -> None:
    if old is _ABSENT:
        out.added |= _everything(new, shape, path)
    elif new is _ABSENT:
        out.removed |= _everything(old, shape, path)
    else:
        _compare(old, new, shape, path, out)


def merge(live: Any, config: Any, shape: Shape) -> Any:
    """``live`` with what ``config`` names laid over it (nothing is removed)."""
    if config is None and live is not None:
        return None if _is_leaf(live, shape) else live
    if _is_leaf(config, shape) or live is None or type(live) is not type(config):
        return copy.deepcopy(config)
    if isinstance(config, dict):
        out = dict(live)
        for key, item in config.items():
            child = shape.child(key) or _deduced()
            out[key] = merge(live[key], item, child) if key in live else copy.deepcopy(item)
        return out
    element = shape.element()
    applied = {item_element(item, shape): item for item in config}
    merged = []
    for item in live:
        key = item_element(item, shape)
        merged.append(merge(item, applied.pop(key), element) if key in applied else item)
    return merged + [copy.deepcopy(item) for item in applied.values()]


def _named(paths: Paths) -> Paths:
    """The set with the struct fields on the way to its members as members themselves."""
    out = set(paths)
    for path in paths:
        for end in range(1, len(path)):
            if path[end - 1].startswith("f:"):
                out.add(path[:end])
    return out


def remove(value: Any, shape: Shape, paths: Paths, prefix: Path = ()) -> Any:
    """``value`` without what is at ``paths``."""
    if _is_leaf(value, shape) or not paths:
        return value
    if isinstance(value, dict):
        out = {}
        for key, item in value.items():
            below = (*prefix, "f:" + key)
            if below not in paths:
                out[key] = remove(item, shape.child(key) or _deduced(), paths, below)
        return out
    kept = []
    for item in value:
        below = (*prefix, item_element(item, shape))
        if below not in paths:
            kept.append(remove(item, shape.element(), paths, below))
    return kept


# --------------------------------------------------------------------------------------------- update and apply


def _disown_below(paths: Paths, reset: Paths) -> Paths:
    return {p for p in paths if p not in _NEVER_OWNED and not any(p[: len(r)] == r for r in reset)}


def update(
    old: Object,
    new: Object,
    shape: Shape,
    managers: dict[tuple[str, str, str, str], Manager],
    writer: Manager,
    reset: Paths,
) -> None:
    """Give ``writer`` what changed from ``old`` to ``new``. ``reset`` are subtrees that this endpoint never writes
    (status on the main resource). Changes ``managers``."""
    difference = compare(old, new, shape)
    removed = _disown_below(difference.removed, reset)
    changed = _disown_below(difference.added | difference.modified, reset)
    for other in managers.values():
        if other.identity != writer.identity:
            other.paths -= changed
        other.paths -= removed
    mine = managers.setdefault(writer.identity, writer)
    before = set(mine.paths)
    mine.paths |= changed
    if mine.paths != before or mine is writer:
        mine.time = writer.time
    _cap_updates(managers)


def _cap_updates(managers: dict[tuple[str, str, str, str], Manager]) -> None:
    plain = [m for m in managers.values() if m.operation == "Update" and not m.subresource and m.paths]
    if len(plain) <= UPDATE_MANAGERS_LIMIT:
        return
    plain.sort(key=lambda m: m.time or "")
    for oldest in plain[: len(plain) - UPDATE_MANAGERS_LIMIT]:
        if oldest.name == "ancient-changes":
            continue
        del managers[oldest.identity]
        ancient = Manager("ancient-changes", "Update", oldest.api_version, "", oldest.time)
        managers.setdefault(ancient.identity, ancient).paths |= oldest.paths


def apply(
    live: Object,
    config: Object,
    shape: Shape,
    managers: dict[tuple[str, str, str, str], Manager],
    writer: Manager,
    reset: Paths,
    force: bool,
) -> Object | None:
    """Lay ``config`` over ``live`` as ``writer``. The merged object, or None if nothing but ownership changed.
    Raises the 409 that lists the conflicts. Changes ``managers``."""
    last = managers.get(writer.identity)
    last_paths = set(last.paths) if last else set()
    wanted = _disown_below(field_set(config, shape), reset)
    merged = merge(live, config, shape)
    writer.paths = wanted
    writer.time = last.time if last is not None else None
    managers[writer.identity] = writer
    if last_paths:
        owned: Paths = set().union(*(m.paths for m in managers.values()))
        merged = remove(merged, shape, _named(last_paths) - _named(owned))
    difference = compare(live, merged, shape)
    changed = difference.added | difference.modified
    found = []
    for other in managers.values():
        if other.identity == writer.identity:
            continue
        if overlap := other.paths & changed:
            found.append((other, overlap))
    if found and not force:
        raise _conflict(found)
    for other, overlap in found:
        other.paths -= overlap
    for other in managers.values():
        other.paths -= difference.removed
    if not (changed or difference.removed):
        return None
    return dict(merged)


def _conflict(found: list[tuple[Manager, Paths]]) -> Failure:
    causes, parts = [], []
    for manager, paths in sorted(found, key=lambda pair: pair[0].name):
        who = f'"{manager.name}"'
        if manager.subresource:
            who += f' with subresource "{manager.subresource}"'
        if manager.operation == "Update":
            who += f" using {manager.api_version}"
            if manager.time:
                who += f" at {manager.time}"
        places = sorted(map(path_text, paths))
        causes += [{"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": p} for p in places]
        if len(places) == 1:
            parts.append(f"conflict with {who}: {places[0]}")
        else:
            parts.append(f"conflicts with {who}:\n" + "\n".join(f"- {p}" for p in places))
    noun = "conflict" if len(causes) == 1 else "conflicts"
    return Failure(409, "Conflict", f"Apply failed with {len(causes)} {noun}: " + "\n".join(parts), {"causes": causes})


def path_text(path: Path) -> str:
    """A path for people: ``.spec.containers[name="c"].image``."""
    out = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            out += "." + rest
        elif kind == "k":
            inner = ",".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in json.loads(rest).items())
            out += f"[{inner}]"
        else:
            out += f"[={rest}]"
    return out
