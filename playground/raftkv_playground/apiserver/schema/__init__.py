"""What values look like: the shapes of built-in kinds and of custom resources, and walks over them."""
