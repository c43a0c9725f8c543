"""The plain patches: JSON merge patch (RFC 7386), JSON patch (RFC 6902) and Kubernetes' strategic merge patch."""

from __future__ import annotations

import copy
from typing import Any

import jsonpatch

from raftkv_playground.apiserver.errors import Failure, Object, bad_request, rejected_patch
from raftkv_playground.apiserver.schema.shapes import ANY, Shape

JSON_PATCH_OPERATIONS_LIMIT = 10_000
"""A JSON patch with more operations is refused with 413, as by the real server."""


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects merge, all else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge_patch(out.get(key), value)
    return out


def json_patch(target: Object, operations: Any) -> Object:
    """RFC 6902. A failed ``test`` or a path that is not there is 422; a body that is no patch is 400."""
    if not isinstance(operations, list) or not all(isinstance(o, dict) and "op" in o for o in operations):
        raise bad_request("error decoding patch: json: cannot unmarshal into Go value of type jsonpatch.Patch")
    if len(operations) > JSON_PATCH_OPERATIONS_LIMIT:
        raise Failure(
            413,
            "RequestEntityTooLarge",
            f"Request entity too large: The allowed maximum operations in a JSON patch is "
            f"{JSON_PATCH_OPERATIONS_LIMIT}, got {len(operations)}",
        )
    try:
        result = jsonpatch.JsonPatch(operations).apply(target)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError, KeyError, IndexError):
        raise rejected_patch() from None
    if not isinstance(result, dict):
        raise rejected_patch()
    return result


def strategic_patch(target: Any, patch: Any, shape: Shape) -> Any:
    """Merge by the type's merge keys; ``$patch``, ``$setElementOrder``, ``$deleteFromPrimitiveList`` and
    ``$retainKeys`` are directives to this merge."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    directive = patch.get("$patch")
    if directive == "replace":
        return {k: copy.deepcopy(v) for k, v in patch.items() if k != "$patch"}
    if directive == "delete":
        return {}
    out = dict(target) if isinstance(target, dict) else {}
    if "$retainKeys" in patch:
        out = {k: v for k, v in out.items() if k in patch["$retainKeys"]}
    for key, value in patch.items():
        if key in {"$patch", "$retainKeys"} or key.startswith("$setElementOrder/"):
            continue
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.split("/", 1)[1]
            out[name] = [item for item in out.get(name) or [] if item not in value]
            continue
        if value is None:
            out.pop(key, None)
            continue
        child = shape.child(key) or ANY
        if isinstance(value, list):
            out[key] = _list(out.get(key) or [], value, child, patch.get(f"$setElementOrder/{key}"))
        else:
            out[key] = strategic_patch(out.get(key), value, child)
    for key, order in patch.items():
        if key.startswith("$setElementOrder/") and (name := key.split("/", 1)[1]) not in patch and name in out:
            out[name] = _ordered(out[name], order, shape.child(name) or ANY)
    return out


def _list(current: list[Any], patch: list[Any], shape: Shape, order: list[Any] | None) -> list[Any]:
    if shape.list_type == "set":
        return _ordered(current + [item for item in patch if item not in current], order or patch, shape, current)
    key = shape.patch_key
    if not key or not all(isinstance(item, dict) for item in patch):
        return copy.deepcopy(patch)
    if any(item.get("$patch") == "replace" for item in patch):
        return [copy.deepcopy(item) for item in patch if "$patch" not in item]
    result = list(current)
    for item in patch:
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        at = next((n for n, old in enumerate(result) if old.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if at is not None:
                result.pop(at)
        elif at is None:
            result.append(strategic_patch({}, item, shape.element()))
        else:
            result[at] = strategic_patch(result[at], item, shape.element())
    return _ordered(result, order or patch, shape, current)


def _ordered(items: list[Any], order: list[Any], shape: Shape, before: list[Any] | None = None) -> list[Any]:
    """Items that the patch names in its order, merged with those that only the server has in theirs; where the two
    lists say nothing of each other the patch's come first."""
    key = shape.patch_key

    def name(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    wanted = [name(entry) for entry in order]
    stored = [name(entry) for entry in (items if before is None else before)]
    patched = sorted((i for i in items if name(i) in wanted), key=lambda i: wanted.index(name(i)))
    others = [i for i in items if name(i) not in wanted]
    out: list[Any] = []
    while patched and others:
        left, right = name(others[0]), name(patched[0])
        first = left in stored and right in stored and stored.index(left) < stored.index(right)
        out.append(others.pop(0) if first else patched.pop(0))
    return out + patched + others
