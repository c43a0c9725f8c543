"""Custom resources: structural schemas, defaults, validation rules, and the definitions themselves."""
