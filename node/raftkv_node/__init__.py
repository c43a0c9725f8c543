"""The RaftKV node: a member of a strongly consistent key-value cluster that speaks the etcd v3 gRPC API."""

from importlib.metadata import version

__version__ = version("raftkv")
