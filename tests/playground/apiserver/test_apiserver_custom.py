"""Custom resources: definitions, schemas, rules, versions of objects."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver_harness import Cluster
from raftkv_playground.apiserver.crd import openapi, rules
from raftkv_playground.apiserver.crd.definition import validate_schema
from raftkv_playground.client import CUSTOM_RESOURCE_DEFINITIONS, ApiError, Resource

Run = Callable[..., None]
THINGS = Resource("test.dev", "v1", "things", "Thing")

SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 9},
        "name": {"type": "string", "maxLength": 5, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]},
        "mode": {"type": "string", "enum": ["A", "B"], "default": "A"},
        "parts": {
            "type": "array",
            "maxItems": 3,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["id"],
            "items": {
                "type": "object",
                "required": ["id"],
                "properties": {"id": {"type": "string"}, "weight": {"type": "integer", "default": 1}},
                "x-kubernetes-validations": [
                    {"rule": "self.weight >= oldSelf.weight", "message": "a part never gets lighter"}
                ],
            },
        },
    },
    "x-kubernetes-validations": [
        {
            "rule": "self.mode == 'A' || self.size > 3",
            "messageExpression": "'mode B needs more than ' + string(self.size)",
            "fieldPath": ".mode",
        }
    ],
}


def definition(spec: dict[str, Any] = SPEC, *, status: bool = True) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"spec": spec, "status": {"type": "object"}}}
    version: dict[str, Any] = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    if status:
        version["subresources"] = {"status": {}}
    return {
        "metadata": {"name": "things.test.dev"},
        "spec": {
            "group": "test.dev",
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [version],
        },
    }


async def establish(c: Cluster, body: dict[str, Any]) -> None:
    await c.admin.create(CUSTOM_RESOURCE_DEFINITIONS, body)
    for _ in range(200):
        found = await c.admin.get(CUSTOM_RESOURCE_DEFINITIONS, "things.test.dev")
        if any(x["type"] == "Established" for x in found["status"].get("conditions") or []):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the definition was not established")


async def message(call: Any, code: int = 422) -> str:
    with pytest.raises(ApiError) as error:
        await call
    assert error.value.code == code
    return error.value.message


def thing(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "t"}, "spec": spec}


def test_schema_and_rules_hold(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await establish(c, definition())
        made = await c.admin.create(THINGS, thing(size=5, parts=[{"id": "x"}]), "default")
        assert made["spec"] == {"size": 5, "mode": "A", "parts": [{"id": "x", "weight": 1}]}
        assert "size: Required value" in await message(c.admin.create(THINGS, thing(), "default"))
        twice = thing(size=5, parts=[{"id": "x"}, {"id": "x"}])
        assert 'spec.parts[1]: Duplicate value: {"id":"x"}' in await message(c.admin.create(THINGS, twice, "default"))
        many = thing(size=5, parts=[{"id": str(n)} for n in range(4)])
        assert "Too many: 4: must have at most 3 items" in await message(c.admin.create(THINGS, many, "default"))
        small = await message(c.admin.create(THINGS, thing(size=2, mode="B"), "default"))
        assert "spec.mode: Invalid value: mode B needs more than 2" in small

    run(scenario)


def test_transition_rules_compare_with_the_old_value(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await establish(c, definition())
        await c.admin.create(THINGS, thing(size=5, name="a", parts=[{"id": "x", "weight": 3}]), "default")
        out = await message(c.admin.patch(THINGS, "t", "default", {"spec": {"name": "b"}}))
        assert 'spec.name: Invalid value: "b": failed rule: self == oldSelf' in out
        lighter = {"spec": {"parts": [{"id": "new", "weight": 1}, {"id": "x", "weight": 2}]}}
        out = await message(c.admin.patch(THINGS, "t", "default", lighter))
        assert "spec.parts[1]: Invalid value: a part never gets lighter" in out
        heavier = {"spec": {"parts": [{"id": "new", "weight": 1}, {"id": "x", "weight": 4}]}}
        await c.admin.patch(THINGS, "t", "default", heavier)

    run(scenario)


def test_generation_counts_the_spec_only(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await establish(c, definition())
        await c.admin.create(THINGS, {**thing(size=5), "status": {"x": 1}}, "default")
        item = await c.admin.get(THINGS, "t", "default")
        assert "status" not in item
        for patch, sub, generation in (
            ({"metadata": {"labels": {"a": "b"}}}, None, 1),
            ({"status": {}}, "status", 1),
            ({"spec": {"size": 6}}, None, 2),
            ({"spec": {"size": 6}}, None, 2),
            ({"spec": {"size": 7}, "status": {}}, "status", 2),
        ):
            item = await c.admin.patch(THINGS, "t", "default", patch, subresource=sub)
            assert item["metadata"]["generation"] == generation
        assert item["spec"]["size"] == 6

    run(scenario)


def test_a_stricter_schema_does_not_lock_what_is_there(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await establish(c, definition())
        await c.admin.create(THINGS, thing(size=9), "default")
        stricter = copy.deepcopy(SPEC)
        stricter["properties"]["size"]["maximum"] = 5
        patch = {"spec": definition(stricter)["spec"]}
        await c.admin.patch(CUSTOM_RESOURCE_DEFINITIONS, "things.test.dev", None, patch)
        await asyncio.sleep(0.1)
        await c.admin.patch(THINGS, "t", "default", {"spec": {"mode": "B"}})
        out = await message(c.admin.patch(THINGS, "t", "default", {"spec": {"size": 8}}))
        assert "less than or equal to 5" in out

    run(scenario)


def test_a_definition_takes_its_objects_along(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await establish(c, definition())
        held = {"metadata": {"name": "t", "finalizers": ["x.dev/f"]}, "spec": {"size": 5}}
        await c.admin.create(THINGS, held, "default")
        await c.admin.delete(CUSTOM_RESOURCE_DEFINITIONS, "things.test.dev")
        await asyncio.sleep(0.4)
        # The object's own finalizer is waited for; the resource is served until then.
        assert (await c.admin.get(THINGS, "t", "default"))["metadata"]["deletionTimestamp"]
        await c.admin.patch(THINGS, "t", "default", {"metadata": {"finalizers": None}})
        for _ in range(200):
            try:
                await c.admin.get(CUSTOM_RESOURCE_DEFINITIONS, "things.test.dev")
            except ApiError:
                break
            await asyncio.sleep(0.02)
        assert await message(c.admin.list(THINGS, "default"), 404) == "404 page not found"
        # The same name can be defined anew, and starts empty.
        await establish(c, definition())
        assert (await c.admin.list(THINGS, "default"))[0] == []

    run(scenario)


def _complaints(schema: dict[str, Any]) -> list[str]:
    body = {"type": "object", "properties": {"spec": schema}}
    return [str(e) for e in validate_schema(body, "s")]


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "array"}, "s.properties[spec].items: Required value"),
        ({"properties": {"a": {"type": "string"}}}, "s.properties[spec].type: Required value"),
        ({"type": "strange"}, 'Unsupported value: "strange"'),
        ({"type": "string", "pattern": "("}, "must be a valid regular expression"),
        ({"type": "integer", "maximum": 1, "default": 2}, "less than or equal to 1"),
        ({"type": "string", "x-kubernetes-validations": [{"rule": "self >"}]}, "compilation failed"),
        (
            {"type": "object", "x-kubernetes-validations": [{"rule": "nothing(self)"}]},
            "undeclared reference to 'nothing'",
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "string"}},
                "x-kubernetes-validations": [{"rule": "self.b == ''"}],
            },
            "undefined field 'b'",
        ),
        (
            {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}},
            "oldSelf cannot be used on the uncorrelatable portion",
        ),
        (
            {"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}},
            "x-kubernetes-list-map-keys: Required value",
        ),
    ],
)
def test_bad_schemas_are_refused(schema: dict[str, Any], text: str) -> None:
    assert any(text in complaint for complaint in _complaints(schema)), _complaints(schema)


@pytest.mark.parametrize(
    ("schema", "value", "text"),
    [
        ({"type": "integer"}, 1.5, "must be of type integer"),
        ({"type": "integer"}, None, 'must be of type integer: "null"'),
        ({"type": "integer", "nullable": True}, None, None),
        ({"type": "number"}, 2, None),
        ({"type": "integer"}, True, "must be of type integer"),
        ({"type": "string", "minLength": 2}, "a", "at least 2 chars"),
        ({"type": "string", "maxLength": 1}, "ab", "Too long: may not be more than 1 bytes"),
        ({"type": "string", "format": "date-time"}, "yesterday", "must be of type date-time"),
        ({"type": "string", "format": "date-time"}, "2026-01-01T00:00:00Z", None),
        ({"type": "string", "format": "duration"}, "1h30m", None),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1}, [], "at least 1 items"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {"a": "b"}, "must be of type integer"),
        ({"x-kubernetes-int-or-string": True}, "5%", None),
        ({"x-kubernetes-int-or-string": True}, [], "must be of type integer,string"),
        ({"type": "integer", "oneOf": [{"minimum": 5}, {"maximum": 6}]}, 5, "one and only one schema (oneOf)"),
        ({"type": "integer", "not": {"minimum": 5}}, 7, "must not validate the schema (not)"),
        ({"type": "integer", "multipleOf": 3}, 7, "multiple of 3"),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, 3, "greater than 3"),
    ],
)
def test_values_against_schemas(schema: dict[str, Any], value: Any, text: str | None) -> None:
    errors = [str(e) for e in openapi.validate(value, schema, "spec.x", "spec.x")]
    if text is None:
        assert errors == []
    else:
        assert any(text in e for e in errors), errors


def test_rules_see_times_as_times() -> None:
    schema = {
        "type": "object",
        "properties": {"at": {"type": "string", "format": "date-time"}},
        "x-kubernetes-validations": [{"rule": "self.at < timestamp('2026-06-01T00:00:00Z')"}],
    }
    node = rules.compile_rules(schema, "s", [])
    assert rules.check({"at": "2026-01-01T00:00:00Z"}, None, node, "", exists_old=False) == []
    assert len(rules.check({"at": "2027-01-01T00:00:00Z"}, None, node, "", exists_old=False)) == 1


def test_defaults_are_filled_in_from_outside_in() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {
                "type": "object",
                "default": {},
                "properties": {"b": {"type": "string", "default": "x"}, "c": {"type": "string", "nullable": True}},
            }
        },
    }
    value: dict[str, Any] = {}
    openapi.apply_defaults(value, schema)
    assert value == {"a": {"b": "x"}}
    value = {"a": {"b": None, "c": None}}
    openapi.apply_defaults(value, schema)
    assert value == {"a": {"b": "x", "c": None}}


def _rule(rule: str) -> list[dict[str, str]]:
    return [{"rule": rule}]


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        # A long string by itself is affordable, as on a real server.
        ({"type": "string", "x-kubernetes-validations": _rule("self == oldSelf")}, True),
        ({"type": "string", "x-kubernetes-validations": _rule("self.matches('^[a-z]{1,63}(-[a-z]{1,63})*$')")}, True),
        # A string without bound in a list without bound is not.
        (
            {
                "type": "array",
                "items": {"type": "string", "x-kubernetes-validations": _rule("self.matches('^[a-z]+$')")},
            },
            False,
        ),
        (
            {
                "type": "array",
                "maxItems": 10,
                "items": {"type": "string", "maxLength": 64, "x-kubernetes-validations": _rule("self.matches('^a+$')")},
            },
            True,
        ),
        (
            {
                "type": "array",
                "items": {"type": "string"},
                "x-kubernetes-validations": _rule("self.all(x, self.all(y, x == y))"),
            },
            False,
        ),
        (
            {"type": "array", "items": {"type": "integer"}, "x-kubernetes-validations": _rule("self.all(x, x > 0)")},
            True,
        ),
        # An equality with a constant costs no more than the constant.
        (
            {
                "type": "array",
                "items": {"type": "string"},
                "x-kubernetes-validations": _rule("self.all(x, x == 'a')"),
            },
            True,
        ),
    ],
)
def test_rules_without_bounds_are_refused(schema: dict[str, Any], fits: bool) -> None:
    complaints = [c for c in _complaints(schema) if "estimated rule cost exceeds budget" in c]
    assert bool(complaints) != fits, _complaints(schema)


def test_the_products_own_definition_is_affordable() -> None:
    body = yaml.safe_load((Path(__file__).parents[3] / "deploy" / "crd.yaml").read_text())
    for version in body["spec"]["versions"]:
        assert validate_schema(version["schema"]["openAPIV3Schema"], "s") == []
