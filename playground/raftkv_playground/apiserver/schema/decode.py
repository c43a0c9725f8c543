"""Bring a decoded JSON value into the form that a typed server would keep: known fields only, of the right types."""

from __future__ import annotations

from typing import Any

from raftkv_playground.apiserver.schema.quantity import canonical
from raftkv_playground.apiserver.schema.shapes import Shape, is_struct_value, zero


class DecodeError(ValueError):
    """A value of the wrong JSON type; the message has the words of a Go decoder, as the real server's."""


def normalise(value: Any, shape: Shape, kind: str, unknown: list[str]) -> Any:
    """A built-in object without unknown fields (their paths are appended to ``unknown``), nulls and empty lists and
    maps, and with the fields that its wire form always has. Raises ``DecodeError``."""
    return _typed(value, shape, kind, "", "", unknown)


def prune(value: Any, shape: Shape, unknown: list[str]) -> Any:
    """A custom object without the fields that its schema does not know; types are left to validation."""
    return _prune(value, shape, "", unknown)


def _typed(value: Any, shape: Shape, owner: str, path: str, where: str, unknown: list[str]) -> Any:
    if shape.kind == "any" or shape.scalar == "any":
        return value
    if shape.kind == "map":
        if not isinstance(value, dict):
            raise _mismatch(value, owner, path, _go_struct(shape))
        out: dict[str, Any] = {}
        for key, item in value.items():
            child = shape.child(key)
            if child is None:
                unknown.append(f"{where}.{key}" if where else key)
                continue
            if item is None:
                continue
            named = key in shape.fields
            below = f"{path}.{key}" if path else key
            kept = _typed(
                item,
                child,
                shape.type_name if named and shape.type_name else owner,
                below if named else path,
                f"{where}.{key}" if where else key,
                unknown,
            )
            if named and kept in ([], {}) and _omitted_when_empty(child, kept):
                continue
            out[key] = kept
        for key, blank in shape.present.items():
            if key not in out:
                out[key] = zero(shape.fields[key]) if is_struct_value(blank) else blank
        return out
    if shape.kind == "list":
        if not isinstance(value, list):
            raise _mismatch(value, owner, path, f"[]{_go_struct(shape.element())}")
        element = shape.element()
        return [_typed(item, element, owner, path, f"{where}[{n}]", unknown) for n, item in enumerate(value)]
    return _scalar(value, shape.scalar, owner, path)


def _omitted_when_empty(shape: Shape, value: Any) -> bool:
    # An empty struct behind a pointer means something (emptyDir: {}), an empty list or free map does not.
    return shape.kind == "list" or (shape.kind == "map" and shape.extra is not None and not shape.fields)


def _scalar(value: Any, kind: str, owner: str, path: str) -> Any:
    match kind:
        case "string" | "time" | "bytes":
            fits = isinstance(value, str)
        case "integer":
            fits = isinstance(value, int) and not isinstance(value, bool)
            if isinstance(value, float) and value.is_integer():
                return int(value)
        case "number":
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            fits = isinstance(value, bool)
        case "int-or-string":
            fits = isinstance(value, int | str) and not isinstance(value, bool)
        case "quantity":
            fits = isinstance(value, int | float | str) and not isinstance(value, bool)
            if fits:
                try:
                    return canonical(value)
                except ValueError as error:
                    raise DecodeError(str(error)) from None
        case _:
            fits = True
    if not fits:
        raise _mismatch(
            value, owner, path, {"integer": "int32", "boolean": "bool", "number": "float64"}.get(kind, kind)
        )
    return value


def _go_struct(shape: Shape) -> str:
    if shape.kind == "scalar":
        return shape.scalar
    if shape.type_name.startswith("map["):
        return shape.type_name
    return f"v1.{shape.type_name}" if shape.type_name else "object"


def json_type(value: Any) -> str:
    """The JSON type's name as Go's decoder words it."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return {str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]


def _mismatch(value: Any, owner: str, path: str, wanted: str) -> DecodeError:
    if not path:
        return DecodeError(f"json: cannot unmarshal {json_type(value)} into Go value of type {wanted}")
    return DecodeError(
        f"json: cannot unmarshal {json_type(value)} into Go struct field {owner}.{path} of type {wanted}"
    )


def _prune(value: Any, shape: Shape, where: str, unknown: list[str]) -> Any:
    if isinstance(value, dict) and shape.kind == "map":
        out = {}
        for key, item in value.items():
            child = shape.child(key)
            if child is None:
                unknown.append(f"{where}.{key}" if where else key)
            else:
                out[key] = _prune(item, child, f"{where}.{key}" if where else key, unknown)
        return out
    if isinstance(value, list) and shape.kind == "list":
        return [_prune(item, shape.element(), f"{where}[{n}]", unknown) for n, item in enumerate(value)]
    return value
