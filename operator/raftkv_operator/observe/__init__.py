"""What the operator sees: Kubernetes objects and the members' own words, as one typed picture of a cluster."""
