"""The RaftKV operator: reconciles ``RaftKVCluster`` objects into StatefulSets of nodes."""
