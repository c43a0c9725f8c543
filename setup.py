"""What pyproject.toml cannot say: the modules that mypyc compiles (docs/architecture.md, "Compiled modules").

A wheel has them compiled; `pip install --editable` has none, so that what is edited is what runs. Without a C compiler:
RAFTKV_INTERPRETED=1.
"""

import os
import sys

from setuptools import setup

NODE = "node/raftkv_node"
# What the thread that takes turns does. What other threads run is not here, on purpose: compiled code keeps the
# interpreter from all others until it waits or comes back to interpreted code. Nor is the log: what is proven about
# every state of a crash is proven of what Python executes.
COMPILED = {
    "raft": "__init__ configuration core elections errors invariants log membership messages progress quorum raft "
    "reading reads ready replication snapshots types",
    "store": "ahead chunk commands encoding index intervals mvcc store txn validate watch",
    "server": "ahead answers applier changes gate introductions kv member metrics moves node peers preference reads "
    "replica watches writes",
    "api": "kv methods",
}
BUILDS = {"bdist_wheel", "build", "build_ext"}


def extensions() -> list:
    """The compiled modules where a wheel is built."""
    if not BUILDS.intersection(sys.argv) or os.environ.get("RAFTKV_INTERPRETED", "0") != "0":
        return []
    from mypyc.build import mypycify

    files = [f"{NODE}/{package}/{module}.py" for package, modules in COMPILED.items() for module in modules.split()]
    return mypycify(
        ["--config-file", "pyproject.toml", *files],
        opt_level="2",
        debug_level="0",
        multi_file=True,
        group_name="raftkv",
    )


setup(ext_modules=extensions())
