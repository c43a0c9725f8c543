"""Builders: from a spec and an identity to plain Kubernetes objects. Pure; nothing here talks to anyone."""
