"""Presets: named compositions of a scorer and a selector. One file each; pyproject.toml lists them as entry points."""
