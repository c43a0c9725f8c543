"""Validation and defaulting of values by a structural OpenAPI v3 schema, with the server's words for each complaint."""

from __future__ import annotations

import copy
import datetime
import ipaddress
import re
from functools import lru_cache
from typing import Any

from raftkv_playground.apiserver.errors import (
    FieldError,
    Object,
    duplicate,
    go_value,
    invalid_value,
    not_supported,
    required,
    too_long,
    too_many,
    wrong_type,
)


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return {str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]


def apply_defaults(value: Any, schema: Object) -> None:
    """Fill in missing fields from ``default``, outer before inner; changes ``value``. An explicit null of a field
    that is not nullable counts as missing."""
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        for key, node in properties.items():
            if "default" in node and (key not in value or (value[key] is None and not node.get("nullable"))):
                value[key] = copy.deepcopy(node["default"])
            if key in value:
                apply_defaults(value[key], node)
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict):
            for key, item in value.items():
                if key not in properties:
                    apply_defaults(item, extra)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for item in value:
            apply_defaults(item, schema["items"])


def has_defaults(schema: Any) -> bool:
    """Whether there is anything for ``apply_defaults`` to do below the schema."""
    if isinstance(schema, dict):
        return "default" in schema or any(has_defaults(v) for v in schema.values())
    return isinstance(schema, list) and any(map(has_defaults, schema))


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


ABSENT: Any = object()
"""Stands for "there was no value before" where None would be a value."""


def validate(value: Any, schema: Object, path: str, name: str, old: Any = ABSENT) -> list[FieldError]:
    """Complaints about ``value``. ``path`` is where complaints are placed, ``name`` what messages call the value
    (they differ for the status subresource, whose messages start below ``status``). What an update leaves as it was
    in ``old`` is not complained about: a schema that grew stricter does not lock existing objects."""
    if old is not ABSENT and value == old and type(value) is type(old):
        return []
    if value is None:
        if schema.get("nullable") or not schema.get("type"):
            return []
        return [_type_error(path, name, _types(schema), value)]
    errors = _check_type(value, schema, path, name)
    if errors:
        return errors
    if isinstance(value, dict):
        errors = _object(value, schema, path, name, old if isinstance(old, dict) else {})
    elif isinstance(value, list):
        errors = _array(value, schema, path, name)
    elif isinstance(value, str):
        errors = _string(value, schema, path, name)
    elif not isinstance(value, bool):
        errors = _number(value, schema, path, name)
    if "enum" in schema and value not in schema["enum"]:
        errors.append(not_supported(path, value, schema["enum"]))
    return errors + _combined(value, schema, path, name)


def _types(schema: Object) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        return "integer,string"
    return str(schema.get("type", ""))


def _type_error(path: str, name: str, wanted: str, value: Any) -> FieldError:
    found = json_type(value)
    return wrong_type(path, found, f"{name} in body must be of type {wanted}: {go_value(found)}")


def _check_type(value: Any, schema: Object, path: str, name: str) -> list[FieldError]:
    if schema.get("x-kubernetes-int-or-string"):
        fits = isinstance(value, int | str) and not isinstance(value, bool)
    else:
        kind, found = schema.get("type"), json_type(value)
        fits = not kind or kind == found or (kind == "number" and found == "integer")
    return [] if fits else [_type_error(path, name, _types(schema), value)]


def _object(value: Object, schema: Object, path: str, name: str, old: Object) -> list[FieldError]:
    errors = []
    for key in schema.get("required") or []:
        if key not in value:
            errors.append(required(join(path, key)))
    properties, extra = schema.get("properties") or {}, schema.get("additionalProperties")
    for key in sorted(value):
        node = properties.get(key, extra if isinstance(extra, dict) else None)
        if node is not None:
            below = join(path, key) if key in properties else f"{path}.{key}"
            errors += validate(value[key], node, below, join(name, key), old.get(key, ABSENT))
    count = len(value)
    if (most := schema.get("maxProperties")) is not None and count > most:
        errors.append(too_many(path, count, most))
    if (least := schema.get("minProperties")) is not None and count < least:
        errors.append(invalid_value(path, count, f"{name} in body should have at least {least} properties"))
    return errors


def _array(value: list[Any], schema: Object, path: str, name: str) -> list[FieldError]:
    errors = []
    items = schema.get("items")
    if isinstance(items, dict):
        for n, item in enumerate(value):
            errors += validate(item, items, f"{path}[{n}]", f"{name}[{n}]")
    if (most := schema.get("maxItems")) is not None and len(value) > most:
        errors.append(too_many(path, len(value), most))
    if (least := schema.get("minItems")) is not None and len(value) < least:
        errors.append(invalid_value(path, len(value), f"{name} in body should have at least {least} items"))
    return errors


