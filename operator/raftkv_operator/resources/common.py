"""What all objects of a cluster share: labels, the owner, and the comparison of what is with what should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raftkv_operator.api import constants
from raftkv_operator.api.types import Names, Object, hex_id


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose objects they are: the custom resource's names and uid, and the cluster id that was issued."""

    names: Names
    uid: str
    cluster_id: int


def selector(cluster: str) -> dict[str, str]:
    """The labels that every object of a cluster carries and the operator lists by."""
    return {constants.LABEL_MANAGED_BY: constants.MANAGED_BY, constants.LABEL_CLUSTER: cluster}


def selector_text(cluster: str) -> str:
    """The same as a label selector in an URL."""
    return ",".join(f"{key}={value}" for key, value in selector(cluster).items())


def labels(owner: Owner, number: int | None = None) -> dict[str, str]:
    """All labels of an object of a cluster, or of one of its members."""
    cluster = owner.names.cluster
    found = {
        constants.LABEL_NAME: "raftkv",
        constants.LABEL_INSTANCE: cluster,
        constants.LABEL_COMPONENT: "node",
        **selector(cluster),
        constants.LABEL_CLUSTER_ID: hex_id(owner.cluster_id),
    }
    if number is not None:
        found[constants.LABEL_NUMBER] = str(number)
    return found


def owner_reference(owner: Owner) -> Object:
    """The reference to the custom resource as the controller of an object."""
    return {
        "apiVersion": constants.API_VERSION,
        "kind": constants.KIND,
        "name": owner.names.cluster,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def covers(actual: Any, wished: Any) -> bool:
    """Whether an object has at least all that is wished; what a server or another controller added does not count."""
    if isinstance(wished, dict):
        return isinstance(actual, dict) and all(covers(actual.get(key), value) for key, value in wished.items())
    if isinstance(wished, list):
        same_length = isinstance(actual, list) and len(actual) == len(wished)
        return same_length and all(covers(a, w) for a, w in zip(actual, wished, strict=True))
    return bool(actual == wished)
