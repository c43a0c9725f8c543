"""The two seams to the world: a Kubernetes API and the members' administration API.

The loop is written against these protocols; ``act`` implements them over HTTP and gRPC, the tests in memory, so that a
whole life of a cluster, with a crash at every side effect, runs in one thread without either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from raftkv_operator.api import constants
from raftkv_operator.api.types import Object
from raftkv_operator.observe.views import Configuration, NodeIdentity, NodeView, RestartTicket, Retirement, Settings


@dataclass(frozen=True, slots=True)
class Resource:
    """Where a kind lives in the API."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As in an object's ``apiVersion``."""
        return f"{self.group}/{self.version}" if self.group else self.version


CLUSTERS = Resource(constants.GROUP, constants.VERSION, constants.PLURAL, constants.KIND)
STATEFUL_SETS = Resource("apps", "v1", "statefulsets", "StatefulSet")
PODS = Resource("", "v1", "pods", "Pod")
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
SERVICES = Resource("", "v1", "services", "Service")
SECRETS = Resource("", "v1", "secrets", "Secret")
NODES = Resource("", "v1", "nodes", "Node")
EVENTS = Resource("", "v1", "events", "Event")
DISRUPTION_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")


class KubeError(Exception):
    """A request to the API that did not succeed; ``code`` is the HTTP status, 0 if there was no answer."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{reason or 'error'} ({code}): {message}")
        self.code = code
        self.reason = reason
        self.message = message


class MemberError(Exception):
    """A call to a member that did not succeed; ``code`` is gRPC's name for it (``UNAVAILABLE``, ``ABORTED``, ...)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Kube(Protocol):
    """A Kubernetes API. Every method raises ``KubeError``; none retries."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object, None if there is none."""

    async def select(self, resource: Resource, namespace: str, selector: str) -> list[Object]:
        """The objects of a namespace that a label selector matches, from a consistent read."""

    async def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        """Creates; code 409 if the name is taken."""

    async def replace(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        """Replaces the object of the body's resourceVersion; code 409 if it has changed."""

    async def merge(
        self, resource: Resource, namespace: str, name: str, patch: Object, subresource: str = ""
    ) -> Object:
        """Applies a JSON merge patch."""

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, patch: list[Any], subresource: str = ""
    ) -> Object:
        """Applies a JSON patch; code 422 (or 409) if one of its tests fails."""

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Deletes the object of this very uid; one that is gone or was replaced is no error."""

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Evicts the pod of this very uid, as disruption budgets allow: code 429 where one forbids it. A pod that is
        gone or was replaced is no error."""


class Members(Protocol):
    """The administration API of a cluster's members; an address is ``IP:PORT``. Every method raises ``MemberError``."""

    async def describe(self, address: str) -> NodeView:
        """What the node says of itself."""

    async def configuration(self, address: str) -> Configuration:
        """The committed configuration; only the leader answers."""

    async def bootstrap(self, address: str, identity: NodeIdentity, settings: Settings) -> None:
        """Makes an empty node the first voter of a new cluster."""

    async def join(self, address: str, identity: NodeIdentity, peers: tuple[NodeIdentity, ...]) -> None:
        """Gives an empty node its identity in an existing cluster."""

    async def add_member(self, address: str, decided_at: int, identity: NodeIdentity) -> None:
        """Adds a learner."""

    async def remove_member(self, address: str, decided_at: int, member_id: int) -> None:
        """Removes a member, or burns an id that never was one."""

    async def set_settings(self, address: str, decided_at: int, settings: Settings) -> None:
        """Sets the replicated settings."""

    async def move_leader(self, address: str, target: int) -> None:
        """Hands leadership to a voter."""

    async def restart_ticket(self, address: str, decided_at: int, member_id: int) -> RestartTicket:
        """Asks the leader for leave to restart a member (M11)."""

    async def retire(self, address: str, retirement: Retirement) -> None:
        """Lets a node wipe its ring and disk."""
