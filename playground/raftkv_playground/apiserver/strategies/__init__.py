"""The rules of the built-in kinds, as far as they differ from plain storage."""
