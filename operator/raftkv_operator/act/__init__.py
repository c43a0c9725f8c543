"""Executors: the Kubernetes API over HTTP, the members over gRPC, and the step from an action to its one call."""
