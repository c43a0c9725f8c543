"""The plain caches that the watches feed, and which clusters they concern.

A cache holds the last state of every watched object by namespace and cluster. Decisions are *triggered* by it, and a
cluster at rest is looked after from it without a request; no side effect is ever decided on it: before the operator
acts it reads everything anew (``observe.reader``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from raftkv_operator.api import constants
from raftkv_operator.api.types import Object
from raftkv_operator.observe.seams import (
    CLAIMS,
    CLUSTERS,
    DISRUPTION_BUDGETS,
    PODS,
    SERVICES,
    STATEFUL_SETS,
    Resource,
)

Key = tuple[str, str]
"""Namespace and name of a cluster."""

CHILDREN: Final = (STATEFUL_SETS, PODS, CLAIMS, SERVICES, DISRUPTION_BUDGETS)
"""What is watched beside the clusters. Not Secrets: the operator may read those by name only."""


class Cache:
    """Last states of clusters and of the children that carry our labels."""

    def __init__(self, mark_dirty: Callable[[Key], None]) -> None:
        self._mark_dirty = mark_dirty
        self._clusters: dict[Key, Object] = {}
        self._children: dict[Key, dict[tuple[str, str], Object]] = {}

    def feed(self, resource: Resource, raw: Object, deleted: bool) -> None:
        """Takes one watched state of an object and marks its cluster dirty."""
        # Who wrote which field is of no use here, and often the largest part of an object.
        meta = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
        raw = {**raw, "metadata": meta}
        if resource is CLUSTERS:
            key = (meta["namespace"], meta["name"])
            if deleted:
                self._clusters.pop(key, None)
                if not self._children.get(key):
                    self._children.pop(key, None)
            else:
                self._clusters[key] = raw
        else:
            name = (meta.get("labels") or {}).get(constants.LABEL_CLUSTER)
            if not name:
                return
            key = (meta["namespace"], name)
            children = self._children.setdefault(key, {})
            child = (resource.plural, meta["name"])
            if deleted:
                children.pop(child, None)
                if not children and key not in self._clusters:
                    self._children.pop(key, None)
            else:
                children[child] = raw
        self._mark_dirty(key)

    def cluster(self, key: Key) -> Object | None:
        """The last state of a custom resource."""
        return self._clusters.get(key)

    def child(self, key: Key, resource: Resource, name: str) -> Object | None:
        """The last state of one of a cluster's objects."""
        return self._children.get(key, {}).get((resource.plural, name))

    def children(self, key: Key, resource: Resource) -> list[Object]:
        """The last states of a cluster's objects of one kind."""
        return [raw for (plural, _), raw in self._children.get(key, {}).items() if plural == resource.plural]