def _string(value: str, schema: Object, path: str, name: str) -> list[FieldError]:
    errors = []
    if (most := schema.get("maxLength")) is not None and len(value) > most:
        errors.append(too_long(path, most))
    if (least := schema.get("minLength")) is not None and len(value) < least:
        errors.append(invalid_value(path, value, f"{name} in body should be at least {least} chars long"))
    if (pattern := schema.get("pattern")) and not _pattern(pattern).search(value):
        errors.append(invalid_value(path, value, f"{name} in body should match '{pattern}'"))
    if (form := schema.get("format")) and not _has_format(value, form):
        errors.append(wrong_type(path, value, f"{name} in body must be of type {form}: {go_value(value)}"))
    return errors


def _has_format(value: str, form: str) -> bool:
    try:
        match form:
            case "date-time":
                parsed = datetime.datetime.fromisoformat(value)
                return parsed.tzinfo is not None
            case "date":
                datetime.date.fromisoformat(value)
            case "duration":
                return bool(
                    re.fullmatch(
                        r"[+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))*|0", value
                    )
                )
            case "ipv4":
                ipaddress.IPv4Address(value)
            case "ipv6":
                ipaddress.IPv6Address(value)
            case "cidr":
                ipaddress.ip_network(value, strict=False)
            case "uuid":
                return bool(re.fullmatch(r"(?i)[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", value))
            case "email":
                return "@" in value.strip("@")
            case "hostname":
                return bool(re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?", value))
    except ValueError:
        return False
    return True


def _number(value: float, schema: Object, path: str, name: str) -> list[FieldError]:
    errors = []
    if (low := schema.get("minimum")) is not None:
        if schema.get("exclusiveMinimum"):
            if value <= low:
                errors.append(invalid_value(path, value, f"{name} in body should be greater than {low}"))
        elif value < low:
            errors.append(invalid_value(path, value, f"{name} in body should be greater than or equal to {low}"))
    if (high := schema.get("maximum")) is not None:
        if schema.get("exclusiveMaximum"):
            if value >= high:
                errors.append(invalid_value(path, value, f"{name} in body should be less than {high}"))
        elif value > high:
            errors.append(invalid_value(path, value, f"{name} in body should be less than or equal to {high}"))
    if (step := schema.get("multipleOf")) and value % step:
        errors.append(invalid_value(path, value, f"{name} in body should be a multiple of {step}"))
    if schema.get("format") == "int32" and not -(2**31) <= value < 2**31:
        errors.append(invalid_value(path, value, f"Checked value must be of type integer with format int32 in {name}"))
    return errors


def _combined(value: Any, schema: Object, path: str, name: str) -> list[FieldError]:
    errors = []
    for node in schema.get("allOf") or []:
        errors += validate(value, node, path, name)
    if (nodes := schema.get("anyOf")) and all(validate(value, n, path, name) for n in nodes):
        errors.append(invalid_value(path, _shown(value), f"{name} in body must validate at least one schema (anyOf)"))
    if nodes := schema.get("oneOf"):
        fitting = sum(not validate(value, n, path, name) for n in nodes)
        if fitting != 1:
            found = "none" if not fitting else str(fitting)
            errors.append(
                invalid_value(
                    path,
                    _shown(value),
                    f"{name} in body must validate one and only one schema (oneOf). Found "
                    + ("none valid" if found == "none" else f"{found} valid alternatives"),
                )
            )
    if (node := schema.get("not")) and not validate(value, node, path, name):
        errors.append(invalid_value(path, _shown(value), f"{name} in body must not validate the schema (not)"))
    return errors


def _shown(value: Any) -> Any:
    return value if not isinstance(value, dict | list) else json_type(value)


def validate_lists(value: Any, schema: Object, path: str) -> list[FieldError]:
    """Duplicates in sets and in lists keyed by fields."""
    errors: list[FieldError] = []
    if isinstance(value, dict):
        properties, extra = schema.get("properties") or {}, schema.get("additionalProperties")
        for key in sorted(value):
            node = properties.get(key, extra if isinstance(extra, dict) else None)
            if isinstance(node, dict):
                errors += validate_lists(value[key], node, join(path, key))
    elif isinstance(value, list):
        errors += _repeated(value, schema, path)
        if isinstance(schema.get("items"), dict):
            for n, item in enumerate(value):
                errors += validate_lists(item, schema["items"], f"{path}[{n}]")
    return errors


def _repeated(value: list[Any], schema: Object, path: str) -> list[FieldError]:
    kind, keys = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys") or []
    if kind not in {"set", "map"}:
        return []
    errors, seen = [], []
    for n, item in enumerate(value):
        identity = item if kind == "set" else {k: item.get(k) for k in keys if isinstance(item, dict) and k in item}
        if identity in seen:
            errors.append(duplicate(f"{path}[{n}]", identity))
        seen.append(identity)
    return errors
