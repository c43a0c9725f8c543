"""CustomResourceDefinitions: their own validation, and the kinds that they define."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raftkv_playground.apiserver.crd import openapi, rules
from raftkv_playground.apiserver.errors import (
    FieldError,
    Object,
    duplicate,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
)
from raftkv_playground.apiserver.kinds import Kind, Strategy, Subresource
from raftkv_playground.apiserver.metadata import finalizer_warnings, name_problems
from raftkv_playground.apiserver.schema.decode import prune
from raftkv_playground.apiserver.schema.shapes import Shape, from_openapi

if TYPE_CHECKING:
    from raftkv_playground.apiserver.resources import Resources

CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
_NOT_CHECKED = FieldError(
    "FieldValueInvalid",
    "<nil>",
    "Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing "
    "errors to complete validation",
)


@dataclass(slots=True, eq=False)
class CustomKind:
    """What the server needs of one version of a definition."""

    name: str
    schema: Object
    rules: rules.RuleNode
    has_status: bool
    scale: Object | None
    has_defaults: bool
    selectable: tuple[str, ...]


def value_at(item: Any, path: str) -> Any:
    """The value at a simple path such as ``.spec.replicas``; None if there is none."""
    for key in path.strip(".").split("."):
        item = item.get(key) if isinstance(item, dict) else None
    return item


class CustomStrategy(Strategy):
    """The rules of all custom resources, by their schema."""

    generation = True
    unconditional_update = False

    def __init__(self, custom: CustomKind) -> None:
        self.custom = custom

    def default(self, item: Object) -> None:
        if self.custom.has_defaults:
            openapi.apply_defaults(item, self.custom.schema)

    def prepare_create(self, item: Object, resources: Resources) -> None:
        if self.custom.has_status:
            item.pop("status", None)

    def prepare_update(self, item: Object, old: Object, subresource: str) -> None:
        if subresource == "status":
            managed = item["metadata"].get("managedFields")
            super().prepare_update(item, old, subresource)
            item["metadata"] = copy.deepcopy(old["metadata"])
            item["metadata"]["managedFields"] = managed
        elif self.custom.has_status:
            super().prepare_update(item, old, subresource)

    def spec_changed(self, item: Object, old: Object) -> bool:
        ignored = {"metadata", "status"} if self.custom.has_status else {"metadata"}
        return any(item.get(k) != old.get(k) for k in item.keys() | old.keys() if k not in ignored)

    def warnings(self, item: Object) -> list[str]:
        return finalizer_warnings(item["metadata"])

    def validate(self, item: Object) -> list[FieldError]:
        errors = openapi.validate(item, self.custom.schema, "", "")
        return errors + self._scale(item) + openapi.validate_lists(item, self.custom.schema, "")

    def validate_rules(self, item: Object, old: Object | None, errors: list[FieldError]) -> list[FieldError]:
        """What the CEL rules say, unless earlier ``errors`` make them meaningless."""
        if any(e.blocks_rules for e in errors):
            return [_NOT_CHECKED]
        if self.custom.rules.empty:
            return []
        return rules.check(item, old, self.custom.rules, "", exists_old=old is not None)

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        schema = self.custom.schema
        if subresource == "status":
            node = (schema.get("properties") or {}).get("status")
            errors = []
            if node is not None and "status" in item:
                errors = openapi.validate(item["status"], node, "status", "", old.get("status", openapi.ABSENT))
            return errors + self._scale(item, only_status=True) + openapi.validate_lists(item, schema, "")
        errors = openapi.validate(item, schema, "", "", old)
        return errors + self._scale(item) + openapi.validate_lists(item, schema, "")

    def _scale(self, item: Object, *, only_status: bool = False) -> list[FieldError]:
        errors: list[FieldError] = []
        scale = self.custom.scale or {}
        keys = ("statusReplicasPath",) if only_status else ("specReplicasPath", "statusReplicasPath")
        for path in filter(None, map(scale.get, keys)):
            value = value_at(item, path)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                kind = {"str": "string", "dict": "map[string]interface {}", "list": "[]interface {}"}
                found = kind.get(type(value).__name__, type(value).__name__)
                text = f"{path} accessor error: {value} is of the type {found}, expected int64"
                errors.append(invalid_value(path, 0, text))
            elif value < 0:
                errors.append(invalid_value(path, value, "should be a non-negative integer"))
        return errors


def custom_kinds(definition: Object) -> list[Kind]:
    """The kinds that a valid definition serves, one per served version."""
    spec, names = definition["spec"], definition["spec"]["names"]
    kinds = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        schema = copy.deepcopy((version.get("schema") or {}).get("openAPIV3Schema") or {})
        subresources = version.get("subresources") or {}
        custom = CustomKind(
            definition["metadata"]["name"],
            schema,
            rules.compile_rules(schema, "", []),
            "status" in subresources,
            subresources.get("scale"),
            openapi.has_defaults(schema),
            tuple(f["jsonPath"].lstrip(".") for f in version.get("selectableFields") or []),
        )
        served = {}
        if "status" in subresources:
            served["status"] = Subresource("status", names["kind"])
        if "scale" in subresources:
            served["scale"] = Subresource("scale", "Scale", group="autoscaling", version="v1")
        kinds.append(
            Kind(
                spec["group"],
                version["name"],
                names["plural"],
                names["kind"],
                spec["scope"] == "Namespaced",
                from_openapi(schema, root=True),
                CustomStrategy(custom),
                singular=names["singular"],
                list_kind=names["listKind"],
                short_names=tuple(names.get("shortNames") or ()),
                categories=tuple(names.get("categories") or ()),
                verbs=_VERBS,
                subresources=served,
                custom=custom,
                columns=version.get("additionalPrinterColumns") or [],
            )
        )
    return kinds


class DefinitionStrategy(Strategy):
    """CustomResourceDefinition itself."""

    generation = True

    def default(self, item: Object) -> None:
        spec, names = item["spec"], item["spec"]["names"]
        if names.get("kind"):
            names.setdefault("singular", names["kind"].lower())
            names.setdefault("listKind", names["kind"] + "List")
        spec.setdefault("conversion", {}).setdefault("strategy", "None")

    def prepare_create(self, item: Object, resources: Resources) -> None:
        stored = [v["name"] for v in item["spec"].get("versions") or [] if v.get("storage")]
        item["status"] = {"conditions": None, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}

    def prepare_update(self, item: Object, old: Object, subresource: str) -> None:
        super().prepare_update(item, old, subresource)
        if not subresource:
            status = item["status"] = copy.deepcopy(item["status"])
            for version in item["spec"].get("versions") or []:
                if version.get("storage") and version["name"] not in status["storedVersions"]:
                    status["storedVersions"].append(version["name"])

    def validate(self, item: Object) -> list[FieldError]:
        spec = item["spec"]
        names = spec["names"]
        errors = self._names(item["metadata"].get("name", ""), spec, names)
        if spec.get("scope") not in {"Cluster", "Namespaced"}:
            errors.append(
                not_supported("spec.scope", spec["scope"], ["Cluster", "Namespaced"])
                if spec.get("scope")
                else required("spec.scope")
            )
        versions = spec.get("versions") or []
        storage = [v for v in versions if v.get("storage")]
        if len(storage) != 1:
            text = "must have exactly one version marked as storage version"
            errors.append(invalid_value("spec.versions", versions, text))
        seen: set[str] = set()
        for n, version in enumerate(versions):
            name = version.get("name", "")
            errors += [invalid_value(f"spec.versions[{n}].name", name, t) for t in name_problems(name, "label1035")]
            if name in seen:
                errors.append(duplicate(f"spec.versions[{n}].name", name))
            seen.add(name)
            at = "spec.validation" if len(versions) == 1 else f"spec.versions[{n}].schema"
            schema = (version.get("schema") or {}).get("openAPIV3Schema")
            if schema is None:
                errors.append(required(f"spec.versions[{n}].schema.openAPIV3Schema", "schemas are required"))
            else:
                errors += validate_schema(schema, f"{at}.openAPIV3Schema")
        return errors

    def _names(self, name: str, spec: Object, names: Object) -> list[FieldError]:
        errors: list[FieldError] = []
        group, plural = spec.get("group", ""), names.get("plural", "")
        if name != f"{plural}.{group}":
            errors.append(invalid_value("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
        if not group:
            errors.append(required("spec.group"))
        elif "." not in group:
            errors.append(invalid_value("spec.group", group, "should be a domain with at least one dot"))
        for key in ("plural", "singular", "kind", "listKind"):
            value = names.get(key, "")
            if not value:
                errors.append(required(f"spec.names.{key}"))
            else:
                errors += [
                    invalid_value(f"spec.names.{key}", value, t) for t in name_problems(value.lower(), "label1035")
                ]
        if names.get("kind") and names.get("kind") == names.get("listKind"):
            errors.append(
                invalid_value("spec.names.listKind", names["listKind"], "kind and listKind may not be the same")
            )
        return errors

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        if subresource:
            return []
        errors = self.validate(item)
        new, before = item["spec"], old["spec"]
        for key, at in (("group", "spec.group"), ("scope", "spec.scope")):
            if new.get(key) != before.get(key):
                errors.append(invalid_value(at, new.get(key), "field is immutable"))
        for key in ("plural", "kind"):
            if new["names"].get(key) != before["names"].get(key):
                errors.append(invalid_value(f"spec.names.{key}", new["names"].get(key), "field is immutable"))
        present = [v["name"] for v in new.get("versions") or []]
        for n, version in enumerate(old["status"].get("storedVersions") or []):
            if version not in present:
                text = "missing from spec.versions; was previously a storage version, and must remain in spec.versions"
                errors.append(
                    invalid_value(f"status.storedVersions[{n}]", version, text + " until a storage migration")
                )
        return errors


def validate_schema(schema: Object, path: str) -> list[FieldError]:
    """Complaints about a schema: it must be structural, its rules must compile, its defaults must be valid."""
    errors: list[FieldError] = []
    if schema.get("type") != "object":
        kind = schema.get("type", "")
        errors.append(
            invalid_value(f"{path}.type", kind, "must be object at the root") if kind else required(f"{path}.type")
        )
    _structural(schema, path, errors, root=True)
    if errors:
        return errors
    rules.compile_rules(schema, path, errors)
    if not errors:
        _defaults(schema, path, errors)
    return errors


def _structural(schema: Object, path: str, errors: list[FieldError], *, root: bool = False) -> None:
    free = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    kind = schema.get("type")
    if not kind and not free and not root:
        errors.append(required(f"{path}.type", "must not be empty for specified object fields"))
    if kind and kind not in {"object", "array", "string", "integer", "number", "boolean"}:
        errors.append(
            not_supported(f"{path}.type", kind, ["array", "boolean", "integer", "number", "object", "string"])
        )
    if kind == "array" and not isinstance(schema.get("items"), dict):
        errors.append(required(f"{path}.items", "must be specified"))
    if schema.get("uniqueItems"):
        errors.append(
            forbidden_field(
                f"{path}.uniqueItems",
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            )
        )
    if "properties" in schema and isinstance(schema.get("additionalProperties"), dict):
        errors.append(
            forbidden_field(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
        )
    if pattern := schema.get("pattern"):
        try:
            re.compile(pattern)
        except re.error as error:
            errors.append(
                invalid_value(f"{path}.pattern", pattern, f"must be a valid regular expression, but isn't: {error}")
            )
    _list_type(schema, path, errors)
    for inner, at in _subschemas(schema, path):
        _structural(inner, at, errors)


def _subschemas(schema: Object, path: str) -> Iterator[tuple[Object, str]]:
    """The schemas directly in this one, each with its path in the definition."""
    for key in sorted(schema.get("properties") or {}):
        yield schema["properties"][key], f"{path}.properties[{key}]"
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield schema[key], f"{path}.{key}"


def _list_type(schema: Object, path: str, errors: list[FieldError]) -> None:
    list_type = schema.get("x-kubernetes-list-type")
    if list_type is None:
        return
    if schema.get("type") != "array":
        kind = schema.get("type", "")
        errors.append(invalid_value(f"{path}.type", kind, "must be array if x-kubernetes-list-type is specified"))
    if list_type not in {"atomic", "set", "map"}:
        errors.append(not_supported(f"{path}.x-kubernetes-list-type", list_type, ["atomic", "set", "map"]))
    if list_type == "map":
        keys = schema.get("x-kubernetes-list-map-keys")
        if not keys:
            errors.append(
                required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
            )
        items = schema.get("items") or {}
        for key in keys or []:
            node = (items.get("properties") or {}).get(key)
            at = f"{path}.items.properties[{key}]"
            if node is None:
                errors.append(
                    invalid_value(
                        f"{path}.x-kubernetes-list-map-keys", keys, "entries must all be names of item properties"
                    )
                )
            elif key not in (items.get("required") or []) and "default" not in node:
                errors.append(
                    required(
                        f"{at}.default",
                        "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required "
                        "property",
                    )
                )


def _defaults(schema: Object, path: str, errors: list[FieldError]) -> None:
    """Each default must fit its own schema, before nested defaults are filled in."""
    if "default" in schema:
        at, value = f"{path}.default", schema["default"]
        unknown: list[str] = []
        shape: Shape = from_openapi(schema)
        if prune(value, shape, unknown) != value:
            errors.append(invalid_value(at, value, "must not have unknown fields"))
        problems = openapi.validate(value, schema, at, at)
        errors += problems
        if not problems:
            errors += rules.check(value, None, rules.compile_rules(schema, path, []), at, exists_old=False)
    for inner, at in _subschemas(schema, path):
        _defaults(inner, at, errors)
