"""The RaftKV playground: a local Kubernetes API, its controllers and process kubelets, in one process tree."""
