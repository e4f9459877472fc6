"""Reference fidelity: how closely compressed caches follow what a model says with its full cache (cask.md §2)."""
