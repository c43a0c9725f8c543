"""The public surface of the operator: the custom resource's types and every name that others may rely on."""
