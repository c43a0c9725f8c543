"""The RaftKV node: a member of a strongly consistent key-value cluster that speaks the etcd v3 gRPC API."""

from importlib.metadata import version
from importlib.util import find_spec

__version__ = version("raftkv")


def compiled(module: str = "raftkv_node.server.node") -> bool:
    """Whether this installation has the modules of the turn compiled (`docs/architecture.md`), by one of them."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")
