"""ControllerRevisions: the history of a StatefulSet's pod template.

A revision holds the template as a patch, is named by the template's hash, and is reused when an older template comes
back (``kubectl rollout undo``). Two templates with one hash are told apart by the set's ``collisionCount``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from raftkv_playground.objects import Object, canonical, edited, labels_of, name_hash, owner_reference

HASH_LABEL = "controller.kubernetes.io/hash"
REVISION_HISTORY_LIMIT = 10
"""Kubernetes' default of ``spec.revisionHistoryLimit``: unused revisions that are kept."""


def template_data(owner: Mapping[str, Any]) -> Object:
    """What of the owner a revision keeps: its pod template, as a strategic merge patch that replaces it."""
    return {"spec": {"template": {**edited(owner["spec"]["template"]), "$patch": "replace"}}}


def build(owner: Mapping[str, Any], number: int, collision_count: int) -> Object:
    data = template_data(owner)
    digest = name_hash([data, collision_count] if collision_count else data)
    name = f"{owner['metadata']['name'][:223]}-{digest}"
    return {
        "metadata": {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "labels": {**(owner["spec"]["template"].get("metadata", {}).get("labels") or {}), HASH_LABEL: digest},
            "ownerReferences": [owner_reference(owner)],
        },
        "data": data,
        "revision": number,
    }


def same_template(revision: Mapping[str, Any], owner: Mapping[str, Any]) -> bool:
    return canonical(revision.get("data")) == canonical(template_data(owner))


def ordered(revisions: Iterable[Object]) -> list[Object]:
    return sorted(revisions, key=lambda item: (item["revision"], item["metadata"]["name"]))


def unused(revisions: Iterable[Object], used_names: set[str], limit: int | None) -> list[Object]:
    """The oldest revisions beyond the history limit that no pod and no status names."""
    idle = [item for item in ordered(revisions) if item["metadata"]["name"] not in used_names]
    keep = REVISION_HISTORY_LIMIT if limit is None else limit
    return idle[: max(0, len(idle) - keep)]


def pod_revision(pod: Mapping[str, Any]) -> str:
    return labels_of(pod).get("controller-revision-hash", "")
