"""Names, numbers and messages that the operator shares with manifests, nodes and tests.

The exit codes are the node's (its package defines them for itself; the operator may not import it, so they are mirrored
here and a test holds the two together). The rule messages are those of the CRD, word for word: they are what a person
reads after a wrong edit, hence part of the interface.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "raftkv.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "RaftKVCluster"
PLURAL: Final = "raftkvclusters"

FIELD_MANAGER: Final = "raftkv-operator"
FINALIZER: Final = f"{GROUP}/finalizer"

# Labels. The operator's watches select on MANAGED_BY, services on CLUSTER and CLUSTER_ID.
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_CLUSTER: Final = f"{GROUP}/cluster"
LABEL_CLUSTER_ID: Final = f"{GROUP}/cluster-id"
LABEL_NUMBER: Final = f"{GROUP}/number"
MANAGED_BY: Final = "raftkv-operator"

# Annotations of claims: the identity that its disk carries (M3), written before Bootstrap or Join.
ANNOTATION_CLUSTER_ID: Final = f"{GROUP}/cluster-id"
ANNOTATION_MEMBER_ID: Final = f"{GROUP}/member-id"
ANNOTATION_DISK_UUID: Final = f"{GROUP}/disk-uuid"
# Annotation of claims: the uid of the custom resource that issued this identity.
ANNOTATION_ISSUED_FOR: Final = f"{GROUP}/issued-for"
# Annotation of claims: the next number and the configuration as last seen, "NEXT INDEX VOTER,VOTER,... OTHER,...": what
# must be known of a cluster when nothing but its claims is left (M3).
ANNOTATION_CONFIGURATION: Final = f"{GROUP}/configuration"
# Annotation of StatefulSets and pods: the hash over the fields whose change needs a restart.
ANNOTATION_TEMPLATE: Final = f"{GROUP}/template-hash"
# Annotation of a StatefulSet that the operator scaled to 0 because starting again cannot help: "REASON: sentence".
ANNOTATION_HALTED: Final = f"{GROUP}/halted"
# Annotation of a StatefulSet: the host that holds its ring.
ANNOTATION_HOST: Final = f"{GROUP}/host"

CLIENT_PORT: Final = 2379
PEER_PORT: Final = 2380
METRICS_PORT: Final = 2381

DATA_DIR: Final = "/var/lib/raftkv"
RING_DIR: Final = "/mnt/raftkv-ring"
TOKEN_DIR: Final = "/etc/raftkv/admin"
TOKEN_KEY: Final = "token"
NODE_USER_ID: Final = 65532
TERMINATION_GRACE_SECONDS: Final = 60
"""A stopping node drains its ring to disk (D9) before it exits; a ring is under 100 MB."""

# The node's exit codes (docs/crd.md explains what the operator does at each).
EXIT_USAGE: Final = 64
EXIT_ABSENT: Final = 65
EXIT_PROVEN_LOST: Final = 66
EXIT_CORRUPT: Final = 67
EXIT_MISMATCH: Final = 68
EXIT_DURABILITY: Final = 69

# Messages of the CRD's rules.
# 40 characters: the names and labels made of the cluster's (``NAME-NUMBER-REVISION``) must fit into 63.
MESSAGE_NAME: Final = (
    "metadata.name must be at most 40 characters (a-z, 0-9, '-'), begin with a letter, end with a letter or digit"
)
MESSAGE_SIZE: Final = "logBuffer.size must be whole mebibytes from 4Mi to 100Mi"
MESSAGE_DRAIN_SIZE: Final = "logBuffer.drain.size must be whole mebibytes from 1Mi to 100Mi"
MESSAGE_MEDIUM_IMMUTABLE: Final = "logBuffer.medium cannot be changed"
MESSAGE_SOURCE_IMMUTABLE: Final = "logBuffer.source cannot be changed"
MESSAGE_SOURCE: Final = "logBuffer.source is needed for medium PersistentMemory, and for no other"
MESSAGE_ODD: Final = "consensus.maxVoters must be odd: 1, 3, 5, 7 or 9"
MESSAGE_TIMEOUTS: Final = "consensus.electionTimeout must be at least five times consensus.heartbeatInterval"
MESSAGE_HEARTBEAT: Final = "consensus.heartbeatInterval must be from 10ms to 10s"
MESSAGE_ELECTION: Final = "consensus.electionTimeout must be from 50ms to 60s"
MESSAGE_LEADER_PREFERENCE: Final = (
    "consensus.leaderPreference: Writers stands last, it decides between equally good zones"
)
MESSAGE_STORAGE_SIZE_IMMUTABLE: Final = "storage.size cannot be changed"
MESSAGE_STORAGE_CLASS_IMMUTABLE: Final = "storage.storageClassName cannot be changed"
MESSAGE_HOST_PATH: Final = "logBuffer.source.hostPath.path must be absolute, without '..'"
