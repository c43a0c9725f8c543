"""The objects that a cluster's members share: Secret, Services, PodDisruptionBudget."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from raftkv_operator.api import constants
from raftkv_operator.api.types import Object, hex_id
from raftkv_operator.observe.seams import DISRUPTION_BUDGETS, SECRETS, SERVICES, Resource
from raftkv_operator.resources import common


@dataclass(frozen=True, slots=True)
class Shared:
    """One shared object: its key in decisions, its kind, and what it should be."""

    key: str
    resource: Resource
    body: Object

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.body["metadata"]["name"])


def shared_objects(owner: common.Owner, token: str) -> tuple[Shared, ...]:
    """The shared objects in the order in which they are created.

    ``token`` is what a new Secret gets; an existing one is left as it is.
    """
    names = owner.names

    def meta(name: str) -> Object:
        return {
            "name": name,
            "namespace": names.namespace,
            "labels": common.labels(owner),
            "ownerReferences": [common.owner_reference(owner)],
        }

    pods = common.selector(names.cluster)
    pods_of_this_id = {**pods, constants.LABEL_CLUSTER_ID: hex_id(owner.cluster_id)}
    secret: Object = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta(names.admin_secret),
        "type": "Opaque",
        "data": {constants.TOKEN_KEY: base64.b64encode(token.encode()).decode()},
    }
    peers: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(names.peer_service),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": pods,
            "ports": [
                _port("client", constants.CLIENT_PORT),
                _port("peer", constants.PEER_PORT),
                _port("metrics", constants.METRICS_PORT),
            ],
        },
    }
    client: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(names.client_service),
        "spec": {
            "type": "ClusterIP",
            "selector": pods_of_this_id,
            "ports": [_port("client", constants.CLIENT_PORT)],
        },
    }
    budget: Object = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta(names.disruption_budget),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": pods}},
    }
    return (
        Shared(f"Secret {names.admin_secret}", SECRETS, secret),
        Shared(f"Service {names.peer_service}", SERVICES, peers),
        Shared(f"Service {names.client_service}", SERVICES, client),
        Shared(f"PodDisruptionBudget {names.disruption_budget}", DISRUPTION_BUDGETS, budget),
    )


def in_place(actual: Object | None, wished: Shared) -> bool:
    """Whether an object is as it should be; of a Secret only the existence counts, since its token was drawn once."""
    if actual is None:
        return False
    if wished.resource is SECRETS:
        return bool((actual.get("data") or {}).get(constants.TOKEN_KEY))
    return common.covers(actual.get("spec"), wished.body["spec"]) and common.covers(
        actual["metadata"].get("labels"), wished.body["metadata"]["labels"]
    )


def read_token(secret: Object) -> str:
    """The administration token in a Secret; empty if it has none."""
    return base64.b64decode((secret.get("data") or {}).get(constants.TOKEN_KEY, "")).decode()


def _port(name: str, port: int) -> Object:
    return {"name": name, "port": port, "targetPort": port, "protocol": "TCP"}
