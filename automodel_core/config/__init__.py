"""From YAML text and overrides to checked sections, without importing torch."""
