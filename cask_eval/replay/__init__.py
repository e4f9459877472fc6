"""Reference fidelity: how closely compressed caches follow what a model says with its full cache (docs/DEFINITIONS.md
§8)."""
