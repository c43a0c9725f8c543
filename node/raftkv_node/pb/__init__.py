"""Protocol code generated from the ``.proto`` files in this folder (``make protocol``): etcd's v3 API and RaftKV's own.

The field numbers, names and services of ``kv``, ``auth`` and ``rpc`` are etcd's wire contract; ``admin`` is RaftKV's.
"""
