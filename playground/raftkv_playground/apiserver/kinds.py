"""Kinds: what the server serves, and how each differs from the rest.

A ``Kind`` is one resource in one version with its discovery data, its shape, and a ``Strategy``: the hooks at which a
kind has rules of its own. Requests go through the same steps for every kind (``resources``); a strategy that
overrides nothing gives plain storage with metadata.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raftkv_playground.apiserver.errors import FieldError, Object
from raftkv_playground.apiserver.schema.shapes import Shape
from raftkv_playground.apiserver.store import ResourceKey

if TYPE_CHECKING:
    from raftkv_playground.apiserver.crd.definition import CustomKind
    from raftkv_playground.apiserver.resources import Resources

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


class Strategy:
    """The hooks of a kind; see each one's call in ``resources``."""

    name_form = "subdomain"
    """Form of valid names: subdomain, label, label1035 or path."""
    generation = False
    """Whether ``metadata.generation`` counts changes of what the user wants."""
    unconditional_update = True
    """Whether PUT without a resourceVersion is allowed."""
    create_on_update = False
    """Whether PUT of an absent object creates it."""
    returns_deleted = False
    """Whether DELETE answers with the object instead of a Status."""

    def default(self, item: Object) -> None:
        """Fill in the API's defaults (part of decoding: what it sets belongs to the writer's fields)."""

    def admit_create(self, item: Object, resources: Resources) -> None:
        """Change or refuse a new object after field ownership was settled (what admission plugins do)."""

    def prepare_create(self, item: Object, resources: Resources) -> None:
        """Set what only the server decides; drop what a client may not set (status)."""
        item.pop("status", None)

    def prepare_update(self, item: Object, old: Object, subresource: str) -> None:
        """Keep from ``old`` what this endpoint may not change."""
        if subresource == "status":
            status = item.get("status")
            metadata = item["metadata"]
            item.clear()
            item.update(old)
            item["metadata"] = metadata
            item.pop("status", None)
            if status is not None:
                item["status"] = status
        else:
            item.pop("status", None)
            if "status" in old:
                item["status"] = old["status"]

    def validate(self, item: Object) -> list[FieldError]:
        """Complaints about a new object, beyond its metadata."""
        return []

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        """Complaints about a change, beyond its metadata."""
        return self.validate(item)

    def spec_changed(self, item: Object, old: Object) -> bool:
        """Whether the change counts for ``metadata.generation``."""
        return bool(item.get("spec") != old.get("spec"))

    def grace(self, item: Object, wanted: int | None) -> int:
        """Seconds that the object stays after DELETE, for someone else to remove it."""
        return 0

    def warnings(self, item: Object) -> list[str]:
        return []


@dataclass(frozen=True, slots=True)
class Subresource:
    """An entry ``plural/name`` of discovery."""

    name: str
    kind: str
    verbs: tuple[str, ...] = ("get", "patch", "update")
    group: str | None = None
    version: str | None = None


@dataclass(slots=True, eq=False)
class Kind:
    """One served resource."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    shape: Shape
    strategy: Strategy
    singular: str = ""
    list_kind: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: dict[str, Subresource] = field(default_factory=dict)
    custom: CustomKind | None = None
    columns: list[Object] = field(default_factory=list)
    storage_key: ResourceKey | None = None
    """Where objects are stored, when another group's resource holds them (events)."""
    convert_in: Callable[[Object], Object] | None = None
    convert_out: Callable[[Object], Object] | None = None

    def __post_init__(self) -> None:
        self.singular = self.singular or self.kind.lower()
        self.list_kind = self.list_kind or self.kind + "List"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def key(self) -> ResourceKey:
        return self.storage_key or (self.group, self.plural)

    @property
    def storage_hash(self) -> str:
        """A digest that tells clients whether the stored version changed."""
        text = f"{self.group}/{self.version}/{self.kind}"
        return base64.b64encode(hashlib.sha256(text.encode()).digest()[:8]).decode()

    @property
    def stored(self) -> bool:
        """Whether there are objects (reviews are only answered)."""
        return "get" in self.verbs

    def present(self, item: Object) -> Object:
        """A stored object as this version shows it."""
        if self.convert_out is not None:
            item = self.convert_out(item)
        if item.get("apiVersion") != self.api_version or item.get("kind") != self.kind:
            return {"kind": self.kind, "apiVersion": self.api_version, **_without_type(item)}
        return item


def _without_type(item: Object) -> Object:
    return {k: v for k, v in item.items() if k not in {"kind", "apiVersion"}}


class Registry:
    """All kinds, by group, version and plural."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str], Kind] = {}
        self.generation = 0
        """Changes whenever a kind comes or goes; discovery documents are cached under it."""

    def add(self, kind: Kind) -> None:
        self._kinds[kind.group, kind.version, kind.plural] = kind
        self.generation += 1

    def drop(self, group: str, version: str, plural: str) -> None:
        if self._kinds.pop((group, version, plural), None):
            self.generation += 1

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        return self._kinds.get((group, version, plural))

    def all(self) -> list[Kind]:
        return list(self._kinds.values())

    def groups(self) -> dict[str, list[str]]:
        """Group name -> versions, in order of registration; the core group is ``""``."""
        out: dict[str, list[str]] = {}
        for group, version, _ in self._kinds:
            versions = out.setdefault(group, [])
            if version not in versions:
                versions.append(version)
        return out

    def by_key(self, key: ResourceKey) -> Kind | None:
        """Any version of the resource that stores its objects under ``key``."""
        return next((k for k in self._kinds.values() if k.key == key and k.storage_key is None), None)

    def by_kind(self, api_version: str, kind: str) -> Kind | None:
        return next((k for k in self._kinds.values() if k.api_version == api_version and k.kind == kind), None)


def setdefaults(target: Object, **defaults: Any) -> None:
    """Set the missing ones of ``defaults``."""
    for key, value in defaults.items():
        target.setdefault(key, value)
