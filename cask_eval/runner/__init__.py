"""The bench's study side: gather the facts a registration locks, tune on dev, confirm once on held-out."""
