"""``raftkv bench``: loads on any server of etcd's v3 API, with latencies that can be trusted.

The clients run in the native engine (``_engine.Load``), which knows templates and field numbers but no etcd. What
etcd's messages look like is known here: :mod:`templates` turns protobuf messages into templates, :mod:`loads` says what
each load sends, :mod:`target` finds the server, :mod:`running` runs and watches, :mod:`report` tells.
"""
