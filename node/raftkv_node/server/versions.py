"""The versions that are told to clients."""

from raftkv_node import __version__, compiled

ETCD_VERSION = "3.6.6"
"""The release of etcd whose API this corresponds to. Clients parse it: it must be a semantic version, and Kubernetes'
API server asks for 3.5.13 or later before it relies on watch progress requests."""

CLUSTER_VERSION = "3.6.0"
STORAGE_VERSION = "3.6.0"

RAFTKV_VERSION = __version__
COMPILED = compiled()
